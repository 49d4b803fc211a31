"""ViTok on Gaussian fields, between two closed forms. See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design; the judgement is in analysis.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.data import fields
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

PILOT = 1000  # seed of pilots, disjoint from every study's
SIZE, POWER = analysis.SIZE, analysis.POWER
TESTED = 4000  # fields


@dataclasses.dataclass(frozen=True)
class Scale:
  """Which cells, how long, how often."""

  floats: tuple[int, ...]
  patches: tuple[int, ...]
  seeds: tuple[int, ...]
  steps: int
  rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)


SCALES = {
  "smoke": Scale((16,), (8, 16), (0,), 30, (2e-3,)),
  "quick": Scale((16, 64), (8, 16), (0, 1, 2), 1500, (2e-3, 4e-3)),
  "cpu": Scale((16, 64), (8, 16), (0, 1, 2), 6000),
}


def cells(scale: Scale) -> list[tuple[int, int]]:
  """(floats, patch) where a token has a whole number of floats."""
  tokens = lambda patch: (SIZE // patch) ** 2
  return [
    (e, p) for e in scale.floats for p in scale.patches if e % tokens(p) == 0
  ]


def config(
  floats: int,
  patch: int,
  *,
  alone: bool,
  steps: int,
  lr: float,
  seed: int,
  split: str,
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  mean, std = fields.statistics()
  crop = f"random_crop({patch})" if alone else ""
  data = {"source": "fields", "size": SIZE, "power": POWER, "n": 20_000}
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      "total_steps": steps,
      "data": data,
      "train": {"split": "train", "transform": crop},
      "model": {
        "family": "vitok", "variant": "xs-xm", "patch_size": patch,
        "bottleneck": f"plain({floats * patch**2 // SIZE**2})",
      },
      "task": {
        "name": "reconstruct", "weights": {"l2": 1.0}, "mean": (mean,),
        "std": (std,),
      },
      "optim": {
        "name": "adamw", "lr": lr, "b2": 0.95, "weight_decay": 0.0,
        "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 5.0},
      },
      "evals": {
        "scored": {
          "name": "reconstruction", "split": split, "every_percent": 100.0,
          "batch_size": 500, "data": {"n": TESTED},
          "transform": f"central_crop({patch})" if alone else "",
        },
      },
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every cell, then both arms at the rate they chose."""
  scale, named, later = SCALES[scale_name], [], []
  for floats, patch in cells(scale):
    for alone in (False, True):
      facts = {"floats": floats, "patch": patch, "alone": alone}
      name = f"{'alone' if alone else 'whole'}-e{floats}-p{patch}"
      make = lambda facts=facts, **k: config(**facts, **k)
      cost = (1 if alone else (SIZE // patch) ** 2) + 4.0
      named += [
        Run(
          f"pilot-{name}-lr{lr:g}",
          make(steps=-(-scale.steps // 3), lr=lr, seed=PILOT, split="val"),
          {**facts, "arm": "pilot", "lr": lr},
          cost=cost / 3,
          may_fail=True,
        )
        for lr in scale.rates
      ]
      lr = best_rate(done, "eval/scored/mse", **facts)
      if lr is None:
        continue
      later += [
        Run(
          f"{name}-s{seed}",
          make(steps=scale.steps, lr=lr, seed=seed, split="test"),
          {**facts, "arm": name, "seed": seed, "lr": lr},
          cost=cost,
        )
        for seed in scale.seeds
      ]
  return named + later


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  del scale
  return analysis.analyse(results)
