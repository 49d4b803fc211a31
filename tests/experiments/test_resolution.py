"""resolution: the README's design, and claims that can be lost."""

from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.bench import build
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "resolution"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def pilots(study, scale, **losses):
  """Results of pilots; `losses` by "FAMILY/RATE", else rising with the rate."""
  done = {}
  for name in study.FAMILIES:
    for lr in study.SCALES[scale].rates:
      value = losses.get(f"{name}/{lr:g}", 1.0 + lr)
      done[f"pilot-{name}-{lr:g}"] = {
        "status": "finished",
        "law_variables": {"arm": "pilot", "family": name, "lr": lr},
        "metrics": {f"eval/r{s}/nll": value for s in study.ARMS[name].sizes},
      }
  return done


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_each_familys_rate(study):
  first = study.runs("cpu", {})
  assert len(first) == 6 * len(study.RATES)
  assert all(e.split == "val" for r in first for e in r.config.evals.values())
  done = pilots(study, "cpu", **{"multi-glpe/0.008": 0.1,
                                 "single-glpe/0.004": 0.1})  # fmt: skip
  rest = study.runs("cpu", done)[len(first) :]
  rate = {run.law_variables["arm"]: run.config.optim.lr for run in rest}
  assert rate["multi-glpe"] == rate["agree-glpe"] == 0.008
  assert {rate[f"own-{s}"] for s in study.TRAINED} == {0.004}
  assert rate["agree-learned"] == rate["single-learned"] == 0.002
  assert all(e.split == "test" for r in rest for e in r.config.evals.values())
  assert all(len(r.config.evals) == len(study.TESTED) for r in rest)
  assert not {r.config.seed for r in first} & {r.config.seed for r in rest}


def test_the_readme_counts_the_runs(study):
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(study.runs(scale, pilots(study, scale)))
    row = next(x for x in text.splitlines() if x.startswith(f"| `{scale}` |"))
    assert f"| {count} |" in row, (scale, count)


@pytest.mark.slow
def test_arms_have_equal_flops_and_own_ones_a_third(study):
  """As the runs will count them, consistency and resizing included."""
  scale, spent = study.SCALES["quick"], {}
  for name in ("single-glpe", "multi-glpe", "agree-glpe", "agree-learned",
               *(f"own-{s}" for s in study.TRAINED)):  # fmt: skip
    made = study.config(scale, study.ARMS[name], lr=1e-3, seed=0, split="test")
    spent[name] = made.total_steps * build(made).facts["flops_per_example"]
  whole = spent["single-glpe"]
  for name in ("multi-glpe", "agree-glpe", "agree-learned"):
    assert spent[name] == pytest.approx(whole, rel=0.02), name
  own = [spent[f"own-{s}"] for s in study.TRAINED]
  assert own == pytest.approx([whole / 3] * 3, rel=0.02)


def test_arms_are_what_the_readme_says(study):
  scale = study.SCALES["quick"]
  made = {
    name: study.config(scale, arm, lr=1e-3, seed=0, split="test")
    for name, arm in study.ARMS.items()
  }
  assert len(made) == 12
  multi, agree = made["multi-learned"], made["agree-learned"]
  assert (multi.task.weight, agree.task.weight) == (0.0, 1.0)
  assert multi.train == agree.train and multi.total_steps == agree.total_steps
  assert set(multi.train.transform) == {"image", "image@16", "image@12"}
  single = made["single-learned"]
  assert single.train.transform == multi.train.transform["image"]
  assert single.model == multi.model and single.task.name == "classify"
  assert made["own-24"].model.position == "glpe"
  trained = set(study.TRAINED)
  assert trained < set(study.TESTED)
  assert set(study.analysis.UNSEEN) == set(study.TESTED) - trained
  assert all(size % study.PATCH == 0 for size in study.TESTED)


# --------------------------------------------------------------------- claims


def results(study, loss, seeds=(0, 1, 2)):
  """Finished runs whose losses are `loss(arm, size)` and a seed's own."""
  return {
    f"{arm}-s{seed}": {
      "status": "finished",
      "law_variables": {"arm": arm, "seed": seed, "lr": 0.004},
      "workdir": "/nowhere",
      "metrics": {
        "step": 10, "flops": 1e9,
        **{f"eval/r{size}/nll": loss(arm, size) + 0.1 * seed
           + 0.001 * ((seed + size) % 3 - 1) * (1 + len(arm) / 9)
           for size in study.TESTED},
      },
    }
    for arm in study.ARMS
    for seed in seeds
  }  # fmt: skip


def good(arm, size):
  """All claims hold."""
  kind, _, rest = arm.partition("-")
  base = {"single": 0.8, "multi": 0.55, "agree": 0.5, "own": 0.52}[kind]
  return base + 0.1 * (rest == "learned")


def bad(arm, size):
  """All claims are lost."""
  kind, _, rest = arm.partition("-")
  base = {"single": 0.4, "multi": 0.5, "agree": 0.55, "own": 0.45}[kind]
  return base - 0.1 * (rest == "learned")


@pytest.mark.parametrize(
  "loss, answer", [(good, "supported"), (bad, "not supported")]
)
def test_claims_can_be_won_and_lost(study, loss, answer):
  analysis = study.analysis
  found = analysis.verdicts(analysis.finished(results(study, loss)))
  assert [verdict.verdict for verdict in found] == [answer] * 5


def test_each_claim_looks_at_its_own_sizes(study):
  """Worse at 28 px alone: the second claim is lost, the first is not."""
  analysis = study.analysis
  high = lambda arm, size: (
    good(arm, size) + 0.5 * (size == 28 and arm == "multi-glpe")
  )
  found = analysis.verdicts(analysis.finished(results(study, high)))
  assert [found[i].verdict for i in (0, 1)] == ["supported", "not supported"]
  at_16 = lambda arm, size: (
    good(arm, size) + 0.5 * (size == 16 and arm == "own-16")
  )
  found = analysis.verdicts(analysis.finished(results(study, at_16)))
  assert found[4].value == pytest.approx(0.02 + 0.5 / 3, abs=0.003)


def test_one_seed_decides_nothing_and_missing_arms_are_no_error(study):
  analysis = study.analysis
  for some in (
    results(study, good, seeds=(0,)),
    {k: v for k, v in results(study, good).items() if "multi" in k},
    {},
  ):
    runs = analysis.finished(some)
    found = analysis.verdicts(runs)
    assert {verdict.verdict for verdict in found} == {"inconclusive"}
    analysis.losses(runs), analysis.figures(runs)


def test_tables_and_figures(study):
  analysis = study.analysis
  runs = analysis.finished(results(study, good))
  rows = {row["arm"]: row for row in analysis.losses(runs).rows}
  assert len(rows) == 12
  assert rows["agree-learned"]["20 px"] == pytest.approx(0.7, abs=0.002)
  (figure,) = analysis.figures(runs)
  assert [panel.title for panel in figure.panels] == list(study.POSITIONS)
  groups = {mark.group for mark in figure.panels[0].marks}
  assert groups == {"single", "multi", "agree"}


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "resolution", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished", result["errors"]
  rows = {row["arm"]: row for row in result["tables"][0]["rows"]}
  assert rows["agree-glpe"]["FLOPs of single"] == pytest.approx(1, abs=0.05)
