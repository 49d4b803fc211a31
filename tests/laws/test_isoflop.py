"""Approach 2: exact where it can be, biased by as much as is said elsewhere."""

import json

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws.isoflop import isoflop, isoflop_bias
from vitscale.laws.joint import chinchilla

LAW = chinchilla()
SAME = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}
SKEW = {"E": 1.7, "A": 400.0, "B": 3000.0, "alpha": 0.5, "beta": 0.3}


def best(params, c):
  """Closed form of arXiv 2203.15556, section 3.3, eq. 4."""
  alpha, beta = params["alpha"], params["beta"]
  g = (alpha * params["A"] / (beta * params["B"])) ** (1 / (alpha + beta))
  return g * (c / 6) ** (beta / (alpha + beta))


def design(params, *, width=1.5, drift=0.0, sizes=7, levels=4):
  """Rows at sizes around the optimum; the centre drifts by `drift` a decade."""
  decade = np.repeat(np.arange(levels), sizes)
  c = 1e17 * 10.0**decade
  off = np.tile(np.linspace(-width, width, sizes), levels)
  n = best(params, c) * np.exp(off + drift * (decade - (levels - 1) / 2))
  return {"N": n, "C": c, "loss": LAW(params, N=n, D=c / 6 / n)}


def test_symmetric_law_is_recovered_exactly():
  rows = design(SAME)
  found = isoflop(rows, params=SAME, bootstrap=0)
  assert found.n.exponent == pytest.approx(0.5, abs=1e-9)
  assert found.d.exponent == pytest.approx(0.5, abs=1e-9)
  for level in found.levels:
    assert level.n == pytest.approx(best(SAME, level.c), rel=1e-7)
  assert found.n.at(1e22) == pytest.approx(best(SAME, 1e22), rel=1e-6)
  assert found.bias.exponent == pytest.approx(0, abs=1e-7)


def test_a_skewed_law_shifts_the_vertex_and_drift_the_exponent():
  """Both errors of arXiv 2603.22339, without any noise."""
  centred = isoflop_bias(SKEW, design(SKEW))
  assert centred.exponent == pytest.approx(0, abs=1e-6)
  assert min(abs(v) for v in centred.ln_n) > 0.05
  narrow = isoflop_bias(SKEW, design(SKEW, width=0.5))
  assert abs(narrow.ln_n[0]) < 0.2 * abs(centred.ln_n[0])
  drifting = isoflop_bias(SKEW, design(SKEW, width=2.0, drift=0.6))
  assert abs(drifting.exponent) > 0.005
  # The closed form is the truth that the numerical one must equal.
  rows = design(SKEW, width=2.0, drift=0.6)
  found = isoflop(rows, params=SKEW, bootstrap=0)
  want = [np.log(v.n / best(SKEW, v.c)) for v in found.levels]
  np.testing.assert_allclose(found.bias.ln_n, want, atol=1e-6)
  a = SKEW["beta"] / (SKEW["alpha"] + SKEW["beta"])
  assert found.bias.exponent == pytest.approx(found.n.exponent - a, abs=1e-7)


def test_noisy_estimates_scatter_around_truth_plus_bias():
  rows, sigma = design(SKEW, width=2.0, drift=0.6), 0.0005
  a = SKEW["beta"] / (SKEW["alpha"] + SKEW["beta"])
  got = []
  for seed in range(64):
    noise = np.random.default_rng(seed).standard_normal(len(rows["N"]))
    table = {**rows, "loss": rows["loss"] * np.exp(sigma * noise)}
    got.append(isoflop(table, params=SKEW, bootstrap=0).n.exponent)
  error, bias = np.std(got) / 8, isoflop_bias(SKEW, rows).exponent
  assert abs(bias) > 10 * error, "else the test below says nothing"
  assert np.mean(got) - a == pytest.approx(bias, abs=4 * error)


def test_the_law_of_the_bias_is_fitted_where_none_is_given():
  rows = design(SKEW, width=2.0, drift=0.6)
  found = isoflop(rows, bootstrap=200)
  want = isoflop_bias(SKEW, rows)
  assert found.bias.exponent == pytest.approx(want.exponent, rel=1e-3)
  assert any("a is biased by" in w for w in found.warnings)
  card = json.loads(json.dumps(found.as_dict(), allow_nan=False))
  assert card["bias"]["exponent"] == pytest.approx(want.exponent, rel=1e-3)
  assert card["n"]["points"] == len(card["levels"]) == 4


def test_intervals_cover_and_shrink_with_noise():
  rows, width = design(SAME), {}
  for sigma in (0.001, 0.004):
    hits = []
    for seed in range(40):
      noise = np.random.default_rng(seed).standard_normal(len(rows["N"]))
      table = {**rows, "loss": rows["loss"] * np.exp(sigma * noise)}
      found = isoflop(table, params=SAME, bootstrap=300, seed=seed)
      low, high = found.n.ci()
      hits.append(low < 0.5 < high)
    assert sum(hits) >= 33
    width[sigma] = high - low
  assert 2 < width[0.004] / width[0.001] < 8


def test_akima_assumes_no_parabola():
  rows = design(SKEW, width=2.5, sizes=21)
  bends = isoflop_bias(SKEW, rows, kind="parabola")
  free = isoflop_bias(SKEW, rows, kind="akima")
  assert max(abs(v) for v in free.ln_n) < 0.1 * min(abs(v) for v in bends.ln_n)
  found = isoflop(rows, params=SKEW, kind="akima", bootstrap=100)
  assert found.interval == "" and np.isnan(found.n.ci()).all()
  assert any("no interval" in w for w in found.warnings)


def test_few_levels():
  two = isoflop(design(SAME, levels=2), params=SAME, bootstrap=100)
  assert two.n.exponent == pytest.approx(0.5) and np.isnan(two.n.ci()).all()
  assert any("2 usable levels" in w for w in two.warnings)
  one = isoflop(design(SAME, levels=1), params=SAME, bootstrap=100)
  assert one.n is None and one.d is None and np.isnan(one.bias.exponent)
  json.dumps(one.as_dict(), allow_nan=False)


def test_a_level_without_an_inner_optimum_is_left_out():
  rows = design(SAME)
  rows["N"] = rows["N"] * np.where(rows["C"] == 1e20, 30.0, 1.0)
  rows["loss"] = LAW(SAME, N=rows["N"], D=rows["C"] / 6 / rows["N"])
  found = isoflop(rows, params=SAME, bootstrap=0)
  assert [bool(v.why) for v in found.levels] == [False, False, False, True]
  assert found.n.n == 3 and found.n.exponent == pytest.approx(0.5, abs=1e-9)
  assert any(w.startswith("level 1e+20: its vertex") for w in found.warnings)


def test_complaints():
  with pytest.raises(UserError, match="kind is 'cubic'"):
    isoflop(design(SAME), kind="cubic")
  with pytest.raises(UserError, match="no FLOP level has 3 different sizes"):
    isoflop(design(SAME, sizes=2))
