"""The study of patches and decoders, judged on made-up scores."""

from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "dense_patch"
study = load_module(FOLDER / "study.py")
PATCHES = (16, 8, 4, 2)
HELD = {
  "linear": {16: 0.3, 8: 0.5, 4: 0.6, 2: 0.7},
  "decoder": {16: 0.5, 8: 0.6, 4: 0.65, 2: 0.7},
}


def done(scores, seeds=(0, 1, 2), noise=1e-3):
  rng, found = np.random.default_rng(0), {}
  for head, by_patch in scores.items():
    for patch, value in by_patch.items():
      for seed in seeds:
        found[f"{head}-p{patch}-s{seed}"] = {
          "status": "finished",
          "law_variables": {
            "arm": f"{head}-p{patch}", "seed": seed, "head": head,
            "patch": patch, "lr": 1e-3, "params": 10,
          },
          "metrics": {
            "eval/test/miou": value + noise * rng.normal(),
            "eval/test/accuracy": 0.9, "flops": 1e6, "examples": 10,
          },
        }  # fmt: skip
  return found


def answers(scores, **how):
  report = study.analysis.analyse(done(scores, **how), PATCHES, "quick")
  return [v.verdict for v in report["verdicts"]]


def test_what_the_paper_says_is_supported():
  assert answers(HELD) == ["supported"] * 4


def test_noise_is_inconclusive_and_one_seed_too():
  assert answers(HELD, noise=0.5) == ["inconclusive"] * 4
  assert answers(HELD, seeds=(0,)) == ["inconclusive"] * 4


@pytest.mark.parametrize(
  ("head", "patch", "value", "at", "answer"),
  [
    ("linear", 8, 0.2, 0, "inconclusive"),  # rises, but not at every step
    ("linear", 2, 0.2, 0, "not supported"),
    ("decoder", 2, 0.95, 1, "not supported"),  # gains more on small patches
    ("decoder", 2, 0.75, 2, "not supported"),
    ("decoder", 2, 0.6, 2, "supported"),  # a decoder that harms
    ("decoder", 16, 0.8, 3, "not supported"),
  ],
)
def test_what_can_come_out_otherwise(head, patch, value, at, answer):
  changed = {**HELD, head: {**HELD[head], patch: value}}
  assert answers(changed)[at] == answer


def test_rates_are_tuned_for_every_cell_on_held_out_images():
  pilots = study.runs("quick", {})
  assert len(pilots) == 2 * 4 * 2 and all(run.may_fail for run in pilots)
  assert all(list(run.config.evals) == ["val"] for run in pilots)
  found = {
    run.name: {
      "status": "finished", "law_variables": run.law_variables,
      "metrics": {"eval/val/nll": run.law_variables["lr"]},
    }
    for run in pilots
  }  # fmt: skip
  later = study.runs("quick", found)[len(pilots) :]
  assert len(later) == 2 * 4 * 3
  assert all(list(run.config.evals) == ["test"] for run in later)
  assert {run.config.optim.lr for run in later} == {3e-3}


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("dense_patch", scale="smoke", out=tmp_path)
  assert result["status"] == "finished"
