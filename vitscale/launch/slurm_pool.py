"""Slurm as a place for a study's runs: a pool of submitit jobs that waits.

    vitscale study ladder --launcher slurm:partition=gpu,gpus=1 --out DIR

The interface is that of `launch.local.Pool`. Each run is a Slurm job in which
submitit starts a `Train`, and that starts `vitscale train` as a process of its
own. Who does what when a job has to make room:

  SIGUSR2 (soon the time is over, or submitit says so): passed on; the run saves
    itself and ends with 75; then submitit gets the signal it was waiting for,
    and requeues the job.
  SIGTERM (cancelled, or preempted by Slurm, which requeues by itself): passed
    on; the run saves itself, and nobody requeues.
  75 without a signal (the watchdog), or death by one: requeued as well, the
    latter at most `RESTARTS` times.

`cluster=local` runs the jobs on this machine, through submitit all the same.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows, write_json
from vitscale.launch import machine
from vitscale.launch.job import AGAIN, check_shared, slug
from vitscale.launch.local import TRAIN as TRAIN
from vitscale.launch.local import Interrupted, Job, Progress, Result, Signals

TICK = 1.0  # seconds between looks at the jobs
NOTICE = 120  # seconds between SIGUSR2 and the end of a job
RESTARTS = 3  # after crashes; after 75 there is no limit
TIMEOUTS = 10**6  # submitit's own limit, which counts ends of time


class Train:
  """What a task of a job runs; see the module. Pickled by submitit."""

  def __init__(
    self, argv: list[str], *, log: str | None, env: Mapping[str, str]
  ):
    """argv: the run; log: file for its output; env: added to the job's."""
    self.argv, self.log, self.env = argv, log, dict(env)
    self.restarts = RESTARTS

  def __call__(self) -> int:
    """Runs to the end and returns its exit code; does not return from 75."""
    caught: list[int] = []
    child: list[subprocess.Popen] = []

    def pass_on(signum: int, _: Any) -> None:
      caught.append(signum)
      for process in child:
        process.send_signal(signum)

    requeue = signal.signal(signal.SIGUSR2, pass_on)  # submitit's
    signal.signal(signal.SIGTERM, pass_on)
    with contextlib.ExitStack() as stack:
      out = None
      if self.log:
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        out = stack.enter_context(open(self.log, "ab"))
      env = {**os.environ, **self.env}
      child.append(subprocess.Popen(self.argv, stdout=out, stderr=out, env=env))
      if caught:  # before there was a child
        child[0].send_signal(caught[-1])
      code = child[0].wait()
    if signal.SIGTERM in caught:
      sys.exit(AGAIN)  # without a result: Slurm knows what comes next
    crashed = code < 0 and not caught
    if code == AGAIN or (code < 0 and (caught or self.restarts > 0)):
      self.restarts -= crashed
      signal.signal(signal.SIGUSR2, requeue)
      signal.raise_signal(signal.SIGUSR2)
      time.sleep(NOTICE)  # process 0 requeues; this one ends with the job
      sys.exit(AGAIN)
    return code

  def checkpoint(self) -> Any:
    """What submitit puts into the queue: the same again."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(self)


def options(text: str) -> config_lib.ConfigDict:
  """The `partition=gpu,gpus=1` behind `slurm:`.

  Raises:
    UserError: unknown name, wrong type.
  """
  return config_lib.parse_arg(
    text, partition="", account="", qos="", hours=24.0, gpus=0, cpus=4,
    memory=0.0, cluster="slurm",
  )  # fmt: skip


class Pool:
  """At most so many jobs in the queue at once; use as a context manager."""

  def __init__(
    self,
    workers: int | None = None,
    *,
    train: str = TRAIN,
    grace: float = 60.0,
    log: Path | None = None,
    args: str = "",
  ):
    """Nothing is submitted before the first job.

    Args:
      workers: jobs at once; default 64, or `machine.slots` of this machine.
      train: only `TRAIN`: jobs run `vitscale train`.
      grace: seconds that jobs have to save themselves when this process is
        interrupted and cancels them.
      log: its folder is where submitit's files go, in slurm/.
      args: see `options`.

    Raises:
      UserError: no submitit, no Slurm, bad options.
    """
    if train != TRAIN:
      raise UserError(f"launcher slurm runs `vitscale train`, not {train}")
    if workers is not None and workers < 1:
      raise UserError(f"workers={workers}: at least one is needed")
    self.options = options(args)
    self.local = self.options.cluster == "local"
    if self.options.cluster not in ("slurm", "local"):
      raise UserError(
        f"cluster={self.options.cluster!r} (one of: slurm, local)"
      )
    here = machine.slots(workers) if self.local else range(workers or 64)
    self.slots, self.grace = list(here), grace
    self.folder = (
      (log or Path("logs/workers.log")).parent / "slurm"
    ).absolute()
    if not self.local:
      check_shared(str(self.folder))
    self.executor: Any = None
    self._signum: int | None = None
    if importlib.util.find_spec("submitit") is None:
      raise UserError(
        "launcher slurm needs the extra: pip install 'vitscale[slurm]'"
      )
    if not self.local and shutil.which("srun") is None:
      raise UserError(
        "no Slurm here (srun isn't found): run this on a login node, or give"
        " --launcher slurm:cluster=local"
      )

  def __enter__(self) -> "Pool":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    """Nothing is left running after `run`."""

  def run(
    self, jobs: Iterable[Job], *, progress: Progress | None = None
  ) -> dict[str, Result]:
    """Runs a batch to its end; jobs and results as those of `launch.local`.

    Raises:
      Interrupted: a signal came; the jobs were cancelled and saved themselves.
    """
    pending = sorted(jobs, key=lambda job: -job.get("cost", 1.0))
    tell = progress or (lambda kind, payload: None)
    running: dict[str, tuple[Job, Any]] = {}
    started: set[str] = set()
    results: dict[str, Result] = {}
    with Signals(self._on_signal):
      while (pending or running) and self._signum is None:
        free = len(self.slots) - len(running)
        new, pending = pending[:free], pending[free:]
        for job, handle in zip(new, self._submit(new)):
          running[job["name"]] = job, handle
        for name, (job, handle) in list(running.items()):
          _tell_of(job, started, tell)
          if handle.done():
            del running[name]
            results[name] = _result(job)
            tell("end", results[name])
        time.sleep(TICK if running else 0)
      if self._signum is not None:
        self._cancel(running)
        for name, (job, _) in running.items():
          results[name] = _result(job, "interrupted")
          tell("end", results[name])
        raise Interrupted(results, self._signum)
    return results

  # ----------------------------------------------------------------- inside

  def _on_signal(self, signum: int, _: Any) -> None:
    self._signum = signum

  def _executor(self) -> Any:
    import submitit

    chosen = self.options
    executor = submitit.AutoExecutor(
      self.folder / "%j", cluster=chosen.cluster, slurm_max_num_timeout=TIMEOUTS
    )
    tasks = max(chosen.gpus, 1)
    named = {
      f"slurm_{key}": chosen[key]
      for key in ("partition", "account", "qos")
      if chosen[key]
    }
    if chosen.memory:
      named["mem_gb"] = chosen.memory
    executor.update_parameters(
      name="vitscale", timeout_min=int(chosen.hours * 60), nodes=1,
      tasks_per_node=tasks, gpus_per_node=chosen.gpus,
      cpus_per_task=chosen.cpus, slurm_signal_delay_s=NOTICE,
      slurm_additional_parameters={"requeue": True}, **named,
    )  # fmt: skip
    return executor

  def _submit(self, jobs: list[Job]) -> list[Any]:
    """Submits as one array what can start at once."""
    if not jobs:
      return []
    configs = self.folder / "configs"
    configs.mkdir(parents=True, exist_ok=True)
    self.executor = self.executor or self._executor()
    # What this process sees, as in launch.local: a study's own modules too.
    env = {"PYTHONPATH": os.pathsep.join(x or os.getcwd() for x in sys.path)}
    if self.local and not self.options.gpus:
      env |= machine.one_thread()
    handles = []
    with self.executor.batch():
      for job in jobs:
        path = configs / f"{slug(job['name'])}.json"
        write_json(path, config_lib.to_dict(job["config"]))
        argv = [sys.executable, "-P", "-m", "vitscale.cli", "train", str(path)]
        argv += ["--workdir", str(job["workdir"])]
        log = str(job["log"]) if job.get("log") else None
        handles.append(self.executor.submit(Train(argv, log=log, env=env)))
    return handles

  def _cancel(self, running: Mapping[str, tuple[Job, Any]]) -> None:
    """Cancels all jobs and waits for their last saves."""
    for _, handle in running.values():
      with contextlib.suppress(OSError, subprocess.SubprocessError):
        _stop(handle)
    deadline = time.monotonic() + self.grace
    while time.monotonic() < deadline and any(
      _status(job) == "running" for job, _ in running.values()
    ):
      time.sleep(TICK)


def _stop(handle: Any) -> None:
  """SIGTERM to the run, whatever the cluster."""
  process = getattr(handle, "_process", None)
  if process is None:
    handle.cancel()
  else:  # submitit's local `cancel` kills after a second
    process.send_signal(signal.SIGTERM)


def _status(job: Job) -> str:
  run = _run_json(job)
  return run.get("status", "")


def _run_json(job: Job) -> dict[str, Any]:
  try:
    return read_json(Path(job["workdir"]) / "run.json") or {}
  except UserError:
    return {}


def _tell_of(job: Job, started: set[str], tell: Progress) -> None:
  """Progress of a run, read from its workdir."""
  run, name = _run_json(job), job["name"]
  if not run:
    return
  if name not in started:
    started.add(name)
    tell("start", {"name": name})
  rows = read_rows(Path(job["workdir"]) / "timing.jsonl")
  if rows:
    total = run.get("total_steps") or rows[-1]["step"]
    step = {"step": rows[-1]["step"], "total_steps": total, "row": rows[-1]}
    tell("step", {"name": name, **step})


def _result(job: Job, otherwise: str = "failed") -> Result:
  """How a run ended: run.json says it, unless it never came to that."""
  run = _run_json(job)
  result = {"name": job["name"], "workdir": str(job["workdir"])}
  if run.get("status") == "finished":
    keys = ("status", "step", "metrics", "seconds")
    return {**result, **{key: run.get(key) for key in keys}}
  result["status"] = "interrupted" if otherwise == "interrupted" else "failed"
  if result["status"] == "failed":
    error = run.get("error") or _complaint(job.get("log"))
    result["error"] = error or "its job ended without a result"
    if job.get("log"):
      result["log"] = str(job["log"])
  return result


def _complaint(log: Any) -> str:
  """The last `vitscale: ...` line of a log."""
  if not log or not os.path.exists(log):
    return ""
  lines = Path(log).read_text(errors="replace").splitlines()
  said = [line for line in lines if line.startswith("vitscale: ")]
  return said[-1].removeprefix("vitscale: ") if said else ""
