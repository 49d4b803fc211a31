"""matformer: the design that the README states, and claims that can be lost."""

from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "matformer"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def pilots(study, scale, **losses):
  done = {}
  for lr in study.SCALES[scale].rates:
    loss = losses.get(f"{lr:g}", 1.0)
    done[f"pilot-{lr:g}"] = {
      "status": "finished", "law_variables": {"arm": "pilot", "lr": lr},
      "metrics": {"eval/val/nll": loss},
    }  # fmt: skip
  return done


def with_teachers(study, scale, **losses):
  """Results after which every run is named: pilots, and the separate XL."""
  done = pilots(study, scale, **losses)
  for seed in study.SCALES[scale].taught:
    done[f"XL-s{seed}"] = {
      "status": "finished", "workdir": f"out/runs/XL-s{seed}",
      "law_variables": {"arm": "XL", "seed": seed}, "metrics": {},
    }  # fmt: skip
  return done


def test_pilots_come_first_and_choose_the_rate(study):
  first = study.runs("quick", {})
  assert [run.name for run in first] == [f"pilot-{lr:g}" for lr in study.RATES]
  assert all("val" in run.config.evals for run in first)
  done = pilots(study, "quick", **{"0.002": 0.5})
  named = study.runs("quick", done)
  rest = named[len(first) :]
  assert {run.config.optim.lr for run in rest} == {0.002}
  assert all(list(run.config.evals) == ["test"] for run in rest)
  for scale in study.SCALES:
    text = (FOLDER / "README.md").read_text()
    count = len(study.runs(scale, with_teachers(study, scale)))
    assert f"| `{scale}` |" in text and f"| {count} |" in text, (scale, count)


def test_arms_differ_in_what_they_say(study):
  done = pilots(study, "quick")
  runs = {run.name: run.config for run in study.runs("quick", done)}
  assert runs["S-s0"].model.mlp_dim == 32 and runs["XL-s0"].model.mlp_dim == 256
  assert runs["sampled-s0"].total_epochs == 4 * runs["joint-s0"].total_epochs
  assert runs["joint-s0"].total_epochs == runs["XL-s0"].total_epochs
  assert runs["heavy-s0"].task.weights == (0.17, 0.2, 0.22, 0.41)
  assert runs["S-s1"].seed == runs["joint-s1"].seed == 1  # paired
  assert not any("-kd" in name for name in runs)  # the teacher has to be there
  done = with_teachers(study, "cpu")
  runs = {run.name: run.config for run in study.runs("cpu", done)}
  for name in ("S-kd-s2", "L-kd-s2"):
    assert runs[name].task.teacher == "out/runs/XL-s2"
    plain = runs[name.replace("-kd", "")]
    assert runs[name].model == plain.model and runs[name].seed == plain.seed
  assert runs["joint-kd-s1"].task.of.teacher == "out/runs/XL-s1"
  assert runs["joint-kd-s1"].task.strategy == "joint"
  assert "S-kd-s3" not in runs and "S-s3" in runs


def losses(study, **arms):
  """Three seeds around the given means."""
  noise = {0: -0.01, 1: 0.0, 2: 0.01}
  plain = dict.fromkeys(study.SIZES, 0.6)
  return {
    arm: {
      size: {s: mean + e for s, e in noise.items()}
      for size, mean in {**plain, **arms.get(arm, {})}.items()
    }
    for arm in ("separate", "sampled", "sampled-x", "joint", "heavy",
                "truncated", "joint-kd", "separate-kd")
  }  # fmt: skip


def answers(study, more=0.05, **arms):
  agree = {
    "two XL runs": [0.9], "separate": [0.8] * 3, "sampled": [0.9] * 3,
    "sampled minus separate": [more - 0.002, more, more + 0.002],
  }  # fmt: skip
  found = study.analysis.verdicts(losses(study, **arms), agree)
  return [verdict.verdict for verdict in found]


def test_claims_can_be_won_and_lost(study):
  won = answers(
    study, truncated={"S": 1.0}, separate={"S": 0.8},
    joint=dict.fromkeys(study.SIZES, 0.7), heavy={"S": 0.7, "XL": 0.5},
    **{"joint-kd": {"S": 0.6}, "separate-kd": {"S": 0.7}},
  )  # fmt: skip
  assert won == ["supported"] * 6
  lost = answers(
    study, more=0.0, truncated={"S": 0.6}, separate={"S": 0.4},
    joint=dict.fromkeys(study.SIZES, 0.5), heavy={"S": 0.5, "XL": 0.7},
    **{"joint-kd": {"S": 0.6}, "separate-kd": {"S": 0.5}},
  )  # fmt: skip
  assert lost == ["not supported"] * 6


def test_one_seed_supports_nothing(study):
  analysis = study.analysis
  one = {
    arm: {size: {0: by[0]} for size, by in sizes.items()}
    for arm, sizes in losses(study, truncated={"S": 2.0}).items()
  }
  agree = {
    "two XL runs": [], "separate": [0.5], "sampled": [0.9],
    "sampled minus separate": [0.4],
  }  # fmt: skip
  found = analysis.verdicts(one, agree)
  assert {verdict.verdict for verdict in found} == {"inconclusive"}


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("matformer", scale="smoke", out=tmp_path / "out")
  assert result["status"] == "finished", result["errors"]
  costs = next(t for t in result["tables"] if "updates" in str(t["rows"][0]))
  by_arm = {row["arm"]: row for row in costs["rows"]}
  assert by_arm["joint"]["of one XL"] <= 2.66
  assert by_arm["sampled"]["of four separate"] == pytest.approx(1, abs=0.02)
