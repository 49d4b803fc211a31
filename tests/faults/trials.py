"""Trainers that are struck in chosen phases, again and again, until done.

    python -m tests.faults.trials CONFIG WORKDIR SIGNAL SEED PHASE...

Starts `vitscale train CONFIG --workdir WORKDIR`, sends SIGNAL in the first
phase, starts it again for the second, and so on; last it runs to its end.
Trainers are forked from this process, which has imported all and touched no
device: real processes without the price of an import each. Prints one JSON
object: `trials`, a list of [phase, exit code, complete steps], and `code`, how
the last one ended.

Phases: build (of shapes and data), compile, step, eval, save, or a number of
seconds after the start; "random" draws one of those or up to two seconds.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from vitscale import cli
from vitscale import train as _  # noqa: F401 (imported before the fork)
from vitscale.core.checkpoint import CheckpointStore

PHASES = ("build", "compile", "step", "eval", "save")


def start(config: str, workdir: Path, log: Path) -> int:
  """Forks a trainer; its exit code is that of the command."""
  pid = os.fork()
  if pid:
    return pid
  code = 1
  try:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    code = cli.main(["train", config, "--workdir", str(workdir)])
  except SystemExit as error:
    code = error.code
  finally:
    sys.stderr.flush()
    os._exit(code)


def reached(phase: str, workdir: Path, began: float, rows: int) -> bool:
  """Whether the trainer that began at `began` is in this phase now."""
  if phase == "build":
    mark = workdir / ".lock"
    return mark.exists() and mark.stat().st_mtime > began
  if phase == "compile":  # the loop has just begun
    mark = workdir / "events.jsonl"
    since = mark.stat().st_mtime if mark.exists() else 0
    return since > began and time.time() - since > 0.2
  if phase == "step":
    return count_rows(workdir) > rows
  if phase == "eval":
    return marker(workdir).exists()
  if phase == "save":
    return any(workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*"))
  return time.time() - began > float(phase)


def marker(workdir: Path) -> Path:
  """There while tests.toy_slow_eval evaluates."""
  return workdir.with_suffix(".evaluating")


def count_rows(workdir: Path) -> int:
  path = workdir / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def strike(config, workdir, signum, phase, log) -> tuple[int | None, bool]:
  """(exit code, whether the signal was sent) of one trainer."""
  marker(workdir).unlink(missing_ok=True)
  for left in workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*"):
    left.rename(left.with_name("state.old"))  # of the trainer before
  began, rows = time.time(), count_rows(workdir)
  pid, sent = start(config, workdir, log), False
  while True:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status), sent
    if not sent and (sent := reached(phase, workdir, began, rows)):
      os.kill(pid, signum)
    time.sleep(0.002)


def main(config: str, workdir: str, name: str, seed: str, *phases: str) -> None:
  workdir, draw = Path(workdir), random.Random(int(seed))
  workdir.parent.mkdir(parents=True, exist_ok=True)
  log, trials = workdir.with_suffix(".log"), []
  os.environ["EVALUATING"] = str(marker(workdir))
  signum, code = signal.Signals[name], None
  for phase in phases:
    if phase == "random":
      phase = draw.choice([*PHASES[1:], str(draw.uniform(0, 2))])
    code, sent = strike(config, workdir, signum, phase, log)
    steps = CheckpointStore(workdir / "checkpoints").steps()
    trials.append([phase if sent else "missed", code, steps])
    if code == 0:
      break
  if code != 0:
    pid = start(config, workdir, log)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  print(json.dumps({"trials": trials, "code": code}))


if __name__ == "__main__":
  main(*sys.argv[1:])
