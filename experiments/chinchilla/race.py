"""Contestants in processes of their own, asked in turns on the same points.

A contestant is a file that offers jobs and calls `serve`: it reads the points
and then requests, one JSON line each, and answers with seconds and parameters.
Each has the machine to itself while it works; odd rounds go backwards.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import vitscale

HERE = Path(__file__).parent
PYTHON = "VITSCALE_PEERS"  # environment: a python that has the peers


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of the race.

  Attributes:
    name, file: of the contestant; entries of one name share a process.
    job: what is asked; `kind` is what it is compared in: "fit" or "draws".
    size: of what is timed (draws, starts), out of `of`: seconds are scaled.
    times: calls per turn; `rounds`: turns at most.
    own: whether it may need a python of its own.
    note: for the table.
  """

  name: str
  file: str
  job: str
  kind: str = "fit"
  size: int = 1
  of: int = 1
  times: int = 1
  rounds: int = 100
  own: bool = False
  note: str = ""


class Failed(Exception):
  """A contestant that cannot take part, and why in one line."""


class Contestant:
  """A process that holds the points."""

  def __init__(self, entry: Entry, points: Mapping[str, Any]):
    python = os.environ.get(PYTHON) if entry.own else None
    self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives with self)
    try:
      self._process = subprocess.Popen(
        [python or sys.executable, str(HERE / entry.file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._log,
        text=True,
        env=_environment(bool(python)),
      )
    except OSError as error:
      self._log.close()
      raise Failed(f"{PYTHON}={python}: {error.strerror}") from None
    self._say({k: list(map(float, v)) for k, v in points.items()})

  def ask(self, entry: Entry) -> dict[str, Any]:
    """`seconds` of one call, and what it found."""
    self._say({"job": entry.job, "size": entry.size, "times": entry.times})
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      self._log.seek(0)
      last = [x.strip() for x in self._log if x.strip()][-1:]
      raise Failed(last[0] if last else f"exit {self._process.returncode}")
    answer = json.loads(line)
    return {**answer, "seconds": answer["seconds"] * entry.of / entry.size}

  def _say(self, message: Mapping[str, Any]) -> None:
    try:
      self._process.stdin.write(json.dumps(message) + "\n")
      self._process.stdin.flush()
    except BrokenPipeError:
      pass  # `ask` finds out why

  def close(self) -> None:
    self._process.kill()
    self._process.communicate()
    self._log.close()


def _environment(foreign: bool) -> dict[str, str]:
  """One BLAS thread: the peers' processes would wait for each other's."""
  one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
  mine = {**os.environ, **one, "JAX_PLATFORMS": "cpu"}
  path = mine.pop("PYTHONPATH", "")
  if foreign:
    return mine
  home = str(Path(vitscale.__file__).parents[1])
  return {**mine, "PYTHONPATH": os.pathsep.join(filter(None, [home, path]))}


def race(
  entries: Sequence[Entry],
  points: Mapping[str, Any],
  rounds: int,
  say: Callable[[str], None],
) -> list[dict[str, Any]]:
  """Times all entries in turns.

  Returns:
    Per entry `entry`, `seconds` by round (of one call, scaled to the whole
    job), `inside` (what it says of itself, by round), `first` (the first
    call, with whatever is compiled), `found` (the last answer), or `error`.
  """
  alive: dict[str, Contestant] = {}
  found = [
    {"entry": e, "seconds": [], "inside": [], "first": None} for e in entries
  ]
  try:
    for line in found:
      entry = line["entry"]
      say(f"race: {entry.name}, {entry.job}")
      try:
        if entry.name not in alive:
          alive[entry.name] = Contestant(entry, points)
        once = dataclasses.replace(entry, times=1)
        if entry.rounds > 1:
          line["found"] = alive[entry.name].ask(once)
          line["first"] = line["found"]["seconds"]
      except Failed as error:
        line["error"] = str(error)
    for turn in range(rounds):
      for line in found[:: -1 if turn % 2 else 1]:
        entry = line["entry"]
        if "error" in line or turn >= entry.rounds:
          continue
        say(f"race: round {turn + 1} of {rounds}, {entry.name}, {entry.job}")
        try:
          line["found"] = alive[entry.name].ask(entry)
          line["seconds"].append(line["found"]["seconds"])
          line["inside"].append(line["found"].get("inside", {}))
        except Failed as error:
          line["error"] = str(error)
  finally:
    for contestant in alive.values():
      contestant.close()
  return found


def serve(
  build: Callable[[dict[str, list[float]]], Mapping[str, Callable[[int], Any]]],
) -> None:
  """Main function of a contestant.

  Args:
    build: points -> jobs by name; a job takes its size and returns a dict
      of plain values, `params` among them.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints is no answer
  jobs = build(json.loads(sys.stdin.readline()))
  for line in sys.stdin:
    request = json.loads(line)
    start = time.perf_counter()
    for _ in range(request["times"]):
      answer = jobs[request["job"]](request["size"])
    seconds = (time.perf_counter() - start) / request["times"]
    print(json.dumps({"seconds": seconds, **answer}), file=answers, flush=True)
