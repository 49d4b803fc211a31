"""Progress of many runs on stderr: one live line, or plain lines in a log.

A `Board` takes the launcher's events (`board(kind, payload)`) and keeps what
it needs to answer one question: how long will all of this take?
"""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from vitscale.core.progress import clock

BEAT = 60.0  # seconds between lines where there is no terminal


class Board:
  """Runs done of total, throughput and time left; a context manager."""

  def __init__(self, *, workers: int, stream: TextIO | None = None):
    self.workers = workers
    self.stream = stream or sys.stderr
    self.jobs: dict[str, Mapping[str, Any]] = {}
    self.ended: set[str] = set()
    self.running: dict[str, dict[str, Any]] = {}
    self._spent: dict[Any, list[float]] = {}  # group -> seconds per cost
    self._beat = time.monotonic()
    self._bar: Any = None
    self._task: Any = None

  def __enter__(self) -> "Board":
    if self.stream.isatty():
      from rich.console import Console
      from rich.progress import BarColumn, Progress, TextColumn

      # The line may hold brackets: no markup.
      self._bar = Progress(
        TextColumn("{task.fields[head]}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[tail]}", markup=False),
        console=Console(file=self.stream),
      )
      self._task = self._bar.add_task("", total=None, head="starting", tail="")
      self._bar.start()
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar:
      self._bar.update(self._task, tail="")
      self._bar.stop()
      self._bar = None

  def add(self, jobs: Iterable[Mapping[str, Any]]) -> None:
    """Takes further jobs (`name`, `cost`, `group`) into the count."""
    self.jobs |= {job["name"]: job for job in jobs}

  def skip(self, names: Iterable[str]) -> None:
    """Runs that are finished from before: counted, not timed."""
    for name in names:
      self.jobs[name] = {"name": name, "cost": 0.0}
      self.ended.add(name)

  def say(self, line: str) -> None:
    """Prints a line above the bar."""
    if self._bar:
      self._bar.console.print(line, markup=False, highlight=False)
    else:
      print(line, file=self.stream, flush=True)

  def __call__(self, kind: str, payload: Mapping[str, Any]) -> None:
    """One event of the launcher: start, step or end."""
    name = payload["name"]
    if kind == "start":
      self.running[name] = {"since": time.monotonic(), "share": 0.0}
    elif kind == "step" and name in self.running:
      self.running[name]["share"] = payload["step"] / payload["total_steps"]
      rate = (payload.get("row") or {}).get("examples_per_second")
      self.running[name]["rate"] = rate or 0.0
    elif kind == "end":
      self._end(name, payload)
    self._show()

  def seconds_left(self) -> float | None:
    """Estimate from the runs that ended: those of equal shape, else all."""
    now = time.monotonic()
    spent = {group: list(each) for group, each in self._spent.items()}
    for name, state in self.running.items():
      if state["share"] > 0.05:  # a run under way is evidence as well
        job = self.jobs[name]
        whole = (now - state["since"]) / state["share"]
        spent.setdefault(job.get("group"), []).append(whole / _cost(job))
    every = [x for each in spent.values() for x in each]
    if not every:
      return None
    left = []
    for name, job in self.jobs.items():
      if name not in self.ended:
        each = spent.get(job.get("group")) or every
        share = self.running.get(name, {}).get("share", 0.0)
        left.append((1 - share) * _cost(job) * sum(each) / len(each))
    return max([sum(left) / self.workers, *left]) if left else 0.0

  def rate(self) -> float:
    """Examples a second, all running runs together."""
    return sum(state.get("rate", 0.0) for state in self.running.values())

  # --------------------------------------------------------------- inside

  def _end(self, name: str, result: Mapping[str, Any]) -> None:
    state = self.running.pop(name, None)
    self.ended.add(name)
    job = self.jobs.get(name, {})
    if state and result["status"] == "finished":
      taken = time.monotonic() - state["since"]
      self._spent.setdefault(job.get("group"), []).append(taken / _cost(job))
    self.say(f"[{len(self.ended)}/{len(self.jobs)}] {outcome(result)}")
    self._beat = time.monotonic()

  def _tail(self) -> str:
    parts = [f"{self.rate():,.0f} img/s"] if self.rate() else []
    left = self.seconds_left()
    if left is not None:
      parts.append(f"{clock(left)} left")
    return " | ".join(parts)

  def _show(self) -> None:
    head = f"runs {len(self.ended)}/{len(self.jobs)}"
    if self._bar:
      share = sum(state["share"] for state in self.running.values())
      names = ", ".join(self.running)
      self._bar.update(
        self._task,
        total=len(self.jobs),
        completed=len(self.ended) + share,
        head=head,
        tail=" | ".join(filter(None, [self._tail(), names])),
      )
    elif time.monotonic() - self._beat > BEAT:
      self._beat = time.monotonic()
      self.say(f"{head} | {self._tail()}")


def outcome(result: Mapping[str, Any]) -> str:
  """`p4-s0 finished, 13.2 s, eval/test/nll 0.4312`, or why it failed."""
  name, status = result["name"], result["status"]
  if status != "finished":
    why = result.get("error")
    log = f" (log: {result['log']})" if result.get("log") else ""
    return f"{name} {status}" + (f": {why}{log}" if why else "")
  parts = [f"{name} finished"]
  if result.get("seconds") is not None:
    parts.append(f"{result['seconds']:.1f} s")
  scores = [
    f"{key} {value:.4f}"
    for key, value in (result.get("metrics") or {}).items()
    if key.startswith("eval/") and key.endswith(("/nll", "/loss"))
    if isinstance(value, int | float)
  ]
  return ", ".join(parts + scores[-1:])


def _cost(job: Mapping[str, Any]) -> float:
  return max(float(job.get("cost") or 0.0), 1e-12)
