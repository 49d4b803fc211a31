"""autoregressive_law: the README's design, and claims that can be lost."""

import math
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.data import fields

FOLDER = Path(__file__).parents[2] / "experiments" / "autoregressive_law"
study = load_module(FOLDER / "study.py")
analysis = study.analysis
KNOWN = analysis.entropy(12)[1]

# A law of size and data whose best size grows as C^.7.
TRUTH = {"E": KNOWN, "A": 1.6, "alpha": 0.3, "B": 1800.0, "beta": 0.7}


def loss(n, d, p=TRUTH):
  return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


def pilots(scale):
  """Each width's second rate is the best."""
  found = {}
  for run in study.pilots(study.SCALES[scale]):
    v = run.law_variables
    middle = study.rounded(study.RATES[1] * 32 / v["width"])
    far = abs(math.log(v["lr"] / middle))
    found[run.name] = {
      "status": "finished", "law_variables": dict(v),
      "metrics": {"eval/val/nll": 2 + far},
    }  # fmt: skip
  return found


def made(law=loss, *, scale="cpu", noise=1e-3, seed=1):
  """The scale's runs with losses of a law of N and D; nothing is trained."""
  rng, done = np.random.default_rng(seed), pilots(scale)
  design = study.SCALES[scale]
  for run in study.runs(scale, done)[len(done) :]:
    v = dict(run.law_variables)
    width, depth = v["width"], study.raster.shaped(v["width"])["depth"]
    n = 3 * depth * width**2
    tokens = design.images * design.size**2
    flops = v.get("C") or 6 * n * tokens
    y = law(n, flops / (6 * n)) * math.exp(noise * rng.standard_normal())
    done[run.name] = {
      "status": "finished", "law_variables": {**v, "params_non_embedding": n},
      "metrics": {
        analysis.LOSS: y, f"{analysis.LOSS}_se": 0.002, "flops": flops,
        "examples": flops / (6 * n) / design.size**2,
      },
    }  # fmt: skip
  return done


@pytest.fixture(scope="module")
def found():
  return analysis.analyse(made())


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_each_widths_rate():
  first = study.runs("cpu", {})
  assert all(list(r.config.evals) == ["val"] for r in first)
  done = pilots("cpu")
  rest = study.runs("cpu", done)[len(first) :]
  assert all(list(r.config.evals) == ["test"] for r in rest)
  assert not {r.config.seed for r in first} & {r.config.seed for r in rest}
  rates = {r.law_variables["width"]: r.config.optim.lr for r in rest}
  want = {w: study.rounded(0.008 * 32 / w) for w in (16, 24, 32, 48, 64, 96)}
  assert rates == pytest.approx(want, rel=0.01)
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(study.runs(scale, pilots(scale)))
    assert f"| `{scale}` |" in text and f"| {count} |" in text, (scale, count)


def test_what_is_held_out_is_the_largest_and_never_fitted():
  runs = study.runs("cpu", pilots("cpu"))
  rest = [r.law_variables for r in runs if r.law_variables["arm"] != "pilot"]
  for arm, key in (("size", "width"), ("c", "C")):
    mine = [v for v in rest if v["arm"].startswith(arm)]
    top = max(v[key] for v in mine)
    assert {v[key] for v in mine if v["held"]} == {top}
    assert len({v[key] for v in mine if not v["held"]}) == 5
  done = made()
  near = analysis.forecasts(analysis.of_size(analysis.points(done, 12)), "N")
  for run in done.values():
    if run["law_variables"].get("held"):
      run["metrics"][analysis.LOSS] *= 1.1
  far = analysis.forecasts(analysis.of_size(analysis.points(done, 12)), "N")
  assert far["floor"]["fit"].params == near["floor"]["fit"].params
  assert far["measured"] == pytest.approx(1.1 * near["measured"])


def test_no_image_comes_twice():
  for run in study.runs("cpu", pilots("cpu")):
    config = run.config
    images = config.get("total_examples")
    if images is None:
      width = run.law_variables["width"]
      images = config.total_flops / study.price(study.SCALES["cpu"], width)
    assert config.data.n > 1.05 * images


# -------------------------------------------------------------------- entropy


def test_the_entropy_of_noise_is_a_sum():
  """White fields: 16 levels of a normal pixel, independent of each other."""
  bound, known = analysis.entropy(8, power=0.0)
  edges = (np.arange(17) * 16 - 0.5 - fields.MEAN) / 32
  edges[[0, -1]] = -np.inf, np.inf
  p = np.diff([0.5 * math.erfc(-x / math.sqrt(2)) for x in edges])
  exact = -(p * np.log(p)).sum()
  assert bound < exact and exact == pytest.approx(known, abs=1e-3)
  assert bound < exact - 0.005  # the second order is felt


def test_the_entropy_of_the_study_is_the_readmes():
  bound, known = analysis.entropy(12)
  text = (FOLDER / "README.md").read_text()
  assert f"{bound:.3f}" in text and f"{known:.3f}" in text


def test_the_entropy_lies_below_what_neighbours_leave():
  """The best guess of a pixel from two before it leaves more than the bound,
  of levels as they really are cut."""
  found = fields.fields("test", 12, 2000, power=analysis.POWER)
  x = found.images(np.arange(2000))[..., 0].astype(int) // 16
  here, left, above = x[:, 1:, 1:], x[:, 1:, :-1], x[:, :-1, 1:]
  joint = np.zeros((16, 16, 16))
  np.add.at(joint, (left, above, here), 1)
  p = joint / joint.sum()
  given = p.sum(-1, keepdims=True)
  part = p * np.log(np.where(p > 0, p, 1) / np.where(given > 0, given, 1))
  left_over = -part.sum()
  assert analysis.entropy(12)[1] < left_over < 1.9


# --------------------------------------------------------------------- claims


def test_a_law_that_ends_at_the_entropy(found):
  """What was planted is found."""
  assert [v.verdict for v in found["verdicts"]] == ["supported"] * 7
  a = found["verdicts"][4]
  assert a.ci[0] < 0.7 < a.ci[1] and a.ci[1] - a.ci[0] < 0.1


def one_law(law, x):
  """(has a floor?, is the largest foretold?) of L(x)."""
  rows = analysis.points(made(law), 12)
  mine = analysis.of_size(rows) if x == "N" else analysis.frontier(rows)
  said = analysis.forecasts(mine, x)
  return (
    analysis.has_floor(said, x).verdict, analysis.foretold(said, x).verdict
  )  # fmt: skip


def test_without_a_floor_there_is_none():
  assert one_law(lambda n, d: 4.0 * n**-0.08, "N")[0] != "supported"
  assert one_law(lambda n, d: 30 * (n * d) ** -0.12, "C")[0] != "supported"


def test_a_break_is_not_foretold():
  stuck = lambda n, d: loss(n, d) * (1.05 if n > 2e5 or n * d > 2e11 else 1)
  assert one_law(stuck, "N")[1] == one_law(stuck, "C")[1] == "not supported"


def test_another_floor_is_not_the_entropy():
  for off in (0.15, -0.15):
    other = {**TRUTH, "E": KNOWN + off}
    rows = analysis.points(made(lambda n, d, p=other: loss(n, d, p)), 12)
    said = analysis.is_entropy(analysis.joint(rows), 12)
    assert said.verdict == "not supported"
  low = [{**r, "loss": r["loss"] - 0.3} for r in rows]
  assert analysis.nothing_beats_it(low, 12).verdict == "not supported"


def test_exponents_are_judged_by_their_interval():
  class Found:
    levels = ()

    def __init__(self, *ci):
      self.n = self
      self.exponent, self.ci = sum(ci) / 2, lambda: ci

  judge = lambda *ci: analysis.grows(Found(*ci)).verdict
  assert judge(0.65, 0.74) == "supported"
  assert judge(0.4, 0.6) == judge(0.8, 0.9) == "not supported"
  assert judge(0.6, 0.7) == judge(0.3, 0.9) == "inconclusive"
  assert judge(math.nan, math.nan) == "inconclusive"
  assert analysis.grows(None).verdict == "inconclusive"


def test_no_runs_decide_nothing_and_one_seed_foretells_nothing():
  none = analysis.analyse({})["verdicts"]
  assert {v.verdict for v in none} == {"inconclusive"}
  rows = [r for r in analysis.points(made(), 12) if r["seed"] == 0]
  said = analysis.forecasts(analysis.of_size(rows), "N")
  assert analysis.foretold(said, "size").verdict == "inconclusive"


def test_table_and_figures(found):
  rows = found["tables"][0].rows
  assert len(rows) == 23 + 6 and {row["seeds"] for row in rows} == {3}
  assert sum(row["best of its budget"] == "yes" for row in rows) == 6
  assert [f.name for f in found["figures"]] == ["laws", "optimum"]
  assert [p.title for p in found["figures"][0].panels] == ["L(N)", "L(C)"]


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "autoregressive_law", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished", result["errors"]
  assert len(result["tables"][0]["rows"]) == 12
  assert result["verdicts"][-1]["verdict"] == "supported"
