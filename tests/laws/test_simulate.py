"""Simulated points and what coverage says of good and bad intervals."""

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws import simulate

LAW = laws.power_constant("C")
TRUTH = {"L0": 0.5, "c": 1.0, "a": -0.35}
LINE = {"C": np.geomspace(1, 1000, 40)}


def test_designs():
  grid = simulate.grid(N=[1e6, 1e7], D=[1e8, 1e9, 1e10])
  assert len(set(zip(grid["N"], grid["D"]))) == 6
  flop = simulate.isoflop([1e18, 1e20], 5)
  assert len(flop["N"]) == 10
  np.testing.assert_allclose(
    6 * flop["N"] * flop["D"], np.repeat([1e18, 1e20], 5)
  )
  tokens = (flop["D"] / flop["N"])[:5]
  assert tokens[0] == pytest.approx(1) and tokens[-1] == pytest.approx(400)
  some = simulate.log_uniform(500, C=(1, 1e4))["C"]
  assert some.min() >= 1 and some.max() <= 1e4
  assert np.log10(some).mean() == pytest.approx(2, abs=0.2)


def test_noise_is_what_it_says():
  many = {"C": np.full(20_000, 10.0), "run": np.repeat(np.arange(2000), 10)}
  truth = np.log(LAW(TRUTH, C=10.0))
  noise = lambda **o: (
    np.log(simulate.simulate(LAW, TRUTH, many, **o)["loss"]) - truth
  )
  assert noise(sigma=0.02).std() == pytest.approx(0.02, rel=0.02)
  heavy = noise(sigma=0.02, tails=5)
  assert heavy.std() == pytest.approx(0.02, rel=0.05)
  assert (np.abs(heavy) > 0.08).mean() > 1e-3 > 6.3e-5  # normal: beyond 4 sd
  runs = noise(sigma=0.01, run_sigma=0.03).reshape(2000, 10)
  assert runs.mean(1).std() == pytest.approx(np.hypot(0.03, 0.0032), rel=0.05)
  slope = noise(sigma=np.linspace(0.01, 0.03, 20_000))
  assert slope[:5000].std() < 0.6 * slope[-5000:].std()
  assert (noise(seed=1) == noise(seed=1)).all()
  assert not (noise(seed=1) == noise(seed=2)).any()


def test_bad_noise():
  with pytest.raises(UserError, match="no variance"):
    simulate.simulate(LAW, TRUTH, LINE, tails=2)
  with pytest.raises(UserError, match="column 'run'"):
    simulate.simulate(LAW, TRUTH, LINE, run_sigma=0.1)


def test_coverage_tells_good_intervals_from_bad():
  """Common errors of runs: rows drawn apart hold the truth far too seldom."""
  design = {
    "C": np.repeat(np.geomspace(1, 1000, 6), 20),
    "run": np.repeat(np.arange(30), 4),
  }
  rows = simulate.coverage(
    LAW, TRUTH, design, kinds=("case", "cluster"), groups="run",
    targets={"L(100)": lambda p: LAW(p, C=100.0)}, simulations=40, draws=100,
    sigma=0.002, run_sigma=0.02,
  )  # fmt: skip
  found = {(r["quantity"], r["kind"]): r for r in rows}
  assert len(rows) == 2 * 4
  assert found["a", "case"]["coverage"] < 0.8
  assert found["a", "cluster"]["coverage"] > 0.8
  for r in rows:
    assert r["coverage"] + r["below"] + r["above"] == pytest.approx(1)
    assert r["given"] == 1 and r["width"] > 0
  assert found["a", "case"]["truth"] == -0.35


def test_coverage_repeats_itself():
  one, two = (
    simulate.coverage(
      LAW, TRUTH, LINE, kinds=("residual", "delta"), simulations=6, draws=20
    )
    for _ in range(2)
  )
  assert one == two


def test_unknown_kind():
  with pytest.raises(UserError, match="did you mean 'profile'"):
    simulate.coverage(LAW, TRUTH, LINE, kinds=("profil",))


@pytest.mark.slow
def test_every_kind_holds_the_truth():
  """200 simulations: a coverage of .95 has a standard error of .015."""
  rows = simulate.coverage(LAW, TRUTH, LINE, simulations=200, draws=200)
  for r in rows:
    assert 0.89 <= r["coverage"] <= 0.99, r
