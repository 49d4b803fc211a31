"""What `vitscale fit` adds when asked: next runs, approaches, validation."""

import json

import numpy as np
import pytest

from vitscale import cli, laws

TRUTH = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.3}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
  """A CSV of 5 IsoFLOP levels of 7 sizes, one run each."""
  rng = np.random.default_rng(0)
  rows = ["N,D,loss"]
  for c in np.geomspace(1e18, 1e22, 5):
    best = (0.35 / 0.3) * np.sqrt(c / 6 / 20)
    for n in best * np.geomspace(0.25, 4, 7):
      d = c / (6 * n)
      loss = laws.chinchilla()(TRUTH, N=n, D=d)
      rows.append(f"{n},{d},{loss * np.exp(0.003 * rng.standard_normal())}")
  path = tmp_path_factory.mktemp("ladder") / "runs.csv"
  path.write_text("\n".join(rows) + "\n")
  return path


def run(capfd, *argv):
  code = cli.main(["fit", *map(str, argv), "--law", "chinchilla"])
  return code, *capfd.readouterr()


FEW = ("--bootstrap", 60)
TARGET = ("--predict", "N=1e11,D=2e12")


def test_next_runs_stay_in_budget_and_narrow(ladder, capfd):
  code, out, _ = run(
    capfd, ladder, *FEW, *TARGET, "--next", 3, "--budget", 1e23, "--json"
  )
  assert code == 0
  result = json.loads(out)
  found, plan = result["next_runs"], result["next_plan"]
  assert 1 <= len(found) <= 3
  assert {"N", "D", "C", "cost", "loss", "width"} <= set(found[0])
  assert sum(r["cost"] for r in found) == pytest.approx(plan["spent"])
  assert plan["spent"] <= 1e23
  widths = [plan["before"], *(r["width"] for r in found)]
  assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]
  # The width it starts from is that of the forecast printed beside it.
  low, high = result["forecast"]["ci95"]
  assert plan["before"] == pytest.approx(high - low, rel=1e-6)


def test_approaches_side_by_side(ladder, capfd):
  code, out, _ = run(capfd, ladder, *FEW, "--approaches", "--json")
  assert code == 0
  found = json.loads(out)["approaches"]
  one, two, three = found["approaches"]
  true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
  assert two["a_ci"][0] - 0.02 < true < two["a_ci"][1] + 0.02
  assert three["a_ci"][0] < true < three["a_ci"][1]
  assert one["name"].startswith("1") and found["agree"]


def test_validation_predicts_what_it_did_not_see(ladder, capfd):
  code, out, _ = run(capfd, ladder, *FEW, "--validate", "--json")
  assert code == 0
  found = json.loads(out)["validation"]
  assert set(found) == {"holdout", "rollout", "leave_one_out"}
  assert found["holdout"]["by"] == "C" and found["holdout"]["distance"] > 1
  assert found["holdout"]["rmse_log"] < 0.02
  assert len(found["rollout"]["checks"]) > 1


def test_all_of_it_in_words(ladder, capfd):
  code, out, _ = run(
    capfd, ladder, *FEW, *TARGET, "--next", 2, "--budget", 1e23,
    "--approaches", "--validate",
  )  # fmt: skip
  assert code == 0
  for text in ("next runs:", "2 isoflop", "holdout", "leave_one_out"):
    assert text in out


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--next", 2, "--budget", 1e20), "--predict N=...,D=..."),
    ((*TARGET, "--next", 2), "--next K and --budget FLOPS go together"),
    ((*TARGET, "--budget", 1e20), "--next K and --budget FLOPS go together"),
    ((*TARGET, "--next", -1, "--budget", 1e20), "--next is -1"),
    ((*TARGET, "--next", 1, "--budget", 1e9), "buys no run"),
    (("--levels", 1e20), "--levels belongs to --approaches"),
  ],
)
def test_bad_input(ladder, capfd, options, message):
  code, out, err = run(capfd, ladder, *FEW, *options)
  assert code == 2 and not out
  assert message in err and len(err.strip().splitlines()) == 1


def test_a_degenerate_fit_plans_nothing(tmp_path, capfd):
  path = tmp_path / "flat.csv"
  rng = np.random.default_rng(1)
  rows = [
    f"{n},{d},{2.0 * np.exp(0.01 * rng.standard_normal())}"
    for n in np.geomspace(1e7, 1e9, 5)
    for d in np.geomspace(1e9, 1e11, 4)
  ]
  path.write_text("\n".join(["N,D,loss", *rows]) + "\n")
  code, out, _ = run(
    capfd, path, *FEW, *TARGET, "--next", 2, "--budget", 1e23, "--json"
  )
  result = json.loads(out)
  assert code == 0 and result["next_runs"] == []
  assert any("degenerate" in w for w in result["warnings"])
