"""Do the parts of a nested model share a space? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, rates, runs. The judgement is in
analysis.py and uses nothing but the runs.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

RATES = (2e-3, 4e-3, 8e-3)
PILOT = 1000  # seed of pilots, none of the study's
HIDDEN = 256


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long, how often, and what is tuned.

  Attributes:
    duration: X, as keys of a config.
    seeds: of every arm.
    rates: tried by pilots.
  """

  duration: Mapping[str, float]
  seeds: tuple[int, ...] = (0, 1, 2)
  rates: tuple[float, ...] = RATES


SCALES = {
  "smoke": Scale({"total_steps": 20}, (0,), (4e-3,)),
  "quick": Scale({"total_epochs": 2.0}),
  "cpu": Scale({"total_epochs": 5.0}, (0, 1, 2, 3, 4)),
}

# Nested arms: their parts; each trains 4 X steps.
NESTED = {
  "nested": tuple(analysis.SIZES.values()),
  "widths": tuple(analysis.WIDTHS),
}
COST = {"nested": 4 * 0.66, "widths": 4 * 0.5}  # of an XL run


def config(
  scale: Scale,
  *,
  lr: float,
  seed: int,
  split: str,
  mlp_dim: int = HIDDEN,
  granularities: tuple[str, ...] = (),
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  task: dict[str, Any] = {"name": "classify"}
  times, name = 1, "classify"
  if granularities:
    task = {
      "name": "nested", "of": task, "granularities": granularities,
      "strategy": "sampled",
    }  # fmt: skip
    times, name = 4, "nested"
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      **{key: times * value for key, value in scale.duration.items()},
      "data": {"source": "fashion_mnist", "size": 28},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "width": 64, "depth": 4, "mlp_dim": mlp_dim,
        "num_heads": 8, "patch_size": 7,
      },
      "task": task,
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "name": name, "split": split, "every_percent": 100.0,
          "batch_size": 500,
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of the separate XL, then every arm at the rate they chose."""
  which = SCALES[scale]
  named = [
    Run(
      f"pilot-{lr:g}",
      config(which, lr=lr, seed=PILOT, split="val"),
      {"arm": "pilot", "lr": lr},
      may_fail=True,
    )
    for lr in which.rates
  ]
  lr = best_rate(done)
  if lr is None:
    return named
  for seed in which.seeds:
    same = {"lr": lr, "seed": seed, "split": "test"}
    for size, part in analysis.PARTS.items():
      made = config(which, mlp_dim=int(part * HIDDEN), **same)
      facts = {"arm": size, "seed": seed}
      named.append(Run(f"{size}-s{seed}", made, facts, cost=1.0))
    for arm, parts in NESTED.items():
      made = config(which, granularities=parts, **same)
      facts = {"arm": arm, "seed": seed}
      named.append(Run(f"{arm}-s{seed}", made, facts, cost=COST[arm]))
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results)
