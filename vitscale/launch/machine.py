"""What this machine offers to worker processes, found without importing jax.

`slots()` lists one place per GPU, or per core where there is none, each with
the environment a worker needs before it imports jax.
"""

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from vitscale.core.errors import UserError

WORKER_BYTES = 2**30  # memory one CPU worker may need: caps their number


@dataclasses.dataclass(frozen=True)
class Slot:
  """A place for one worker: environment additions and a core to stay on."""

  index: int
  env: dict[str, str]
  core: int | None = None


def slots(workers: int | None = None) -> list[Slot]:
  """Places for worker processes.

  Args:
    workers: how many; default one per GPU (one in all on TPU, whose chips
      belong to one process), else one per core that memory allows.

  Raises:
    UserError: workers < 1.
  """
  if workers is not None and workers < 1:
    raise UserError(f"workers={workers}: at least one is needed")
  shared = {**cache_env(), **platform_env()}
  ids = gpus()
  if ids:
    n = workers or len(ids)
    each = -(-n // len(ids))  # workers on the fullest GPU
    if each > 1:
      shared["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / each:.3f}"
    return [
      Slot(i, {**shared, "CUDA_VISIBLE_DEVICES": ids[i % len(ids)]})
      for i in range(n)
    ]
  if has_tpu():
    return [Slot(i, shared) for i in range(workers or 1)]
  allowed = cores()
  n = workers or max(min(len(allowed), quota(), memory() // WORKER_BYTES), 1)
  # Pinned only when this study takes all cores: two small studies must not
  # meet on the first one.
  pins = allowed if n == len(allowed) else [None] * n
  if not hasattr(os, "sched_setaffinity"):
    pins = [None] * n
  return [Slot(i, {**shared, **one_thread()}, pins[i]) for i in range(n)]


def one_thread() -> dict[str, str]:
  """Environment that keeps XLA and BLAS to one thread.

  XLA has no flag for its intra-op pool (`intra_op_parallelism_threads` is an
  unknown flag in jax 0.10); it sizes the pool by NPROC.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_cpu_multi_thread_eigen" not in flags:
    flags = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
  return {
    "XLA_FLAGS": flags,
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
  }


def platform_env(*, accelerator: bool = True) -> dict[str, str]:
  """Environment of jax's choice of a platform, unless set already.

  libtpu is installed for `vitscale plan` too; on a machine without chips it
  complains of each start and takes its time, so it isn't looked for.

  Args:
    accelerator: False for work that should leave them to others.
  """
  if "JAX_PLATFORMS" in os.environ:
    return {}
  if not accelerator:
    return {"JAX_PLATFORMS": "cpu"}
  absent = importlib.util.find_spec("libtpu") and not has_tpu()
  if "JAX_PLATFORM_NAME" in os.environ or not absent:
    return {}
  return {"JAX_PLATFORMS": "cuda,cpu" if gpus() else "cpu"}


def cache_env() -> dict[str, str]:
  """Environment of jax's persistent compilation cache, unless set already.

  The folder is per CPU model: XLA's machine code for another one may crash,
  and home directories are shared between machines.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return {}
  home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  folder = Path(home) / "vitscale" / f"jax-{_cpu_model()}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return {}  # a cache is a convenience
  return {
    "JAX_COMPILATION_CACHE_DIR": str(folder),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
  }


def gpus() -> list[str]:
  """Ids of the NVIDIA GPUs jax would use, [] when it would use none."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
    return []
  plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
  if not any(importlib.util.find_spec(name) for name in plugins):
    return []
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [
      x.strip() for x in visible.split(",") if x.strip() not in ("", "-1")
    ]
  if not shutil.which("nvidia-smi"):
    return []
  try:
    listed = subprocess.run(
      ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
      capture_output=True,
      text=True,
      timeout=30,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return []
  return listed.stdout.split()


def has_tpu() -> bool:
  """Whether jax would find TPU chips here."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms and "tpu" not in platforms.split(","):
    return False
  chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def cores() -> list[int]:
  """Cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def quota() -> int:
  """CPUs a container may use at once (cgroup v2), rounded up."""
  try:
    limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    return max(-(-int(limit) // int(period)), 1)
  except (OSError, ValueError):
    return os.cpu_count() or 1


def memory() -> int:
  """Bytes available now; a large number where that can't be read."""
  free = [2**60]
  try:
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    free.append(int(fields["MemAvailable"].split()[0]) * 1024)
  except (OSError, KeyError, ValueError):
    pass
  try:
    group = Path("/sys/fs/cgroup")
    limit = int((group / "memory.max").read_text())  # "max": ValueError
    free.append(limit - int((group / "memory.current").read_text()))
  except (OSError, ValueError):
    pass
  return min(free)


def _cpu_model() -> str:
  """Short hash of the instruction sets of this CPU."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = [x for x in lines if x.startswith(("flags", "Features"))][:1]
  except OSError:
    flags = []
  text = "".join(flags) or os.uname().machine
  return hashlib.sha256(text.encode()).hexdigest()[:8]
