"""Forecast checks, verdicts, differences, trends, flattening."""

import math

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError

P = np.array([1.0, 2, 4, 8, 16])
LAW = laws.power_constant("p", exponent=(0, 4))
TRUTH = {"L0": 0.25, "c": 0.03, "a": 0.7}


def table(seed=0, first=1.0):
  rng = np.random.default_rng(seed)
  p = np.repeat(P, 3)
  loss = LAW(TRUTH, p=p) * np.exp(0.01 * rng.standard_normal(15))
  loss[:3] *= first
  return {"p": p, "loss": loss, "run": np.arange(15)}


def test_forecast_inside_and_outside():
  inside = laws.forecast(LAW, table(), groups="run", bootstrap=400)
  assert (inside.at, inside.runs, inside.fit.n) == (1, 3, 12)
  assert inside.inside is True
  assert inside.ci[0] < inside.value < inside.ci[1]

  worse = laws.forecast(LAW, table(first=1.3), groups="run", bootstrap=400)
  assert worse.inside is False
  assert worse.value == inside.value, "the held-out runs must not be seen"
  assert worse.error == pytest.approx(0.3, abs=0.04)
  assert "draws" not in worse.as_dict()["fit"]


def test_forecast_holds_as_often_as_it_says():
  """The interval holds the noise of the held-out runs beside the fit's."""
  hits = sum(
    bool(laws.forecast(LAW, table(s), bootstrap=150, seed=s).inside)
    for s in range(100)
  )
  assert 86 <= hits <= 100


def test_forecast_elsewhere():
  assert laws.forecast(LAW, table(), hold=16, bootstrap=50).at == 16
  with pytest.raises(UserError, match=r"p = 3 to hold out \(has: 1, 2, 4"):
    laws.forecast(LAW, table(), hold=3)


@pytest.mark.parametrize(
  "ci, direction, answer",
  [
    ((0.2, 0.3), "above", "supported"),
    ((0.0, 0.05), "above", "not supported"),
    ((0.05, 0.3), "above", "inconclusive"),
    ((0.1, 0.3), "above", "inconclusive"),
    ((0.2, 0.3), "below", "not supported"),
    ((0.0, 0.05), "below", "supported"),
    ((-math.inf, 0.3), "above", "inconclusive"),
    ((0.2, math.inf), "above", "supported"),
    ((math.nan, math.nan), "above", "inconclusive"),
    ((math.nan, 0.05), "above", "inconclusive"),
    (None, "above", "inconclusive"),
  ],
)
def test_decide(ci, direction, answer):
  assert laws.decide(ci, 0.1, direction) == answer


def test_equivalence_needs_a_narrow_interval():
  assert laws.within((-0.01, 0.02), 0.05) == "supported"
  assert laws.within((-0.2, 0.2), 0.05) == "inconclusive"
  assert laws.within((0.06, 0.2), 0.05) == "not supported"
  assert laws.within(None, 0.05) == "inconclusive"


def test_several_parts():
  yes, no, open_ = "supported", "not supported", "inconclusive"
  assert laws.all_of({"a": yes, "b": yes})[0] == yes
  assert laws.all_of({"a": yes, "b": open_}) == (open_, "inconclusive: b")
  assert laws.all_of({"a": open_, "b": no})[0] == no
  assert laws.all_of({})[0] == open_
  with pytest.raises(ValueError, match="maybe"):
    laws.Verdict("x", "maybe", "", "")


def test_paired_difference():
  a = np.array([0.50, 0.60, 0.55])
  b = a - np.array([0.010, 0.012, 0.011])
  d = laws.difference(a, b)
  # Student by hand: mean .011, sd .001, t(2, .975) = 4.302653.
  half = 4.302653 * 0.001 / math.sqrt(3)
  assert d.mean == pytest.approx(0.011)
  assert d.ci == pytest.approx((0.011 - half, 0.011 + half), rel=1e-5)
  assert d.ci[0] < d.bootstrap[0] <= d.bootstrap[1] < d.ci[1]
  # The seeds differ far more than the arms: unpaired, nothing is seen.
  assert laws.difference(a, b, paired=False).ci[0] < 0


def test_differences_of_one_seed_decide_nothing():
  d = laws.difference([0.5], [0.4])
  assert d.mean == pytest.approx(0.1)
  assert laws.decide(d.ci, 0) == "inconclusive"
  with pytest.raises(UserError, match="same seeds"):
    laws.difference([1, 2, 3], [1, 2])
  with pytest.raises(UserError, match="entry 1 is nan"):
    laws.difference([1, np.nan], [1, 2])


def test_trends():
  losses = np.array([[0.30, 0.33, 0.39, 0.46], [0.31, 0.34, 0.38, 0.47],
                     [0.30, 0.35, 0.37, 0.45]])  # fmt: skip
  page = laws.page_trend(losses)
  # Three perfect rankings of four: one arrangement of 24 cubed.
  assert page.p == pytest.approx(24.0**-3)
  assert laws.page_trend(losses, direction="decreasing").p > 0.99
  up = laws.jonckheere(losses.T)
  assert up.p < 0.001
  assert up.statistic == 54
  assert laws.jonckheere(losses.T, direction="decreasing").p > 0.99
  shuffled = np.random.default_rng(0).permuted(losses, axis=1)
  assert laws.page_trend(shuffled).p > 0.05
  assert laws.jonckheere([[1, 1], [1], [1, 1]], permutations=200).p == 1
  with pytest.raises(UserError, match="row 1, column 2 is nan"):
    laws.page_trend(np.where(losses == 0.38, np.nan, losses))


def test_gain_from_doubling():
  half = np.array([0.40, 0.42, 0.41])
  still = laws.gain_from_doubling(half, half * [0.90, 0.91, 0.90])
  assert still.value == pytest.approx(0.0967, abs=1e-3)
  assert still.flattened is False
  done = laws.gain_from_doubling(half, half * [0.995, 0.997, 0.996])
  assert done.flattened is True
  open_ = laws.gain_from_doubling(half, half * [0.95, 1.01, 0.99])
  assert open_.flattened is None
  one = laws.gain_from_doubling([0.4], [0.3])
  assert one.flattened is False
  assert math.isnan(one.ci[0])
  with pytest.raises(UserError, match="loss_full: entry 0"):
    laws.gain_from_doubling([0.4], [0.0])


def test_flattened():
  steps = np.arange(1, 101) * 10
  flat, rate = laws.flattened(steps, steps**-0.5)
  assert not flat
  assert rate == pytest.approx(1 - 2**-0.5)
  flat, rate = laws.flattened(steps, 0.3 + np.exp(-steps / 50))
  assert flat
  assert 0 <= rate < 0.001
  rising, rate = laws.flattened(steps, 0.3 + steps / 1e4)
  assert rising
  assert rate < 0
  with pytest.raises(UserError, match="3 are needed"):
    laws.flattened([1, 100], [1.0, 0.5])
  with pytest.raises(UserError, match="row 1"):
    laws.flattened([1, 2, 3], [1.0, np.nan, 0.5])
