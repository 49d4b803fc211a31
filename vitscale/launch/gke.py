"""TPUs of a GKE cluster, by xpk: one workload a run.

The cluster, its queue and the storage (`xpk storage attach`) are there before.
xpk restarts a workload whose process ended with 42 or 127 to 255, and with
codes it is told: 75 is added. The image has vitscale and jax[tpu] in it.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from vitscale.core.errors import UserError
from vitscale.launch.job import AGAIN, Job, check_shared, hosts

SERVES = ("tpu",)
TAKES = ("project", "zone", "cluster", "image", "storage", "priority")
NEEDS = ("project", "zone", "cluster", "image", "storage", "topology")
PROGRAM = "xpk"
INSTALL = "xpk: pip install xpk"

GRACE = 120  # seconds a run has to save itself


def check(job: Job) -> None:
  """Raises UserError for what xpk doesn't take."""
  if job.mount is not None:
    raise UserError(
      "gke mounts what `xpk storage attach` names: give --storage NAME"
      " instead of --mount"
    )
  levels = ("very-low", "low", "medium", "high", "very-high")
  if job.options.get("priority") not in (None, *levels):
    raise UserError(
      f"--priority {job.options['priority']!r} (one of: {', '.join(levels)})"
    )
  check_shared(job.workdir)


def render(jobs: Sequence[Job]) -> dict[str, str]:
  """The environment of each job; the rest is on xpk's command line."""
  return {f"{job.name}.env": _env(job) for job in jobs}


def commands(jobs: Sequence[Job], folder: Path) -> list[list[str]]:
  return [_create(job, folder) for job in jobs]


def undo(jobs: Sequence[Job]) -> list[list[str]]:
  return [
    ["xpk", "workload", "delete", f"--workload={job.name}", *_place(job)]
    + ["--force"]
    for job in jobs
  ]


def _env(job: Job) -> str:
  env = {"PYTHONUNBUFFERED": "1", **job.env}
  return "".join(f"{key}={value}\n" for key, value in env.items())


def _create(job: Job, folder: Path) -> list[str]:
  several = hosts(job.topology, largest=4) > 1
  train = job.train("vitscale", *(("--dist", "auto") if several else ()))
  argv = ["xpk", "workload", "create", f"--workload={job.name}", *_place(job)]
  argv += [
    f"--tpu-type={tpu_type(job)}",
    f"--num-slices={job.topology.slices}",
    f"--docker-image={job.options['image']}",
    f"--storage={job.options['storage']}",
    f"--env-file={folder / job.name}.env",
    f"--restart-on-exit-codes={AGAIN}",
    f"--max-restarts={job.restarts}",
    f"--termination-grace-period-seconds={GRACE}",
    # The container's shell gives way to the run, which then gets SIGTERM.
    f"--command=exec {shlex.join(train)}",
  ]
  if job.options.get("priority"):
    argv.append(f"--priority={job.options['priority']}")
  return argv + (["--spot"] if job.spot else [])


def tpu_type(job: Job) -> str:
  """`v5litepod-16x16`, `tpu7x-4x4x4`: xpk's name of any shape."""
  chip = "v5litepod" if job.topology.chip == "v5e" else job.topology.chip
  return f"{chip}-{'x'.join(map(str, job.topology.shape))}"


def _place(job: Job) -> list[str]:
  keys = ("cluster", "project", "zone")
  return [f"--{key}={job.options[key]}" for key in keys]
