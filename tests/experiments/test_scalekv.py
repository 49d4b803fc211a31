"""scalekv: the README's design, plans of equal totals, claims to be lost."""

import math
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.sampling import scale_kv

FOLDER = Path(__file__).parents[2] / "experiments" / "scalekv"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


@pytest.fixture(scope="module")
def analysis(study):
  return study.analysis


# --------------------------------------------------------------------- design


def finished(runs):
  return {
    run.name: {
      "status": "finished", "law_variables": dict(run.law_variables),
      "workdir": f"/nowhere/{run.name}", "metrics": {},
    }
    for run in runs
  }  # fmt: skip


def test_the_readme_counts_the_runs(study, monkeypatch):
  monkeypatch.setattr(study, "codes", lambda run: run["workdir"] + "/codes")
  text = (FOLDER / "README.md").read_text()
  for name, scale in study.SCALES.items():
    first = study.runs(name, {})
    assert {run.law_variables["arm"] for run in first} == {"tokenizer"}
    every = study.runs(name, finished(first))
    row = next(x for x in text.splitlines() if x.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.split("|")]
    steps = ", ".join(f"{step:,}" for step in scale.steps)
    shares = " ".join(f"{s:g}".removeprefix("0") for s in scale.options.shares)
    assert cells[2:8] == [
      steps, str(scale.depth), shares, str(len(scale.seeds)),
      f"{scale.options.images:,}", str(len(every)),
    ]  # fmt: skip
    assert scale.options.images % scale.options.batch == 0
    assert scale.options.calibration % (2 * scale.options.batch) == 0
    for run in every[len(first) :]:
      seed = run.law_variables["seed"]
      assert run.config.data.path == f"/nowhere/tokenizer-s{seed}/codes"


def test_a_tokenizer_that_failed_has_no_generator(study, monkeypatch):
  monkeypatch.setattr(
    study, "codes", lambda run: "x" if run["status"] == "finished" else None
  )
  done = finished(study.runs("quick", {}))
  done["tokenizer-s1"]["status"] = "failed"
  names = [run.name for run in study.runs("quick", done)]
  assert names[3:] == ["generator-s0", "generator-s2"]


@pytest.mark.parametrize("share, most", [(0.1, 0.12), (0.2, 0.21), (0.5, 0.53)])
def test_arms_hold_equally_many_tokens(study, share, most):
  sides, depth = study.SIDES, 4
  roles = [[0, 1]] * 4 + [[1, 3]] * 4
  options = study.SCALES["quick"].options
  made = study.measure.plans(sides, roles, depth, share, options)
  assert tuple(made) == study.measure.ARMS == study.analysis.ARMS
  totals = {
    arm: [sum(row) for row in plan.capacities] for arm, plan in made.items()
  }
  assert len(set(map(tuple, totals.values()))) == 1
  full = scale_kv.carried(sides)[-1]
  assert share * 0.99 <= max(totals["even"]) / (depth * full) <= most
  evicts = [
    row for row in made["scalekv"].capacities if row != made["even"].capacities
  ]
  assert evicts
  least = min(min(row) for row in made["scalekv"].capacities[3:])
  assert least >= options.window
  selects = [plan.select.__name__ for plan in made.values()]
  assert selects == ["attention", "attention", "latest", "random"]


def test_plans_share_the_programs_of_scales_they_treat_alike(study):
  options = study.SCALES["quick"].options
  plans = study.measure.plans(study.SIDES, [[0, 1]] * 8, 4, 0.1, options)
  only = study.measure.only
  for plan in plans.values():
    for k in (0, 1, 2, 7):
      assert only(plan, k, study.SIDES) is None
    assert only(plan, 4, study.SIDES).capacities[4] == plan.capacities[4]
  other = study.measure.plans(
    study.SIDES, [[0, 1]] * 7 + [[2, 3]], 4, 0.1, options
  )
  a, b = plans["scalekv"], other["scalekv"]
  assert a != b
  same = [only(a, k, study.SIDES) == only(b, k, study.SIDES) for k in range(8)]
  assert same == [True] * 6 + [False, True]


# --------------------------------------------------------------------- claims

GOOD = {"scalekv": 0.05, "even": 0.07, "latest": 0.2, "random": 0.15}
BAD = {"scalekv": 0.4, "even": 0.3, "latest": 0.2, "random": 0.15}


def measured(kl, *, seeds=(0, 1, 2), noise=0.02, share=0.11, differs=0.0):
  """Scores of three budgets, PSNR that falls with KL, hard and easy images."""
  rng, found = np.random.default_rng(0), {}
  for seed in seeds:
    hard = np.exp(rng.standard_normal(200)) * (1 + 0.05 * seed)
    cells = {}
    for budget in ("0.2", "0.1"):
      cells[budget] = {}
      for arm, value in kl.items():
        each = hard * value * np.exp(noise * rng.standard_normal(200))
        each *= math.exp(noise * rng.standard_normal())
        cells[budget][arm] = {
          "kl": each.tolist(), "bytes": share * 71680, "fd": 1 + value,
          "agreement": 0.5, "agreement_0": 0.5, "psnr_0": None,
          "psnr": 20 - 10 * value + seed + noise * rng.standard_normal(),
          "likeliest": [[0] * 204] * 10,
        }  # fmt: skip
    full = {"bytes": 71680.0, "fd": 1.0, "likeliest": [[0] * 204] * 10}
    found[seed] = {
      "cells": cells, "full": full, "roles": [[0, 1]] * 8, "stable": 0.9,
      "differs": differs,
    }  # fmt: skip
  return found


def test_claims_can_be_won(analysis):
  found = analysis.verdicts(measured(GOOD))
  assert [v.verdict for v in found] == ["supported"] * 6
  assert found[1].value == pytest.approx(math.log(0.05 / 0.2), abs=0.05)
  assert found[3].value == pytest.approx(math.log(5 / 7), abs=0.05)


def test_claims_can_be_lost(analysis):
  lost = {**BAD, "random": 0.15}
  found = analysis.verdicts(measured(lost, share=0.2, differs=1e-6))
  answers = [v.verdict for v in found]
  assert answers == ["not supported"] * 4 + ["supported", "not supported"]
  tiny = {arm: 1e-4 * value for arm, value in GOOD.items()}
  assert analysis.verdicts(measured(tiny))[4].verdict == "not supported"


def test_one_control_that_is_better_is_enough(analysis):
  found = analysis.verdicts(measured({**GOOD, "random": 0.04}))
  assert found[1].verdict == found[2].verdict == "not supported"
  assert found[3].verdict == "supported"


def test_noise_one_seed_and_nothing_decide_nothing(analysis):
  for made in (
    measured(GOOD, seeds=(0,)), {},
    measured(dict.fromkeys(GOOD, 0.1), noise=0.3),
  ):  # fmt: skip
    found = analysis.verdicts(made)
    assert {v.verdict for v in found[1:4]} == {"inconclusive"}
  assert {v.verdict for v in analysis.verdicts({})} == {"inconclusive"}


def test_images_are_a_part_of_their_own(analysis):
  """Seeds agree, but in one of them a few images decide."""
  made = measured(GOOD)
  mine = made[1]["cells"]["0.1"]
  kl = np.asarray(mine["even"]["kl"])
  few = kl.copy()
  few[:2] += 0.35 * kl.sum() / 2  # nearly as much in two as in all others
  mine["even"]["kl"], mine["scalekv"]["kl"] = few.tolist(), kl.tolist()
  low, high = analysis.over_images(kl, few, seed=1)
  assert low < analysis.ratio(kl, few) < high
  assert high > -0.02
  assert analysis.verdicts(made)[3].verdict == "inconclusive"


def test_page(analysis):
  made = measured(GOOD)
  done = {
    "tokenizer-s0": {
      "status": "finished", "law_variables": {"arm": "tokenizer", "seed": 0},
      "metrics": {"eval/test/psnr": 20.0}, "workdir": "/nowhere",
    },
    "generator-s0": {
      "status": "finished", "law_variables": {"arm": "generator", "seed": 0},
      "metrics": {"eval/test/nll": 2.0}, "workdir": "/nowhere",
    },
  }  # fmt: skip
  page = analysis.analyse(done, made, (1.0, 0.2, 0.1))
  rows = page["tables"][0].rows
  assert [r["arm"] for r in rows] == list(analysis.ARMS) * 2
  assert rows[-1]["of full"] == pytest.approx(0.11)
  assert rows[4]["KL, nats a token"] < rows[6]["KL, nats a token"]
  assert page["tables"][1].rows[0]["nats a token"] == 2.0
  groups = {m.group for m in page["figures"][0].panels[0].marks}
  assert groups == set(analysis.ARMS)
  assert page["sections"] == []  # that workdir was thrown away
  assert page["tables"][2].rows[4]["FID"] == 2.12
  nothing = analysis.analyse({}, {}, (1.0, 0.1))
  assert nothing["figures"] == nothing["sections"] == []


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("scalekv", scale="smoke", out=tmp_path / "out")
  assert result["status"] == "finished", result["errors"]
  rows = {row["arm"]: row for row in result["tables"][0]["rows"]}
  assert set(rows) == {"scalekv", "even", "latest", "random"}
  assert all(0.1 < row["of full"] < 0.12 for row in rows.values())
  assert all(row["KL, nats a token"] > 0 for row in rows.values())
  answers = [verdict["verdict"] for verdict in result["verdicts"]]
  assert answers[-1] == "supported"
