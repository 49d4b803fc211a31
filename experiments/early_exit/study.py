"""Does stopping early, image by image, beat a smaller model? See README.md.

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
from vitscale.data import fashion
from vitscale.models import vit
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

RATES = (2e-3, 4e-3, 8e-3)
PILOT = 1000  # seeds of pilots, disjoint from every study's


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long, how often, and what is tuned.

  Attributes:
    duration: X, as keys of a config.
    seeds: of every arm.
    rates: tried by pilots.
  """

  duration: Mapping[str, float]
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = RATES


SCALES = {
  "smoke": Scale({"total_steps": 20}, (0,), (2e-3,)),
  "quick": Scale({"total_epochs": 3.0}, (0, 1, 2), (2e-3, 4e-3)),
  "cpu": Scale({"total_epochs": 12.0}, (0, 1, 2)),
}

# Arm -> (options of the model, options of the task, times X).
DEEP, WIDE = {"depth": 6}, {"depth": 4}
PLAIN = {"name": "classify"}
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
  # ECO-M2F's parent: exits drawn with weights linear in the layer.
  "exits": (
    DEEP,
    {
      "name": "nested", "of": PLAIN, "granularities": analysis.EXITS,
      "strategy": "sampled", "weights": (1.0, 2.0, 3.0, 4.0, 6.0),
    },
    2,
  ),
  **{f"depth-{d}": ({"depth": d}, PLAIN, 1) for d in (2, 6)},
  "thinking": (
    WIDE, {"name": "thinking", "of": PLAIN, "rounds": analysis.PARTS}, 1
  ),
  "nested": (
    WIDE,
    {
      "name": "nested", "of": PLAIN, "granularities": analysis.PARTS,
      "strategy": "joint", "reduce": "mean",
    },
    1,
  ),
  "small": (
    {**WIDE, "width": 24, "num_heads": 2, "mlp_dim": 96}, PLAIN, 1
  ),
  "large": (WIDE, PLAIN, 1),
}  # fmt: skip


def config(
  scale: Scale, arm: str, *, lr: float, seed: int, split: str
) -> ConfigDict:
  """One run, its whole model scored on `split` at its end."""
  model, task, times = ARMS[arm]
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      **{key: times * value for key, value in scale.duration.items()},
      "data": analysis.DATA_OF_RUNS,
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "width": 48, "mlp_dim": 192, "num_heads": 4,
        "patch_size": 7, "position": "sincos2d", **model,
      },
      "task": task,
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "split": split, "every_percent": 100.0, "batch_size": 500,
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def macs(config: Mapping[str, Any]) -> int:
  """Multiply-accumulates of an image, of a separate model."""
  options = {k: v for k, v in config["model"].items() if k != "family"}
  classes = len(fashion.FASHION_CLASSES)
  return vit.flops_per_image(
    {**options, "num_classes": classes}, analysis.IMAGE
  )


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of the plain deep model, then every arm at the rate they chose."""
  which = SCALES[scale]
  named = [
    Run(
      f"pilot-{lr:g}",
      config(which, "depth-6", lr=lr, seed=PILOT, split="val"),
      {"arm": "pilot", "lr": lr},
      may_fail=True,
    )
    for lr in which.rates
  ]
  lr = best_rate(done)
  if lr is None:
    return named
  for seed in which.seeds:
    for arm, (model, task, times) in ARMS.items():
      made = config(which, arm, lr=lr, seed=seed, split="test")
      facts = {"arm": arm, "seed": seed}
      if task is PLAIN:
        facts["macs"] = macs(made)
      cost = times * model["depth"] * (1.0 if task is PLAIN else 1.3)
      named.append(Run(f"{arm}-s{seed}", made, facts, cost))
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results)
