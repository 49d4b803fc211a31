"""Extrapolation checks: splits, nominal coverage, wrong laws found out."""

import json

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws import scales

LAW = laws.power_constant("x", exponent=(-3, 0))
TRUTH = {"L0": 0.5, "c": 40.0, "a": -0.5}
NOISE = 0.01


def table(seed=0, law=LAW, truth=TRUTH, n=16, noise=NOISE):
  x = np.geomspace(1e3, 1e6, n)
  e = np.random.default_rng(seed).standard_normal(n)
  return {"x": x, "loss": law(truth, x=x) * np.exp(noise * e)}


def joint(seed=0, levels=4):
  """IsoFLOP-like: `levels` of compute, five sizes each."""
  law = laws.chinchilla()
  truth = {"E": 0.6, "A": 30.0, "B": 60.0, "alpha": 0.35, "beta": 0.35}
  c = np.repeat(np.geomspace(1e15, 1e18, levels), 5)
  n = np.sqrt(c / 120) * np.tile(np.geomspace(0.25, 4, 5), levels)
  d = c / 6 / n
  e = np.random.default_rng(seed).standard_normal(len(c))
  return {"N": n, "D": d, "loss": law(truth, N=n, D=d) * np.exp(0.005 * e)}


# -------------------------------------------------------------------- splits


def test_scale_is_compute_where_there_is_a_size_and_data():
  data = joint()
  whole = dict(data)
  whole["N"], whole["D"] = (np.round(data[k]).astype(int) for k in "ND")
  whole["D"] *= 10**6  # 6 N D overflows int64
  found = scales.scales(laws.chinchilla(), whole)
  assert found.by == "C" and found.level.max() == 3
  want = 6.0 * whole["N"].astype(float) * whole["D"].astype(float)
  np.testing.assert_allclose(found.values, want)
  measured = scales.scales(laws.chinchilla(), {**data, "C": data["N"]})
  np.testing.assert_array_equal(measured.values, data["N"])


def test_automatic_cut_reaches_three_times_beyond():
  found = laws.holdout(LAW, table(), bootstrap=0)
  step = 1000 ** (1 / 15)
  # Three steps of 1.58x are the least that reach 3x.
  assert found.n_test == 3
  assert found.distance == pytest.approx(step**3)
  assert found.cut == pytest.approx(1e6 / step**2)
  narrow = {k: v[:9] for k, v in table(n=90).items()}  # 1.8x in all
  found = laws.holdout(LAW, narrow, bootstrap=0)
  assert found.n_test == 3  # a third, as 3x cannot be reached
  assert any("spans" in w for w in found.warnings)


def test_share_and_far_end():
  data = table()
  assert laws.holdout(LAW, data, share=0.5, bootstrap=0).n_test == 8
  low = laws.holdout(LAW, data, share=0.25, far="low", bootstrap=0)
  assert low.n_test == 4 and low.cut == pytest.approx(data["x"][3])
  assert max(r["x"] for r in low.rows) == pytest.approx(data["x"][3])
  assert low.distance == pytest.approx(data["x"][4] / data["x"][0])


def test_the_wrong_end_is_noticed():
  p = np.repeat([1, 2, 4, 8, 16, 32], 2)
  data = {"p": p, "loss": 0.3 + 0.1 * p**0.5}
  law = laws.power_constant("p", exponent=(0, 4))
  said = laws.holdout(law, data, bootstrap=0).warnings
  assert any("far='low'" in w for w in said)
  right = laws.holdout(law, data, far="low", bootstrap=0)
  assert right.cut == 1 and not any("far=" in w for w in right.warnings)


@pytest.mark.parametrize(
  ("change", "options", "says"),
  [
    ({}, {"by": "size"}, "no column 'size' to measure scale"),
    ({}, {"far": "up"}, "far is 'up'"),
    ({}, {"share": 1.2}, "share is 1.2"),
    ({}, {"share": 0.9}, "needs 5 different points"),
    ({"s": np.r_[0.0, np.ones(15)]}, {"by": "s"}, "row 0 is 0.0"),
    ({"s": np.array(["a"] * 16)}, {"by": "s"}, "must be numbers"),
  ],
)
def test_bad_input(change, options, says):
  with pytest.raises(UserError, match=says) as error:
    laws.holdout(LAW, {**table(), **change}, **options)
  assert "\n" not in str(error.value)


# ------------------------------------------------------------------ controls


def test_a_true_law_is_inside_as_often_as_it_says():
  checks = [
    laws.holdout(LAW, table(s), share=0.25, bootstrap=200, seed=s)
    for s in range(60)
  ]
  inside = np.mean([c.inside for c in checks])
  assert 0.9 <= inside <= 0.99
  assert np.mean([c.p < 0.05 for c in checks]) <= 0.12
  bias = np.array([c.bias_log for c in checks])
  assert abs(bias.mean()) < 3 * bias.std() / np.sqrt(len(bias))


def test_a_wrong_law_fails():
  """A pure power where there is a floor, a single power where one breaks."""
  broken = {"c": 40.0, "a": -0.25}
  for s in range(4):
    floor = laws.holdout(laws.power("x"), table(s), share=0.25, bootstrap=200)
    data = table(s, laws.power("x"), broken)
    data["loss"] = data["loss"] * (1 + (data["x"] / 1e5) ** 2) ** -0.2
    bend = laws.holdout(LAW, data, share=0.25, bootstrap=200)
    for found, side in ((floor, "under"), (bend, "over")):
      assert found.p < 0.05 and found.inside < 0.5
      assert any(f"the law {side}states" in w for w in found.warnings)
    assert floor.bias_log < 0 < bend.bias_log


def test_held_out_rows_are_not_seen():
  data = table()
  worse = {**data, "loss": np.r_[data["loss"][:12], data["loss"][12:] * 1.3]}
  a, b = (laws.holdout(LAW, d, share=0.25, bootstrap=50) for d in (data, worse))
  assert a.fits[0].params == b.fits[0].params
  assert b.inside == 0 and b.p < 1e-3
  assert a.bias_log - b.bias_log == pytest.approx(np.log(1.3))


def test_rows_of_one_run_have_no_joint_test():
  data = table()
  data["run"] = np.tile(["a", "b"], 8)
  found = laws.holdout(LAW, data, groups="run", share=0.25, bootstrap=50)
  assert np.isnan(found.p) and found.as_dict()["p"] is None


# ------------------------------------------------------------------- several


def test_rollout_walks_up():
  found = laws.rollout(LAW, table(), folds=3, bootstrap=50)
  fitted = [c.n_fit for c in found.checks]
  assert fitted == sorted(fitted) and fitted[0] == 5
  assert sum(c.n_test for c in found.checks) == 11
  for c in found.checks:
    assert c.extrapolates and len(c.rows) == c.n_test
    assert min(r["scale"] for r in c.rows) == c.cut
  assert found.rmse_log < 0.05 and found.kind == "rollout"
  short = laws.rollout(LAW, {k: v[:6] for k, v in table().items()}, bootstrap=0)
  assert len(short.checks) == 1 and "1 cuts instead of 4" in short.warnings[0]


def test_leave_one_out_tells_the_ends_apart():
  found = laws.leave_one_out(LAW, table(n=8), bootstrap=50)
  assert [c.extrapolates for c in found.checks] == [True] + [False] * 6 + [True]
  assert found.checks[3].distance == 1
  merged = laws.leave_one_out(LAW, table(), most=4, bootstrap=0)
  assert [c.n_test for c in merged.checks] == [4] * 4
  assert "16 values of x were merged into 4" in merged.warnings
  few = {k: v[:3] for k, v in table().items()}
  with pytest.raises(UserError, match="could not be left out"):
    laws.leave_one_out(LAW, few)


def test_sizes_of_a_joint_law():
  found = laws.leave_one_out(laws.chinchilla(), joint(), most=4, bootstrap=100)
  assert len(found.checks) == 4 and found.checks[0].by == "N"
  assert np.mean([c.inside for c in found.checks]) > 0.7
  top = laws.holdout(laws.chinchilla(), joint(), bootstrap=100)
  assert (top.by, top.n_test) == ("C", 5)
  assert top.distance == pytest.approx(10)
  text = json.dumps([found.as_dict(), top.as_dict()], allow_nan=False)
  assert json.loads(text)[1]["rows"][0]["N"] > 0
