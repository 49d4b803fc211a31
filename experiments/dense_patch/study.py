"""Does a small patch make the decoder superfluous? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design, analysis.py the judgement.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.study import Run

analysis = load_module(Path(__file__).with_name("analysis.py"))

PILOT = 1000  # seeds of pilots, disjoint from every study's
SIZE = 16  # pixels a side
HEADS = {"linear": {}, "decoder": {"width": 32}}


@dataclasses.dataclass(frozen=True)
class Scale:
  """Patches, steps, seeds, and the rates that pilots try."""

  patches: tuple[int, ...]
  steps: int
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)


SCALES = {
  "smoke": Scale((16, 4), 20, (0,), (4e-3,)),
  "quick": Scale((16, 8, 4, 2), 1200, (0, 1, 2), (3e-3, 6e-3)),
  "cpu": Scale((16, 8, 4, 2, 1), 4000, (0, 1, 2)),
}


def config(
  head: str, patch: int, *, lr: float, seed: int, steps: int, split: str
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 32,
      "total_steps": steps,
      "data": {"source": "scenes", "size": SIZE, "n": 8000},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "width": 48, "depth": 3, "num_heads": 3,
        "mlp_dim": 96, "patch_size": patch, "position": "sincos2d",
        "num_classes": 0,
      },
      "task": {"name": "dense", "head": head, **HEADS[head]},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "name": "dense", "split": split, "every_percent": 100.0,
          "batch_size": 250, "data": {"n": 1000 if split == "val" else 2000},
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every head and patch, then the runs at their best rates."""
  which, found = SCALES[scale], []
  cells = [(head, patch) for patch in which.patches for head in HEADS]
  for head, patch in cells:
    about = {"head": head, "patch": patch}
    for lr in which.rates:
      made = config(
        head, patch, lr=lr, seed=PILOT, steps=which.steps // 2, split="val"
      )
      found.append(
        Run(
          f"pilot-{head}-p{patch}-{lr:g}", made,
          {"arm": "pilot", "lr": lr, **about}, may_fail=True,
        )
      )  # fmt: skip
  for head, patch in cells:
    lr = best_rate(done, "eval/val/nll", head=head, patch=patch)
    if lr is None:
      continue
    for seed in which.seeds:
      made = config(
        head, patch, lr=lr, seed=seed, steps=which.steps, split="test"
      )
      facts = {
        "arm": f"{head}-p{patch}", "seed": seed, "head": head, "patch": patch,
        "lr": lr,
      }  # fmt: skip
      found.append(Run(f"{head}-p{patch}-s{seed}", made, facts))
  return found


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, table and figure of the finished runs."""
  return analysis.analyse(results, SCALES[scale].patches, scale)
