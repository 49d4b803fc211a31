"""Approach 1: the lower envelope, its power laws and the Pareto frontier."""

import json

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws.envelope import envelope, pareto
from vitscale.laws.joint import chinchilla

LAW = chinchilla()
TRUTH = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}


def curves(sizes=8, repeats=1, sigma=0.0, seed=0, rows=40):
  """Runs of .05 to 20 tokens a parameter; noise is one factor per run."""
  rng = np.random.default_rng(seed)
  n = np.repeat(np.geomspace(1e7, 1e9, sizes), repeats)
  run = np.repeat(np.arange(len(n)), rows)
  n = n[run]
  d = n * np.tile(np.geomspace(0.05, 20, rows), sizes * repeats)
  noise = np.exp(sigma * rng.standard_normal(sizes * repeats))[run]
  return {"run": run, "N": n, "D": d, "loss": LAW(TRUTH, N=n, D=d) * noise}


def test_curves_give_the_exponent():
  found = envelope(curves(rows=200), run="run", bootstrap=0)
  assert found.curves and found.runs == 8 and found.sizes == 6
  assert found.n.exponent == pytest.approx(0.5, abs=0.01)
  assert found.d.exponent == pytest.approx(0.5, abs=0.01)
  assert found.n.at(1e17) == pytest.approx((1e17 / 6) ** 0.5, rel=0.05)
  assert any("learning rate" in w for w in found.warnings)
  json.dumps(found.as_dict(), allow_nan=False)


def test_the_ends_of_the_ladder_are_no_optima():
  found = envelope(curves(), run="run", bootstrap=0)
  ends = {s.run for s in found.stretches if s.why}
  assert {"0", "7"} <= ends
  assert not {"0", "7"} & {s.run for s in found.stretches if not s.why}
  assert any(
    "budgets left out: the winner beats no" in w for w in found.warnings
  )
  # Counting them would pull the line towards N = const at both ends.
  every = [(s.low * s.high) ** 0.5 for s in found.stretches]
  sizes = [s.n for s in found.stretches]
  naive = np.polyfit(np.log(every), np.log(sizes), 1)[0]
  assert abs(naive - 0.5) > 5 * abs(found.n.exponent - 0.5)


def test_a_decayed_shorter_run_beats_a_longer_one():
  rows = curves()
  middle = (rows["run"] == 3) & (rows["D"] < 0.3 * rows["N"])
  rows["loss"] = np.where(middle, rows["loss"] * 0.8, rows["loss"])
  found = envelope(rows, run="run", bootstrap=0)
  assert any("a cheaper run is better" in w for w in found.warnings)


def test_finished_runs_are_binned():
  rng = np.random.default_rng(0)
  n, ratio = np.exp(rng.uniform([16, -3], [21, 3], (800, 2))).T
  rows = {"N": n, "D": n * ratio, "loss": LAW(TRUTH, N=n, D=n * ratio)}
  found = envelope(rows, bootstrap=300)
  assert not found.curves and found.interval == "bootstrap of runs"
  low, high = found.n.ci()
  assert low < 0.5 < high and high - low < 0.4
  assert found.n.exponent == pytest.approx(0.5, abs=0.07)
  best = [s for s in found.stretches if not s.why]
  c = np.array([s.low for s in best])
  assert (c == [s.high for s in best]).all(), "a point keeps its own compute"
  assert pareto(6 * n * n * ratio, rows["loss"]).sum() > len(best)


def test_intervals_over_repeats():
  hits = 0
  for seed in range(12):
    rows = curves(repeats=3, sigma=0.004, seed=seed)
    found = envelope(rows, run="run", bootstrap=150, bins=400, seed=seed)
    low, high = found.n.ci()
    assert found.interval == "bootstrap of runs within sizes"
    hits += low < 0.5 < high
  assert hits >= 9


def test_no_interval_is_said():
  few = envelope(curves(sizes=5), run="run", bootstrap=100)
  assert few.n is not None and np.isnan(few.n.ci()).all()
  assert any("no interval: over 5 %" in w for w in few.warnings)
  four = envelope(curves(sizes=4), run="run", bootstrap=100)
  assert any("3 winning sizes are needed" in w for w in four.warnings)
  three = envelope(curves(sizes=3), run="run", bootstrap=100)
  assert three.n is None
  assert any("no exponent, 2 are needed" in w for w in three.warnings)


def test_single_rows_among_curves():
  rows = curves()
  one = {"run": 99, "N": 1e8, "D": 1e9, "loss": 1e-3}
  rows = {k: np.append(v, one[k]) for k, v in rows.items()}
  found = envelope(rows, run="run", bootstrap=0)
  assert "1 runs of a single row among curves: left out" in found.warnings
  assert all(s.run != "99" for s in found.stretches)


def test_complaints():
  rows = curves()
  with pytest.raises(UserError, match="no column 'ru'"):
    envelope(rows, run="ru")
  with pytest.raises(UserError, match="run '0' has sizes from"):
    envelope({**rows, "N": rows["D"]}, run="run")
  with pytest.raises(UserError, match="same compute"):
    envelope({"N": [1.0, 2], "C": [1.0, 1], "loss": [1.0, 1]})
  with pytest.raises(UserError, match="bins is 1"):
    envelope(rows, bins=1)


def test_pareto():
  c = np.array([1.0, 2, 2, 3, 4, 4, 5])
  y = np.array([5.0, 4, 6, 4, 2, 2, 2])
  assert pareto(c, y).tolist() == [1, 1, 0, 0, 1, 1, 0]
  rng = np.random.default_rng(0)
  c, y = rng.integers(0, 12, (2, 60)).astype(float)
  better = (c <= c[:, None]) & (y <= y[:, None])
  strictly = (c < c[:, None]) | (y < y[:, None])
  want = ~(better & strictly).any(1)
  np.testing.assert_array_equal(pareto(c, y), want)
  with pytest.raises(UserError, match="point 1 is"):
    pareto([1.0, np.nan], [1.0, 2.0])
