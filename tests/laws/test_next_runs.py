"""Plans of further runs, against truth, brute force and naive spending."""

import itertools
import json

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws.information import information, search

LAW = laws.chinchilla()
TRUTH = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
TARGET = {"N": 2e9, "D": 4e10}
LIMITS = {"N": (1e6, 1e9), "D": (1e7, 1e11)}
BUDGET = 3e18
NOISE = 0.01


def noisy(seed, **x):
  x = {k: np.asarray(v, float) for k, v in x.items()}
  e = np.random.default_rng(seed).standard_normal(len(x["N"]))
  return {**x, "loss": LAW(TRUTH, **x) * np.exp(NOISE * e)}


def small(seed):
  """20 runs up to 1e17 FLOPs; the target costs 4.8e20."""
  c = np.repeat(np.geomspace(1e15, 1e17, 4), 5)
  n = np.sqrt(c / 120) * np.tile(np.geomspace(0.25, 4, 5), 4)
  return noisy(seed, N=n, D=c / 6 / n)


def fit(data):
  return laws.fit(LAW, data, bootstrap=0)


def plan(found, **options):
  options = {"budget": BUDGET, "count": 4, "limits": LIMITS, **options}
  return laws.next_runs(found, TARGET, **options)


def after(data, seed, N, D):
  """(width, error) of ln loss at the target when runs are added and fitted."""
  new = noisy(1000 + seed, N=N, D=D)
  found = fit({k: np.r_[data[k], new[k]] for k in data})
  low, high = found.predict_ci(kind="delta", **TARGET)
  error = np.log(found.predict(**TARGET) / LAW(TRUTH, **TARGET))
  return high - low, error


# -------------------------------------------------------------------- controls


def test_planned_runs_beat_the_same_budget_spent_naively():
  widths, errors, ratio = [], [], []
  for seed in range(8):
    data = small(seed)
    found = plan(fit(data))
    rng = np.random.default_rng(seed)
    chance = np.exp(
      rng.uniform(np.log(2), np.log(200), 4)
    )  # tokens a parameter
    each, one = np.sqrt(BUDGET / 4 / 6 / chance), np.sqrt(BUDGET / 120)
    spent = [
      ([r["N"] for r in found.runs], [r["D"] for r in found.runs]),
      (each, each * chance),
      ([one], [20 * one]),
    ]
    done = [after(data, seed, *runs) for runs in spent]
    widths.append([w for w, _ in done])
    errors.append([e for _, e in done])
    ratio.append(done[0][0] / found.after)
    assert found.after < found.before and found.spent <= BUDGET
  planned, chance, one = np.exp(np.log(widths).mean(0))
  assert planned < 0.92 * chance and planned < 0.97 * one
  planned, chance, one = np.sqrt(np.square(errors).mean(0))
  assert planned < chance and planned < one
  # What the plan promises is what comes.
  assert 0.75 < np.exp(np.log(ratio).mean()) < 1.3
  assert (np.abs(np.log(ratio)) < np.log(1.5)).all()


def test_search_finds_the_best_set():
  """All sets of up to three of 25 places, one of them twice allowed."""
  found = fit(small(0))
  grid = np.geomspace(1e6, 1e8, 5)
  n, r = (v.ravel() for v in np.meshgrid(grid, np.geomspace(3, 100, 5)))
  places = {"N": n, "D": n * r}
  price = 6 * n * n * r
  budget = float(np.quantile(price, 0.8))
  known = information(found, places, TARGET, 0)
  sets = [
    s
    for k in (1, 2, 3)
    for s in itertools.combinations_with_replacement(range(25), k)
    if price[list(s)].sum() <= budget
  ]
  best = min(known.score(s) for s in sets)
  mine = search(known, price, budget, 3)
  assert price[mine].sum() <= budget
  assert known.score(mine) <= best + 0.02 < known.score([]) - 0.1


def test_one_more_run_is_what_the_matrix_says():
  found = fit(small(1))
  places = {"N": np.array([1e7, 1e8, 1e6]), "D": np.array([1e9, 1e9, 1e8])}
  known = information(found, places, TARGET, 0)
  np.testing.assert_allclose(
    known.with_one([1]), [known.score([1, j]) for j in range(3)], rtol=1e-6
  )
  # Present information alone gives the fit's own interval.
  low, high = found.predict_ci(kind="delta", **TARGET)
  assert plan(found).before == pytest.approx(high - low, rel=1e-3)


# ----------------------------------------------------------------- what it says


def test_plan_as_json():
  found = plan(fit(small(2)))
  out = json.loads(json.dumps(found.as_dict(), allow_nan=False))
  widths = [out["before"], *(r["width"] for r in out["runs"])]
  assert (np.diff(widths) < 0).all() and widths[-1] == out["after"]
  for r in out["runs"]:
    assert r["C"] == r["cost"] == pytest.approx(6 * r["N"] * r["D"])
    assert 1e6 <= r["N"] <= 1.001e9 and r["loss"] > 0
  assert out["runs"][-1]["left"] == pytest.approx(BUDGET - out["spent"])
  assert out["noise"] == pytest.approx(NOISE, rel=0.6)
  assert plan(fit(small(2))) == found


def test_law_of_one_variable_and_own_costs():
  law = laws.power_constant("C", exponent=(-2, 0))
  c = np.geomspace(1e3, 1e5, 10)
  e = np.random.default_rng(0).standard_normal(10)
  loss = (1 + 30 * c**-0.4) * np.exp(0.01 * e)
  found = laws.fit(law, {"C": c, "loss": loss}, bootstrap=100)
  first = laws.next_runs(found, {"C": 1e7}, budget=1e6, count=3)
  assert first.after < 0.7 * first.before
  assert max(r["C"] for r in first.runs) <= 1e6
  square = laws.next_runs(
    found, {"C": 1e7}, budget=1e6, count=3, cost=lambda C: C**2 / 1e4
  )
  for r in square.runs:
    assert r["cost"] == pytest.approx(r["C"] ** 2 / 1e4) and r["cost"] <= 1e6
  table = {"C": [1e5, 1e6], "hours": [1.0, 5.0]}
  own = laws.next_runs(
    found, {"C": 1e7}, budget=7, count=9, candidates=table, cost="hours"
  )
  assert own.spent == 7 and len(own.runs) == 3
  assert "the budget ends after 3 of 9 runs" in own.warnings


def test_what_a_plan_cannot_tell_is_said():
  data = small(3)
  inside = {"N": 1e7, "D": 2e8}
  near = laws.next_runs(fit(data), inside, budget=1e15, count=1)
  assert any("inside of the data" in w for w in near.warnings)
  assert any("better than one run" in w for w in near.warnings)
  middle = {"N": [1e7], "D": [2e8]}
  little = plan(fit(data), candidates=middle, limits=None, count=1)
  assert any("narrows the interval by" in w for w in little.warnings)
  flat = {**data, "loss": np.exp(0.01 * np.sin(np.arange(20.0)))}
  degenerate = plan(fit(flat), limits=None)
  assert any(w.startswith("degenerate") for w in degenerate.warnings)


@pytest.mark.parametrize(
  ("target", "options", "says"),
  [
    (TARGET, {"budget": 1.0}, "buys no run: the cheapest candidate costs"),
    ({"N": 1e9}, {}, "target: needs a value for 'D'"),
    ({**TARGET, "n": 1}, {}, "target: no variable 'n' .one of: N, D"),
    ({"N": -1, "D": 1}, {}, "N is -1, must be positive"),
    (TARGET, {"count": 0}, "count is 0"),
    (TARGET, {"limits": {"X": (1, 2)}}, "limits: no variable 'X'"),
    (TARGET, {"limits": {"N": (9, 2)}}, "limits of N are 9 to 2"),
    (TARGET, {"limits": {"N": (1, 2)}}, "limits leave no candidate"),
    (TARGET, {"cost": "hours"}, "it needs candidates"),
    (TARGET, {"candidates": {"N": [1.0]}}, "candidates: no column 'D'"),
    (TARGET, {"candidates": {"N": [1], "D": [-1]}}, "must be positive"),
  ],
)
def test_bad_input(target, options, says):
  options = {"budget": BUDGET, "count": 2, **options}
  with pytest.raises(UserError, match=says) as error:
    laws.next_runs(FIT, target, **options)
  assert "\n" not in str(error.value)


def test_no_noise_known():
  five = {k: v[[0, 4, 9, 15, 18]] for k, v in small(0).items()}
  with pytest.raises(UserError, match=r"leave no degree of freedom|converge"):
    plan(fit(five))


FIT = fit(small(0))
