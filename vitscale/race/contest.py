"""Runs contestants in processes of their own and times them in turns.

A contestant is a module that builds its training step and calls `serve`
(ours.py, peer.py); it then waits on stdin, costs nothing while others run, and
answers each request "run n steps" with the seconds they took. `contest` asks
all contestants in each round, forwards in even rounds and backwards in odd
ones, so that a drift of the machine's speed meets them all alike.
"""

import ctypes
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitscale.race import clock

MODULES = {
  "vitscale": "vitscale.race.ours",
  "control": "vitscale.race.ours",
  "products": "vitscale.race.ours",
  "timm": "vitscale.race.peer",
  "vitscale generation": "vitscale.race.generation",
  "diffusers": "vitscale.race.peer_diffusers",
}
PEERS = ("torch", "timm")


@dataclasses.dataclass(frozen=True)
class Case:
  """One training step: a mean-pooled ViT without class token, AdamW.

  Attributes:
    size, channels: of the square image.
    steps: timed in each turn, after one that is not.
    threads: of a CPU; the contestants stay on that many cores.
    target: throughput over timm's that a study's README asks for.
    attention, remat: of vitscale's model.
    recompute: whether timm recomputes its blocks.
  """

  name: str
  size: int
  patch: int
  width: int
  depth: int
  heads: int
  batch: int
  channels: int = 3
  classes: int = 1000
  dtype: str = "float32"
  device: str = "cpu"  # or "gpu"
  threads: int = 2
  steps: int = 2
  target: float = 1.0
  attention: str = "auto"
  remat: str | None = None
  recompute: bool = False


@dataclasses.dataclass(frozen=True)
class Generation:
  """A tokenizer at work, or a diffusion transformer that samples.

  Attributes:
    what: "encode", "decode" or "sample".
    size: pixels of the square image, or side of the latent.
    tokenizer: a variant of ViTok.
    width, depth, heads: of the diffusion transformer, patch 2.
    denoise: steps of a sample, each with and without a class.
    steps, threads, target: as of `Case`.
  """

  name: str
  what: str
  size: int
  batch: int
  width: int = 768
  depth: int = 12
  heads: int = 12
  denoise: int = 250
  tokenizer: str = "S-B/16"
  dtype: str = "float32"
  device: str = "cpu"
  threads: int = 2
  steps: int = 1
  target: float = 1.0


Entries = Mapping[str, tuple[str, Case | Generation]]


class Failed(Exception):
  """A contestant that cannot take part, and why in one line."""


def missing_peers(peers: tuple[str, ...] = PEERS) -> list[str]:
  return [name for name in peers if importlib.util.find_spec(name) is None]


# ------------------------------------------------------------ in the contest


class Contestant:
  """A process that holds one compiled training step."""

  def __init__(self, name: str, case: Case | Generation):
    self.name = name
    self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives with self)
    self._process = subprocess.Popen(
      [sys.executable, "-m", MODULES[name], name, _dump(case)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
      env=_environment(case),
    )

  def ask(self, steps: int) -> dict[str, Any]:
    """`seconds` of so many steps; of none, what is known (see `serve`)."""
    try:
      self._process.stdin.write(f"{steps}\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      self._process.wait()
      self._log.seek(0)
      last = [x.strip() for x in self._log if x.strip()][-1:]
      raise Failed(last[0] if last else f"exit {self._process.returncode}")
    return json.loads(line)

  def close(self) -> None:
    self._process.kill()
    self._process.communicate()
    self._log.close()


def contest(
  entries: Entries, rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
  """Times contestants against each other.

  Args:
    entries: by name, a contestant (a key of MODULES) and its case.
    rounds: turns of each.
    say: told what happens, in a line.

  Returns:
    By name `{"seconds": per step and round, "about": facts}`, and the errors
    of those that failed. Contestants are built one after another, since
    compiling uses every core.
  """
  alive: dict[str, Contestant] = {}
  found: dict[str, dict[str, Any]] = {}
  errors: dict[str, str] = {}
  try:
    for name, (who, case) in entries.items():
      say(f"{case.name}: building {name}")
      alive[name] = Contestant(who, case)
      try:
        alive[name].ask(1)
        found[name] = {"seconds": []}
      except Failed as error:
        errors[name] = str(error)
        alive.pop(name).close()
    for turn in range(rounds):
      say(f"round {turn + 1} of {rounds}")
      for name in list(alive)[:: -1 if turn % 2 else 1]:
        steps = entries[name][1].steps
        try:
          seconds = alive[name].ask(steps)["seconds"] / steps
        except Failed as error:
          errors[name] = str(error)
          alive.pop(name).close()
          found.pop(name)
        else:
          found[name]["seconds"].append(seconds)
    for name, contestant in alive.items():
      found[name]["about"] = contestant.ask(0)
  finally:
    for contestant in alive.values():
      contestant.close()
  return found, errors


def _dump(case: Case | Generation) -> str:
  return json.dumps(dataclasses.asdict(case))


def _environment(case: Case | Generation) -> dict[str, str]:
  """XLA sizes its pool of threads by NPROC, torch by OMP_NUM_THREADS."""
  mine = clock.environment(case.device)
  if case.device == "gpu":
    return {**mine, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  threads = str(case.threads)
  return {
    **mine,
    "NPROC": threads,
    "OMP_NUM_THREADS": threads,
    "MKL_NUM_THREADS": threads,
  }


# ------------------------------------------------------------ in a contestant


def serve(
  build: Callable[[str, Any], tuple[Callable, Callable, Callable]],
  kind: type = Case,
) -> None:
  """Main function of a contestant's process.

  Args:
    build: `(name, case) -> step, wait, about`. `step()` starts one training
      step, `wait()` returns when all have ended, `about()` is a dict of facts;
      its "memory" in bytes is measured here where it is absent.
    kind: of the case.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints is no answer
  name, case = sys.argv[1], kind(**json.loads(sys.argv[2]))
  if case.device == "cpu" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])
  before = _status("VmRSS")  # libraries are loaded, nothing is allocated
  step, wait, about = build(name, case)
  start = time.perf_counter()
  step()
  wait()
  compiled = time.perf_counter() - start
  _forget_peak()
  for line in sys.stdin:
    if steps := int(line):
      step()
      wait()
      start = time.perf_counter()
      for _ in range(steps):
        step()
      wait()
      answer = {"seconds": time.perf_counter() - start}
    else:
      answer = {"memory": _status("VmHWM") - before, "first": compiled}
      answer |= about()
    print(json.dumps(answer), file=answers, flush=True)


def _status(field: str) -> int:
  """Bytes of a field of /proc/self/status; 0 where there is none."""
  try:
    lines = Path("/proc/self/status").read_text().splitlines()
  except OSError:
    return 0
  return next(
    (int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{field}:")), 0
  )


def _forget_peak() -> None:
  """What compiling took is no part of the step's memory (Linux)."""
  try:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
  except (OSError, AttributeError):
    pass
