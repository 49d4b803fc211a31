"""A study launched round by round; a stand-in does what machines would do."""

import json
import os
import textwrap
from pathlib import Path

import pytest

from tests.launch import fake_train
from tests.test_study import STUDY
from vitscale import cli, study
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError

TWO = {"first": {"a": {"seed": 1}, "b": {"seed": 2}}}


@pytest.fixture
def toy(tmp_path, monkeypatch, capfd):
  """`launch()` calls the command; a stand-in for sbatch is on the PATH.

  Slurm takes folders below /tmp for private: here they are not.
  """
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("vitscale.launch.job.PRIVATE", ())
  monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
  (tmp_path / "bin").mkdir()
  sbatch = tmp_path / "bin/sbatch"
  sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
  sbatch.chmod(0o755)
  folder = tmp_path / "toy"
  folder.mkdir()
  (folder / "study.py").write_text(textwrap.dedent(STUDY))
  (folder / "plan.json").write_text(json.dumps(TWO))

  def launch(*args, code=0):
    argv = ["launch", str(folder), "--on", "slurm", "--scale", "smoke"]
    got = cli.main([*argv, "--out", "out", "--json", *args])
    captured = capfd.readouterr()
    assert got == code, captured.err
    return json.loads(captured.out) if captured.out else captured.err

  launch.calls = tmp_path / "calls"
  return launch


def work(names, act="go"):
  """What the machines do: train the written configs."""
  for name in names:
    config = config_lib.load(f"out/configs/{name}.json")
    assert config.act == act
    fake_train.train(config, Path(f"out/runs/{name}"))


def test_rounds(toy, capfd):
  first = toy()
  assert first["submitted"]
  assert [job["name"] for job in first["jobs"]] == [
    "toy-smoke-a",
    "toy-smoke-b",
  ]
  assert first["jobs"][0]["workdir"] == str(Path("out/runs/a").absolute())
  (text,) = first["files"].values()
  assert "--array=0-1" in text and "out/configs/a.json --workdir" in text
  assert Path("out/logs").is_dir()

  again = toy()  # nothing is sent twice
  assert again["study"]["away"] == ["a", "b"] and not again["jobs"]
  with pytest.raises(UserError, match=r"2 runs are out on slurm \(a, ...\)"):
    study.run_study("toy", scale="smoke", out="out")

  work(["a"])
  now = toy()["study"]
  assert (now["away"], now["finished"]) == (["b"], ["a"])
  work(["b"])
  second = toy()
  assert second["study"]["finished"] == ["a", "b"]
  (job,) = second["jobs"]
  assert job["workdir"].endswith("out/runs/final/best")
  assert Path("out/configs/final/best.json").exists()
  work(["final/best"])
  last = toy()
  assert last["study"]["complete"] and not last["jobs"]
  assert len(toy.calls.read_text().splitlines()) == 2

  result = study.run_study("toy", scale="smoke", out="out", workers=1)
  assert result["status"] == "finished" and len(result["runs"]) == 3
  assert "0 to resume, 0 new" in capfd.readouterr().err
  assert Path(result["report"]).exists()


def test_a_dry_run_and_a_refusal_touch_nothing(toy, monkeypatch):
  assert len(toy("--dry-run")["jobs"]) == 2
  assert "did you mean" in toy("--scale", "smok", code=2)
  monkeypatch.setenv("PATH", "nowhere")
  assert "sbatch is not installed" in toy(code=2)
  assert sorted(p.name for p in Path().iterdir()) == ["bin", "toy"]


def test_runs_that_fail_or_vanish_are_sent_again_when_asked(toy):
  toy()
  work(["a"])
  path = Path("out/runs/b/run.json")
  fake_train.train(config_lib.load("out/configs/b.json"), path.parent)
  run = json.loads(path.read_text())
  path.write_text(json.dumps({**run, "status": "failed", "step": 1}))
  found = toy("--dry-run")
  assert found["study"]["failed"] == ["b"]  # an answer: the next round comes
  (job,) = found["jobs"]
  assert job["workdir"].endswith("final/best")
  again = toy("--again")
  assert [job["name"] for job in again["jobs"]] == ["toy-smoke-b"]
  assert path.exists()  # it resumes


def test_a_refused_submission_is_not_remembered(toy):
  Path("bin/sbatch").write_text("#!/bin/sh\nexit 1\n")
  toy(code=1)
  assert not Path("out/launched.json").exists()
  assert len(toy("--dry-run")["jobs"]) == 2


def test_a_changed_run_that_ended_is_sent_afresh(toy):
  toy()
  work(["a", "b"])
  changed = {"first": {"a": {"seed": 1, "steps": 4}, "b": {"seed": 2}}}
  Path("toy/plan.json").write_text(json.dumps(changed))
  found = toy()
  assert [job["name"] for job in found["jobs"]] == ["toy-smoke-a"]
  assert Path("out/runs/a.old-1").is_dir()
