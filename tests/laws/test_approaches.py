"""Three approaches on the same runs: agreement, reasons, public points."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws.approaches import approaches
from vitscale.laws.joint import chinchilla

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "laws"
CHINCHILLA = DATA / "epoch_chinchilla_svg_extracted_data.csv"
GADRE = DATA / "gadre_models.csv"
needs = lambda path: pytest.mark.skipif(
  not path.exists(), reason=f"{path.name} is not beside the repository"
)
TRUTH = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.35, "beta": 0.35}


def ladder(sigma=0.001, seed=0, rows=30):
  """Curves that end on four FLOP levels, seven sizes around each optimum."""
  rng = np.random.default_rng(seed)
  c = np.repeat(10.0 ** np.arange(17, 21), 7)
  n = (c / 6) ** 0.5 * np.tile(10.0 ** np.linspace(-0.75, 0.75, 7), 4)
  run = np.repeat(np.arange(28), rows)
  d = (c / 6 / n)[run] * np.tile(np.geomspace(0.01, 1, rows), 28)
  noise = np.exp(sigma * rng.standard_normal(28))[run]
  loss = chinchilla()(TRUTH, N=n[run], D=d) * noise
  return {"run": run, "N": n[run], "D": d, "loss": loss}


def test_three_ways_to_one_exponent():
  found = approaches(ladder(), run="run", at=1e21, bootstrap=200)
  names = [row["name"] for row in found.rows()]
  assert names == ["1 envelope", "2 isoflop", "3 parametric"]
  assert found.envelope.curves and found.envelope.runs == 28
  assert found.parametric.n == 28, "only the ends of the curves"
  best = (1e21 / 6) ** 0.5
  for row in found.rows():
    assert not row["reason"]
    assert row["a"] == pytest.approx(0.5, abs=0.03), row["name"]
    assert row["b"] == pytest.approx(0.5, abs=0.03), row["name"]
    assert row["n"] == pytest.approx(best, rel=0.2), row["name"]
    assert row["d"] == pytest.approx(best, rel=0.2), row["name"]
    low, high = row["n_ci"]
    assert low < row["n"] < high
  assert len(found.pairs) == 3 and all(p.overlap for p in found.pairs)
  assert found.agree in ("supported", "inconclusive")
  wide = approaches(ladder(), run="run", bootstrap=200, margin=0.3)
  assert wide.agree == "supported" and wide.compute == pytest.approx(1e20)
  text = json.dumps(found.as_dict(), allow_nan=False)
  assert {"agree", "pairs", "approaches"} <= set(json.loads(text))


def test_a_reason_instead_of_an_answer():
  rng = np.random.default_rng(0)
  n, d = np.exp(rng.uniform([15, 18], [20, 23], (40, 2))).T
  loss = chinchilla()(TRUTH, N=n, D=d) * np.exp(0.001 * rng.standard_normal(40))
  found = approaches({"N": n, "D": d, "loss": loss}, bootstrap=100)
  one, two, three = found.rows()
  assert "no exponent" in two["reason"] and two["a"] is None
  assert three["reason"] == "" and three["a"] == pytest.approx(0.5, abs=0.1)
  assert found.isoflop.n is None and len(found.pairs) <= 1
  if one["a_ci"] == [None, None]:
    assert found.agree == "inconclusive" and "fewer than two" in found.why


def test_few_points_leave_reasons():
  found = approaches({"N": [1e6, 2e6], "D": [1e8, 2e8], "loss": [3.0, 2.9]})
  assert all(row["reason"] for row in found.rows())
  assert found.agree == "inconclusive" and not found.pairs
  json.dumps(found.as_dict(), allow_nan=False)


def test_complaints():
  with pytest.raises(UserError, match="no column 'runs'"):
    approaches(ladder(), run="runs")
  with pytest.raises(UserError, match="at is -1"):
    approaches(ladder(), at=-1.0)


@needs(CHINCHILLA)
@pytest.mark.slow
def test_chinchilla_points():
  """Points read off a figure: they crowd around nine levels."""
  with open(CHINCHILLA) as file:
    rows = list(csv.DictReader(file))
  names = {"N": "Model Size", "C": "Training FLOP", "loss": "loss"}
  table = {k: np.array([float(r[v]) for r in rows]) for k, v in names.items()}
  keep = table["loss"] < np.sort(table["loss"])[-5]
  levels = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
  found = approaches({k: v[keep] for k, v in table.items()}, levels=levels)
  one, two, three = found.rows()
  assert three["a"] == pytest.approx(0.5139, abs=1e-3)
  # Hoffmann et al.: .50 and .49, on their own points and all nine levels.
  assert one["a_ci"][0] < 0.50 < one["a_ci"][1]
  assert two["a_ci"][0] < 0.49 < two["a_ci"][1]
  assert all(p.overlap for p in found.pairs)
  assert found.agree == "inconclusive", "the intervals are wider than .05"


@needs(GADRE)
@pytest.mark.slow
def test_an_overtraining_grid_has_no_levels():
  with open(GADRE) as file:
    rows = [r for r in csv.DictReader(file) if r["dataset"] == "c4_original"]
  loss = next(k for k in rows[0] if "c4_val" in k)
  names = {"N": "params", "D": "tokens"}
  table = {k: np.array([int(r[v]) for r in rows]) for k, v in names.items()}
  table["loss"] = np.array([float(r[loss]) for r in rows])
  found = approaches(table, bootstrap=200)
  _, two, three = found.rows()
  assert "no FLOP level has 3 different sizes" in two["reason"]
  assert three["a_ci"][0] < 0.5 < three["a_ci"][1]
  assert found.agree == "inconclusive"
