"""The judgement of the ladder on made-up runs whose law is known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vitscale import laws
from vitscale import study as studies
from vitscale.core.config import load_module
from vitscale.laws.isoflop import isoflop
from vitscale.models import vit

FOLDER = Path(__file__).parents[2] / "experiments" / "ladder"
study = load_module(FOLDER / "study.py")
analysis, tuning = study.analysis, study.tuning
claims = analysis.claims

RULE = {"k": 0.01, "x": 1.0, "y": -0.2, "longest": 262_144.0}
TRUTH = {"E": 0.2, "A": 4.0, "alpha": 0.4, "B": 40.0, "beta": 0.45}


def chinchilla(n, d, p=TRUTH):
  return p["E"] + p["A"] / n ** p["alpha"] + p["B"] / d ** p["beta"]


def made(loss=chinchilla, *, scale="cpu", noise=0.005):
  """The scale's ladder with losses of a law; nothing is trained."""
  rng, done = np.random.default_rng(1), {}
  for run in study.ladder(study.SCALES[scale], RULE):
    v = dict(run.law_variables)
    n = 24 * v["width"] ** 2 + 29 * v["width"]
    d = study.examples(study.SCALES[scale], v["C"], v["width"])
    y = loss(n, d) * math.exp(noise * rng.standard_normal())
    done[run.name] = {
      "name": run.name, "status": "finished", "workdir": "/nonexistent",
      "law_variables": {**v, "params_non_embedding": n},
      "metrics": {"eval/test/nll": y, "examples": d, "flops": v["C"]},
    }  # fmt: skip
  return done


def judged(done):
  """(runs, held-out runs, the law of the former)."""
  rows, held = claims.points(done), claims.points(done, held=True)
  return rows, held, laws.fit(laws.chinchilla(), rows, bootstrap=1000)


def forecast(done):
  _, held, fit = judged(done)
  return claims.forecast(claims.forecasts({claims.LAW: fit}, held)).verdict


@pytest.fixture(scope="module")
def true_law():
  return judged(made())


def test_a_true_law_is_recovered(true_law):
  _, _, fit = true_law
  for name in ("alpha", "beta"):
    low, high = fit.ci()[name]
    assert low < TRUTH[name] < high
    assert high - low < 0.5
  assert claims.both(fit).verdict == "supported"


def test_a_true_law_beats_shuffled_sizes_and_forecasts(true_law):
  rows, held, fit = true_law
  assert claims.shuffled(rows, fit).verdict == "supported"
  said = claims.forecasts({claims.LAW: fit}, held)
  assert said[0]["runs"] == 3
  assert claims.forecast(said).verdict == "supported"


def test_valleys_of_a_true_law_are_inside_of_the_ladder(true_law):
  rows, _, fit = true_law
  found = isoflop(rows, params=fit.params)
  assert claims.valleys(found).verdict == "supported"
  a = claims.exponents(None, found, fit)
  true = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
  for name in ("2 IsoFLOP", "3 L(N, D)"):
    assert a[name][1][0] < true < a[name][1][1], name


def test_a_break_beyond_the_fitted_budgets_is_not_forecast():
  """Runs of the largest budget that fail to learn refute the forecast."""
  stuck = lambda n, d: chinchilla(n, d) * (1.3 if n * d > 3e10 else 1.0)
  assert forecast(made(stuck)) == "not supported"


def test_losses_that_ignore_size_are_told():
  rows, _, fit = judged(made(lambda n, d: 0.2 + 40.0 / d**0.45))
  assert claims.both(fit).verdict != "supported"
  found = isoflop(rows, bootstrap=0, params=TRUTH)
  assert claims.valleys(found).verdict == "not supported"


def test_losses_without_any_law_are_no_better_than_shuffled():
  rng = np.random.default_rng(3)
  only_budget = lambda n, d: (n * d) ** -0.1 * math.exp(0.1 * rng.normal())
  rows, _, fit = judged(made(only_budget))
  assert claims.shuffled(rows, fit).verdict == "not supported"


def test_one_held_out_run_decides_nothing():
  done = made()
  for name in [n for n in done if n.startswith("held") and n[-1] != "0"]:
    del done[name]
  assert forecast(done) == "inconclusive"


def test_rivals_are_judged_by_their_error_and_their_interval():
  mine = {
    "law": claims.LAW, "value": 0.5, "ci": (0.49, 0.51), "measured": 0.5,
    "error": 0.0, "inside": True, "runs": 3, "noise": 0.01, "rmse": 0.01,
  }  # fmt: skip
  rival = lambda **x: claims.rivals([mine, {**mine, "law": "rival", **x}])[0]
  assert rival(error=0.1, inside=False).verdict == "supported"
  assert rival(error=0.1, inside=True).verdict == "inconclusive"
  assert rival(error=0.01, inside=False).verdict == "inconclusive"
  off = {**mine, "error": 0.1}
  better = claims.rivals([off, {**mine, "law": "rival"}])[0]
  assert better.verdict == "not supported"


@pytest.mark.slow
def test_the_page_shows_rivals_and_what_was_held_out():
  found = analysis.analyse(made(), "cpu")
  assert [f.name for f in found["figures"]] == [
    "loss_by_compute", "isoflop", "optimum",
  ]  # fmt: skip
  said = {v.claim: v.verdict for v in found["verdicts"]}
  for name in ("N alone", "D alone"):
    assert said[f"control: a law {name} forecasts worse"] == "supported"
  forecasts, approaches, cells = found["tables"]
  assert [r["law"] for r in forecasts.rows] == [claims.LAW, *claims.RIVALS]
  assert [r["approach"] for r in approaches.rows][-1] == "3 L(N, D)"
  held = [r for r in cells.rows if r["held out"]]
  assert [(r["width"], r["seeds"]) for r in held] == [(64, 3)]
  assert len(cells.rows) == 1 + len(study.SCALES["cpu"].cells)


def test_approaches_apart_and_unsure():
  near = {"1": (0.5, (0.4, 0.6)), "2": (0.55, (0.45, 0.65))}
  assert claims.agree(near).verdict == "inconclusive"  # only two
  three = {**near, "3": (0.5, (0.42, 0.58))}
  assert claims.agree(three).verdict == "supported"
  wide = {**three, "3": (0.5, (0.1, 0.9))}
  assert claims.agree(wide).verdict == "inconclusive"
  apart = {**three, "3": (0.8, (0.7, 0.9))}
  assert claims.agree(apart).verdict == "not supported"


def test_a_failed_run_is_left_out():
  done = made()
  first = next(iter(done))
  done[first] |= {"status": "failed", "metrics": {}}
  assert len(claims.points(done)) == len(claims.points(made())) - 1


# ------------------------------------------------------------------- design


def test_levels_are_budgets_and_the_largest_run_is_held_out():
  for name, scale in study.SCALES.items():
    if not scale.cells:
      continue
    assert min(c for c, _ in scale.held) >= 4 * max(c for c, _ in scale.cells)
    sizes = {}
    for c, width in scale.cells:
      sizes.setdefault(c, []).append(width)
    assert all(len(set(s)) >= 3 for s in sizes.values()), name
    for run in study.ladder(scale, RULE):
      d = study.examples(scale, run.config.total_flops, run.config.model.width)
      assert run.config.data.n >= d, run.name
      assert "test" in run.config.evals


def test_every_scale_names_distinct_runs():
  for name in study.SCALES:
    named = [run.name for run in study.runs(name, {})]
    assert named and len(named) == len(set(named))


def test_examples_are_those_the_bench_counts():
  """Within the gradient of the pixels, which training has no use for."""
  scale = study.SCALES["cpu"]
  kwargs = {**study.model(scale, 32), "num_classes": 4}
  macs = vit.flops_per_image(kwargs, (12, 12, 1))
  assert study.examples(scale, 6.0 * macs, 32) == pytest.approx(1.0)


# --------------------------------------------------------------------- rates


def piloted(scale, optimum):
  """Pilots whose losses are parabolas around `optimum(width, images)`."""
  done = {}
  while new := [r for r in study.pilots(scale, done) if r.name not in done]:
    for run in new:
      v = dict(run.law_variables)
      off = math.log(v["lr"] / optimum(v["width"], v["D"]))
      done[run.name] = {
        "law_variables": v, "status": "finished",
        "metrics": {"eval/val/nll": 0.5 * math.exp(0.05 * off**2)},
      }  # fmt: skip
  return done


def test_the_rule_of_the_rates_is_found_and_used():
  scale = study.SCALES["tune"]
  true = lambda width, images: tuning.rate(RULE, images, width)
  done = piloted(scale, true)
  rule = tuning.rule(study.pilot_losses(scale, done))
  assert rule == pytest.approx(RULE, rel=0.03)
  report = study.analyse(done, "tune")
  assert report["files"]["rates.json"]["rule"] == rule
  assert {r["bracketed"] for r in report["tables"][0].rows} == {"yes"}


def test_pilots_grow_where_the_best_is_at_an_edge_and_end():
  scale = study.SCALES["tune"]
  done = piloted(scale, lambda width, images: 1e-9)
  each = study.pilot_losses(scale, done)
  assert {len(rates) for rates in each.values()} == {study.MOST}
  assert not tuning.vertex(next(iter(each.values())))[1]


def test_pilots_use_seeds_and_images_of_their_own():
  for scale in study.SCALES.values():
    seeds = {seed for n in (*scale.cells.values(), *scale.held.values())
             for seed in range(n)}  # fmt: skip
    assert not seeds & set(scale.pilot_seeds)
  for run in study.runs("tune", {}):
    assert list(run.config.evals) == ["val"]
    assert run.config.evals.val.split == "val"


def test_a_scale_that_tunes_itself_goes_on_to_its_ladder():
  scale = study.SCALES["gpu"]
  done = piloted(scale, lambda width, images: 0.01 * 32 / width)
  named = [r.name for r in study.runs("gpu", done)]
  assert sum(not n.startswith("pilot") for n in named) == (
    sum(scale.cells.values()) + sum(scale.held.values())
  )


def test_rates_that_are_committed_are_those_of_the_pilots():
  kept = json.loads((FOLDER / "rates.json").read_text())
  assert set(kept["rule"]) == set(RULE)
  cells = {(c["images"], c["width"]) for c in kept["cells"]}
  assert cells == set(study.SCALES["tune"].pilots)


@pytest.mark.slow
def test_smoke_end_to_end(tmp_path):
  """The real loop: runs, law, page."""
  result = studies.run_study(
    str(FOLDER), scale="smoke", out=tmp_path / "out", workers=2
  )
  assert result["status"] == "finished", result["errors"]
  assert len(result["runs"]) == 8
  for run in result["runs"]:
    v, m = run["law_variables"], run["metrics"]
    assert m["flops"] == pytest.approx(v["C"], rel=0.02)
  assert Path(result["report"]).exists()
