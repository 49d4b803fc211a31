"""`vitscale train` for real: trains, prints its result, guards its workdir."""

import json
from pathlib import Path

import pytest

from tests.runs import command, complaint, complete, contents
from vitscale import cli
from vitscale.core.log import read_json, read_rows

KEYS = {
  "status", "step", "metrics", "params", "flops_per_example", "mfu", "goodput",
  "workdir",
}  # fmt: skip
CHANGES = ["optim.lr=2e-3", "log.every_steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(arguments, the JSON object, the workdir) of a process that trained."""
  workdir = tmp_path_factory.mktemp("train") / "run"
  argv = ["train", "vit_fashion:runlocal", "--workdir", str(workdir), "--json"]
  process = command(*argv, *CHANGES)
  assert process.returncode == 0, process.stderr
  assert process.stdout.count("\n") == 1, process.stdout
  assert "step 4/4" in process.stderr  # progress, as plain lines
  return argv, json.loads(process.stdout), workdir


def test_result(trained):
  _, result, workdir = trained
  assert set(result) == KEYS
  assert result["status"] == "finished" and result["step"] == 4
  assert Path(result["workdir"]) == workdir
  assert result["mfu"] is None  # a CPU has no peak in the table
  run = read_json(workdir / "run.json")
  assert run["config"]["optim"]["lr"] == 2e-3
  assert run["status"] == "finished"
  for key in ("params", "flops_per_example"):
    assert result[key] == run[key] > 0
  rows = read_rows(workdir / "metrics.jsonl")
  assert rows[-1] == result["metrics"]
  assert {2, 4} <= {row["step"] for row in rows}
  assert 0 <= result["metrics"]["eval/test/accuracy"] <= 1
  assert complete(workdir)[-1] == 4


def test_again_trains_nothing(trained, capfd):
  argv, result, workdir = trained
  before = contents(workdir)
  assert cli.main([*argv, *CHANGES]) == 0
  out, err = capfd.readouterr()
  assert json.loads(out) == result
  assert "step" not in err
  assert contents(workdir) == before


@pytest.mark.parametrize(
  ("changes", "difference"),
  [
    (["optim.lr=5e-3", CHANGES[1]], "optim.lr: 0.002 -> 0.005"),
    ([*CHANGES, "seed=1"], "seed: 0 -> 1"),
    ([*CHANGES, "total_steps=8"], "total_steps: 4 -> 8"),
  ],
)
def test_another_config_is_refused(trained, capfd, changes, difference):
  argv, _, workdir = trained
  before = contents(workdir)
  assert cli.main([*argv, *changes]) == 2
  out, err = capfd.readouterr()
  assert out == ""
  assert f"belongs to another config ({difference})" in complaint(err)
  assert contents(workdir) == before
