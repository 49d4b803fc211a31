"""Which mix of levels for a budget? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: the nested model, scales, budgets. Scores of
every mix are in tables.py, the judgement is in analysis.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.core.config import load_module
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

LEVELS = ("ffn=1/8", "ffn=1/4", "ffn=1/2", "full")
RATE = 4e-3


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long and how often a nested model is trained.

  Attributes:
    duration: as keys of a config.
    seeds: of training.
    depth: layers; 4 to the power of them are the mixes.
    limit: the most images of a split; None for all.
  """

  duration: Mapping[str, float]
  seeds: tuple[int, ...]
  depth: int = 6
  limit: int | None = None


SCALES = {
  "smoke": Scale({"total_steps": 30}, (0,), depth=3, limit=600),
  "quick": Scale({"total_epochs": 6.0}, (0, 1, 2)),
  "cpu": Scale({"total_epochs": 30.0}, (0, 1, 2, 3, 4)),
}


def config(scale: Scale, seed: int) -> ConfigDict:
  """One nested run; it is evaluated at its end, on `val`."""
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      **scale.duration,
      "data": {"source": "fashion_mnist", "size": 28, "limit": scale.limit},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "width": 32, "depth": scale.depth, "mlp_dim": 128,
        "num_heads": 2, "patch_size": 14, "position": "sincos2d",
      },
      "task": {
        "name": "nested", "of": {"name": "classify"},
        "granularities": LEVELS, "strategy": "sampled",
      },
      "optim": {
        "name": "adamw", "lr": RATE, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        "val": {
          "name": "nested", "split": "val", "every_percent": 100.0,
          "batch_size": 500,
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """One nested model a seed."""
  del done
  which = SCALES[scale]
  return [
    Run(f"nested-s{seed}", config(which, seed), {"seed": seed})
    for seed in which.seeds
  ]


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results)
