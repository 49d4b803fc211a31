"""`vitscale fit` from files: one JSON object, notes, and clear refusals."""

import hashlib
import json

import numpy as np
import pytest

from vitscale import cli, laws
from vitscale.laws import prepare, report

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


HUBER = ("--law", "chinchilla", "--objective", "huber:1e-3")


def test_one_object_with_everything(points, capfd, tmp_path):
  code, out, _ = run(
    capfd, points, *HUBER, *COLUMNS, "loss=loss", "--drop-highest", 1,
    "--bootstrap", 60, "--seed", 42, "--predict", "N=7e10,D=1.4e12",
    "--out", tmp_path / "out", "--json",
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
  assert result["allocation"]["exponent"] == pytest.approx(0.45, abs=0.1)
  low, high = result["forecast"]["ci95"]
  assert low < result["forecast"]["value"] < high
  assert any("above the data" in line for line in result["warnings"])

  page = (tmp_path / "out" / "report.html").read_text()
  assert "E + A/N^alpha" in page and repr(result["params"]["alpha"]) in page
  for name in ("fit", "residuals", "forecast"):
    assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 0
  card = json.loads((tmp_path / "out" / "card.json").read_text())
  assert card == {k: v for k, v in result.items() if k != "report"}


def test_the_card_has_every_section(points, capfd):
  code, out, _ = run(
    capfd, points, *HUBER, *COLUMNS, "--drop-highest", 1, "--bootstrap", 60,
    "--count", "non-embedding", "--json",
  )  # fmt: skip
  assert code == 0
  card = json.loads(out)
  hypothesis, method, data = (card[k] for k in ("hypothesis", "method", "data"))
  assert hypothesis["form"] == "L = E + A/N^alpha + B/D^beta"
  assert hypothesis["variables"]["N"] == "Model Size"
  assert "Hoffmann" in hypothesis["rationale"]
  assert data["rows_read"] == 40 and data["rows_used"] == 39
  assert len(data["dropped"]) == 1 and "row 8 of" in data["dropped"][0]
  sha = hashlib.sha256(points.read_bytes()).hexdigest()
  assert data["files"] == {str(points): sha}
  assert card["conventions"] == {
    "N_counts": "non-embedding", "N_counts_from": "the user",
    "variables": {"N": "Model Size", "D": "C / (6 * N)"},
    "flops": "C = 6 N D",
  }  # fmt: skip
  assert card["training"]["hyper_parameters"] == "not stated"
  assert card["training"]["sizes"]["from"] == card["range"]["N"][0]
  assert method["bootstrap"] == 60 and method["starts"] == 8
  assert {"python", "vitscale", "jax", "numpy"} <= set(method["versions"])


def test_the_same_in_words(points, capfd):
  code, out, _ = run(
    capfd, points, *HUBER, *COLUMNS, "--drop-highest", 1, "--bootstrap", 0,
    "--pin", "E=1.7",
  )  # fmt: skip
  assert code == 0
  assert "E = 1.7   (fixed)\n" in out and "note: D was not given" in out
  assert "N counts: not stated; FLOPs: C = 6 N D" in out


@pytest.mark.parametrize("as_json", [True, False])
def test_a_degenerate_fit_prints_no_interval(points, tmp_path, capfd, as_json):
  """The losses are noise around a constant: nothing is determined."""
  rng = np.random.default_rng(1)
  header, *rows = points.read_text().splitlines()
  flat = [
    f"{row.rsplit(',', 1)[0]},{2 + 0.01 * rng.standard_normal()}"
    for row in rows[:39]
  ]
  path = tmp_path / "flat.csv"
  path.write_text("\n".join([header, *flat]) + "\n")
  code, out, _ = run(
    capfd, path, *HUBER, *COLUMNS, "--bootstrap", 60, "--predict",
    "N=7e10,D=1.4e12", "--out", tmp_path / "out", *["--json"] * as_json,
  )  # fmt: skip
  assert code == 0
  if not as_json:
    assert "warning: degenerate" in out and "[" not in out and "nan" not in out
    assert "No band" in (tmp_path / "out" / "report.html").read_text()
    return
  result = json.loads(out)
  assert result["degenerate"]
  assert set(result["ci95"].values()) == {None}
  assert set(result["allocation"]["ci"].values()) == {None}
  assert result["forecast"]["ci95"] is None


def curves(path):
  rng = np.random.default_rng(0)
  rows = ["run,step,params,lr,loss"]
  for i, n in enumerate(np.geomspace(1e6, 1e9, 12)):
    for step in range(100, 1100, 100):
      loss = (2 + 50 * n**-0.3 + 30 / step) * np.exp(0.003 * rng.normal())
      rows.append(f"r{i},{step},{n:.0f},{1e-3 * (1 + i % 2)},{loss}")
  path.write_text("\n".join(rows) + "\n")


def test_a_formula_over_the_ends_of_curves(tmp_path, capfd):
  curves(tmp_path / "curves.csv")
  argv = (tmp_path / "curves.csv", "--law", "E + A/N^alpha", "--map",
          "N=params", "--bound", "alpha=0:2", "--json")  # fmt: skip
  code, out, _ = run(
    capfd, *argv, "--drop-warmup", "20%", "--smooth", 3, "--final",
    "--outliers", "drop", "--bootstrap", 20,
  )  # fmt: skip
  assert code == 0
  result = json.loads(out)
  assert result["n"] == 12 and set(result["params"]) == {"E", "A", "alpha"}
  assert result["params"]["alpha"] == pytest.approx(0.3, abs=0.05)
  assert len(result["data"]["dropped"]) == 4
  assert result["training"]["runs"] == 12
  assert result["training"]["hyper_parameters"]["lr"] == [0.001, 0.002]
  assert result["bounds"]["alpha"] == [0, 2] and "allocation" not in result


def own_run(folder, params, inside, loss):
  folder.mkdir(parents=True)
  law = {"params": params, "params_non_embedding": inside}
  config = {
    "data": {"source": "strokes"},
    "optim": {"lr": 0.01, "name": "adamw"},
  }
  about = {"status": "finished", "law_variables": law, "config": config}
  (folder / "run.json").write_text(json.dumps(about))
  lines = [{"step": s, "loss": loss + 1 / s} for s in (1, 10)]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)


def test_our_own_runs_know_what_they_count(tmp_path):
  for i in range(6):
    own_run(tmp_path / f"r{i}", 1000 * 2**i, 800 * 2**i, 1 + 0.5**i)
  for column, counts in (
    ("params", "total"), ("params_non_embedding", "non-embedding"),
  ):  # fmt: skip
    points = prepare.prepare(
      [tmp_path], "E + A/N^alpha", {"N": column, "loss": "loss"}
    )
    said, warned = report.conventions(points, "total")
    assert said["N_counts"] == counts and "own" in said["N_counts_from"]
    assert bool(warned) == (counts != "total")
    training = report.training(points)
    assert training["data"] == {"data.source": "strokes"}
    assert training["hyper_parameters"]["optim.lr"] == 0.01
    assert training["runs"] == 6


def test_flops_by_another_rule_are_said(tmp_path):
  n, d = np.geomspace(1e6, 1e8, 8), np.geomspace(1e9, 1e10, 8)
  rows = "".join(f"{a},{b},{8 * a * b},2.0\n" for a, b in zip(n, d))
  (tmp_path / "a.csv").write_text("N,D,C,loss\n" + rows)
  points = prepare.prepare([tmp_path / "a.csv"], "gadre", {"loss": "loss"})
  said, _ = report.conventions(points, None)
  assert said["flops"] == "C as the files give it"
  assert said["flops_per_6ND"] == pytest.approx(8 / 6)
  assert said["N_counts"] == "not stated"
  assert any("counted by another rule" in note for note in points.table.notes)


# ---------------------------------------------------------------- bad input


LAW = ("--law", "chinchilla", *COLUMNS)


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (("--law", "chinchila", *COLUMNS), "did you mean 'chinchilla'"),
    (("--law", "chinchilla", "--map", "N=Model Siz"), "'Model Size'"),
    (("--law", "chinchilla"), "'N'"),
    (("--law", "power_constant"), "'x'"),
    ((*LAW, "--y", "los"), "'loss'"),
    ((*LAW, "--drop-highest", "37"), "3 points"),
    ((*LAW, "--pin", "F=1"), "no parameter 'F'"),
    ((*LAW, "--pin", "E=x"), "--pin E=x: not a number"),
    ((*LAW, "--predict", "N=1e9"), "needs a value for 'D'"),
    ((*LAW, "--predict", "N=1e9,D"), "--predict 'D' is not NAME=VALUE"),
    ((*LAW, "--predict", "N=1e9,D=-1"), "D=-1.0 must be positive"),
    ((*LAW, "--predict", "N=1e9,D=1e9,X=2"), "no variable 'X'"),
    ((*LAW, "--objective", "hubr"), "'huber'"),
    ((*LAW, "--objective", "huber:x"), "as huber:0.001"),
    ((*LAW, "--map", "N"), "--map 'N' is not NAME=VALUE"),
    (("--law", "chinchilla", "--map", "N=a", "N=b"), "gives 'N' twice"),
    ((*LAW, "--bound", "alpha=1"), "is not NAME=LOW:HIGH[:log]"),
    ((*LAW, "--bound", "alpha=0:b"), "--bound alpha=b: not a number"),
    ((*LAW, "--bound", "alpha=2:1"), "2 is not below 1"),
    ((*LAW, "--bound", "alpah=0:1"), "did you mean 'alpha'"),
    ((*LAW, "--groups", "rum"), "no column 'rum'"),
    ((*LAW, "--final"), "give --x COLUMN"),
    ((*LAW, "--outliers", "drop"), "--x COLUMN"),
    ((*LAW, "--count", "totl"), "did you mean 'total'"),
    ((*LAW, "--bootstrap", "-1"), "must not be negative"),
    (("--law", "E + A*loss^a"), "holds the loss"),
    (("--law", "E + A/N^a + q(N)", *COLUMNS), "no function 'q'"),
    (("--law", "E + A*sqrt(-N)", *COLUMNS), "is not a number on these data"),
    (("--law", "E + A/Z^a", *COLUMNS), "no name in it is a column"),
    (("--law", "(E + A/N^a)^c", *COLUMNS), "give --bound E=LOW:HIGH"),
  ],
)
def test_bad_input(points, capfd, argv, says):
  code, out, err = run(capfd, points, "--bootstrap", 0, *argv)
  assert code == 2 and not out
  assert says in err and err.count("\n") == 1, err


@pytest.mark.parametrize(
  ("text", "argv", "says"),
  [
    ("x,loss\n1,2\n2,-1\n3,0.5\n4,0.4\n", (), "row 2 of"),
    ("x,loss\n1,2\n2,nan\n3,0\n4,0.4\n", (), "rows 2-3 of"),
    ("x,loss\n1,2\n0,1\n3,0.5\n4,0.4\n", (), "column 'x'"),
    ("x,loss\n1,2\nb,1\n3,0.5\n4,0.4\n", (), "row 2 of"),
    ("x,loss\n3,2\n3,1\n3,0.5\n3,0.4\n", (), "values of x, the data have 1"),
    ("x,loss\n3,2\n4,1\n", (), "3 parameters"),
    ("g,x,loss\na,1,2\na,2,1\na,3,0.5\na,4,0.4\n", ("--groups", "g"),
     "belong to run 'a', resampling runs needs 2"),
    ("", (), "is empty"),
    ("x,loss\n", (), "is empty"),
  ],
)  # fmt: skip
def test_bad_files(tmp_path, capfd, text, argv, says):
  path = tmp_path / "bad.csv"
  path.write_text(text)
  code, out, err = run(capfd, path, "--law", "power_constant", *argv)
  assert code == 2 and not out and says in err and err.count("\n") == 1, err


def test_a_variable_with_one_value_is_named(tmp_path, capfd):
  rows = "".join(f"{10**i},1e9,{2 + 0.5**i}\n" for i in range(1, 9))
  (tmp_path / "a.csv").write_text("N,D,loss\n" + rows)
  code, out, err = run(capfd, tmp_path / "a.csv", *HUBER, "--bootstrap", 0)
  assert code == 2 and not out and "'D' is 1e+09 in every row" in err, err


def test_files_that_cannot_be_read_together(tmp_path, capfd):
  power = ("--law", "power_constant")
  code, _, err = run(capfd, tmp_path / "gone.csv", *power)
  assert code == 2 and "no file" in err and "gone.csv" in err
  event = tmp_path / "events.out.tfevents.1"
  event.write_bytes(b"not an event file")
  code, _, err = run(capfd, event, *power)
  assert code == 2 and "event file" in err and err.count("\n") == 1
  for name, column in (("a", "x"), ("b", "size")):
    rows = "".join(f"{n},{1 + 1 / n}\n" for n in (1, 2, 3, 4))
    (tmp_path / f"{name}.csv").write_text(f"{column},loss\n{rows}")
  code, _, err = run(capfd, tmp_path / "a.csv", tmp_path / "b.csv", *power)
  assert code == 2 and "'x' is blank in every row of" in err
