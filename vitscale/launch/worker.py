"""One worker process of the local launcher: imports jax once, runs many jobs.

Started as `python -m vitscale.launch.worker FD TRAIN`; pickled messages
travel over the socket FD. In come jobs, out go tuples `(kind, payload)`:
`ready`, `step` (a progress dict), `end` (a result), `broken` (TRAIN can't be
imported). The environment (cores, XLA flags) is the parent's business and is
complete before this process starts.
"""

import faulthandler
import gc
import importlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

REPORT_EVERY = 0.2  # seconds between progress messages
RAN_OUT = ("RESOURCE_EXHAUSTED", "MemoryError")


class Stopper:
  """Turns SIGTERM into SystemExit, but only where that is safe.

  A signal that arrives while a message is being written waits until it is
  out. While a run is under way the training loop's own handler rules.
  """

  def __init__(self):
    self.asked = False
    self._open = False

  def install(self) -> None:
    signal.signal(signal.SIGTERM, self._handle)

  def _handle(self, *_: Any) -> None:
    self.asked = True
    if self._open:
      raise SystemExit("interrupted")

  def __enter__(self) -> "Stopper":
    self.install()
    self._open = True
    if self.asked:
      self._open = False
      raise SystemExit("interrupted")
    return self

  def __exit__(self, *_: Any) -> None:
    self._open = False


class Worker:
  """Takes jobs from the connection until it closes."""

  def __init__(self, connection: Connection, *, grace: float):
    self.connection = connection
    self.grace = grace
    self.stopper = Stopper()
    self.jobs: queue.Queue[dict[str, Any] | None] = queue.Queue()
    self.sending = threading.Lock()

  def listen(self) -> None:
    """Thread: receives jobs; when the parent is gone, so is this process."""
    while True:
      try:
        self.jobs.put(self.connection.recv())
      except (EOFError, OSError):
        break
    # An idle worker leaves (a signal could come just before it goes to sleep
    # in `get`, and wake nobody), a running train saves itself on SIGTERM.
    self.stopper.asked = True
    self.jobs.put(None)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
    time.sleep(self.grace)
    os._exit(1)

  def send(self, kind: str, payload: Any) -> None:
    with self.sending:
      was_open, self.stopper._open = self.stopper._open, False
      try:
        self.connection.send((kind, payload))
      except (OSError, ValueError):
        pass  # the parent is gone; `listen` ends this process
      finally:
        self.stopper._open = was_open

  def run(self, train_path: str) -> None:
    threading.Thread(target=self.listen, daemon=True).start()
    try:
      with self.stopper:
        train = resolve(train_path)
    except Exception as error:
      traceback.print_exc()
      self.send("broken", last_line(error))
      return
    self.send("ready", os.getpid())
    while True:
      with self.stopper:
        job = self.jobs.get()
      if job is None:
        return
      redirect(job.get("log"))
      result = self.one(train, job)
      # After an out-of-memory the process is not to be trusted.
      out = any(word in (result.get("error") or "") for word in RAN_OUT)
      leaving = out or result["status"] == "interrupted"
      self.send("end", {**result, "leaving": leaving})
      if leaving:
        return
      gc.collect()

  def one(self, train: Callable, job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job; whatever it raises becomes a result."""
    start = time.monotonic()
    last = 0.0

    def report(progress: dict[str, Any]) -> None:
      nonlocal last
      if time.monotonic() - last > REPORT_EVERY:
        last = time.monotonic()
        self.send("step", dict(progress))

    try:
      with self.stopper:
        result = train(job["config"], Path(job["workdir"]), report=report)
      result = {"status": "finished", **result}
    except (KeyboardInterrupt, SystemExit):
      result = {"status": "interrupted"}
    except Exception as error:
      traceback.print_exc()
      result = {"status": "failed", "error": last_line(error)}
    self.stopper.install()  # train may have left a handler of its own
    return {
      "name": job["name"],
      "workdir": str(job["workdir"]),
      "seconds": round(time.monotonic() - start, 3),
      **result,
    }


def resolve(path: str) -> Callable:
  """The function of `package.module:function` or `file.py:function`."""
  module, _, name = path.rpartition(":")
  if module.endswith(".py"):
    from vitscale.core.config import load_module

    return getattr(load_module(Path(module)), name)
  return getattr(importlib.import_module(module), name)


def last_line(error: BaseException) -> str:
  """`ValueError: what it said`, one line; the bare text of a UserError."""
  from vitscale.core.errors import UserError

  if isinstance(error, UserError):
    return " ".join(str(error).split())
  lines = traceback.format_exception_only(error)[-1].strip().splitlines()
  return lines[0][:500]


def redirect(log: str | None) -> None:
  """Sends stdout and stderr, C libraries included, to the end of `log`."""
  sys.stdout.flush()
  sys.stderr.flush()
  if log is None:
    os.dup2(2, 1)  # stdout belongs to the parent's one JSON object
    return
  Path(log).parent.mkdir(parents=True, exist_ok=True)
  fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  os.dup2(fd, 1)
  os.dup2(fd, 2)
  os.close(fd)


def main(argv: list[str]) -> int:
  fd, train_path, grace, core = argv
  os.set_inheritable(int(fd), False)  # loader processes must not hold it
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
  faulthandler.enable()
  os.dup2(2, 1)
  if core:
    os.sched_setaffinity(0, {int(core)})
  worker = Worker(Connection(int(fd)), grace=float(grace))
  code = 0
  try:
    worker.run(train_path)
  except SystemExit:
    code = 143
  sys.stdout.flush()
  sys.stderr.flush()
  # No interpreter teardown: loader and checkpoint threads may hang in it.
  os._exit(code)


if __name__ == "__main__":
  main(sys.argv[1:])
