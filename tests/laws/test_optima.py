"""Budgets of runs and power laws through optima."""

import json

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws import optima


def test_what_is_missing_is_derived_in_float():
  n, d = np.array([7_000_000_000]), np.array([1_500_000_000_000])
  rows = optima.read({"N": n, "D": d, "loss": [2.0]})
  assert rows.c[0] == pytest.approx(6.3e22), "int64 would have overflowed"
  assert rows.notes == ("C = 6 N D",)
  back = optima.read({"N": n, "C": rows.c, "loss": [2.0]}, per=3)
  assert back.d[0] == pytest.approx(3e12)
  assert back.notes == ("D = C / (3 N)",)


def test_counted_compute_is_kept():
  rows = optima.read({"N": [2.0], "D": [3.0], "C": [72.0], "loss": [1.0]})
  assert rows.c[0] == 72 and rows.spread == pytest.approx(np.log(2))
  assert "factor of up to 2; C is taken as counted" in rows.notes[0]


@pytest.mark.parametrize(
  "table, message",
  [
    ({"N": [1.0], "loss": [1.0]}, "no column 'C' and no column 'D'"),
    ({"N": [1.0], "C": [-1.0], "loss": [1.0]}, "'C' is -1 in row 1"),
    ({"N": [1.0], "C": [1.0], "los": [1.0]}, "no column 'loss'"),
    ({"N": ["x"], "C": [1.0], "loss": [1.0]}, "'N' is text"),
  ],
)
def test_bad_tables_are_named(table, message):
  with pytest.raises(UserError, match=message):
    optima.read(table)


def test_power_law_through_optima():
  c = np.array([1e17, 1e18, 1e20])
  true = np.log(0.3 * c**0.47)
  rng = np.random.default_rng(0)
  drawn = true + 0.01 * rng.standard_normal((500, 3))
  law = optima.power(c, true, drawn, dof=np.inf)
  assert law.exponent == pytest.approx(0.47, abs=1e-12)
  assert law.k == pytest.approx(0.3, rel=1e-9)
  assert law.at(1e22) == pytest.approx(0.3 * 1e22**0.47, rel=1e-9)
  spread = 0.01 / np.sqrt(((np.log(c) - np.log(c).mean()) ** 2).sum())
  low, high = law.ci()
  assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
  near, far = (np.log(law.at_ci(v)) for v in (1e18, 1e24))
  assert np.ptp(far) > 3 * np.ptp(near), "intervals open with distance"
  json.dumps(optima.plain(law.as_dict()), allow_nan=False)


def test_lost_draws_are_counted():
  c, true = np.array([1.0, 10, 100]), np.zeros(3)
  drawn = np.tile([0.0, 1.0, 2.0], (100, 1))
  drawn[:4, :2] = np.nan  # one optimum is no line
  drawn[4:50, 1] = np.nan  # two are
  assert len(optima.power(c, true, drawn, 5).draws) == 96
  drawn[:6, :2] = np.nan
  law = optima.power(c, true, drawn, 5)
  assert not len(law.draws) and np.isnan(law.ci()).all()
  assert law.as_dict()["ci95"] == [None, None]
