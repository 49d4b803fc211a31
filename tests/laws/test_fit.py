"""Both laws: exact recovery, honest intervals, honest warnings."""

import json
import subprocess
import sys

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError

P = np.array([1.0, 2, 4, 8, 16])
FLOOR = laws.power_constant("p", exponent=(0, 4))
TRUTH = {"L0": 0.25, "c": 0.03, "a": 0.7}


def noisy(seed=0, sigma=0.01, runs=3, truth=TRUTH, law=FLOOR, p=P):
  rng = np.random.default_rng(seed)
  p = np.repeat(p, runs)
  loss = law(truth, p=p) * np.exp(sigma * rng.standard_normal(p.size))
  return {"p": p, "loss": loss}


@pytest.mark.parametrize("objective", ["log-mse", "mse", "huber", "huber:.1"])
def test_noise_free_recovery(objective):
  rng = np.random.default_rng(3)
  for _ in range(5):
    a, c, floor = rng.uniform(0.2, 1.6), *np.exp(rng.normal(-2, 1, 2))
    for law, truth in (
      (laws.power("patch"), {"c": c, "a": -a}),
      (laws.power("patch"), {"c": c, "a": a}),
      (laws.power_constant("patch"), {"L0": floor, "c": c, "a": a}),
      (laws.power_constant("patch"), {"L0": floor, "c": c, "a": -a}),
    ):
      data = {"patch": P, "loss": law(truth, patch=P)}
      fit = laws.fit(law, data, objective=objective, bootstrap=0)
      for name, value in truth.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6), law.formula
      assert fit.predict(patch=0.5) == pytest.approx(law(truth, patch=0.5))


def test_point_fit_agrees_with_scipy():
  from scipy import optimize

  data = noisy(4, sigma=0.03)

  def residual(v):
    params = dict(zip(("L0", "c", "a"), v))
    return np.log(FLOOR(params, p=data["p"])) - np.log(data["loss"])

  best = optimize.least_squares(
    residual, [0.2, 0.05, 1.0], bounds=([0, 0, 0], [9, 9, 4]), xtol=1e-15,
    ftol=1e-15, gtol=1e-15,
  )  # fmt: skip
  fit = laws.fit(FLOOR, data, bootstrap=0)
  assert fit.objective <= 2 * best.cost * (1 + 1e-9)
  np.testing.assert_allclose(list(fit.params.values()), best.x, rtol=1e-5)


def test_huber_ignores_one_wild_run():
  data = noisy(1)
  data["loss"][4] *= 2
  robust = laws.fit(FLOOR, data, objective="huber:.01", bootstrap=0)
  square = laws.fit(FLOOR, data, bootstrap=0)
  assert abs(robust.predict(p=2) / FLOOR(TRUTH, p=2) - 1) < 0.02
  assert abs(square.predict(p=2) / FLOOR(TRUTH, p=2) - 1) > 0.05


@pytest.mark.parametrize("law", [FLOOR, laws.power("p")], ids=lambda v: v.name)
def test_intervals_cover(law):
  """Three runs per patch: the 95% interval holds the truth about so often."""
  truth = {k: v for k, v in TRUTH.items() if k in law.names}
  simulations, hits = 150, dict.fromkeys((*truth, "L(1)", "new mean"), 0)
  rng = np.random.default_rng(9)
  for i in range(simulations):
    data = noisy(100 + i, truth=truth, law=law)
    fit = laws.fit(law, data, bootstrap=150, seed=i)
    for k, (low, high) in fit.ci().items():
      hits[k] += low <= truth[k] <= high
    low, high = fit.predict_ci(p=1)
    hits["L(1)"] += low <= law(truth, p=1) <= high
    low, high = fit.predict_ci(p=0.5, runs=3)
    mean = np.exp(0.01 * rng.standard_normal(3)).mean()
    hits["new mean"] += low <= law(truth, p=0.5) * mean <= high
  share = {k: v / simulations for k, v in hits.items()}
  # Standard error .018; the naive stratified bootstrap has .79 to .83 here.
  assert all(0.88 <= v <= 0.995 for v in share.values()), share


def test_stratified_keeps_patches_apart():
  data = noisy(2)
  data["loss"][:3] = FLOOR(TRUTH, p=1) * np.array([0.9, 1.0, 1.12])
  pooled = laws.fit(FLOOR, data, bootstrap=500)
  apart = laws.fit(FLOOR, data, resample="cluster", bootstrap=500)
  assert pooled.interval != apart.interval
  width = lambda fit: np.subtract(*fit.predict_ci(p=16))
  assert abs(width(apart)) < 0.5 * abs(width(pooled))


def test_rows_of_a_run_are_resampled_together():
  """Ten evaluations of one run are not ten runs."""
  rng = np.random.default_rng(0)
  run = np.repeat(np.arange(15), 10)
  p = np.repeat(np.repeat(P, 3), 10)
  shift = 0.02 * rng.standard_normal(15)[run]
  wobble = 0.001 * rng.standard_normal(150)
  data = {
    "p": p,
    "run": run,
    "loss": FLOOR(TRUTH, p=p) * np.exp(shift + wobble),
  }
  grouped = laws.fit(FLOOR, data, groups="run", bootstrap=400)
  points = laws.fit(FLOOR, data, bootstrap=400)
  assert grouped.interval.startswith("cluster")
  assert grouped.dof == 10
  assert grouped.se()["a"] > 2 * points.se()["a"]


def test_whole_curves_form_one_stratum():
  from vitscale.laws import intervals

  p, run = np.tile(P, 4), np.repeat(list("wxyz"), 5)
  plan = intervals.design([p], run)
  assert plan.sizes.tolist() == [4]
  weights = intervals.cluster_weights(plan, 300, np.random.default_rng(0))
  assert (weights.reshape(300, 4, 5) == weights[:, ::5, None]).all()
  np.testing.assert_allclose(weights.sum(1), 20)


def test_same_seed_same_draws():
  one, two, other = (
    laws.fit(FLOOR, noisy(), bootstrap=50, seed=s).draws["a"] for s in (0, 0, 1)
  )
  assert (one == two).all()
  assert not (one == other).all()


def test_weights_count_rows():
  data = noisy(5)
  data["w"] = np.r_[2.0, np.ones(14)]
  doubled = {k: np.r_[v, v[:1]] for k, v in noisy(5).items()}
  a = laws.fit(FLOOR, data, weights="w", bootstrap=0).params
  b = laws.fit(FLOOR, doubled, bootstrap=0).params
  assert a == pytest.approx(b, rel=1e-6)


def says(fit, *words):
  return any(all(w in line for w in words) for line in fit.warnings)


def test_warnings():
  good = laws.fit(FLOOR, noisy(), bootstrap=200)
  assert not good.degenerate
  assert good.warnings == ()

  rng = np.random.default_rng(0)
  flat = {"p": P.repeat(3), "loss": 0.5 + 0.01 * rng.standard_normal(15)}
  fit = laws.fit(FLOOR, flat, bootstrap=200)
  assert says(fit, "degenerate", "flat")
  assert all(np.isnan(v).all() for v in fit.ci().values())
  assert np.isfinite(fit.predict_ci(p=4)).all()

  falling = {"p": P, "loss": 1 / P}
  assert laws.fit(FLOOR, falling, bootstrap=0).degenerate

  steep = {"p": P, "loss": 0.3 + 1e-6 * P**5}
  assert says(laws.fit(FLOOR, steep, bootstrap=0), "degenerate", "bound")

  pure = {"p": P, "loss": 0.3 * P**0.3 * (1 - 0.002 * np.log(P) ** 2)}
  assert says(laws.fit(FLOOR, pure, bootstrap=0), "L0", "bound 0", "no floor")

  three = {"p": P[:3], "loss": FLOOR(TRUTH, p=P[:3])}
  fit = laws.fit(FLOOR, three, bootstrap=100)
  assert says(fit, "3 points for 3 parameters")
  assert says(fit, "no interval")

  once = {"p": P, "loss": noisy(sigma=0.005, runs=1)["loss"]}
  assert says(
    laws.fit(FLOOR, once, bootstrap=100), "one run per p", "2 residual"
  )

  wrong = noisy(sigma=0.002)
  wrong["loss"][6:9] *= 1.1
  assert says(laws.fit(FLOOR, wrong, bootstrap=100), "lack of fit")


@pytest.mark.slow
def test_warnings_of_thin_data():
  short = {"p": np.repeat([1.0, 2, 4, 8], 3)}
  rng = np.random.default_rng(1)
  short["loss"] = FLOOR(TRUTH, **short) * np.exp(
    0.003 * rng.standard_normal(12)
  )
  fit = laws.fit(FLOOR, short, bootstrap=50)
  assert says(fit, "p spans a factor of 8", "less than a decade")

  few = {k: v[[0, 4, 7, 9, 12, 14]] for k, v in noisy(sigma=0.002).items()}
  assert says(laws.fit(FLOOR, few, bootstrap=50), "only 6 points for 3")

  low = noisy(1, sigma=0.05, truth={"L0": 0.01, "c": 0.05, "a": 0.5})
  fit = laws.fit(FLOOR, low, bootstrap=50)
  assert says(fit, "L0", "can't be told from 0")

  far = np.geomspace(10, 1e4, 40)
  flat = noisy(sigma=0.02, truth={"L0": 0.5, "c": 2.0, "a": -1.0}, p=far)
  fit = laws.fit(laws.power_constant("p"), flat, bootstrap=50)
  assert says(fit, "smallest loss lies within run noise of L0")

  near = noisy(sigma=0.002, truth={"L0": 0.5, "c": 1.0, "a": -0.2}, p=far / 10)
  near = {k: v[near["p"] < 60] for k, v in near.items()}
  fit = laws.fit(laws.power_constant("p"), near, bootstrap=50)
  assert says(fit, "loss above L0 falls by a factor of", "extrapolation")


def test_a_fit_that_does_not_converge_has_no_interval():
  """Two powers that want to be x^a ln x: their factors run to infinity."""
  two = laws.Law(
    name="two_powers",
    formula="L = c x^a + d x^b",
    variables=("x",),
    linear=(laws.Parameter("c"), laws.Parameter("d")),
    shape=(laws.Parameter("a", -3.0, 0.0), laws.Parameter("b", -3.0, 0.0)),
    basis=lambda x, s: (x[0] ** s[0], x[0] ** s[1]),
    source="this test",
  )
  x = np.geomspace(1, 100, 30)
  noise = 0.01 * np.random.default_rng(0).standard_normal(30)
  data = {"x": x, "loss": x**-0.5 * (2 + np.log(x)) * np.exp(noise)}
  fit = laws.fit(two, data, bootstrap=60)
  assert not fit.search["converged"]
  assert says(fit, "did not converge")
  none = [fit.ci(kind=k) for k in ("bootstrap", "delta", "profile", None)]
  for ci in none:
    assert np.isnan(list(ci.values())).all()
  assert np.isnan(list(fit.se().values())).all()
  assert np.isnan(fit.predict_ci(x=10.0)).all()
  assert np.isnan(fit.predict_ci(x=x[:3], kind="delta")).all()
  card = fit.card()
  assert all(pair == [None, None] for pair in card["ci95"].values())


def test_resampled_keeps_the_fit():
  fit = laws.fit(FLOOR, noisy(), bootstrap=0)
  assert fit.interval == "" and not any(len(v) for v in fit.draws.values())
  other = fit.resampled("case", 60, seed=3)
  assert other.params == fit.params and other.interval == "case bootstrap"
  again = laws.fit(FLOOR, noisy(), resample="case", bootstrap=60, seed=3)
  assert (other.draws["a"] == again.draws["a"]).all()


def test_runs_measured_at_different_places_are_drawn_among_all():
  """Curves of several sizes: no two runs share their x."""
  rng = np.random.default_rng(0)
  p = np.geomspace(1, 100, 40)
  data = {"p": p, "run": np.arange(40) % 8}
  data["loss"] = FLOOR(TRUTH, p=p) * np.exp(0.01 * rng.standard_normal(40))
  fit = laws.fit(FLOOR, data, groups="run", bootstrap=200)
  assert fit.interval == "cluster bootstrap" and fit.dof == 7
  assert says(fit, "8 runs leave 7 degrees of freedom")
  assert np.isfinite(list(fit.ci().values())).all()
  rows = laws.fit(FLOOR, data, groups="run", resample="case", bootstrap=50)
  assert says(rows, "rows were drawn", "8 runs have 40")
  with pytest.raises(UserError, match="8 runs have 40 rows; use 'cluster'"):
    laws.fit(FLOOR, data, groups="run", resample="residual")


def test_derived_quantities_have_intervals():
  rng = np.random.default_rng(2)
  n, d = np.exp(rng.uniform(18, 23, 60)), np.exp(rng.uniform(20, 26, 60))
  truth = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
  law = laws.chinchilla()
  loss = law(truth, N=n, D=d) * np.exp(0.002 * rng.standard_normal(60))
  fit = laws.fit(law, {"N": n, "D": d, "loss": loss}, bootstrap=200)
  card = fit.card()
  low, high = card["derived_ci95"]["a"]
  assert low < 0.28 / 0.62 < high
  closed = fit.derived_ci(kind="delta")["a"]
  np.testing.assert_allclose(closed, (low, high), atol=0.3 * (high - low))


BAD = {
  "a NaN": (lambda d: d["loss"].__setitem__(3, np.nan), "row 3 is nan"),
  "a zero": (lambda d: d["loss"].__setitem__(0, 0), "row 0 is 0.0"),
  "a text": (
    lambda d: d.update(loss=np.array(["x"] * 15, object)),
    "row 0 is x",
  ),
  "negative x": (lambda d: d["p"].__setitem__(2, -4), "row 2 is -4.0"),
  "unknown column": (lambda d: d.update(los=d.pop("loss")), "mean 'los'"),
  "unknown variable": (lambda d: d.update(P=d.pop("p")), "no column 'p'"),
  "few points": (
    lambda d: d.update(p=d["p"][:2], loss=d["loss"][:2]),
    "only 2 points",
  ),
  "constant x": (lambda d: d["p"].fill(4), "3 different values of p"),
  "ragged": (lambda d: d.update(p=d["p"][:9]), "has 9 rows"),
}


@pytest.mark.parametrize("name", ["N", "D"])
def test_a_variable_that_does_not_vary_is_named(name):
  rng = np.random.default_rng(0)
  data = {k: np.exp(rng.uniform(16, 20, 30)) for k in ("N", "D")}
  data[name] = np.full(30, 4e8)
  data["loss"] = 2 + 400 / data["N"] ** 0.3 + 400 / data["D"] ** 0.3
  with pytest.raises(UserError, match=f"'{name}' is 4e[+]08 in every row"):
    laws.fit(laws.chinchilla(), data)


@pytest.mark.parametrize("name", BAD)
def test_bad_data(name):
  data = noisy()
  spoil, words = BAD[name]
  spoil(data)
  with pytest.raises(UserError, match=words) as caught:
    laws.fit(FLOOR, data)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"objective": "hubert"}, "did you mean 'huber'"),
    ({"objective": "huber:-1"}, "positive"),
    ({"objective": "mse:3"}, "unknown objective"),
    ({"groups": "rum"}, "did you mean 'run'"),
    ({"groups": "run"}, "needs 2"),
    ({"resample": "rows"}, "must be one of auto, case, residual"),
    ({"weights": "w"}, "no column 'w'"),
  ],
)
def test_bad_options(options, words):
  data = {**noisy(), "run": np.zeros(15)}
  with pytest.raises(UserError, match=words):
    laws.fit(FLOOR, data, **options)


def test_data_in_any_container():
  pandas = pytest.importorskip("pandas")
  data = noisy()
  rows = [{"p": p, "loss": v} for p, v in zip(*data.values())]
  frame = pandas.DataFrame(rows)
  fits = [laws.fit(FLOOR, d, bootstrap=0).params for d in (data, rows, frame)]
  assert fits[0] == fits[1] == fits[2]


def test_integers_do_not_overflow():
  p = np.array([1, 2, 4, 8, 16], np.int64) * 10**17
  data = {"p": p, "loss": 1e6 * p.astype(float) ** -0.3}
  fit = laws.fit(laws.power("p"), data, bootstrap=0)
  assert fit.params["a"] == pytest.approx(-0.3)


def test_prediction_refuses_other_variables():
  fit = laws.fit(FLOOR, noisy(), bootstrap=0)
  with pytest.raises(UserError, match="no variable 'patch'"):
    fit.predict(patch=1)
  with pytest.raises(UserError, match="needs a value for 'p'"):
    fit.predict()
  assert np.shape(fit.predict(p=P)) == (5,)
  assert isinstance(fit.predict(p=1), float)


def test_card_is_strict_json():
  for data in (noisy(), {"p": P[:3], "loss": FLOOR(TRUTH, p=P[:3])}):
    card = laws.fit(FLOOR, data, bootstrap=50).card()
    again = json.loads(json.dumps(card, allow_nan=False))
    assert again["params"].keys() == again["ci95"].keys() == set(FLOOR.names)
    assert again["n"] == len(data["p"])
    assert "2502.03738" in again["source"]


def test_import_is_light():
  code = (
    "import sys, vitscale.laws; "
    "sys.exit(any(m in sys.modules for m in ('jax', 'scipy.stats', 'pandas')))"
  )
  assert (
    subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
  )
