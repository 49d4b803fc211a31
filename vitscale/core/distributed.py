"""Several processes, one program: a thin layer over `jax.distributed`."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitscale.core.errors import UserError, nearest

MODES: dict[str, str] = {
  "none": "one process",
  "auto": "let jax detect the cluster (TPU pod, GKE, Slurm, MPI)",
  "slurm": "Slurm, refusing a half-set environment",
  "explicit": "coordinator, num_processes and process_id are given",
}

# jax reads these; over ssh or in `salloc` shells only some of them are set,
# and every process would then believe to be the only one.
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)


def initialize(
  dist: str = "none",
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout_seconds: int = 300,
  heartbeat_seconds: int = 100,
  environ: Mapping[str, str] = os.environ,
) -> None:
  """Joins the processes of a run; call it before anything touches a device.

  Args:
    dist: one of `MODES`.
    coordinator: `host:port` of process 0 (explicit only).
    num_processes: how many processes there are (explicit only).
    process_id: which of them this is (explicit only).
    timeout_seconds: how long to wait for the others at the start.
    heartbeat_seconds: silence after which a process counts as dead.
    environ: environment to check.

  Raises:
    UserError: unknown mode, missing or superfluous values, no cluster found.
  """
  if dist not in MODES:
    raise UserError(f"dist = {dist!r}{nearest(dist, MODES)}")
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  if dist == "explicit":
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise UserError(f"dist='explicit' needs {', '.join(missing)}")
    if not 0 <= process_id < num_processes:
      raise UserError(
        f"process_id {process_id} is not in 0..{num_processes - 1}"
      )
  elif any(value is not None for value in given.values()):
    extra = [name for name, value in given.items() if value is not None]
    raise UserError(f"dist={dist!r} does not take {', '.join(extra)}")
  if dist == "none" or jax.distributed.is_initialized():
    return
  options = {
    "initialization_timeout": timeout_seconds,
    "heartbeat_timeout_seconds": heartbeat_seconds,
  }
  if dist == "explicit":
    jax.distributed.initialize(
      coordinator, num_processes, process_id, **options
    )
    return
  if dist == "slurm":
    absent = [name for name in _SLURM if name not in environ]
    if absent:
      raise UserError(
        f"dist='slurm': {', '.join(absent)} not set; start with srun"
      )
    options["cluster_detection_method"] = "slurm"
  try:
    jax.distributed.initialize(**options)
  except ValueError as error:
    raise UserError(
      f"dist={dist!r}: no cluster detected ({str(error).splitlines()[0]});"
      " use dist='none' for one process or 'explicit'"
    ) from None


def process_index() -> int:
  return jax.process_index()


def process_count() -> int:
  return jax.process_count()


def is_main() -> bool:
  """Whether this process writes files and prints."""
  return jax.process_index() == 0


# ----------------------------------------------------------------- agreement
#
# Each of these is a common act of all processes, and free for a single one.


def any_of(flag: bool) -> bool:
  """Whether `flag` is true on any process."""
  if process_count() == 1:
    return bool(flag)
  return bool(multihost_utils.process_allgather(np.int32(flag)).max())


def every(flag: bool) -> bool:
  """Whether `flag` is true on every process."""
  return not any_of(not flag)


def barrier(name: str) -> None:
  """Waits until every process has come here."""
  if process_count() > 1:
    multihost_utils.sync_global_devices(name)


def from_main(function: Callable[..., Any], *args: Any) -> Any:
  """What `function(*args)` returns on process 0, on every process.

  Args:
    function: called on process 0 only; returns JSON or raises UserError,
      which then every process raises.
    *args: passed to it.
  """
  if process_count() == 1:
    return function(*args)
  error, text = None, b""
  if is_main():
    try:
      text = json.dumps([True, function(*args)]).encode()
    except UserError as raised:
      error, text = raised, json.dumps([False, str(raised)]).encode()
  share = multihost_utils.broadcast_one_to_all
  size = int(share(np.int32(len(text))))
  padded = np.zeros(-(-size // 4096) * 4096, np.uint8)  # few programs compile
  padded[: len(text)] = np.frombuffer(text, np.uint8)
  good, value = json.loads(bytes(np.asarray(share(padded)))[:size])
  if error is not None:
    raise error
  if not good:
    raise UserError(value)
  return value
