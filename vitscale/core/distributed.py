"""Several processes, one program: a thin layer over `jax.distributed`."""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vitscale.core.errors import UserError, nearest
from vitscale.launch import machine

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


def detect(environ: Mapping[str, str] = os.environ) -> str:
  """The mode that this process's surroundings ask for.

  "slurm" inside of `srun` with several tasks; "auto" where MPI, a Kubernetes
  JobSet or several TPU hosts are named, or Google Cloud's metadata say that
  this TPU VM is one of several; else "none". An allocation without `srun` (a
  shell of `salloc`, a batch script) counts as one process.
  """
  size = lambda name: environ.get(name, "1")
  if all(name in environ for name in _SLURM) and size("SLURM_NTASKS") != "1":
    return "slurm"
  several_tpu_hosts = "," in environ.get("TPU_WORKER_HOSTNAMES", "")
  if several_tpu_hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environ:
    return "auto"
  if "JOBSET_NAME" in environ or size("OMPI_COMM_WORLD_SIZE") != "1":
    return "auto"
  if machine.has_tpu() and _one_of_several_vms(environ):
    return "auto"
  return "none"


def _one_of_several_vms(environ: Mapping[str, str]) -> bool:
  """What the metadata server says of this TPU VM; False where there is none."""
  host = environ.get("GCE_METADATA_IP", "metadata.google.internal")  # as jax

  def attribute(name: str) -> str:
    request = urllib.request.Request(
      f"http://{host}/computeMetadata/v1/instance/attributes/{name}",
      headers={"Metadata-Flavor": "Google"},
    )
    try:
      with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read().decode()
    except OSError:
      return ""

  slices = re.search(
    r"^MEGASCALE_NUM_SLICES: '?(\d+)", attribute("tpu-env"), re.MULTILINE
  )
  many = slices is not None and int(slices[1]) > 1
  return many or "," in attribute("worker-network-endpoints")


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
    UserError: unknown mode, missing or superfluous values, no cluster found,
      a coordinator that can't be reached. Where the others don't come in time
      the process ends, with a line that says so and exit code 2.
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
    "initialization_timeout": timeout_seconds + 60,  # ours comes first
    "heartbeat_timeout_seconds": heartbeat_seconds,
  }
  if dist == "explicit":
    _check_address(coordinator, process_id, timeout_seconds)
    options |= given
    options["coordinator_address"] = options.pop("coordinator")
  if dist == "slurm":
    absent = [name for name in _SLURM if name not in environ]
    if absent:
      raise UserError(
        f"dist='slurm': {', '.join(absent)} not set; start with srun"
      )
    options["cluster_detection_method"] = "slurm"
  where = coordinator or "the coordinator that was detected"
  try:
    with _deadline(
      timeout_seconds,
      f"dist={dist!r}: the processes did not find each other at {where}"
      f" within {timeout_seconds} s: are all started, with the same address"
      " and count?",
    ):
      jax.distributed.initialize(**options)
  except ValueError as error:
    raise UserError(
      f"dist={dist!r}: no cluster detected ({str(error).splitlines()[0]});"
      " use dist='none' for one process or 'explicit'"
    ) from None


@contextlib.contextmanager
def _deadline(seconds: float, text: str) -> Iterator[None]:
  """Ends the process as bad input does, if the body takes longer.

  The runtime of JAX waits in C++ and then aborts: nothing to catch.
  """

  def end() -> None:
    print(f"vitscale: {text}", file=sys.stderr, flush=True)
    os._exit(2)

  timer = threading.Timer(seconds, end)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _check_address(address: str, process_id: int, timeout: int) -> None:
  """Refuses an address that can't be reached, or bound by process 0.

  The runtime of JAX ends the process without an exception where it can't.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(f"coordinator {address!r} is not HOST:PORT")
  try:
    if process_id == 0:
      with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", int(port)))
      return
    deadline = time.monotonic() + timeout
    while True:
      try:
        socket.create_connection((host, int(port)), 5).close()
        return
      except OSError:
        if time.monotonic() > deadline:
          raise
        time.sleep(0.2)
  except OSError as error:
    verb = "listen on" if process_id == 0 else "reach"
    raise UserError(
      f"process {process_id} can't {verb} the coordinator at {address}"
      f" ({error.strerror or error}; tried for {timeout} s)"
    ) from None


def found() -> str:
  """What `initialize` found: "process 1 of 2, 4 of 8 devices (cpu)"."""
  here, all_ = jax.local_device_count(), jax.device_count()
  return (
    f"process {jax.process_index()} of {jax.process_count()}, {here} of"
    f" {all_} devices ({jax.devices()[0].device_kind})"
  )


def process_index() -> int:
  return jax.process_index()


def process_count() -> int:
  return jax.process_count()


def is_main() -> bool:
  """Whether this process writes files and prints."""
  return jax.process_index() == 0


@contextlib.contextmanager
def end_with_lost_peers() -> Iterator[None]:
  """Where another process of the run is gone, one line and exit code 75.

  At once: an orderly exit would wait for the one that is gone.
  """
  try:
    yield
  except Exception as error:
    if process_count() == 1 or not _LOST.search(str(error)):
      raise
    reason = " ".join(str(error).split())[:200]
    print(
      f"vitscale: another process of this run is gone ({reason}): run the same"
      " command to go on",
      file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(75)


_LOST = re.compile(
  r"UNAVAILABLE|DEADLINE_EXCEEDED|heartbeat|coordination service|gloo"
  r"|connection (?:closed|reset|refused|timed out)|broken pipe",
  re.IGNORECASE,
)


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
