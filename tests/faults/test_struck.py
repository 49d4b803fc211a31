"""Runs struck by signals in every phase go on and end bit for bit the same."""

import collections
import json

import pytest

from tests.runs import assert_same_run, python
from vitscale.core.log import read_rows

CONFIG = """
from tests import toys


def get_config(arg=None):
  config = toys.everything()
  config.total_steps = {steps}
  config.evals.val.name = "tests.toy_slow_eval"
  config.evals.val.every_steps = 6
  return config
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return tmp_path_factory.mktemp("struck")


def strike(place, name, signum, *phases, seed=0, steps=24):
  """(trials, workdir) of a run that was struck and then ended."""
  config = place / f"config{steps}.py"
  config.write_text(CONFIG.format(steps=steps))
  workdir = place / name
  process = python(
    "-m", "tests.faults.trials", config, workdir, signum, seed, *phases
  )
  log = workdir.with_suffix(".log")
  said = process.stderr + (log.read_text() if log.exists() else "")
  assert process.returncode == 0, said[-3000:]
  result = json.loads(process.stdout.splitlines()[-1])
  assert result["code"] == 0, said[-3000:]
  assert "Traceback" not in said, said[-3000:]
  return result["trials"], workdir


@pytest.fixture(scope="module")
def whole(place):
  """Never struck."""
  trials, workdir = strike(place, "whole", "SIGTERM")
  assert trials == []
  return workdir


@pytest.mark.slow
def test_killed_while_it_saves_and_evaluates(place, whole):
  trials, workdir = strike(place, "killed", "SIGKILL", "save", "eval")
  assert [t[:2] for t in trials] == [["save", -9], ["eval", -9]], trials
  assert_same_run(workdir, whole)


def test_terminated_in_every_phase(place, whole):
  phases = ("build", "compile", "step", "eval", "save")
  trials, workdir = strike(place, "terminated", "SIGTERM", *phases)
  assert [t[:2] for t in trials] == [[phase, 75] for phase in phases], trials
  # What was done by then is saved: each of the last four got further.
  last = [max(steps, default=0) for _, _, steps in trials]
  assert last[0] == 0 and sorted(set(last[1:])) == last[1:], trials
  assert_same_run(workdir, whole)
  kinds = [row["event"] for row in read_rows(workdir / "events.jsonl")]
  assert kinds.count("interrupted") == 4 and kinds[-1] == "finished", kinds


@pytest.mark.slow
def test_usr2_is_sigterm(place, whole):
  trials, workdir = strike(place, "usr2", "SIGUSR2", "step")
  assert [t[:2] for t in trials] == [["step", 75]], trials
  assert_same_run(workdir, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_struck_at_random(place, name):
  """Until at least 20 strikes hit, over fresh runs."""
  _, want = strike(place, "whole60", "SIGTERM", steps=60)
  hits, seed = collections.Counter(), 0
  while hits.total() < 20:
    seed += 1
    trials, workdir = strike(
      place, f"{name}{seed}", name, *["random"] * 8, seed=seed, steps=60
    )
    assert_same_run(workdir, want)
    for phase, code, _ in trials:
      if phase != "missed":
        assert code == (-9 if name == "SIGKILL" else 75) or code == 0
        hits[phase if phase.isalpha() else "at a random time"] += 1
  print(f"{name}: {dict(hits)} in {seed} runs, all equal bit for bit")
  assert {"save", "eval"} <= set(hits)
