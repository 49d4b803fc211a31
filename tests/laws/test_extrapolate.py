"""Extrapolation of curves: splits, methods, scores, the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitscale import cli
from vitscale.core.errors import UserError
from vitscale.laws import extrapolate, ingest

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "laws"


def table(n=20):
  rng = np.random.default_rng(0)
  rows = {"run": [], "x": [], "loss": [], "fit": []}
  for k, c in enumerate((0.3, 0.5)):
    x = np.geomspace(1e3, 1e6, n)
    y = (0.2 + 30 * x**-c) * np.exp(0.003 * rng.standard_normal(n))
    rows["run"] += [f"r{k}"] * n
    rows["x"] += list(x)
    rows["loss"] += list(y)
    rows["fit"] += [1.0] * (n - 6) + [0.0] * 6
  return {k: np.array(v) for k, v in rows.items()}


def split(data, **changes):
  names = {"x": "x", "y": "loss", "group": ["run"], "holdout": "fit"}
  return extrapolate.curves(data, **{**names, **changes})


def test_curves_are_split_sorted_and_deduplicated():
  data = table()
  twice = {k: np.r_[v, v][::-1] for k, v in data.items()}
  once, double = split(data), split(twice)
  assert {c.name for c in once} == {c.name for c in double} == {"r0", "r1"}
  for c in double:
    assert len(c.x) == 14 and len(c.far_x) == 12
    assert (np.diff(c.x) > 0).all() and c.x.max() < c.far_x.min()


def test_every_method_is_scored_and_good_ones_are_near():
  groups = list(extrapolate.extrapolate(split(table())))
  assert [g["n_fit"] for g in groups] == [14, 14]
  for g in groups:
    assert set(g["rmse_log"]) == set(extrapolate.METHODS)
    assert g["rmse_log"]["M2"] < 0.02 < g["rmse_log"]["M1"]
    assert g["rmse_log"]["auto"] < 0.05
    assert g["method"].startswith("log mean of M4 and bnsl1; ")
  scores = extrapolate.summary(groups)
  assert scores["auto"]["gmean"] <= scores["auto"]["mean"]
  assert scores["M1"]["curves"] == 2


def law(x):
  return 0.2 + 3 * x**-0.4


@pytest.mark.parametrize(
  ("n", "truth", "method", "most"),
  [
    (1, law, "the last value", 2.0),
    (2, law, "log mean of M1", 1.0),
    (4, law, "log mean of M2 and M3; power", 0.2),
    (5, law, "log mean of M4; ", 0.2),
    (10, lambda x: 0.1 * x**0.1, "M1: the curve rises", 0.02),
    (10, lambda x: 1e-6 * law(x), "log mean of M4 and bnsl1; ", 0.1),
    (10, lambda x: 1e3 * x**-2.0, "log mean of M3 and bnsl1; ", 0.4),
    (10, lambda x: 0.5 + 0 * x, "log mean of M4 and bnsl1; ", 0.03),
  ],
)
def test_short_rising_tiny_and_flat_curves(n, truth, method, most):
  rng = np.random.default_rng(0)
  x, far = np.geomspace(1e2, 1e4, n), np.geomspace(2e4, 1e6, 5)
  y = truth(x) * np.exp(0.01 * rng.standard_normal(n))
  curve = extrapolate.Curve("c", x, y, far, truth(far))
  (found,) = extrapolate.extrapolate([curve])
  assert found["method"].startswith(method)
  assert found["rmse_log"]["auto"] < most


def test_a_break_that_runs_away_is_held_near_m4():
  near, far = np.geomspace(1e2, 1e4, 12), np.geomspace(2e4, 1e6, 5)
  curve = extrapolate.Curve("c", near, law(near), far, law(far))
  away = {"M1": law(far), "M4": law(far), extrapolate.BROKEN: law(far) * 1e-4}
  value, _ = extrapolate._auto(curve, away, 16)
  assert np.abs(np.log(value / law(far))).max() < extrapolate.LIMIT


def test_a_method_without_prediction_counts_as_one():
  scores = extrapolate.summary([{"rmse_log": {"M1": 0.1}}])
  assert scores["M1"]["mean"] == pytest.approx(0.1)
  assert scores["bnsl1"]["mean"] == 1.0 and scores["bnsl1"]["curves"] == 0


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"x": "steps"}, "no column 'steps'"),
    ({"holdout": "loss"}, "must be 1"),
    ({"group": ["fit", "run"]}, "no rows to"),
  ],
)
def test_bad_tables(changes, says):
  with pytest.raises(UserError, match=says):
    split(table(), **changes)


def test_command(tmp_path, capfd):
  data = table()
  path = tmp_path / "curves.csv"
  lines = [",".join(data)] + [
    ",".join(map(str, row)) for row in zip(*data.values())
  ]
  path.write_text("\n".join(lines) + "\n")
  argv = ["fit", str(path), "--law", "auto", "--x", "x", "--group", "run"]
  assert cli.main([*argv, "--holdout", "fit", "--json"]) == 0
  result = json.loads(capfd.readouterr().out)
  assert {"group", "n_fit", "n_test", "method", "rmse_log"} <= set(
    result["groups"][0]
  )
  assert set(result["summary"]["auto"]) >= {"mean", "gmean", "median"}
  assert cli.main(argv) == 2
  assert "--law auto needs --holdout" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
  not DATA.exists(), reason="the benchmark is not beside the repository"
)
def test_benchmark():
  """92 curves: below the best published estimator, M4, and its mixtures."""
  found = []
  for part in ("vision", "lang"):
    rows = ingest.read_files([DATA / f"benchmark.{part}.csv"])
    found += extrapolate.curves(
      rows, x="Seen Examples", y="Loss", group=["Task", "Model"],
      holdout="Training",
    )  # fmt: skip
  scores = extrapolate.summary(list(extrapolate.extrapolate(found)))
  assert scores["M1"]["curves"] == 92
  assert scores["M2"]["mean"] == pytest.approx(0.0679, abs=1e-4)
  assert scores["auto"]["mean"] < 0.0273 and scores["auto"]["gmean"] < 0.0180
