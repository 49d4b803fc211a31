"""hieratok: the README's design, and claims that can be lost."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core import axes
from vitscale.core.config import load_module
from vitscale.models import vitok

FOLDER = Path(__file__).parents[2] / "experiments" / "hieratok"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def pilots(study, scale, best):
  """Results of pilots, of which `best[family]` is the best rate."""
  return {
    run.name: {
      "status": "finished",
      "law_variables": dict(run.law_variables),
      "metrics": {
        "eval/val/mse": abs(
          math.log(run.law_variables["lr"] / best[run.law_variables["family"]])
        )
      },
    }
    for run in study.pilots(study.SCALES[scale])
  }


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_each_arms_rate(study):
  first = study.runs("cpu", {})
  assert all(run.name.startswith("pilot-") and run.may_fail for run in first)
  assert all(set(run.config.evals) == {"val"} for run in first)
  best = dict.fromkeys(study.ARMS, 3e-3) | {"full": 6e-3, "deeper": 1.5e-3}
  rest = study.runs("cpu", pilots(study, "cpu", best))[len(first) :]
  for run in rest:
    assert run.config.optim.lr == best[run.law_variables["arm"]]
    assert run.config.evals.test.split == "test"
  assert not {r.config.seed for r in first} & {r.config.seed for r in rest}


def test_the_readme_counts_the_runs(study):
  text = (FOLDER / "README.md").read_text()
  for name, scale in study.SCALES.items():
    done = pilots(study, name, dict.fromkeys(study.ARMS, 3e-3))
    row = next(x for x in text.splitlines() if x.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2].replace(",", "").startswith(str(scale.steps))
    assert cells[3] == str(len(scale.seeds))
    assert cells[4] == str(len(study.runs(name, done)))


def test_arms_are_what_the_readme_says(study):
  """Equal E; equal parameters but for scale embeddings; `deeper` costs more."""
  image = jnp.zeros((1, study.SIZE, study.SIZE, 1))
  params, latent = {}, set()
  for arm in study.ARMS:
    model = vitok.Model(**study.model(arm))
    shapes = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
    params[arm] = sum(x.size for x in jax.tree.leaves(shapes))
    see = lambda v, model=model: model.apply(v, image)[1]["latent"]
    latent.add(jax.eval_shape(see, shapes).shape)
  assert latent == {(1, 36, 4)}
  assert params["causal"] == params["full"] == params["finest"] + 3 * 64
  assert study.cost("causal") == study.cost("full") > study.cost("finest")
  assert study.cost("deeper") >= study.cost("causal")


def test_runs_differ_in_the_hierarchy_alone(study):
  scale = study.SCALES["cpu"]
  made = {
    arm: study.config(scale, arm, lr=1e-3, seed=0).to_dict()
    for arm in study.ARMS
  }
  said = {arm: c["model"].pop("hierarchy") for arm, c in made.items()}
  assert len(set(said.values())) == 4
  assert all(c == made["finest"] for c in made.values())


# ---------------------------------------------------------------------- speed


CURVE = [(step, math.exp(-step / 50)) for step in range(10, 101, 10)]


def test_steps_to_a_level_lie_between_evaluations(study):
  reached = study.analysis.reached
  for step in (10, 37.5, 99):
    assert reached(CURVE, math.exp(-step / 50)) == pytest.approx(step)
  assert reached(CURVE, 1.0) == 10.0  # at the first look, at the latest
  assert reached(CURVE, 0.1) is None and reached([], 1.0) is None


@pytest.mark.parametrize("factor", [1.38, 1.0, 0.8])
def test_speed_is_the_ratio_of_steps(study, factor):
  treated = [(s, math.exp(-s * factor / 50)) for s in range(10, 101, 10)]
  found = study.analysis.log_speed(treated, CURVE)
  assert found == pytest.approx(math.log(factor))
  back = study.analysis.log_speed(CURVE, treated)
  assert back == pytest.approx(-math.log(factor))


# --------------------------------------------------------------------- claims


def results(study, psnr, *, seeds=(0, 1, 2), noise=0.01):
  """Finished runs of `cpu` with these PSNR, and speeds like them."""
  rng, done = np.random.default_rng(0), {}
  for arm in study.ARMS:
    for seed in seeds:
      value = psnr[arm] + seed + noise * rng.standard_normal()
      fast = 1 + (psnr[arm] - psnr["finest"]) / 2 + noise * rng.normal() / 10
      done[f"{arm}-s{seed}"] = {
        "status": "finished",
        "law_variables": {"arm": arm, "seed": seed, "lr": 0.003},
        "metrics": {
          "eval/test/psnr": value, "eval/test/ssim": 0.8,
          "eval/test/rfd_random_conv": 2 ** (-value / 2),
          "eval/test/rfd_random_conv_floor": 0.01, "flops": 1e12,
        },
        "curve": [(s, math.exp(-s * fast / 50)) for s in range(10, 101, 10)],
      }  # fmt: skip
  return done


GOOD = {"causal": 26.5, "finest": 26.0, "full": 26.2, "deeper": 26.1}
BAD = {"causal": 26.0, "finest": 26.3, "full": 26.2, "deeper": 26.4}


@pytest.mark.parametrize(
  "psnr, answer", [(GOOD, "supported"), (BAD, "not supported")]
)
def test_claims_can_be_won_and_lost(study, psnr, answer):
  found = study.analysis.verdicts(results(study, psnr))
  assert [v.verdict for v in found] == [answer] * 4
  times = float(re.search(r"; ([\d.]+) x$", found[1].measured)[1])
  assert times == pytest.approx(1 + (psnr["causal"] - psnr["finest"]) / 2, 0.05)


def test_noise_one_seed_and_nothing_decide_nothing(study):
  for done in (
    results(study, GOOD, seeds=(0,)), {}, results(study, GOOD, noise=3.0),
  ):  # fmt: skip
    found = study.analysis.verdicts(done)
    assert {v.verdict for v in found} == {"inconclusive"}


def test_gaps_are_paired_by_seed(study):
  """Seeds differ by a dB, arms by far less."""
  done = results(study, GOOD, noise=0.001)
  del done["finest-s1"]
  low, high = study.analysis.verdicts(done)[0].ci
  assert 0.45 < low < 0.5 < high < 0.55


def test_page(study):
  page = study.analysis.analyse(results(study, GOOD))
  rows = {row["arm"]: row for row in page["tables"][0].rows}
  assert rows["causal"]["PSNR"] == pytest.approx(27.5, abs=0.05)
  assert {m.group for m in page["figures"][0].panels[0].marks} == set(GOOD)
  assert study.analysis.analyse({})["figures"] == []
  assert "1.38" in (FOLDER / "README.md").read_text()
  assert page["tables"][1].rows[2]["several scales"] == 1.38


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("hieratok", scale="smoke", out=tmp_path / "out")
  assert result["status"] == "finished", result["errors"]
  rows = {row["arm"]: row for row in result["tables"][0]["rows"]}
  assert set(rows) == {"causal", "finest", "full", "deeper"}
  assert rows["causal"]["PSNR"] > 8
