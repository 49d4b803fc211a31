"""The extrapolation study on made-up curves, and its verdicts on known ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.core.errors import UserError

FOLDER = Path(__file__).parents[2] / "experiments" / "extrapolation"
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "laws"
study = load_module(FOLDER / "study.py")
claims, points, scores = study.claims, study.points, study.scores
EXPECTED = json.loads((FOLDER / "expected.json").read_text())


def curve(c, seed):
  x = np.geomspace(1e4, 1e7, 24)
  noise = np.random.default_rng(seed).standard_normal(24)
  return x, (0.2 + 8 * x**-c) * np.exp(0.003 * noise)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Seven curves of four domains with a floor, and six control curves."""
  folder = tmp_path_factory.mktemp("points")
  header = ["Domain", "Task", "Model", "Seen Examples", "Loss", "Training"]
  names = {
    "vision": [("IC", "bird_5", "ViT/S/16"), ("IC", "bird_10", "ViT/S/16"),
               ("IC", "c_5", "BiT/50/1")],
    "lang": [("NMT", "log_perplexity", "6 Enc, 6 Dec"),
             ("LM", "val_loss", "4.53e+08"), ("LM", "val_loss", "1.07e+09"),
             ("BB", "('qa', '1-shot')", "262M")],
  }  # fmt: skip
  for part, keys in names.items():
    with open(folder / f"benchmark.{part}.csv", "w", newline="") as file:
      rows = csv.writer(file)
      rows.writerow(header)
      for i, key in enumerate(keys):
        for x, y in zip(*curve(0.4 + 0.05 * i, i)):
          rows.writerow([*key, x, y, int(x < 2e6)])
  made = {f"m{i}": np.stack(curve(0.4, i)) for i in range(6)}
  made["lambda-1B"] = made["m0"]
  made["short"] = made["m0"][:, :9]
  np.savez(folder / "colpret.npz", **made)
  with open(folder / "opt.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["model_name", "tokens", "bigbench__a", "bigbench__b"])
    for i, model in enumerate(("small", "large")):
      for x, y in zip(*curve(0.4, i)):
        rows.writerow([model, x, 100 * (1 - y), 100 * (1 - y / 2)])
    rows.writerow(["tiny", 1e6, 10, 20])
  return folder


@pytest.fixture(scope="module")
def result(folder, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "study"
  return study_lib.run_study(str(FOLDER), scale="smoke", data=folder, out=out)


def test_from_points_to_page(result):
  assert study_lib.exit_code(result) == 0 and result["errors"] == []
  titles = {t["title"]: t for t in result["tables"]}
  rows = {r["method"]: r for r in titles["RMSE of ln loss"]["rows"]}
  assert list(rows) == ["M1", "M2", "M3", "M4", "bnsl1", "auto"]
  # The truth has a floor: a plain power misses it, the others don't.
  means = lambda method, part: float(rows[method][part].split(" / ")[0])
  assert means("auto", "IC 2") < means("M1", "IC 2") / 3
  assert means("M2", "language 4") < 0.02 > rows["auto"]["all 6: mean"]
  (shared,) = [
    r for r in titles["Share of curves won (%)"]["rows"]
    if r["contest"] == "all six" and r["curves"] == "all"
  ]  # fmt: skip
  shares = [v for k, v in shared.items() if k not in ("contest", "curves")]
  assert sum(shares) == pytest.approx(100, abs=0.4)
  page = Path(result["report"]).read_text()
  assert "RMSE of ln loss by curve" in page
  assert "a curve of the benchmark" in page
  kept = json.loads((Path(result["out"]) / "scores.json").read_text())
  assert len(kept["curves"]) == 6 == len(kept["rmse_log"]["auto"])


def test_few_curves_decide_nothing(result):
  by_claim = {v["claim"]: v["verdict"] for v in result["verdicts"]}
  assert by_claim.pop("auto errs less than M4 on the benchmark") == (
    "inconclusive"
  )
  assert [v for k, v in by_claim.items() if "92" in k] == ["inconclusive"]
  assert [v for k, v in by_claim.items() if "ColPret" in k] == [
    "inconclusive"
  ] * 2
  assert [v for k, v in by_claim.items() if "printed" in k] == [
    "not supported"  # made-up curves do not have the paper's errors
  ]


def test_points_that_are_missing_or_no_curves(folder, tmp_path):
  with pytest.raises(UserError, match=r"has no benchmark.vision.csv: .*google"):
    study_lib.run_study(str(FOLDER), scale="cpu", data=tmp_path, out="unused")
  for part in ("vision", "lang"):
    path = tmp_path / f"benchmark.{part}.csv"
    path.write_text("Domain,Task,Model,Loss,Training\nIC,a,b,1,1\n")
  with pytest.raises(UserError, match="no column 'Seen Examples'"):
    study_lib.run_study(
      str(FOLDER), scale="cpu", data=tmp_path, out=tmp_path / "out"
    )


def test_control_takes_thirds_and_says_what_it_leaves_out(folder):
  found, left = points.control(folder / "colpret.npz", 0)
  assert [c.name for c in found] == ["m2", "m5"]  # lambda-1B, m2, m5
  assert left == {"lambda-1B": "a curve of the benchmark"}
  one = found[0]
  assert len(one.x) == len(one.far_x) == 12 and one.x.max() < one.far_x.min()
  found, left = points.control(folder / "colpret.npz", 1)
  assert [c.name for c in found] == ["m0", "m3"]
  assert left == {"short": "4 different x to fit, 6 are needed"}


def test_unseen_curves_are_errors_of_each_model_and_task(folder):
  found, left = points.unseen(folder / "opt.csv")
  names = [f"{m} / {task}" for task in "ab" for m in ("small", "large")]
  assert [c.name for c in found] == names
  y = curve(0.4, 0)[1]
  assert found[0].y == pytest.approx(y[: len(found[0].y)])
  assert found[0].x.max() < found[0].far_x.min()
  assert set(left) == {"tiny / a", "tiny / b"}


def test_agreement_is_two_units_or_a_per_cent():
  assert claims.agrees(0.0384, ".039") and claims.agrees(0.262, ".26")
  assert not claims.agrees(0.0103, ".039")
  assert claims.agrees(0.020615, ".020516")
  assert not claims.agrees(0.0208, ".020516")


def named(n):
  return [f"IC / t_{i} / m{i % 7}" for i in range(n)]


def test_printed_and_rerun_need_every_row():
  tasks = {**EXPECTED["printed RMSE of M1 to M4"]}
  rerun = EXPECTED["rerun RMSE of M4"]
  names, table = [], {m: [] for m in claims.METHODS}
  for task in (*tasks, "inet_10 BiT/101/3"):
    kind = "BB" if task.startswith("(") else "LM"
    name = f"{kind} / {task} / {task}"
    if task.startswith("inet"):
      name = "IC / inet_10 / BiT/101/3"
    names.append(name)
    for j, method in enumerate(claims.METHODS):
      text = tasks.get(task, [0.1] * 4)[j] if method != "M4" else rerun[task]
      table[method].append(float(text))
  found = {k: np.array(v) for k, v in table.items()}
  assert claims.printed(names, found, EXPECTED).verdict == "supported"
  assert claims.rerun(names, found, EXPECTED).verdict == "supported"
  fewer = {k: v[:-2] for k, v in found.items()}
  assert claims.printed(names[:-2], fewer, EXPECTED).verdict == "inconclusive"
  found["M2"][0] *= 1.2
  found["M4"][-1] *= 1.02
  verdict = claims.printed(names, found, EXPECTED)
  assert verdict.verdict == "not supported"
  assert "M2 on 6 Enc, 6 Dec 0.0468, printed .039" in verdict.measured
  assert claims.rerun(names, found, EXPECTED).verdict == "not supported"


def test_bar_and_better_on_known_errors():
  rng = np.random.default_rng(0)
  m4 = 0.03 * np.exp(0.5 * rng.standard_normal(92))
  families = [n.rpartition(" / ")[2] for n in named(92)]
  clear = scores.paired(0.7 * m4, m4, families)
  assert claims.better(clear).verdict == "supported"
  assert claims.better(scores.paired(m4, 0.7 * m4)).verdict == "not supported"
  same = scores.paired(m4 * np.exp(0.3 * rng.standard_normal(92)), m4)
  assert claims.better(same).verdict == "inconclusive"
  assert claims.bar(np.full(92, 0.017), EXPECTED).verdict == "supported"
  assert claims.bar(np.full(92, 0.019), EXPECTED).verdict == "not supported"
  assert claims.bar(np.full(91, 0.017), EXPECTED).verdict == "inconclusive"


def test_paired_bootstrap_draws_families():
  """Equal members of a family are one piece of evidence."""
  rng = np.random.default_rng(1)
  b = 0.02 * np.exp(rng.standard_normal(20))
  a = b * np.exp(-0.2 + 0.4 * rng.standard_normal(20))
  once = scores.paired(a, b)
  thrice = scores.paired(
    np.tile(a, 3), np.tile(b, 3), [str(i) for i in range(20)] * 3
  )
  assert thrice.ratio == pytest.approx(once.ratio)
  assert thrice.ratio_ci == pytest.approx(once.ratio_ci)
  loose = scores.paired(np.tile(a, 3), np.tile(b, 3))
  assert np.ptp(loose.ratio_ci) < 0.7 * np.ptp(once.ratio_ci)
  missing = scores.paired(np.array([np.nan, 0.1]), np.array([0.1, 0.1]))
  assert missing.mean == pytest.approx(0.45) and missing.wins == 0


def test_controls_take_the_worse_of_two_rivals():
  rng = np.random.default_rng(2)
  b = 0.02 * np.exp(rng.standard_normal(60))
  noisy = lambda shift: b * np.exp(shift + 0.2 * rng.standard_normal(60))
  good, same = scores.paired(noisy(-0.3), b), scores.paired(noisy(0.0), b)
  made = lambda m4, broken: {"x": {"pairs": {"M4": m4, "bnsl1": broken}}}
  answer = lambda *p: claims.controls(made(*p))[0].verdict
  assert answer(good, good) == "supported"
  assert answer(good, same) == answer(same, good) == "inconclusive"
  assert answer(good, scores.paired(b, noisy(-0.3))) == "not supported"
  assert claims.controls({})[0].verdict == "inconclusive"


@pytest.mark.slow
@pytest.mark.skipif(
  not DATA.exists(), reason="the benchmark is not beside the repository"
)
def test_smoke_on_the_benchmark(tmp_path):
  result = study_lib.run_study(
    str(FOLDER), scale="smoke", data=DATA, out=tmp_path / "out"
  )
  assert study_lib.exit_code(result) == 0
  by_claim = {v["claim"]: v for v in result["verdicts"]}
  # What is there agrees, and not everything is there.
  assert {by_claim[k]["verdict"] for k in list(by_claim)[:2]} == {
    "inconclusive"
  }
