"""The pool of submitit jobs, on submitit's local executor; real processes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vitscale import study
from vitscale.core.errors import UserError
from vitscale.launch import slurm_pool

pytest.importorskip("submitit", reason="extra [slurm] not installed")

LOCAL = "slurm:cluster=local"
# Counts its starts; ends as its argument says, or waits for a signal.
RUN = """
import pathlib, signal, sys, time
folder, codes = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
caught = []
for s in (signal.SIGUSR2, signal.SIGTERM):
  signal.signal(s, lambda n, _: caught.append(signal.Signals(n).name))
with open(folder / "starts", "a") as file:
  starts = file.tell()
  file.write("x")
code = codes[min(starts, len(codes) - 1)]
if code == "wait":
  deadline = time.monotonic() + 60
  while not caught and time.monotonic() < deadline:
    time.sleep(0.02)
  (folder / "saved").write_text(str(caught))
  sys.exit(75)
if code.startswith("-"):
  import os
  os.kill(os.getpid(), -int(code))
sys.exit(int(code))
"""


@pytest.fixture
def submit(tmp_path):
  """Submits a stand-in for `vitscale train` as the pool does."""
  import submitit

  executor = submitit.AutoExecutor(tmp_path / "%j", cluster="local")
  executor.update_parameters(timeout_min=5)

  def go(codes):
    argv = [sys.executable, "-c", RUN, str(tmp_path), codes]
    log = str(tmp_path / "log")
    return executor.submit(slurm_pool.Train(argv, log=log, env={}))

  return go


def starts(tmp_path):
  path = tmp_path / "starts"
  return len(path.read_text()) if path.exists() else 0


def wait_for(condition, seconds=60.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.05)


@pytest.mark.parametrize(
  ("codes", "started", "ends"),
  [
    ("0", 1, 0),
    ("2", 1, 2),
    ("75,75,0", 3, 0),  # stuck twice
    ("-9,0", 2, 0),  # out of memory once
    pytest.param("-9", 1 + slurm_pool.RESTARTS, -9, marks=pytest.mark.slow),
  ],
)
def test_exit_codes(submit, tmp_path, codes, started, ends):
  assert submit(codes).result() == ends
  assert starts(tmp_path) == started


def test_the_signal_before_the_limit_saves_then_requeues(submit, tmp_path):
  job = submit("wait,0")
  wait_for(lambda: starts(tmp_path) == 1)
  time.sleep(0.3)
  for pid in tasks_of(job):
    os.kill(pid, signal.SIGUSR2)
  assert job.result() == 0
  assert "SIGUSR2" in (tmp_path / "saved").read_text()
  assert starts(tmp_path) == 2


def test_sigterm_saves_and_does_not_requeue(submit, tmp_path):
  job = submit("wait,0")
  wait_for(lambda: starts(tmp_path) == 1)
  time.sleep(0.3)
  for pid in tasks_of(job):
    os.kill(pid, signal.SIGTERM)
  wait_for(job.done)
  assert "SIGTERM" in (tmp_path / "saved").read_text()
  assert starts(tmp_path) == 1
  assert not job.paths.result_pickle.exists()


def tasks_of(job):
  """Processes that submitit's controller started."""
  pid = job._process.pid
  children = Path(f"/proc/{pid}/task/{pid}/children")
  wait_for(lambda: children.read_text().split())
  return [int(x) for x in children.read_text().split()]


# ----------------------------------------------------------------- whole pool

STUDY = """
'''A toy run of the real loop, one that can't, and one that follows.'''
from tests import toys
from vitscale.study import Run

SCALES = {"smoke": "three"}


def runs(scale, done):
  bad = toys.config(model__variant="mu/3")
  first = [Run("lr/0.01", toys.config()), Run("bad", bad, may_fail=True)]
  if len(done) < 2:
    return first
  assert done["lr/0.01"]["metrics"]["eval/val/nll"] > 0
  return first + [Run("next", toys.config(seed=1))]


def analyse(results, scale):
  return {"title": "Toy", "text": f"{len(results)} runs"}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
  (tmp_path / "toy").mkdir()
  (tmp_path / "toy/study.py").write_text(textwrap.dedent(STUDY))

  def run(scale="smoke", **kwargs):
    given = {"out": tmp_path / "out", "launcher": LOCAL, "workers": 2} | kwargs
    return study.run_study(str(tmp_path / "toy"), scale=scale, **given)

  return run


@pytest.mark.slow
def test_a_study_through_submitit(toy, tmp_path, capsys):
  result = toy()
  assert result["status"] == "finished", result["errors"]
  runs = {r["name"]: r for r in result["runs"]}
  status = {name: r["status"] for name, r in runs.items()}
  good = {"lr/0.01": "finished", "next": "finished"}
  assert status == {**good, "bad": "failed"}
  assert runs["next"]["metrics"]["step"] == 8
  assert "patch 3 does not divide" in runs["bad"]["error"]
  assert "bad.log" in runs["bad"]["log"]
  assert Path(result["report"]).exists()
  logs = tmp_path / "out/logs"
  assert (logs / "lr/0.01.log").exists() and any((logs / "slurm").glob("*/*"))
  assert "[3/3] next finished" in capsys.readouterr().err
  # The local launcher takes the finished ones for its own.
  toy(launcher="local")
  err = capsys.readouterr().err
  assert "2 runs: 1 finished before" in err and "1 runs: 1 finished" in err


INTERRUPT = """
import sys
from vitscale import study
from vitscale.launch import slurm_pool
if __name__ == "__main__":
  result = study.run_study(
    sys.argv[1], scale="smoke", out=sys.argv[2], launcher="slurm:cluster=local",
    workers=2)
  sys.exit(study.exit_code(result))
"""


@pytest.mark.slow
def test_interrupting_the_pool_leaves_resumable_runs(toy, tmp_path):
  text = (tmp_path / "toy/study.py").read_text()
  slow = text.replace("toys.config(", "toys.config(total_steps=200000, ")
  (tmp_path / "toy/study.py").write_text(slow)
  root = Path(__file__).parents[2]
  process = subprocess.Popen(
    [sys.executable, "-c", INTERRUPT, tmp_path / "toy", tmp_path / "out"],
    cwd=root, stderr=subprocess.PIPE, text=True,
    env={**os.environ, "PYTHONPATH": str(root)},
  )  # fmt: skip
  path = tmp_path / "out/runs/lr/0.01"
  wait_for(lambda: (path / "metrics.jsonl").exists(), 120)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 75, err
  run = json.loads((path / "run.json").read_text())
  assert run["status"] == "interrupted" and run["step"] > 0


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("launcher", "message"),
  [
    ("slrum", "no launcher 'slrum', did you mean 'slurm'?"),
    ("gke", "gke doesn't wait for its runs; `vitscale launch STUDY --on gke`"),
    ("local:gpus=1", "launcher 'local' takes no options"),
    ("slurm:partitoin=gpu", "did you mean 'partition'?"),
    ("slurm:gpus=two", "gpus=two is str, should be int"),
    ("slurm:cluster=moon", "cluster='moon' (one of: slurm, local)"),
  ],
)
def test_launchers_that_are_none(toy, tmp_path, launcher, message):
  with pytest.raises(UserError) as error:
    toy(launcher=launcher)
  assert message in str(error.value)
  assert not (tmp_path / "out").exists()


def test_no_slurm_and_folders_of_one_machine(toy, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="is not shared storage"):
    toy(launcher="slurm", out="/tmp/out")
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match=r"srun isn't found.*cluster=local"):
    toy(launcher="slurm", out="/nowhere/out")
  with pytest.raises(UserError, match="runs `vitscale train`, not"):
    toy(train="mine.py:train")
  with pytest.raises(UserError, match="workers=0"):
    toy(workers=0)
