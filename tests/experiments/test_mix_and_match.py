"""mix_and_match: the README's design, and claims that can be lost."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.elastic import select

FOLDER = Path(__file__).parents[2] / "experiments" / "mix_and_match"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


@pytest.fixture(scope="module")
def analysis(study):
  return study.analysis


def test_the_design_is_the_readmes(study):
  text = (FOLDER / "README.md").read_text()
  for name, scale in study.SCALES.items():
    runs = study.runs(name, {})
    assert len(runs) == len(scale.seeds)
    mixes = f"{len(study.LEVELS) ** scale.depth:,}"
    assert f"| `{name}` |" in text and f"| {mixes}" in text
    for run in runs:  # nothing is evaluated on the test split
      assert [e.split for e in run.config.evals.values()] == ["val"]
      assert run.config.optim.lr == 4e-3
  for how in select.SELECTORS:
    assert f"`{how}`" in text


# ----------------------------------------------------------- made-up scores

MIXES = list(itertools.product(range(4), repeat=2))
IMAGES = 400


def scores(analysis, seed, worth=(1.0, 1.0), noise=0.01):
  """Mixes whose test loss falls with the levels of two layers."""
  rng = np.random.default_rng(seed)
  levels = np.array(MIXES)
  mean = 1.0 - 0.05 * levels @ np.array(worth)
  losses = mean[:, None] + noise * rng.normal(size=(len(MIXES), IMAGES))
  easy = rng.random(IMAGES)
  return analysis.tables.Scores(
    MIXES, levels.sum(1) / 6, mean, losses.mean(1), losses.astype(np.float16),
    easy[None] > 0.5 * mean[:, None],
  )  # fmt: skip


def seen(analysis, take, seeds=(0, 1, 2), **options):
  """Scores of some seeds, and picks `take(how, share, scores) -> mix`."""
  found = {}
  for seed in seeds:
    made = scores(analysis, seed, **options)
    picks = {
      (how, share): analysis.tables.Pick(take(how, share, made), 7)
      for how in select.SELECTORS
      for share in analysis.SHARES
    }
    found[seed] = made, picks
  return found


def best(analysis):
  return lambda how, share, made: analysis.reference(made, share)


def answers(analysis, found):
  return {v.claim: v.verdict for v in analysis.verdicts(found)}


def test_who_picks_the_reference_gives_nothing_away(analysis):
  found = seen(analysis, best(analysis), worth=(1.0, 0.1))
  said = answers(analysis, found)
  assert said["sensitivity gives nothing away"] == "supported"
  assert said["a router learns it"] == "supported"
  assert said["choosing matters"] == "supported"
  assert said["measuring beats the rule"] == "inconclusive"  # equal


def test_who_picks_the_smallest_gives_much_away(analysis):
  take = lambda how, share, made: (
    analysis.reference(made, share) if how == "sensitivity" else 0
  )
  said = answers(analysis, seen(analysis, take))
  assert said["the rule gives nothing away"] == "not supported"
  assert said["evolution finds it"] == "not supported"
  assert said["measuring beats the rule"] == "supported"
  other = lambda how, share, made: (
    0 if how == "sensitivity" else analysis.reference(made, share)
  )
  said = answers(analysis, seen(analysis, other))
  assert said["measuring beats the rule"] == "not supported"
  rising = lambda how, share, made: (
    analysis.reference(made, share) if how == "increasing" else 0
  )
  said = answers(analysis, seen(analysis, rising))
  assert said["rising is the right shape"] == "supported"


def test_where_layers_are_alike_choosing_does_not_matter(analysis):
  found = seen(analysis, best(analysis), worth=(0.0, 0.0), noise=0.0)
  assert answers(analysis, found)["choosing matters"] == "inconclusive"


def test_one_seed_supports_nothing(analysis):
  found = seen(analysis, best(analysis), seeds=(0,), worth=(1.0, 0.1))
  assert set(answers(analysis, found).values()) == {"inconclusive"}


def test_intervals_disagreeing_decide_nothing(analysis):
  even = np.full((3, IMAGES), 0.1)
  steady = analysis.judged("c", "t", even, 0.2, "below", "points")
  assert steady.verdict == "supported"
  seeds = even + np.array([[-1.0], [0.0], [1.0]])  # seeds differ, images don't
  shaky = analysis.judged("c", "t", seeds, 0.2, "below", "points")
  assert shaky.verdict == "inconclusive"


def test_reference_fits_and_random_mixes_cost_as_much(analysis):
  made = scores(analysis, 0, worth=(1.0, 0.1))
  for share in analysis.SHARES:
    one = analysis.reference(made, share)
    assert made.cost[one] <= share
    equal = analysis.equal_cost(made, share)
    assert equal.any() and made.cost[equal].max() <= share
    assert np.ptp(made.cost[equal]) <= analysis.EQUAL
  assert MIXES[analysis.reference(made, 0.5)] == (3, 0)


def test_bootstrap_of_images_is_paired(analysis):
  rng = np.random.default_rng(0)
  found = rng.normal(size=(3, 2000)) + 0.5
  low, high = analysis.over_images(found)
  error = 1 / np.sqrt(3 * 2000)
  assert low == pytest.approx(found.mean() - 1.96 * error, abs=0.3 * error)
  assert high == pytest.approx(found.mean() + 1.96 * error, abs=0.3 * error)


def test_tables_and_figure_hold_every_selector(analysis):
  found = seen(analysis, best(analysis), worth=(1.0, 0.1))
  names = list(select.SELECTORS)
  for table in (
    analysis.regrets(found, names), analysis.by_budget(found, names),
    analysis.chosen(found, names),
  ):  # fmt: skip
    assert set(names) <= {row["selector"] for row in table.rows}
  rows = {r["selector"]: r for r in analysis.regrets(found, names).rows}
  assert rows["reference"]["regret, points"] == 0
  assert rows["sensitivity"]["to the bound, nats"] >= -1e-3
  assert len(analysis.figure(found).panels[0].marks) == 4


@pytest.mark.slow
def test_smoke(tmp_path):
  out = tmp_path / "out"
  result = study_lib.run_study("mix_and_match", scale="smoke", out=out)
  assert result["status"] == "finished", result["errors"]
  (kept,) = out.rglob("mixes-*.npz")
  before = kept.stat().st_mtime_ns
  again = study_lib.run_study("mix_and_match", scale="smoke", out=out)
  assert kept.stat().st_mtime_ns == before  # scored once
  assert again["tables"] == result["tables"]
  assert {row["selector"] for row in result["tables"][0]["rows"]} >= set(
    select.SELECTORS
  )
