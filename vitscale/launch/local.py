"""The local launcher: many runs on the cores or GPUs of this machine.

    results = run_all(jobs)            # {name: result}, blocks

Worker processes are persistent: each imports jax once, keeps its compiled
steps, and takes job after job. On CPU there is one single-threaded worker per
core (two one-thread workers beat one two-thread process by 1.5x on 2 cores),
on GPU one worker per GPU; this process itself never initialises jax.

A job is a dict: `name`, `config`, `workdir`, and optionally `cost` (any unit,
longest first), `group` (jobs of equal shapes, kept on warm workers) and `log`
(file for the run's output). A result is what `train` returned, or
`{"status": "failed", "error": one line}`, always with name and workdir.
One run's failure never ends the others, not even a killed process.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from vitscale.launch import machine

Job = dict[str, Any]
Result = dict[str, Any]
Progress = Callable[[str, dict[str, Any]], None]

TRAIN = "vitscale.train:train"
TICK = 0.2  # seconds between looks at signals and dead processes
STARTS = 2  # a slot whose worker can't even start this often is given up


class Interrupted(Exception):
  """SIGINT, SIGTERM or SIGHUP came; unfinished runs are left resumable."""

  def __init__(self, results: dict[str, Result], signum: int):
    super().__init__("interrupted")
    self.results = results
    self.signum = signum


@dataclasses.dataclass
class _Worker:
  """One process and what it is busy with."""

  slot: machine.Slot
  process: subprocess.Popen
  connection: Connection
  ready: bool = False
  job: Job | None = None
  # train keeps its last few compiled benches: what is warm here
  groups: collections.deque = dataclasses.field(
    default_factory=lambda: collections.deque(maxlen=4)
  )
  error: str | None = None  # why it could not start


def run_all(
  jobs: Iterable[Job],
  *,
  workers: int | None = None,
  train: str = TRAIN,
  progress: Progress | None = None,
) -> dict[str, Result]:
  """Runs all jobs and returns their results by name.

  Args:
    jobs: see the module.
    workers: processes; default one per core or GPU.
    train: `package.module:function` or `file.py:function` with the signature
      of `vitscale.train.train`.
    progress: called with (kind, payload): "start" {name}, "step" {name,
      step, total_steps, ...}, "end" result.

  Raises:
    Interrupted: a signal came; carries the results so far.
    UserError: workers < 1.
  """
  with Pool(workers, train=train) as pool:
    return pool.run(jobs, progress=progress)


class Pool:
  """Workers that outlive one batch of jobs; use as a context manager."""

  def __init__(
    self,
    workers: int | None = None,
    *,
    train: str = TRAIN,
    grace: float = 60.0,
    log: Path | None = None,
  ):
    """Nothing starts before the first job.

    Args:
      workers: processes; default one per core or GPU.
      train: import path of the function that runs a job.
      grace: seconds a run has to save itself when it is interrupted.
      log: where workers write outside of jobs; default this stderr.
    """
    self.slots = machine.slots(workers)
    self.train = train
    self.grace = grace
    self.log = log
    self.workers: list[_Worker] = []
    self._starts = dict.fromkeys(range(len(self.slots)), 0)
    self._last_error = ""
    self._signum: int | None = None
    self._signals = 0

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def run(
    self, jobs: Iterable[Job], *, progress: Progress | None = None
  ) -> dict[str, Result]:
    """Runs a batch; see `run_all`."""
    pending = sorted(jobs, key=lambda job: -job.get("cost", 1.0))
    tell = progress or (lambda kind, payload: None)
    results: dict[str, Result] = {}
    with Signals(self._on_signal):
      while pending or any(w.job for w in self.workers):
        if self._signum is not None:
          self._stop(results, tell)
          raise Interrupted(results, self._signum)
        self._fill(len(pending))
        if not self.workers:
          for job in pending:
            self._end(job, self._no_worker(), results, tell)
          break
        for worker in self.workers:
          if worker.ready and worker.job is None and pending:
            job = _choose(pending, worker, self.workers)
            if self._give(worker, job):
              pending.remove(job)
              tell("start", {"name": job["name"]})
        self._listen(results, tell)
    if self._signum is not None:
      raise Interrupted(results, self._signum)
    return results

  def close(self) -> None:
    """Ends all workers, by force where they do not leave by themselves."""
    for worker in self.workers:
      worker.connection.close()  # an idle worker takes this as goodbye
    busy = any(worker.job for worker in self.workers)
    deadline = time.monotonic() + (self.grace if busy else 5.0)
    for worker in self.workers:
      try:
        worker.process.wait(max(deadline - time.monotonic(), 0.1))
      except subprocess.TimeoutExpired:
        _kill(worker)
    self.workers = []

  # --------------------------------------------------------------- inside

  def _on_signal(self, signum: int, _: Any) -> None:
    self._signum = signum
    self._signals += 1

  def _fill(self, pending: int) -> None:
    """Starts workers on free slots, no more than there are jobs."""
    used = [w.slot.index for w in self.workers]
    wanted = pending - sum(w.job is None for w in self.workers)
    for slot in self.slots:
      if wanted <= 0:
        return
      if slot.index not in used and self._starts[slot.index] < STARTS:
        self._starts[slot.index] += 1
        self.workers.append(self._start(slot))
        wanted -= 1

  def _start(self, slot: machine.Slot) -> _Worker:
    """Starts one worker process with its environment complete."""
    ours, theirs = multiprocessing.Pipe()
    fd = theirs.fileno()
    core = "" if slot.core is None else str(slot.core)
    # The child sees what this process sees, in the same order (-P: and not
    # whatever lies in the working directory).
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with open(self.log or os.devnull, "ab") as log:
      process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vitscale.launch.worker"]
        + [str(fd), self.train, str(self.grace), core],
        env={**os.environ, **slot.env, "PYTHONPATH": path},
        pass_fds=(fd,),
        stdin=subprocess.DEVNULL,
        stderr=log if self.log else None,
        start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
      )
    theirs.close()
    return _Worker(slot, process, ours)

  def _give(self, worker: _Worker, job: Job) -> bool:
    """Hands a job over; False when the worker is gone (seen later)."""
    try:
      worker.connection.send(job)
    except OSError:
      worker.ready = False
      return False
    worker.job = job
    if job.get("group") not in worker.groups:
      worker.groups.append(job.get("group"))
    return True

  def _listen(self, results: dict[str, Result], tell: Progress) -> None:
    """Takes what the workers say, and notices those that died."""
    heard = wait([w.connection for w in self.workers], timeout=TICK)
    for worker in list(self.workers):
      gone = worker.process.poll() is not None
      if worker.connection in heard or gone:
        gone = not self._hear(worker, results, tell) or gone
      if gone:
        self._bury(worker, results, tell)

  def _hear(
    self, worker: _Worker, results: dict[str, Result], tell: Progress
  ) -> bool:
    """Drains a connection; False when its other end is closed."""
    try:
      while worker.connection.poll():
        kind, payload = worker.connection.recv()
        if kind == "ready":
          worker.ready = True
          self._starts[worker.slot.index] = 0
        elif kind == "broken":
          worker.error = payload
        elif kind == "step" and worker.job:
          tell("step", {"name": worker.job["name"], **payload})
        elif kind == "end" and worker.job:
          job, worker.job = worker.job, None
          worker.ready = not payload.pop("leaving", False)
          self._end(job, payload, results, tell)
    except (EOFError, OSError):
      return False
    return True

  def _end(
    self, job: Job, result: Result, results: dict[str, Result], tell: Progress
  ) -> None:
    result = {"name": job["name"], "workdir": str(job["workdir"]), **result}
    if result["status"] == "failed" and job.get("log"):
      result.setdefault("log", str(job["log"]))
    results[job["name"]] = result
    tell("end", result)

  def _bury(
    self, worker: _Worker, results: dict[str, Result], tell: Progress
  ) -> None:
    """Removes a dead worker; the run it held has failed."""
    self.workers.remove(worker)
    with contextlib.suppress(subprocess.TimeoutExpired):
      worker.process.wait(1.0)
    _kill(worker)  # its loader processes too, should some be left
    worker.connection.close()
    code = worker.process.returncode
    error = worker.error or _death(code)
    if worker.job:
      stopped = self._signum is not None and code == -signal.SIGTERM
      status = "interrupted" if stopped else "failed"
      self._end(worker.job, {"status": status, "error": error}, results, tell)
    elif not worker.ready:
      self._last_error = error

  def _no_worker(self) -> Result:
    error = f"no worker could start: {self._last_error}"
    return {"status": "failed", "error": error}

  def _stop(self, results: dict[str, Result], tell: Progress) -> None:
    """Lets running jobs save themselves; a second signal cuts that short."""
    for worker in self.workers:
      if worker.process.poll() is None:
        worker.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + self.grace
    while any(w.job for w in self.workers):
      if time.monotonic() > deadline or self._signals > 1:
        for worker in self.workers:
          if worker.job:
            _kill(worker)
            error = {"status": "interrupted", "error": "did not stop in time"}
            self._end(worker.job, error, results, tell)
            worker.job = None
        return
      self._listen(results, tell)


def _choose(pending: list[Job], worker: _Worker, all_: list[_Worker]) -> Job:
  """The longest job, unless a shorter one spares a compilation.

  A step compiled by this worker makes a job count full; one that nobody has
  compiled yet, and more so one that is warm elsewhere, counts less.
  """
  elsewhere = {g for w in all_ if w is not worker for g in w.groups}

  def worth(job: Job) -> float:
    group = job.get("group")
    warm = group is None or group in worker.groups
    share = 1.0 if warm else 0.65 if group in elsewhere else 0.8
    return job.get("cost", 1.0) * share

  return max(pending, key=worth)


def _kill(worker: _Worker) -> None:
  """Kills a worker and the processes it started."""
  try:
    os.killpg(worker.process.pid, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):
    worker.process.kill()
  worker.process.wait()


def _death(code: int | None) -> str:
  if code is not None and code < 0:
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"killed by signal {-code}{hint}"
  return f"worker exited with code {code}"


class Signals:
  """Sends SIGINT, SIGTERM and SIGHUP to a handler while inside."""

  def __init__(self, handler: Callable[[int, Any], None]):
    self.handler = handler
    self.before: dict[int, Any] = {}

  def __enter__(self) -> None:
    if threading.current_thread() is not threading.main_thread():
      return  # only the main thread may; the others see no signals either
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      before = signal.getsignal(signum)
      if before is not signal.SIG_IGN:  # nohup stays nohup
        self.before[signum] = signal.signal(signum, self.handler)

  def __exit__(self, *_: Any) -> None:
    for signum, before in self.before.items():
      signal.signal(signum, before)
