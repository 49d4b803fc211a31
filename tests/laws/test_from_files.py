"""`vitscale fit` from files: one JSON object, notes, and clear refusals."""

import json

import numpy as np
import pytest

from vitscale import cli, laws

TRUTH = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}


@pytest.fixture(scope="module")
def points(tmp_path_factory):
  """A CSV of 40 trainings, integers as N, one wild loss."""
  rng = np.random.default_rng(0)
  n = np.exp(rng.uniform(18, 23, 40)).round()
  d = np.exp(rng.uniform(20, 26, 40)).round()
  loss = laws.chinchilla()(TRUTH, N=n, D=d)
  loss *= np.exp(0.002 * rng.standard_normal(40))
  loss[7] = 9.0
  path = tmp_path_factory.mktemp("points") / "runs.csv"
  rows = [f"{a:.0f},{6 * a * b:.0f},{c}" for a, b, c in zip(n, d, loss)]
  path.write_text("\n".join(["Model Size,Training FLOP,loss", *rows]) + "\n")
  return path


def run(capfd, *argv):
  code = cli.main(["fit", *map(str, argv)])
  return code, *capfd.readouterr()


COLUMNS = ("--map", "N=Model Size", "C=Training FLOP")


def test_one_object_with_everything(points, capfd, tmp_path):
  code, out, _ = run(
    capfd, points, "--law", "chinchilla", *COLUMNS, "--drop-highest", 1,
    "--objective", "huber:1e-3", "--bootstrap", 60, "--seed", 42,
    "--predict", "N=7e10,D=1.4e12", "--out", tmp_path / "out", "--json",
  )  # fmt: skip
  assert code == 0
  result = json.loads(out)
  assert result["law"] == "chinchilla" and result["n"] == 39
  for name, value in TRUTH.items():
    low, high = result["ci95"][name]
    assert low < result["params"][name] < high and result["se"][name] > 0
    assert result["params"][name] == pytest.approx(value, rel=0.5)
  assert result["objective"] > 0
  assert set(result["seconds"]) == {"compile", "fit", "bootstrap"}
  assert any("D = C / (6 * N)" in note for note in result["notes"])
  assert any("dropped" in note for note in result["notes"])
  assert result["allocation"]["exponent"] == pytest.approx(0.45, abs=0.1)
  low, high = result["forecast"]["ci95"]
  assert low < result["forecast"]["value"] < high
  assert any("above the data" in line for line in result["warnings"])
  page = (tmp_path / "out" / "report.html").read_text()
  assert "E + A/N^alpha" in page
  assert json.loads((tmp_path / "out" / "card.json").read_text())["n"] == 39


def test_the_same_in_words(points, capfd):
  code, out, _ = run(
    capfd, points, "--law", "chinchilla", *COLUMNS, "--bootstrap", 0,
    "--pin", "E=1.7", "--objective", "lad",
  )  # fmt: skip
  assert code == 0
  assert "E = 1.7\n" in out and "note: D was not given" in out


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (("--law", "chinchila", *COLUMNS), "did you mean 'chinchilla'"),
    (("--law", "chinchilla", "--map", "N=Model Siz"), "'Model Size'"),
    (("--law", "chinchilla"), "'N'"),
    (("--law", "power_constant"), "'x'"),
    (("--law", "chinchilla", *COLUMNS, "--y", "los"), "'loss'"),
    (("--law", "chinchilla", *COLUMNS, "--drop-highest", "37"), "parameters"),
    (("--law", "chinchilla", *COLUMNS, "--pin", "F=1"), "no parameter 'F'"),
    (("--law", "chinchilla", *COLUMNS, "--predict", "N=1e9"), "'D'"),
    (("--law", "chinchilla", *COLUMNS, "--objective", "hubr"), "'huber'"),
    (("--law", "chinchilla", *COLUMNS, "--map", "N"), "NAME=VALUE"),
  ],
)
def test_bad_input(points, capfd, argv, says):
  code, out, err = run(capfd, points, *argv, "--bootstrap", 0)
  assert code == 2 and not out
  assert says in err and err.count("\n") == 1, err


def test_bad_rows_are_listed(tmp_path, capfd):
  path = tmp_path / "bad.csv"
  path.write_text("x,loss\n1,2\n2,-1\n3,0.5\n4,0.4\n")
  code, _, err = run(capfd, path, "--law", "power_constant")
  assert code == 2 and "-1" in err and "positive" in err
  code, _, err = run(capfd, tmp_path / "gone.csv", "--law", "power")
  assert code == 2 and "gone.csv" in err
