"""FLOP levels: grouping, curves, resampling."""

import re

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws import levels, optima


def table(c, n, loss):
  return optima.read({"C": c, "N": n, "loss": loss})


def bowl(n, best, floor=2.0, curvature=0.1):
  return floor + curvature * np.log(np.asarray(n) / best) ** 2


N = np.array([1.0, 2, 4, 8, 16]) * 1e6


def test_levels_are_found_by_gaps():
  c = np.r_[np.full(5, 1e17) * np.exp(np.linspace(0, 0.05, 5)), [1e18] * 5]
  rows = table(c, np.tile(N, 2), np.tile(bowl(N, 4e6), 2))
  groups, notes = levels.group(rows, None, 0.1, "parabola")
  assert [len(g.n) for g in groups] == [5, 5]
  assert groups[0].c == pytest.approx(1e17 * np.exp(0.025))
  assert notes == ("C varies by up to 5% within a level",)


def test_a_continuum_is_no_level():
  c = np.geomspace(1e17, 1e18, 50)
  rows = table(c, np.tile(N, 10), np.ones(50))
  with pytest.raises(UserError, match="50 of 50 rows form no level"):
    levels.group(rows, None, 0.1, "parabola")
  groups, notes = levels.group(rows, [1e17, 1e18], 0.3, "parabola")
  assert [g.c for g in groups] == [1e17, 1e18]
  assert notes[0].startswith("36 of 50 rows lie over 30% from a level")


@pytest.mark.parametrize("kind", ["parabola", "akima"])
def test_the_minimum_of_a_bowl(kind):
  n = np.geomspace(1e6, 64e6, 13)
  rows = table(np.full(13, 1e17), n, bowl(n, 7e6))
  (one,), _ = levels.group(rows, None, 0.1, kind)
  level = levels.judge(one, kind)
  exact = kind == "parabola"
  assert level.n == pytest.approx(7e6, rel=1e-9 if exact else 0.03)
  assert level.loss == pytest.approx(2.0, abs=1e-9 if exact else 1e-3)
  assert level.d == pytest.approx(1e17 / 6 / level.n)
  assert (level.points, level.sizes, level.why) == (13, 13, "")


@pytest.mark.parametrize(
  "loss, kind, why",
  [
    (bowl(N, 40e6), "parabola", "vertex N = 4e.07 lies outside"),
    (bowl(N, 40e6), "akima", "largest size has the lowest loss"),
    (bowl(N, 4e6, curvature=-0.1), "parabola", "opens downwards"),
  ],
)
def test_what_is_no_optimum_is_said(loss, kind, why):
  (one,), _ = levels.group(table(np.full(5, 1e17), N, loss), None, 0.1, kind)
  assert re.search(why, levels.judge(one, kind).why)


def test_counted_compute_prices_each_size():
  """C / (N D) that falls with N: D* is what the budget leaves at N*."""
  d = 1e17 / (6 * N * (1 + 1e6 / N))
  rows = optima.read(
    {"C": np.full(5, 1e17), "N": N, "D": d, "loss": bowl(N, 4e6)}
  )
  (one,), _ = levels.group(rows, None, 0.1, "parabola")
  true = 1e17 / (6 * 4e6 * 1.25)
  assert levels.judge(one, "parabola").d == pytest.approx(true, rel=0.1)


def test_sizes_read_off_a_figure_are_one_size():
  n = np.array([3.0, 1.0, 1.0 + 1e-9, 2.0])
  assert levels.places(n).tolist() == [2, 0, 0, 1]


def test_resampling_needs_residuals_or_repeats():
  def group(n, sigma):
    noise = np.exp(sigma * np.random.default_rng(0).standard_normal(len(n)))
    rows = table(np.full(len(n), 1e17), n, bowl(n, 4e6) * noise)
    return levels.group(rows, None, 0.1, "parabola")[0]

  drawn, dof, how = levels.resample(group(N, 0.01), "parabola", 200, 0)
  assert drawn.shape == (200, 1) and dof == 2 and "residual" in how
  assert levels.resample(group(N[1:4], 0.01), "parabola", 200, 0)[2] == ""
  assert levels.resample(group(N, 0.01), "akima", 200, 0)[2] == ""
  drawn, dof, _ = levels.resample(
    group(np.repeat(N, 3), 0.001), "akima", 200, 0
  )
  assert dof == 10 and 0 < np.nanstd(drawn) < 0.5
  again, _, _ = levels.resample(group(np.repeat(N, 3), 0.001), "akima", 200, 0)
  np.testing.assert_array_equal(drawn, again)
