"""growth: the design that the README states, and claims that can be lost."""

import os
from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "growth"
NOISE = {0: -0.01, 1: 0.0, 2: 0.01}


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def result(run, loss, workdir, steps=None):
  split = next(iter(run.config.evals))
  facts = {"flops": 1e6 * run.config.total_steps, "params": 7}
  return {
    "status": "finished", "workdir": str(workdir),
    "law_variables": {**facts, **run.law_variables},
    "metrics": {f"eval/{split}/nll": loss, "step": run.config.total_steps},
  }  # fmt: skip


def rounds(study, scale, workdir, loss=lambda run: 1.0):
  """(results, rounds of new names) as the study's driver would go."""
  done, names = {}, []
  while True:
    new = [run for run in study.runs(scale, done) if run.name not in done]
    if not new:
      return done, names
    names.append([run.name for run in new])
    done |= {r.name: result(r, loss(r), workdir / r.name) for r in new}


def test_stages_follow_their_parents(study, tmp_path):
  done, names = rounds(study, "quick", tmp_path)
  assert [len(new) for new in names] == [6, 21, 15, 9]
  assert all(name.startswith("pilot-") for name in names[0])
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(rounds(study, scale, tmp_path)[0])
    assert f"| `{scale}` |" in text and f"| {count} |" in text, (scale, count)
  assert "grown-s1" in done and "small-s0" in names[1]


def test_pilots_choose_a_rate_per_family(study, tmp_path):
  good = {"pilot-vit-0.002": 0.5, "pilot-pattention_vit-0.008": 0.4}
  done, _ = rounds(study, "quick", tmp_path, lambda r: good.get(r.name, 1.0))
  runs = {run.name: run.config for run in study.runs("quick", done)}
  assert runs["net2net-s0"].optim.lr == 0.002
  assert runs["grown-s0"].optim.lr == runs["scratch-s2"].optim.lr == 0.008
  assert list(runs["pilot-vit-0.002"].evals) == ["val"]
  assert list(runs["grown-s0"].evals) == ["test"]


def test_arms_differ_in_what_they_say(study, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  done, _ = rounds(study, "quick", tmp_path)
  runs = {run.name: run.config for run in study.runs("quick", done)}
  grown, carry = runs["grown-s1"], runs["grown-carry-s1"]
  assert grown.init.to_dict() == {
    "from": "grown-2-s1", "how": "append", "optimizer": "fresh"
  }  # fmt: skip
  assert carry.init["from"] == "grown-carry-2-s1"
  assert carry.init.optimizer == "carry"
  assert runs["grown-2-s1"].init["from"] == "small-s1"
  assert runs["unfrozen-2-s1"].init["from"] == "small-s1"
  assert grown.model.scale_tokens == 12
  assert runs["unfrozen-s1"].model.scale_tokens is None
  assert runs["unfrozen-s1"].model == runs["scratch-s1"].model
  assert grown.seed == carry.seed != runs["grown-2-s1"].seed  # other batches
  assert "init" not in runs["scratch-s0"]
  monkeypatch.chdir("/")
  moved = {run.name: run.config for run in study.runs("quick", done)}
  below = moved["grown-s1"].init["from"]
  assert Path("/", below) == tmp_path / "grown-2-s1"
  assert not os.path.isabs(below)


@pytest.mark.parametrize("arm", ["grown", "net2net", "hypercloning"])
def test_from_scratch_for_the_flops_of_all_stages(study, arm):
  scale, spent, at = study.SCALES["cpu"], 0, arm
  while at:
    stage = study.STAGES[at]
    spent += study.steps(at, scale) * study.macs(stage.model, scale)
    at = stage.parent
  other = "scratch" if arm == "grown" else f"{arm}-scratch"
  cost = study.macs(study.STAGES[other].model, scale)
  assert study.steps(other, scale) * cost == pytest.approx(spent, rel=1e-3)
  assert study.macs(study.STAGES["scratch-short"].model, scale) == cost


def answers(study, tmp_path, gap=0.0, jump=0.0, **losses):
  """Verdicts of three seeds around given losses and gaps of growth."""

  def loss(run):
    facts = run.law_variables
    return losses.get(facts["arm"], 0.5) + NOISE.get(facts.get("seed"), 0)

  done, _ = rounds(study, "quick", tmp_path, loss)
  runs = study.analysis.finished(done)
  found = {
    key: (1.0, 1.0 + (jump + NOISE[key[1]] if "unfr" in key[0] else gap))
    for key, run in runs.items()
    if run["law_variables"]["parent"]
  }
  study.analysis.losses(runs), study.analysis.births(found)
  assert len(study.analysis.figure(runs, found).panels) == 2
  return [v.verdict for v in study.analysis.verdicts(runs, found)]


WORSE = (
  "scratch", "scratch-short", "unfrozen", "net2net-scratch",
  "hypercloning-scratch",
)  # fmt: skip


def test_claims_can_be_won_lost_and_left_open(study, tmp_path):
  def seven(gap, jump, worse, carry):
    changed = {**dict.fromkeys(WORSE, worse), "grown-carry": carry}
    return answers(study, tmp_path, gap, jump, **changed)

  assert seven(1e-6, 0.5, 0.8, 0.4) == ["supported"] * 7
  assert seven(1e-3, 0.5, 0.3, 0.6) == ["not supported"] * 7
  assert seven(1e-6, 0.01, 0.8, 0.4)[0] == "inconclusive"  # no control


def test_one_seed_supports_nothing(study, tmp_path):
  done, _ = rounds(study, "smoke", tmp_path)
  runs = study.analysis.finished(done)
  found = {("grown", 0): (1.0, 1.0), ("unfrozen-2", 0): (1.0, 2.0)}
  found = study.analysis.verdicts(runs, found)
  assert {v.verdict for v in found} == {"inconclusive"}


def test_costs_include_all_ancestors(study, tmp_path):
  done, _ = rounds(study, "quick", tmp_path)
  runs = study.analysis.finished(done)
  line = study.analysis.ancestry(runs, "grown", 2)
  assert line == [("small", 2), ("grown-2", 2), ("grown", 2)]
  assert study.analysis.flops(runs, "grown", 2) == 3 * 156e6
  rows = {r["arm"]: r for r in study.analysis.losses(runs).rows}
  assert rows["grown"]["updates"] == 3 * 156
  assert rows["scratch"]["of scratch"] == 1


@pytest.mark.slow
def test_smoke(tmp_path):
  done = study_lib.run_study("growth", scale="smoke", out=tmp_path / "out")
  assert done["status"] == "finished", done["errors"]
  costs, births = (table["rows"] for table in done["tables"])
  cost = {row["arm"]: row["of scratch"] for row in costs}
  assert cost["grown"] == pytest.approx(1, abs=0.05)
  gap = {row["stage"]: float(row["largest gap"]) for row in births}
  assert gap["unfrozen-2"] > 1e-4
  for stage in ("grown-2", "grown", "grown-carry", "net2net", "hypercloning"):
    assert gap[stage] < 1e-5, stage
