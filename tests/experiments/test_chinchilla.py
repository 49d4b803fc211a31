"""The chinchilla study on points of a known law, and its verdicts."""

import csv
import json
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vitscale import laws
from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.core.errors import UserError

FOLDER = Path(__file__).parents[2] / "experiments" / "chinchilla"
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "laws"
study = load_module(FOLDER / "study.py")
claims, oracle, race = study.claims, study.oracle, study.race
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
TRUTH = {"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.35, "beta": 0.37}


def made(n=80, noise=0.004):
  rng = np.random.default_rng(0)
  size = np.exp(rng.uniform(np.log(5e7), np.log(1e10), n))
  tokens = np.exp(rng.uniform(np.log(1e9), np.log(1e12), n))
  loss = laws.chinchilla()(TRUTH, N=size, D=tokens)
  return size, tokens, loss * np.exp(noise * rng.laplace(size=n))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = tmp_path_factory.mktemp("points") / "read_off.csv"
  size, tokens, loss = made()
  with open(path, "w", newline="") as opened:
    rows = csv.writer(opened)
    rows.writerow(["x", "Model Size", "Training FLOP", "loss"])
    rows.writerows(zip(size, size, 6 * size * tokens, loss))
  return path


@pytest.fixture(scope="module")
def result(file, tmp_path_factory):
  patch = pytest.MonkeyPatch()
  patch.delenv(race.PYTHON, raising=False)
  out = tmp_path_factory.mktemp("out") / "study"
  yield study_lib.run_study(str(FOLDER), scale="smoke", data=file, out=out)
  patch.undo()


def table(result, title):
  return next(t["rows"] for t in result["tables"] if t["title"] == title)


def test_from_points_to_page(result, file):
  assert study_lib.exit_code(result) == 0 and result["errors"] == []
  card = {c["name"]: c for c in result["laws"]}["chinchilla, huber:1e-3"]
  assert card["n"] == 75  # five of eighty are dropped
  assert card["params"]["E"] == pytest.approx(TRUTH["E"], rel=0.02)
  assert card["interval"] == "case bootstrap"
  sets = table(result, "Sets of parameters on the same points")
  assert [r["parameters"] for r in sets] == [
    "vitscale, lad", "vitscale, huber:1e-3", "Hoffmann", "Hoffmann, rounded"
  ]  # fmt: skip
  assert sets[0]["sum |r|"] < sets[1]["sum |r|"] < sets[2]["sum |r|"]
  assert float(sets[1]["Huber sum"]) < float(sets[0]["Huber sum"])
  page = Path(result["report"]).read_text()
  (used,) = result["data"].values()
  assert used["path"] == str(file) and used["sha256"][:16] in page
  assert "What a budget should buy" in page


def test_all_race_and_who_is_missing_says_so(result):
  rows = {
    (r["who"], r["job"]): r
    for r in table(result, "Race on the same points, in turns")
  }
  assert len(rows) == 7
  for key, row in rows.items():
    if key[0] != "chinchilla":
      assert row["seconds"] > 0, key
  ours = float(rows["vitscale", "one fit"]["excess"])
  assert 0 <= ours < 1e-9
  assert "no higher in 100.0 %" in rows["SciPy BFGS", "100 draws"]["note"]
  note = rows["chinchilla", "one fit"]["note"]
  installed = util.find_spec("chinchilla") is not None
  assert installed or "pip install chinchilla" in note


def test_another_law_and_small_jobs_claim_nothing(result):
  answers = [v["verdict"] for v in result["verdicts"]]
  # 75 points are not the 240; 100 draws not 4000; no repeated data; a small
  # race. The points' own law is tested against Hoffmann's and for 20.
  assert answers[:3] == ["inconclusive"] * 3
  assert answers[3] == "supported"
  assert answers[5:] == ["inconclusive"] * 4


def test_points_that_are_something_else(tmp_path):
  path = tmp_path / "other.csv"
  path.write_text("N,loss\n1,2\n")
  with pytest.raises(UserError, match="Model Size"):
    study_lib.run_study(
      str(FOLDER), scale="cpu", data=path, out=tmp_path / "out"
    )


# ------------------------------------------------------------------- oracle


def test_likelihoods_of_the_replication():
  """Their three log likelihoods from the sums of absolute residuals."""
  for deviation, printed in (
    (1.129494654, 879.77), (1.34549, 837.78), (4.24088, 562.25)
  ):  # fmt: skip
    found = oracle.log_likelihood(deviation, 240)
    assert found == pytest.approx(printed, abs=0.006)


@pytest.mark.parametrize(
  ("params", "tokens"),
  [
    (EXPECTED["optima"]["lad"], 18.33),
    (EXPECTED["optima"]["huber:1e-3"], 17.91),
    (oracle.hoffmann(EXPECTED)["Hoffmann"], 59.04),
    (oracle.hoffmann(EXPECTED)["Hoffmann, rounded"], 92.83),
  ],
)
def test_tokens_a_parameter(params, tokens):
  found = oracle.ratio(params, 5.88e23)
  assert found == pytest.approx(tokens, rel=1e-3)
  n = np.geomspace(1e9, 1e12, 200_001)  # the closed form against a search
  loss = laws.chinchilla()(
    {k: params[k] for k in claims.NAMES}, N=n, D=5.88e23 / 6 / n
  )
  best = n[loss.argmin()]
  assert 5.88e23 / 6 / best**2 == pytest.approx(found, rel=1e-3)


def test_scipy_contestant_has_the_same_objective(monkeypatch):
  monkeypatch.syspath_prepend(str(FOLDER))
  peer = load_module(FOLDER / "with_scipy.py")
  size, tokens, loss = made()
  points = {"N": size, "D": tokens, "loss": loss}
  data = [np.log(v) for v in (size, tokens, loss)]
  value, slope = peer.objective(peer.START, *data)
  assert value == pytest.approx(
    oracle.total(peer.named(peer.START), points), rel=1e-12
  )
  for i in range(5):
    step = 1e-7 * np.eye(5)[i]
    ends = [peer.objective(peer.START + s, *data)[0] for s in (step, -step)]
    assert (ends[0] - ends[1]) / 2e-7 == pytest.approx(slope[i], rel=1e-4)
  assert len(peer.GRID) == 4500


# ------------------------------------------------------------------- claims


def fake(objective="lad", shift=0.0, n=240, draws=4000):
  wanted = EXPECTED["optima"][objective]
  epoch = EXPECTED["epoch"]
  return SimpleNamespace(
    objective_name=objective,
    objective=wanted["objective"] * (1 + shift / 1e4),
    params={k: wanted[k] * (1 + shift) for k in claims.NAMES},
    n=n,
    draws={"A": np.zeros(draws)},
    se=lambda: {k: v * (1 + shift) for k, v in epoch["se"].items()},
    ci=lambda: {
      k: [b * (1 + shift) for b in v] for k, v in epoch["ci95"].items()
    },
  )


@pytest.mark.parametrize(
  ("shift", "n", "answer"),
  [
    (0.0, 240, "supported"),
    (5e-6, 240, "supported"),
    (2e-4, 240, "not supported"),
    (0.0, 245, "inconclusive"),
  ],
)
def test_optimum(shift, n, answer):
  wanted = EXPECTED["optima"]["lad"]
  assert claims.optimum(fake(shift=shift, n=n), wanted, 240).verdict == answer


def test_replication():
  answer = lambda **k: (
    claims.replication(fake(**k), EXPECTED["epoch"], 240).verdict
  )
  assert answer() == answer(shift=9e-4) == "supported"
  assert answer(shift=2e-3) == "not supported"
  assert answer(draws=100) == "inconclusive"


def test_rejection_needs_both_tests():
  answer = lambda a, b: (
    claims.rejected((1.0, a), (1.0, b), EXPECTED["epoch"]).verdict
  )
  assert answer(1e-9, 1e-9) == "supported"
  assert answer(0.2, 0.3) == "not supported"
  assert answer(1e-9, 0.3) == answer(1e-3, 1e-9) == "inconclusive"


def test_twenty():
  def answer(low, high):
    found = SimpleNamespace(
      ci={"tokens_per_param": (low, high)}, tokens_per_param=18.0
    )
    return claims.twenty(found, 59.0, 20, 5.88e23).verdict

  assert answer(9.0, 32.0) == "supported"
  assert answer(9.0, 70.0) == answer(25.0, 50.0) == "not supported"
  assert answer(float("nan"), float("nan")) == "inconclusive"


def test_repeated_data():
  wanted = EXPECTED["muennighoff"]
  good = {"n": 182, "r2": wanted["r2"], "huber": wanted["huber"]}
  assert claims.repeated(good, wanted).verdict == "supported"
  assert claims.repeated(good | {"r2": 0.7723}, wanted).verdict == (
    "not supported"
  )
  assert claims.repeated(None, wanted).verdict == "inconclusive"


def test_bars_need_every_round():
  answer = lambda fit, draws, of=4000: claims.quick(fit, draws, of).verdict
  assert answer([0.004, 0.006], [1.2, 1.3]) == "supported"
  assert answer([0.004, 0.012], [1.2, 1.3]) == "inconclusive"
  assert answer([0.004, 0.006], [1.6, 1.7]) == "not supported"
  assert answer([0.004], [0.1], 100) == answer([], []) == "inconclusive"


def line(seconds, **more):
  return {"entry": study.Entry("x", "x.py", "fit"), "seconds": seconds, **more}


def test_faster():
  def answer(theirs, ours, good=True, whole=True):
    return claims.faster(
      "x", theirs, ours, 5.0, (good, "rule", "seen"), whole=whole
    ).verdict

  ours = line([1.0, 1.1, 0.9])
  assert answer(line([20.0, 21.0, 22.0]), ours) == "supported"
  assert answer(line([20.0]), ours) == "supported"
  assert answer(line([2.0, 2.1, 2.0]), ours) == "not supported"
  assert answer(line([20.0, 21.0, 22.0]), ours, good=False) == "not supported"
  assert answer(line([2.0, 20.0, 6.0]), ours) == "inconclusive"
  assert answer(line([20.0]), ours, whole=False) == "inconclusive"
  assert answer(line([], error="absent"), ours) == "inconclusive"


def test_a_contestant_that_dies_does_not_end_the_race(monkeypatch):
  monkeypatch.setenv(race.PYTHON, "/no/such/python")
  points = dict(zip(("N", "D", "loss"), made(20)))
  dead = study.Entry("dead", "README.md", "fit")
  grid = study.Entry("SciPy", "with_scipy.py", "grid", size=4, of=8)
  away = study.Entry("away", "with_chinchilla.py", "fit", own=True)
  first, second, third = race.race(
    [dead, grid, away], points, 2, lambda text: None
  )
  assert "error" in first and not first["seconds"]
  assert "/no/such/python: No such file" in third["error"]
  assert len(second["seconds"]) == 2
  # Half of the job was timed: the whole takes twice as long.
  assert second["found"]["seconds"] == second["seconds"][-1]


@pytest.mark.slow
@pytest.mark.skipif(
  not DATA.exists(), reason="the points are not beside the repository"
)
def test_smoke_on_the_points(tmp_path):
  result = study_lib.run_study(
    str(FOLDER), scale="smoke", data=DATA, out=tmp_path / "out"
  )
  assert study_lib.exit_code(result) == 0
  answers = [v["verdict"] for v in result["verdicts"]]
  assert answers[:2] == ["supported"] * 2  # both optima
  assert answers[3] == answers[5] == "supported"  # rejected; repeated data
