"""flexible_patch: the README's design, and claims that can be lost."""

from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.bench import build
from vitscale.core import draws as draws_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "flexible_patch"
PATCHES = (12, 6, 4, 3, 2)


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def pilots(study, scale, **losses):
  """Results of pilots; `losses` by "FAMILY/RATE", else 1."""
  which, done = study.SCALES[scale], {}
  for family, patches in study.families(which).items():
    for lr in which.rates:
      value = losses.get(f"{family}/{lr:g}", 1.0 + lr)
      done[f"pilot-{family}-{lr:g}"] = {
        "status": "finished",
        "law_variables": {"arm": "pilot", "family": family, "lr": lr},
        "metrics": {f"eval/p{p}/nll": value for p in patches},
      }
  return done


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_each_familys_rate(study):
  first = study.runs("cpu", {})
  assert all(run.name.startswith("pilot-") and run.may_fail for run in first)
  assert all(e.split == "val" for r in first for e in r.config.evals.values())
  done = pilots(study, "cpu", **{"flexi/0.016": 0.2, "curriculum/0.008": 0.3,
                                 "p3/0.016": 0.1})  # fmt: skip
  rest = study.runs("cpu", done)[len(first) :]
  rate = {run.law_variables["arm"]: run.config.optim.lr for run in rest}
  assert rate["flexi"] == rate["flexi-total"] == rate["p3"] == 0.016
  assert rate["curriculum"] == rate["mixed"] == 0.008
  assert rate["p12"] == rate["p2"] == 0.004
  assert all(e.split == "test" for r in rest for e in r.config.evals.values())
  assert all(set(r.config.evals) == {f"p{p}" for p in PATCHES} for r in rest)
  assert not {r.config.seed for r in first} & {r.config.seed for r in rest}
  # A family is tuned as long as it runs.
  long = {run.law_variables.get("family"): run.config.total_steps
          for run in first}  # fmt: skip
  assert long["curriculum"] == next(
    r.config.total_steps for r in rest if r.law_variables["arm"] == "curriculum"
  )


def test_the_readme_counts_the_runs(study):
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(study.runs(scale, pilots(study, scale)))
    row = next(x for x in text.splitlines() if x.startswith(f"| `{scale}` |"))
    assert f"| {count} |" in row, (scale, count)


@pytest.mark.slow
def test_equal_flops_are_equal(study):
  """As the runs will log them: of the patches that their seed draws."""
  scale, spent = study.SCALES["quick"], {}
  for arm in study.arms(scale):
    made = study.config(scale, arm, lr=1e-3, seed=3, split="test")
    bench = build(made)
    mean = draws_lib.mean_of(bench.draws, bench.flops, 3)(made.total_steps)
    spent[arm] = mean * made.total_steps
  assert spent["curriculum"] == pytest.approx(spent["p2"], rel=0.02)
  assert spent["mixed"] == pytest.approx(spent["p2"], rel=0.06)
  separate = sum(spent[f"p{p}"] for p in PATCHES)
  assert spent["flexi-total"] == pytest.approx(separate, rel=0.04)
  assert spent["flexi"] == pytest.approx(separate / 5, rel=0.06)


def test_the_curriculum_goes_from_large_to_small(study):
  scale = study.SCALES["quick"]
  made = study.config(scale, "curriculum", lr=1e-3, seed=0, split="test")
  n = made.total_steps
  chosen = draws_lib.over(draws_lib.make(made.draws), n)
  seen = [draws_lib.at(chosen, 0, k)["patch_size"] for k in range(n)]
  assert seen == sorted(seen, reverse=True)
  share = [seen.count(p) / n for p in PATCHES]
  assert share == pytest.approx(scale.time, abs=2 / n)
  mixed = study.config(scale, "mixed", lr=1e-3, seed=0, split="test")
  assert tuple(mixed.draws.patch_size.weights) == scale.time
  assert mixed.total_steps == n


def test_models_differ_in_their_patch_alone(study):
  scale = study.SCALES["quick"]
  models = {
    arm: study.config(scale, arm, lr=1e-3, seed=0, split="test").model.to_dict()
    for arm in study.arms(scale)
  }
  for arm, model in models.items():
    patch = int(arm[1:]) if arm[1:].isdigit() else 6
    assert model == {**models["flexi"], "patch_size": patch}, arm


# --------------------------------------------------------------------- claims


def results(loss, seeds=(0, 1, 2)):
  """Finished runs whose losses are `loss(arm, patch)` and a seed's own."""
  arms = [*(f"p{p}" for p in PATCHES), "flexi", "flexi-total", "curriculum",
          "mixed"]  # fmt: skip
  return {
    f"{arm}-s{seed}": {
      "status": "finished",
      "law_variables": {"arm": arm, "seed": seed, "lr": 0.004},
      "workdir": "/nowhere",
      "metrics": {
        "step": 10, "flops": 1e9,
        **{f"eval/p{p}/nll": loss(arm, p) + 0.1 * seed
           + 0.001 * ((seed + p) % 3 - 1) * (1 + len(arm) / 9)
           for p in PATCHES},
      },
    }
    for arm in arms
    for seed in seeds
  }  # fmt: skip


def good(arm, patch):
  """All claims hold."""
  if arm in ("flexi", "flexi-total"):
    return {"flexi": 0.52, "flexi-total": 0.45}[arm]
  if arm in ("curriculum", "mixed"):
    return {"curriculum": 0.4, "mixed": 0.45}[arm]
  return 0.5 if arm == f"p{patch}" else 1.0


def bad(arm, patch):
  """All claims are lost."""
  if arm in ("flexi", "flexi-total"):
    return {"flexi": 0.6, "flexi-total": 0.55}[arm]
  if arm in ("curriculum", "mixed"):
    return {"curriculum": 0.55, "mixed": 0.45}[arm]
  return 0.5


@pytest.mark.parametrize(
  "loss, answer", [(good, "supported"), (bad, "not supported")]
)
def test_claims_can_be_won_and_lost(study, loss, answer):
  runs = study.analysis.finished(results(loss))
  found = study.analysis.verdicts(runs, PATCHES)
  assert [verdict.verdict for verdict in found] == [answer] * 5


def test_one_seed_decides_nothing_and_missing_arms_are_no_error(study):
  analysis = study.analysis
  one = analysis.finished(results(good, seeds=(0,)))
  assert {v.verdict for v in analysis.verdicts(one, PATCHES)} == {
    "inconclusive"
  }
  few = {k: v for k, v in results(good).items() if k.startswith("p3")}
  some = analysis.finished(few)
  assert {v.verdict for v in analysis.verdicts(some, PATCHES)} == {
    "inconclusive"
  }
  assert {v.verdict for v in analysis.verdicts({}, PATCHES)} == {"inconclusive"}
  analysis.losses(some, PATCHES), analysis.figures(some, PATCHES)


def test_differences_are_paired_by_seed(study):
  """Seeds differ by .1, the effect is .02: only pairing sees it."""
  runs = study.analysis.finished(
    results(lambda arm, p: 0.42 if arm == "curriculum" else 0.44)
  )
  verdict = study.analysis.verdicts(runs, PATCHES)[3]
  assert verdict.verdict == "supported"
  assert verdict.value == pytest.approx(0.02, abs=0.003)


def test_tables_and_figures(study):
  analysis = study.analysis
  runs = analysis.finished(results(good))
  rows = {row["arm"]: row for row in analysis.losses(runs, PATCHES).rows}
  assert list(rows)[:5] == [f"p{p}" for p in PATCHES] and len(rows) == 9
  assert rows["p3"]["at 3"] == pytest.approx(0.6, abs=0.002)
  assert rows["p3"]["at 2"] == pytest.approx(1.1, abs=0.002)
  figure = analysis.figures(runs, PATCHES)[0]
  groups = {mark.group for mark in figure.panels[0].marks}
  assert {"one per patch", "all, total"} <= groups
  lines = {m.group: m for m in figure.panels[0].marks if hasattr(m, "dash")}
  np.testing.assert_allclose(lines["one per patch"].y, 0.6, atol=0.003)


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "flexible_patch", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished", result["errors"]
  rows = {row["arm"]: row for row in result["tables"][0]["rows"]}
  assert rows["curriculum"]["FLOPs of p2"] == pytest.approx(1, abs=0.1)
