"""lra: the design that the README states, and claims that can be lost."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "lra"
NOISE = {0: -0.01, 1: 0.0, 2: 0.01}
CHANCE = {"listops": 0.17, "pathfinder": 0.5}


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def length(run):
  """Training FLOPs of a run, roughly, of the base's examples."""
  return run.config.get("total_flops") or 2e9


def result(run, accuracy, loss, workdir):
  split = next(iter(run.config.evals))
  return {
    "status": "finished", "workdir": str(workdir),
    "law_variables": {
      "flops": length(run), "params": 100, **run.law_variables
    },
    "metrics": {
      f"eval/{split}/nll": loss, f"eval/{split}/accuracy": accuracy,
      "step": 7,
    },
  }  # fmt: skip


def rounds(study, scale, workdir, accuracy=lambda run: 0.6, loss=None):
  """(results, rounds of new names) as the study's driver would go."""
  done, names = {}, []
  while True:
    new = [run for run in study.runs(scale, done) if run.name not in done]
    if not new:
      return done, names
    names.append([run.name for run in new])
    for run in new:
      lost = loss(run) if loss else 1.0
      path = workdir / run.name
      done[run.name] = result(run, accuracy(run), lost, path)


def test_runs_follow_pilots_and_parents(study, tmp_path):
  done, names = rounds(study, "quick", tmp_path)
  assert [len(new) for new in names] == [4, 21, 6]
  assert all(name.startswith("pilot-") for name in names[0])
  assert all("-spt-" in name for name in names[2])
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    if scale != "gpu":
      count = len(rounds(study, scale, tmp_path)[0])
      row = next(x for x in text.splitlines() if x.startswith(f"| `{scale}`"))
      assert f"| {count} |" in row, (scale, count)
      for task in study.SCALES[scale].tasks.values():
        n = task.config["data"]["n"]
        assert f"{n:,}" in row and f", {task.steps:,} |" in row
  assert len(done) == 31


def test_pilots_choose_a_rate_per_task(study, tmp_path):
  good = {"pilot-listops-0.002": 0.5, "pilot-pathfinder-0.004": 0.4}
  done, _ = rounds(
    study, "quick", tmp_path, loss=lambda r: good.get(r.name, 1.0)
  )
  runs = {run.name: run.config for run in study.runs("quick", done)}
  assert runs["listops-window-s0"].optim.lr == 0.002
  assert runs["pathfinder-spt-s2"].optim.lr == 0.004
  assert list(runs["pilot-listops-0.002"].evals) == ["val"]
  assert list(runs["listops-masked-s0"].evals) == ["val"]
  assert list(runs["listops-spt-s0"].evals) == ["test"]


def test_arms_differ_in_what_they_say(study, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  done, _ = rounds(study, "quick", tmp_path)
  runs = {run.name: run.config for run in study.runs("quick", done)}
  base, linear = runs["listops-softmax-s1"], runs["listops-linear-s1"]
  assert linear.model.mixer == "linear()" and base.model.mixer == "softmax"
  same = lambda c: {**c.to_dict(), "model": {**c.model, "mixer": ""}}
  assert same(base) == same(linear)
  masked, spt = runs["listops-masked-s1"], runs["listops-spt-s1"]
  assert masked.task.name == "masked" and spt.task.name == "classify"
  assert spt.init.to_dict() == {
    "from": "listops-masked-s1", "skip": study.SKIP
  }  # fmt: skip
  assert masked.seed != spt.seed  # other batches
  assert masked.data == spt.data == base.data
  assert masked.model == spt.model == base.model


@pytest.mark.parametrize("name", ["listops", "pathfinder"])
def test_self_pretraining_costs_what_the_base_costs(study, tmp_path, name):
  task = study.SCALES["quick"].tasks[name]
  done, _ = rounds(study, "quick", tmp_path)
  runs = {run.name: run.config for run in study.runs("quick", done)}
  spent = sum(runs[f"{name}-{arm}-s0"].total_flops for arm in ("masked", "spt"))
  base = 6 * study.macs(task) * task.steps * task.config["batch_size"]
  assert spent == pytest.approx(base)


def test_gpu_is_the_published_setting(study):
  runs = {run.name: run.config for run in study.runs("gpu", {})}
  listops = runs["listops-softmax-s0"]
  assert listops.total_steps == 5000 and listops.batch_size == 32
  assert (listops.model.width, listops.model.depth) == (512, 4)
  assert listops.optim.lr == pytest.approx(0.05 / 1000**0.5)
  assert listops.evals.test.batch_size == 200
  pathfinder = runs["pathfinder-window-s2"]
  assert pathfinder.total_steps == 62_500
  assert pathfinder.train.transform == "flatten"
  assert pathfinder.evals.test.transform == "flatten"
  assert not any(name.startswith("pilot") for name in runs)


# --------------------------------------------------------------------- claims


def answers(study, tmp_path, **accuracy):
  """Verdicts of three seeds around given accuracies."""

  def said(run):
    arm = run.law_variables["arm"].replace("/", "_")
    noise = NOISE.get(run.law_variables.get("seed"), 0)
    return accuracy.get(arm, 0.6) + noise * (2 if "linear" in arm else 1)

  done, _ = rounds(study, "quick", tmp_path, said)
  runs = study.analysis.finished(done)
  assert len(study.analysis.figure(runs).panels) == 2
  found = study.analysis.verdicts(runs, CHANCE)
  assert len(found) == 8
  return [v.verdict for v in found]


def test_claims_can_be_won_and_lost(study, tmp_path):
  won = answers(
    study, tmp_path, listops_spt=0.9, pathfinder_spt=0.9, listops_linear=0.3,
    listops_window=0.3,
  )  # fmt: skip
  assert won == ["supported"] * 8
  lost = answers(
    study, tmp_path, listops_softmax=0.19, pathfinder_softmax=0.52,
    listops_spt=0.1, pathfinder_spt=0.4, listops_linear=0.2,
    listops_window=0.2, pathfinder_linear=0.4,
  )  # fmt: skip
  assert lost[:7] == ["not supported"] * 7
  open_ = answers(study, tmp_path, listops_linear=0.55)
  assert open_[4] == "inconclusive"


def test_one_seed_supports_nothing_but_the_count(study, tmp_path):
  done, _ = rounds(study, "smoke", tmp_path)
  found = study.analysis.verdicts(study.analysis.finished(done), CHANCE)
  assert {v.verdict for v in found[:7]} == {"inconclusive"}
  none = study.analysis.verdicts({}, {})
  assert {v.verdict for v in none} == {"inconclusive"}


def test_a_model_that_is_too_large_loses(study, tmp_path):
  done, _ = rounds(study, "quick", tmp_path)
  for params, verdict in ((110, "supported"), (111, "not supported")):
    done["listops-window-s1"]["law_variables"]["params"] = params
    runs = study.analysis.finished(done)
    found = study.analysis.verdicts(runs, CHANCE)[-1]
    assert found.verdict == verdict and "window" in found.measured


def test_table_counts_pretraining(study, tmp_path):
  done, _ = rounds(study, "quick", tmp_path)
  runs = study.analysis.finished(done)
  rows = {r["arm"]: r for r in study.analysis.table(runs, CHANCE).rows}
  assert "listops/masked" not in rows
  flops = lambda arm: study.analysis.flops(runs, arm, 0)
  both = (
    flops("listops/masked") + done["listops-spt-s0"]["law_variables"]["flops"]
  )
  assert flops("listops/spt") == both
  assert rows["listops/linear"]["chance"] == 0.17


def test_chance_is_the_most_frequent_label(study):
  config = study.config(
    study.SCALES["smoke"], study.SCALES["smoke"].tasks["pathfinder"],
    lr=1e-3, seed=0, split="test",
  )  # fmt: skip
  assert study.analysis.chance(config) == 0.5
  base = study.analysis.chance(
    study.config(
      study.SCALES["smoke"], study.SCALES["smoke"].tasks["listops"],
      lr=1e-3, seed=0, split="test",
    )
  )  # fmt: skip
  assert 0.1 < base < 0.35


def test_published_numbers_are_those_of_the_readme(study):
  expected = json.loads((FOLDER / "expected.json").read_text())
  rows = expected["test accuracy, %"]
  for values in rows.values():
    # As printed: one row's mean isn't that of its five numbers.
    assert abs(np.mean(values[:5]) - values[5]) < 0.2
  gap = lambda a, b, i: (rows[a][i] - rows[b][i]) / 100
  text = (FOLDER / "README.md").read_text()
  published = [float(x) for x in re.findall(r"published: ([+-]?\.\d+)", text)]
  want = [
    gap("Transformer", "Linear", 0), gap("Transformer", "Local", 0),
    gap("Linear", "Transformer", 4),
  ]  # fmt: skip
  np.testing.assert_allclose(published, want, atol=0.006)


@pytest.mark.slow
def test_smoke(tmp_path):
  done = study_lib.run_study("lra", scale="smoke", out=tmp_path / "out")
  assert done["status"] == "finished", done["errors"]
  rows = {row["arm"]: row for row in done["tables"][0]["rows"]}
  assert len(rows) == 8
  for task in ("listops", "pathfinder"):
    ratio = rows[f"{task}/spt"]["FLOPs of softmax"]
    assert ratio == pytest.approx(1, abs=0.2)
    assert rows[f"{task}/spt"]["updates"] < rows[f"{task}/softmax"]["updates"]
