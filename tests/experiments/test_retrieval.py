"""retrieval: the design that the README states, and claims that can be lost."""

from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.bench import build
from vitscale.core.config import load_module
from vitscale.elastic import presets
from vitscale.elastic import spec as spec_lib

FOLDER = Path(__file__).parents[2] / "experiments" / "retrieval"
SEEDS = {0: -0.001, 1: 0.0, 2: 0.001}


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def pilots(study, scale, **losses):
  return {
    f"pilot-{lr:g}": {
      "status": "finished", "law_variables": {"arm": "pilot", "lr": lr},
      "metrics": {"eval/val/nll": losses.get(f"{lr:g}", 1.0)},
    }
    for lr in study.SCALES[scale].rates
  }  # fmt: skip


def test_pilots_come_first_and_choose_the_rate(study):
  first = study.runs("quick", {})
  assert [run.name for run in first] == [f"pilot-{lr:g}" for lr in study.RATES]
  assert all(list(run.config.evals) == ["val"] for run in first)
  named = study.runs("quick", pilots(study, "quick", **{"0.008": 0.5}))
  rest = named[len(first) :]
  assert {run.config.optim.lr for run in rest} == {0.008}
  assert all(list(run.config.evals) == ["test"] for run in rest)
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(study.runs(scale, pilots(study, scale)))
    line = next(x for x in text.splitlines() if x.startswith(f"| `{scale}` |"))
    assert f"| {count} |" in line, (scale, count)


def test_arms_differ_in_what_they_say(study):
  done = pilots(study, "quick")
  runs = {run.name: run.config for run in study.runs("quick", done)}
  assert runs["S-s0"].model.mlp_dim == 32 and runs["XL-s0"].model.mlp_dim == 256
  assert runs["nested-s0"].total_epochs == 4 * runs["XL-s0"].total_epochs
  assert runs["widths-s0"].total_epochs == runs["nested-s0"].total_epochs
  assert runs["S-s1"].seed == runs["nested-s1"].seed == 1  # paired
  scala = presets.preset("scala:4")
  assert set(runs["widths-s0"].task.granularities) == {*scala[:-1], "full"}


@pytest.mark.slow
def test_what_was_not_trained_fits_the_model(study):
  """Every unseen part is whole, and lies above its trained neighbour."""
  done = pilots(study, "smoke")
  runs = {run.name: run.config for run in study.runs("smoke", done)}
  from vitscale.elastic import cut, evaluate

  for arm, pairs in study.analysis.UNSEEN.items():
    bench = build(runs[f"{arm}-s0"])
    big = cut.Nested(Path(), {}, bench, {})
    spec = lambda part, arm=arm: spec_lib.parse(study.analysis.SPEC[arm](part))
    for part, lower in pairs:
      assert evaluate.kind(big, spec(part)) == "unseen"
      assert evaluate.kind(big, spec(lower)) == "trained"


def values(mean):
  return {seed: mean + e for seed, e in SEEDS.items()}


def made(study, *, cross=0.7, apart=0.1, same=0.72, hidden=0.0, widths=-0.1):
  """Scores and retrieval of three seeds around given means."""
  analysis, scores, found = study.analysis, {}, {}
  sizes = list(analysis.SIZES)
  for arm in ("nested", "separate", "widths"):
    names = sizes if arm == "separate" else [
      name for _, name, _ in analysis.ladder(arm)
    ]  # fmt: skip
    shift = {"nested": hidden, "widths": widths}.get(arm, 0.0)
    scores[arm] = {
      name: {
        seed: {
          "accuracy": v + shift * (name not in analysis.TRAINED.get(
            arm, {}).values() and arm != "separate"),
          "nll": 0.5, "ece": 0.02, "brier": 0.3,
        }
        for seed, v in values(0.8).items()
      }
      for name in names
    }  # fmt: skip
  for arm, other in (("nested", cross), ("separate", apart)):
    found[arm] = {
      seed: {
        (i, j): {1: (same if i == j else other) + e, 20: same + e}
        for i in sizes
        for j in sizes
      }
      for seed, e in SEEDS.items()
    }
  macs = dict(zip(sizes, (45, 55, 70, 100)))
  return scores, found, macs


def answers(study, **how):
  return [v.verdict for v in study.analysis.verdicts(*made(study, **how))]


def test_claims_can_be_won_and_lost(study):
  # Equal differences of all seeds have an interval of no width.
  won = answers(study, cross=0.71)
  assert won == ["supported"] * 4
  lost = answers(study, cross=0.3, hidden=-0.05, widths=0.0)
  assert lost == ["not supported"] * 4


def test_controls_are_said(study):
  first = study.analysis.verdicts(*made(study))[0]
  assert "S in S, nested minus separate: 0.000" in first.control
  assert "within .05 supported" in first.control
  assert "separate S in XL 0.100, chance .1" in first.control
  second = study.analysis.verdicts(*made(study))[1]
  assert "0.45 of the MACs of XL" in second.measured


def test_one_seed_supports_nothing(study):
  scores, found, macs = made(study)
  one = lambda sizes: {name: {0: by[0]} for name, by in sizes.items()}
  scores = {arm: one(sizes) for arm, sizes in scores.items()}
  found = {arm: {0: by[0]} for arm, by in found.items()}
  verdicts = study.analysis.verdicts(scores, found, macs)
  assert {v.verdict for v in verdicts} == {"inconclusive"}
  assert "of one seed" in verdicts[0].measured


def test_tables_and_figure_hold_the_means(study):
  scores, found, macs = made(study)
  matrix, sizes, gaps, between = study.analysis.tables(scores, found, macs)
  row = next(
    r for r in matrix.rows
    if (r["arm"], r["k"], r["query"]) == ("nested", 1, "S")
  )  # fmt: skip
  assert row["in S"] == 0.72 and row["in XL"] == 0.7
  assert [r["part"] for r in between.rows if r["arm"] == "nested"] == [
    "1/8", "3/16", "1/4", "3/8", "1/2", "3/4", "1",
  ]  # fmt: skip
  assert sizes.rows[0]["MACs of XL"] == 0.45
  area = gaps.rows[-1]
  assert area["accuracy of"] == "area, S to XL"
  assert area["nested minus separate"] == pytest.approx(0, abs=1e-9)
  left, _ = study.analysis.figure(scores, found, macs).panels
  assert np.ndim(left.marks[0].y) == 1 and left.marks[0].y[-1] == 0.72


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("retrieval", scale="smoke", out=tmp_path / "out")
  assert result["status"] == "finished", result["errors"]
  costs = next(t for t in result["tables"] if "updates" in t["rows"][0])
  by_arm = {row["arm"]: row for row in costs["rows"]}
  assert by_arm["nested"]["of all separate"] == pytest.approx(1, abs=0.02)
  assert by_arm["nested"]["updates"] == 4 * by_arm["XL"]["updates"]
  assert all(v["verdict"] == "inconclusive" for v in result["verdicts"])
