"""The coverage study at its smallest: all claims judged, controls in place."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "coverage"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  out = tmp_path_factory.mktemp("coverage") / "out"
  return study_lib.run_study("coverage", scale="smoke", out=out)


def test_every_cell_is_measured(result, study):
  assert result["status"] == "finished" and result["runs"] == []
  found = json.loads((Path(result["out"]) / "coverage.json").read_text())
  assert found["cells"].keys() == study.SCALES["smoke"].cells.keys()
  for name, cell in found["cells"].items():
    for row in cell["rows"]:
      assert 0 <= row["coverage"] <= 1 and row["width"] > 0, (name, row)
      assert row["given"] > 0.5, (name, row)
  rows = found["cells"][study.CONTROLS[-1]]["rows"]
  worst = min(r["coverage"] for r in rows if r["kind"] == "case")
  assert worst < 0.8, "ignored runs must show even in twelve simulations"


def test_twelve_simulations_support_nothing(result):
  holds = [v for v in result["verdicts"] if "the default" in v["claim"]]
  assert len(holds) == 1
  assert all(v["verdict"] != "supported" for v in holds)


def test_defaults_are_those_of_a_fit(study):
  kinds = {name: cell.default for name, cell in study.ALL.items()}
  assert kinds["chinchilla, n = 240"] == "case"
  assert kinds["power_constant, n = 40"] == "residual"
  assert all(kinds[name] == "cluster" for name in study.RUNS)


def test_the_claims_can_be_lost(study):
  row = lambda v: {"quantity": "E", "coverage": v, "se": 0.007, "n": 1000}
  judge = lambda v: study._holds("x", "case", {"E": row(v)}).verdict
  assert judge(0.95) == "supported"
  assert judge(0.915) == "inconclusive"
  assert judge(0.88) == judge(0.995) == "not supported"
  fails = lambda v: study._too_narrow("x", "case", {"E": row(v)}).verdict
  assert fails(0.8) == "supported" and fails(0.95) == "not supported"


def test_what_was_measured_is_what_the_claims_say(study):
  """expected.json is the file of scale cpu, its verdicts follow from it."""
  kept = json.loads((FOLDER / "expected.json").read_text())
  rows = {name: cell["rows"] for name, cell in kept["cells"].items()}
  assert rows.keys() == study.ALL.keys()
  assert all(c["n"] == study.ALL[k].n for k, c in kept["cells"].items())
  assert all(
    c["default"] == study.ALL[k].default for k, c in kept["cells"].items()
  )
  verdicts = study._verdicts(study.SCALES["cpu"], rows)
  said = {v.claim: v.verdict for v in verdicts}
  assert said == kept["verdicts"]
  for name in study.DEFAULTS:
    held = [v for k, v in said.items() if k.startswith(f"{name}: the default")]
    assert held == ["supported"], name


def test_the_truth_is_where_it_says(study):
  truth = study.TRUTH["chinchilla"]
  n = study.best_size(truth, study.TOP)
  sizes = n * np.array([0.99, 1, 1.01])
  loss = study.CHINCHILLA(truth, N=sizes, D=study.TOP / 6 / sizes)
  assert loss.argmin() == 1
