"""early_exit: the README's design, and claims that can be lost."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.exits import Costs

FOLDER = Path(__file__).parents[2] / "experiments" / "early_exit"


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


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_the_rate(study):
  first = study.runs("cpu", {})
  assert [run.name for run in first] == [f"pilot-{r:g}" for r in study.RATES]
  assert all(list(run.config.evals) == ["val"] for run in first)
  done = pilots(study, "cpu", **{"0.008": 0.5})
  rest = study.runs("cpu", done)[len(first) :]
  assert {run.config.optim.lr for run in rest} == {0.008}
  assert all(list(run.config.evals) == ["test"] for run in rest)
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(study.runs(scale, pilots(study, scale)))
    assert f"| `{scale}` |" in text and f"| {count} |" in text, (scale, count)


def test_arms_are_what_the_readme_says(study):
  done = pilots(study, "quick")
  runs = {run.name: run for run in study.runs("quick", done)}
  parent = runs["exits-s0"].config
  assert parent.total_epochs == 2 * runs["depth-6-s0"].config.total_epochs
  depths = [
    spec_lib.resolve(spec_lib.parse(text), {"depth": 6})[0].get("depth", 6)
    for text in parent.task.granularities
  ]
  assert list(parent.task.weights) == depths == [1, 2, 3, 4, 6]
  thinking, nested = runs["thinking-s1"].config, runs["nested-s1"].config
  assert thinking.model == nested.model == runs["large-s1"].config.model
  assert thinking.task.rounds == nested.task.granularities
  assert nested.task.strategy == "joint" and nested.task.reduce == "mean"
  small = spec_lib.resolve(
    spec_lib.parse(study.analysis.PARTS[0]),
    {"num_classes": 10, "head_dim": None, **thinking.model},
  )[0]
  alone = runs["small-s1"].config.model
  assert {k: alone[k] for k in small if k != "head_dim"} == {
    k: v for k, v in small.items() if k != "head_dim"
  }
  assert thinking.seed == nested.seed == 1  # paired
  costs = [runs[f"{arm}-s0"].law_variables["macs"] for arm in
           ("small", "depth-2", "large", "depth-6")]  # fmt: skip
  assert costs == sorted(costs) and "macs" not in runs["exits-s0"].law_variables


# ------------------------------------------------------------------- policies

COSTS = Costs(np.array([90, 100, 100]), np.array([10, 10, 10]))


def images(study, n, seed, *, know=True):
  """Three exits; images rise in difficulty, doubts follow it if they `know`."""
  rng = np.random.default_rng(seed)
  hard = rng.random(n)
  labels = rng.integers(0, 4, n)
  logits = np.zeros((n, 3, 4))
  for k, limit in enumerate((0.5, 0.7, 0.9)):
    right = hard < limit + 0.05 * rng.normal(size=n)
    told = np.where(right, labels, (labels + 1) % 4)
    sure = 8 * (1.2 - hard) if know else 8 * (1.2 - rng.permutation(hard))
    logits[np.arange(n), k, told] = sure
  pooled = np.stack([hard, rng.normal(size=n)], 1)
  if not know:
    pooled = rng.permutation(pooled)
  return study.analysis.policies.Images(logits, labels, pooled)


def seen(study, **changes):
  """Runs of three seeds, as `said` returns them."""
  out = {}
  for seed in range(3):
    for arm in ("exits", "thinking", "nested"):
      test, val = (
        images(study, 2000, 10 * seed + i, **changes) for i in (1, 2)
      )
      out[arm, seed] = {"val": val, "test": test, "costs": COSTS}
  return out


def large(macs=200.0, accuracy=0.7):
  return {"large": {seed: (macs, accuracy + 0.001 * seed) for seed in range(3)}}


def test_policies_that_know_beat_the_line_and_those_that_do_not_do_not(study):
  found = study.analysis.measured(seen(study), large())
  blind = study.analysis.measured(seen(study, know=False), large())
  mean = study.analysis.policies.mean
  for seed in range(3):
    for name in ("entropy", "gate"):
      assert mean(found[name][seed], "luck") > 0.02
      assert abs(mean(blind[name][seed], "luck")) < 0.02
      assert mean(found[name][seed], "gain") > mean(blind[name][seed], "gain")
    assert found["oracle"][seed].accuracy >= max(
      p.accuracy for p in found["entropy"][seed] + found["told"][seed]
    )


def test_policies_hit_the_cost_they_aim_at(study):
  found = study.analysis.measured(seen(study), large())
  tried = COSTS.tried()
  for points in found["entropy"].values():
    macs = [point.macs for point in points]
    aim = tried[0] + np.array(study.analysis.SHOWN) * (tried[-1] - tried[0])
    np.testing.assert_allclose(macs, aim, atol=0.05 * tried[-1])
  assert found["thinking at large"][0].macs == pytest.approx(200, rel=0.05)
  # Recycling wants what the first round saw; the nested part doesn't.
  alone = lambda arm: [macs for macs, _ in found[f"{arm} rounds"][0]]
  assert alone("thinking") == [100, 210, 320]
  assert alone("nested") == [100, 110, 110]


def test_nothing_is_chosen_on_test_images(study):
  """Labels and logits of `test` change what is found, not what is set."""
  analysis, one = study.analysis, seen(study)
  other = {
    key: {**value, "test": images(study, 2000, 77)}
    for key, value in one.items()
  }
  first, then = (analysis.measured(s, large()) for s in (one, other))
  for name in ("entropy", "gate", "told", "thinking", "nested"):
    settings = [[p.setting for p in found[name][0]] for found in (first, then)]
    assert settings[0] == settings[1]
    assert [p.accuracy for p in first[name][0]] != [
      p.accuracy for p in then[name][0]
    ]


def test_the_gate_and_the_choice_have_images_of_their_own(study):
  analysis, one = study.analysis, seen(study)
  rows = np.zeros(2000, int)
  rows[analysis.GATE] += 1
  rows[analysis.CHOICE] += 2
  assert set(rows) == {1, 2}
  val = one["exits", 0]["val"]
  spoilt = val.logits.copy()
  spoilt[analysis.GATE] = 0
  changed = {
    **one,
    ("exits", 0): {
      **one["exits", 0], "val": dataclasses.replace(val, logits=spoilt)
    },
  }  # fmt: skip
  before, after = (analysis.measured(s, large()) for s in (one, changed))
  settings = lambda found, name: [p.setting for p in found[name][0]]
  assert settings(before, "entropy") == settings(after, "entropy")
  accuracy = lambda found: [p.accuracy for p in found["gate"][0]]
  assert accuracy(before) != accuracy(after)


# --------------------------------------------------------------------- claims


def test_claims_can_be_won_and_lost(study):
  analysis = study.analysis
  known, blind = seen(study), seen(study, know=False)
  won = {key: (known if key[0] != "nested" else blind)[key] for key in known}
  alone = large(accuracy=0.6)
  found = analysis.verdicts(analysis.measured(won, alone), alone)
  answers = [verdict.verdict for verdict in found]
  assert answers[:2] == ["supported", "supported"]
  assert answers[3:] == ["supported"] * 3
  lost = {key: (blind if key[0] != "nested" else known)[key] for key in known}
  alone = large(accuracy=0.95)
  found = analysis.verdicts(analysis.measured(lost, alone), alone)
  answers = [verdict.verdict for verdict in found]
  assert answers[0] == answers[4] == answers[5] == "not supported"
  assert answers[1] != "supported"


def test_claim_three_has_two_sides(study):
  analysis = study.analysis
  found = dict(analysis.measured(seen(study), large()))
  better = lambda points, by: [
    dataclasses.replace(p, gain=p.gain + by) for p in points
  ]
  for by, answer in ((0.1, "supported"), (-0.1, "not supported")):
    gate = {s: better(points, by) for s, points in found["entropy"].items()}
    gate[0] = better(gate[0], 0.001)
    said = analysis.verdicts({**found, "gate": gate}, large())
    assert said[2].verdict == answer


def test_one_seed_supports_nothing_and_none_is_no_error(study):
  analysis = study.analysis
  one = {key: value for key, value in seen(study).items() if key[1] == 0}
  alone = {"large": {0: (200.0, 0.1)}}
  found = analysis.verdicts(analysis.measured(one, alone), alone)
  assert {verdict.verdict for verdict in found} == {"inconclusive"}
  none = analysis.verdicts({}, {})
  assert {verdict.verdict for verdict in none} == {"inconclusive"}


def test_tables_and_figures_show_every_policy(study):
  analysis = study.analysis
  found = analysis.measured(seen(study), large())
  names = [row["policy"] for row in analysis.table(found, large())]
  assert {"entropy 0.5", "gate 0.25", "oracle", "exits 3, static"} <= set(names)
  assert "large, separate" in names and len(set(names)) == len(names)
  exits, rounds = analysis.figures(found, large())
  groups = lambda figure: {mark.group for mark in figure.panels[0].marks}
  assert groups(exits) >= {"entropy", "gate", "static exits"}
  assert groups(rounds) == {"thinking", "nested", "separate models"}


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "early_exit", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished", result["errors"]
  rows = next(t for t in result["tables"] if "policy" in t["rows"][0])["rows"]
  by_name = {row["policy"]: row for row in rows}
  # One pass of all layers is the separate model, exits included.
  last = by_name["exits 5, static"]["MACs"]
  assert last == by_name["depth-6, separate"]["MACs"]
  assert (
    by_name["exits 2, static"]["MACs"] == by_name["depth-2, separate"]["MACs"]
  )
  assert by_name["oracle"]["accuracy"] >= by_name["entropy 0.5"]["accuracy"]
