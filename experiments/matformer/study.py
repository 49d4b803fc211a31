"""Does one nested training replace four separate ones? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, rates, runs. The judgement is in
analysis.py and uses nothing but the runs.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

SIZES = analysis.SIZES  # name -> spec
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
PILOT = 1000  # seeds of pilots, disjoint from every study's


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long, how often, and what is tuned.

  Attributes:
    duration: X, as keys of a config.
    seeds: of every arm but the taught ones.
    taught: seeds of those with a teacher.
    rates: tried by pilots.
  """

  duration: Mapping[str, float]
  seeds: tuple[int, ...]
  taught: tuple[int, ...]
  rates: tuple[float, ...] = RATES


SCALES = {
  "smoke": Scale({"total_steps": 20}, (0,), (0,), (2e-3,)),
  "quick": Scale({"total_epochs": 2.0}, (0, 1, 2), (0,)),
  "cpu": Scale({"total_epochs": 8.0}, (0, 1, 2, 3, 4), (0, 1, 2)),
}

# Nested arms: options of the task, and times X.
NESTED: dict[str, tuple[dict[str, Any], int]] = {
  "sampled": ({"strategy": "sampled"}, 4),
  "sampled-x": ({"strategy": "sampled"}, 1),
  "joint": ({"strategy": "joint"}, 1),
  "heavy": ({"strategy": "sampled", "weights": (0.17, 0.2, 0.22, 0.41)}, 4),
}


def config(
  scale: Scale,
  *,
  lr: float,
  seed: int,
  split: str,
  mlp_dim: int = 256,
  nested: Mapping[str, Any] | None = None,
  times: int = 1,
  teacher: str | None = None,
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  task: dict[str, Any] = {"name": "classify"}
  if teacher:
    task = {"name": "distil", "of": task, "teacher": teacher}
  if nested:
    granularities = tuple(SIZES.values())
    task = {
      "name": "nested", "of": task, "granularities": granularities, **nested,
    }  # fmt: skip
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      **{key: times * value for key, value in scale.duration.items()},
      "data": {"source": "fashion_mnist", "size": 28},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "width": 64, "depth": 4, "mlp_dim": mlp_dim,
        "num_heads": 2, "patch_size": 7, "position": "sincos2d",
      },
      "task": task,
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "name": "nested" if nested else "classify", "split": split,
          "every_percent": 100.0, "batch_size": 500,
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of the separate XL, every arm at their rate, those it teaches."""
  which = SCALES[scale]
  pilots = [
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
    return pilots
  whole = 256
  named = list(pilots)
  for seed in which.seeds:
    same = {"lr": lr, "seed": seed, "split": "test"}
    for size, part in analysis.PARTS.items():
      made = config(which, mlp_dim=int(part * whole), **same)
      facts = {"arm": size, "seed": seed}
      named.append(Run(f"{size}-s{seed}", made, facts))
    for arm, (options, times) in NESTED.items():
      made = config(which, nested=options, times=times, **same)
      facts = {"arm": arm, "seed": seed}
      named.append(Run(f"{arm}-s{seed}", made, facts, cost=times * 0.66))
  for seed in which.taught:
    teacher = done.get(f"XL-s{seed}")
    if not teacher or teacher["status"] != "finished":
      continue
    same = {
      "lr": lr, "seed": seed, "split": "test",
      "teacher": os.path.relpath(teacher["workdir"]),
    }  # fmt: skip
    for size, part in analysis.PARTS.items():
      if size != "XL":
        made = config(which, mlp_dim=int(part * whole), **same)
        facts = {"arm": f"{size}-kd", "seed": seed}
        named.append(Run(f"{size}-kd-s{seed}", made, facts))
    made = config(which, nested={"strategy": "joint"}, **same)
    facts = {"arm": "joint-kd", "seed": seed}
    named.append(Run(f"joint-kd-s{seed}", made, facts, cost=1.0))
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results)
