"""Delta and profile intervals against closed forms and brute force."""

import numpy as np
import pytest
from scipy import optimize, stats

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws import delta, simulate

LAW = laws.power_constant("C")
TRUTH = {"L0": 0.5, "c": 1.0, "a": -0.35}
C = np.geomspace(1, 1000, 40)


def fit(law=LAW, truth=TRUTH, seed=0, *, c=C, noise=None, **options):
  data = simulate.simulate(law, truth, {"C": c}, seed=seed, **(noise or {}))
  return laws.fit(law, data, bootstrap=0, **options), data


def test_a_straight_line_has_the_textbook_interval():
  """ln L = ln c + a ln C is linear: all kinds are Student's t."""
  law = laws.power("C")
  found, data = fit(law, {"c": 2.0, "a": -0.1}, c=C[:30])
  line = stats.linregress(np.log(C[:30]), np.log(data["loss"]))
  t = stats.t.ppf(0.975, 28)
  slope = line.slope + t * line.stderr * np.array([-1, 1])
  factor = line.intercept + t * line.intercept_stderr * np.array([-1, 1])
  for kind in ("delta", "profile"):
    ci = found.ci(kind=kind)
    np.testing.assert_allclose(ci["a"], slope, rtol=1e-4, err_msg=kind)
    np.testing.assert_allclose(np.log(ci["c"]), factor, rtol=1e-4)
  assert found.se()["a"] == pytest.approx(line.stderr, rel=1e-5)


def test_the_ends_of_a_profile_lie_on_its_threshold():
  """Brute force: scipy minimises the others where the interval ends."""
  found, data = fit(noise={"sigma": 0.03})
  limit = found.objective / found.local.dof * stats.f.ppf(0.95, 1, 37)

  def rest(v, name):
    others = [k for k in TRUTH if k != name]

    def residual(values):
      params = {name: v, **dict(zip(others, values))}
      return np.log(LAW(params, C=C)) - np.log(data["loss"])

    start = [found.params[k] for k in others]
    best = optimize.least_squares(residual, start, xtol=1e-14, ftol=1e-14)
    return 2 * best.cost - found.objective

  for name, ends in found.ci(kind="profile").items():
    for end in ends:
      assert rest(end, name) == pytest.approx(limit, rel=5e-3), (name, end)


def test_kinds_agree_where_the_law_is_almost_linear():
  found, _ = fit()
  found = found.resampled("residual", 1000)
  by_kind = {k: found.ci(kind=k) for k in ("bootstrap", "delta", "profile")}
  for name in TRUTH:
    width = np.ptp(by_kind["profile"][name])
    for kind, ci in by_kind.items():
      off = np.abs(np.subtract(ci[name], by_kind["profile"][name]))
      assert (off < 0.12 * width).all(), (kind, name, by_kind)


@pytest.mark.parametrize("objective", ["huber:1e-3", "lad", "mse"])
def test_other_objectives_have_intervals_of_the_right_size(objective):
  """The spread of the estimates themselves over simulated data."""
  fits = [fit(seed=seed, objective=objective)[0] for seed in range(60)]
  spread = np.std([f.params["a"] for f in fits], ddof=1)
  errors = [f.se()["a"] for f in fits]
  assert np.median(errors) == pytest.approx(spread, rel=0.35)


def test_profiles_of_a_robust_loss_have_its_width():
  fits = [fit(seed=seed, objective="huber:1e-3")[0] for seed in range(20)]
  width = lambda kind: np.mean([np.ptp(f.ci(kind=kind)["a"]) for f in fits])
  assert width("profile") == pytest.approx(width("delta"), rel=0.25)


def test_factors_are_symmetric_in_logarithms():
  found, _ = fit(noise={"sigma": 0.05})
  assert delta.is_scale(found.local, "c")
  assert not delta.is_scale(found.local, "L0")
  assert not delta.is_scale(found.local, "a")
  low, high = found.ci(kind="delta")["c"]
  assert np.sqrt(low * high) == pytest.approx(found.params["c"])
  low, high = found.ci(kind="delta")["a"]
  assert (low + high) / 2 == pytest.approx(found.params["a"])


def test_unequal_noise_is_seen_from_many_rows_on():
  """Noise grows sixteenfold with C: the floor's true spread is known."""
  c, sigma = np.geomspace(1, 1000, 80), np.geomspace(0.005, 0.08, 80)
  fits = [fit(seed=s, c=c, noise={"sigma": sigma})[0] for s in range(60)]
  spread = np.std([f.params["L0"] for f in fits], ddof=1)
  errors = np.median([f.se()["L0"] for f in fits])
  assert errors == pytest.approx(spread, rel=0.25)
  share = [f.local.equal[0, 0] / f.local.covariance[0, 0] for f in fits]
  assert np.median(share) < 0.6, "equal noise would make it too narrow"
  width = lambda kind: sum(np.ptp(f.ci(kind=kind)["L0"]) for f in fits[:5])
  assert width("profile") == pytest.approx(width("delta"), rel=0.15)


def test_an_open_end_says_so():
  """Nothing forbids L0 = 0 here: the interval ends at the bound."""
  found, _ = fit(LAW, {**TRUTH, "L0": 0.01, "a": -0.1}, noise={"sigma": 0.03})
  floor = found.profile()["L0"]
  assert floor.low == 0.0 < floor.high
  assert any("open" in note for note in floor.notes)
  assert any("L0 is an extrapolation" in w for w in found.warnings)
  assert found.ci(kind="profile")["L0"] == (floor.low, floor.high)


def test_pinned_parameters_are_points():
  found, _ = fit(LAW.pin(L0=0.5))
  for kind in ("delta", "profile"):
    assert found.ci(kind=kind)["L0"] == pytest.approx((0.5, 0.5))
  alone, _ = fit(LAW.pin(L0=0.5, a=-0.35))
  wide = alone.ci(kind="delta")["c"]
  np.testing.assert_allclose(alone.ci(kind="profile")["c"], wide, rtol=1e-3)


def test_curve_and_prediction_intervals_without_draws():
  found, _ = fit()
  assert found.interval == ""
  far = np.array([1e2, 1e4])
  low, high = found.predict_ci(C=far)
  assert (low < found.predict(C=far)).all() and (high > low).all()
  one, many = (
    np.diff(np.log(found.predict_ci(C=100.0, runs=r)))[0] for r in (1, 100)
  )
  curve = np.diff(np.log(found.predict_ci(C=100.0)))[0]
  assert one > many > curve > 0
  assert one == pytest.approx(2 * 2.026 * found.sigma, rel=0.2)
  drawn = found.resampled("residual", 1000).predict_ci(C=far)
  np.testing.assert_allclose(np.log(drawn), np.log([low, high]), atol=3e-3)


def test_rows_of_a_run_widen_every_kind():
  run = np.repeat(np.arange(10), 10)
  design = {"C": np.tile(np.geomspace(1, 1000, 10), 10), "run": run}
  data = simulate.simulate(
    LAW, TRUTH, design, sigma=0.001, run_sigma=0.02, seed=3
  )
  grouped = laws.fit(LAW, data, groups="run", bootstrap=400)
  apart = laws.fit(LAW, data, bootstrap=0)
  level = lambda f, kind: np.ptp(f.predict_ci(C=30.0, kind=kind))
  assert level(grouped, "delta") > 1.5 * level(apart, "delta")
  drawn = level(grouped, "bootstrap")
  assert level(grouped, "delta") == pytest.approx(drawn, rel=0.3)
  width = lambda f, kind: np.ptp(f.ci(kind=kind)["c"])
  assert width(grouped, "profile") == pytest.approx(
    width(grouped, "delta"), rel=0.1
  )


def test_intervals_of_anything():
  found, _ = fit()
  low, high = found.interval_of(lambda p: p["L0"] + p["c"])
  assert low < 1.5 < high
  with pytest.raises(UserError, match="of parameters alone"):
    found.interval_of(lambda p: p["a"], kind="profile")
  with pytest.raises(UserError, match="did you mean 'profile'"):
    found.ci(kind="profil")
