"""The star sweep: its plan, and recovery of a known law along each arm."""

import json

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws import star
from vitscale.laws.joint import sovit

CENTER = {"width": 1968.0, "depth": 40.0, "mlp": 6144.0}
# (a, b) of each dimension; all of them share c and the loss at the centre.
SHAPE = {"width": (0.8, 1.0), "depth": (0.5, 0.4), "mlp": (0.4, 0.3)}
C, AT, BEST = 0.4, 100.0, 0.8**3  # the best x at t = 100 is .8^3 of the centre
S = {k: C / (a + b) for k, (a, b) in SHAPE.items()}


def truth(dim):
  (a, b), x = SHAPE[dim], CENTER[dim]
  alpha = 0.15 * x**a
  beta = alpha * a * AT**C / (b * (BEST * x) ** (a + b))
  flat = {"eps": 0.6 - alpha * x**-a, "xi": 3.0 - beta * x**b}
  return {**flat, "alpha": alpha, "beta": beta, "a": a, "b": b, "c": C}


def sweep(sigma=0.0, seed=0):
  rows = []
  for dim in CENTER:
    for i in range(0 if dim == "width" else 1, 7):
      for t in np.geomspace(10, 1000, 6):
        x = CENTER[dim] * 0.8**i
        loss = float(sovit()(truth(dim), x=x, t=t))
        rows.append({**CENTER, dim: x, "t": t, "loss": loss})
  noise = np.random.default_rng(seed).standard_normal(len(rows))
  for row, e in zip(rows, noise):
    row["loss"] *= float(np.exp(sigma * e))
  return rows


def test_noise_free_arms_are_recovered():
  found = star.fit_star(sweep(), bootstrap=0)
  assert found.center == CENTER
  for arm in found.arms:
    assert arm.s == pytest.approx(S[arm.dim], rel=1e-6)
    x, ci = arm.best(AT)
    assert x == pytest.approx(BEST * CENTER[arm.dim], rel=1e-6)
    assert np.isnan(ci).all() and arm.reason == ""
  assert any("outside of the sampled" in w for w in found.warnings)


def test_intervals_and_the_joint_optimum():
  grid = [
    {"width": 608, "depth": 10, "mlp": 928, "t": 20.0, "loss": 0.8},
    {"width": 480, "depth": 10, "mlp": 928, "t": 20.0, "loss": 0.9},
    {"width": 480, "depth": 8, "mlp": 928, "t": 10.0, "loss": 0.7},
  ]
  found = star.fit_star(sweep(0.001), bootstrap=200, grid=grid)
  for arm in found.arms:
    low, high = arm.s_ci
    assert low < S[arm.dim] < high and high - low < 0.5 * arm.s
    x, (low, high) = arm.best(AT)
    assert low < x < high and x == pytest.approx(
      BEST * CENTER[arm.dim], rel=0.1
    )
  assert found.start == {"width": 608, "depth": 10, "mlp": 928}
  assert found.t0 == 20.0, "the best of the largest t, not the best of all"
  joint = found.at(2000.0)
  for arm in found.arms:
    want = found.start[arm.dim] * 100**arm.s
    assert joint[arm.dim]["x"] == pytest.approx(want)
    low, high = joint[arm.dim]["ci95"]
    assert low < want < high
  card = json.loads(json.dumps(found.as_dict(), allow_nan=False))
  assert card["joint"]["mlp"] == found.at(1000.0)["mlp"]
  assert [a["dim"] for a in card["arms"]] == list(CENTER)


def test_a_flat_arm_has_no_interval():
  rows = sweep(0.001)
  noise = np.random.default_rng(1).standard_normal(len(rows))
  for row, e in zip(rows, noise):
    row["loss"] = float(0.6 * np.exp(0.001 * e))
  found = star.fit_star(rows, bootstrap=200)
  for arm in found.arms:
    assert "degenerate" in arm.reason
    assert np.isnan(arm.s_ci).all() and np.isnan(arm.best(AT)[1]).all()
  assert any(w.startswith("width: degenerate") for w in found.warnings)
  json.dumps(found.as_dict(), allow_nan=False)


def test_an_arm_that_was_not_swept():
  rows = [r for r in sweep() if r["mlp"] == CENTER["mlp"]]
  off = {"width": 1000.0, "depth": 20.0, "mlp": 6144.0, "t": 10.0, "loss": 1.0}
  found = star.fit_star([*rows, off], bootstrap=0)
  by_dim = {a.dim: a for a in found.arms}
  assert by_dim["mlp"].law is None and by_dim["mlp"].reason
  assert by_dim["width"].s == pytest.approx(S["width"], rel=1e-6)
  assert any("1 of 79 rows lie on no arm" in w for w in found.warnings)
  with pytest.raises(UserError, match="needs a start"):
    found.at(10.0)


def test_plan_of_the_paper():
  found = star.plan(
    CENTER, steps=6, small={"width": 608, "depth": 10, "mlp": 928}
  )
  assert found.star[0] == {"width": 1968, "depth": 40, "mlp": 6144}
  assert len(found.star) == 1 + 3 * 6 and len(found.grid) == 27
  for shape in found.star[1:]:
    assert sum(shape[k] != CENTER[k] for k in CENTER) == 1
    assert all(shape[k] <= CENTER[k] for k in CENTER)
  assert {"width": 608, "depth": 10, "mlp": 928} in found.grid
  widths = sorted({s["width"] for s in found.star}, reverse=True)
  ratios = np.divide(widths[1:], widths[:-1])
  assert np.all((ratios > 0.77) & (ratios < 0.83))
  assert all(w % 16 == 0 for w in widths) and not found.notes


def test_rounding_is_said():
  tiny = {"width": 64, "depth": 3}
  found = star.plan(tiny, steps=3, multiples={"width": 32})
  assert {s["width"] for s in found.star} == {32, 64}
  assert any(n.startswith("star: ") and "equal" in n for n in found.notes)
  with pytest.raises(UserError, match="no dimension 'widht'"):
    star.plan(tiny, multiples={"widht": 32})
  with pytest.raises(UserError, match=r"factor is 1\.2"):
    star.plan(tiny, factor=1.2)


def test_the_centre_must_be_there():
  with pytest.raises(UserError, match="no row has the centre width=5"):
    star.fit_star(sweep(), center={**CENTER, "width": 5.0})
  with pytest.raises(UserError, match="no column 'widht'"):
    star.fit_star(sweep(), dims=("widht", "depth"))
