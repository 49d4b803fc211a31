"""One model for every patch, and patches from large to small. See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, rates, runs. The judgement is in
analysis.py and uses nothing but the runs.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vitscale.arms import best_rate as best_of
from vitscale.core.config import load_module
from vitscale.models import vit
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

PILOT = 1000  # seed of pilots, disjoint from every study's
RATES = (4e-3, 8e-3, 1.6e-2)
ORDERED = (
  "curriculum",
  "mixed",
)  # arms that end, or would end, at the smallest
ONE, ALL = "flexi", "flexi-total"  # X steps, and the FLOPs of all plain models
FAMILY = {"mixed": "curriculum", ALL: ONE}  # whose tuned rate an arm takes
MODEL = {
  "family": "vit", "width": 32, "depth": 2, "mlp_dim": 128, "num_heads": 1,
  "position": "sincos2d",
}  # fmt: skip
LARGE = {
  **MODEL, "width": 192, "depth": 6, "mlp_dim": 768, "num_heads": 3,
  "dtype": "bfloat16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large, how long, how often.

  Attributes:
    steps: X, of a plain model.
    seeds: of every arm.
    rates: tried by pilots, which take X steps.
    data: of all runs.
    patches: large to small; their share of the steps of a curriculum is `time`.
    unit: patch of the stored kernel of models of all patches, and in which all
      models count positions.
  """

  steps: int
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = RATES
  data: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"source": "fashion_mnist", "size": 12}
  )
  patches: tuple[int, ...] = (12, 6, 4, 3, 2)
  time: tuple[float, ...] = (0.15, 0.15, 0.15, 0.15, 0.4)
  unit: int = 6
  batch_size: int = 32
  model: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MODEL)


SCALES = {
  "smoke": Scale(20, (0,), (8e-3,)),
  "quick": Scale(1500, (0, 1, 2)),
  "cpu": Scale(6000, (0, 1, 2, 3, 4)),
  # All of Fashion-MNIST (`vitscale data get fashion_mnist`); unmeasured.
  "gpu": Scale(
    9400, (0, 1, 2, 3, 4), (5e-4, 1e-3, 2e-3),
    data={"source": "fashion_mnist", "path": "data/fashion_mnist", "size": 28},
    patches=(28, 14, 7, 4, 2), unit=7, batch_size=256, model=LARGE,
  ),
}  # fmt: skip


def plain(patch: int) -> str:
  """The arm of one patch."""
  return f"p{patch}"


def arms(scale: Scale) -> tuple[str, ...]:
  return (*map(plain, scale.patches), ONE, ALL, *ORDERED)


def draw(scale: Scale, arm: str) -> dict[str, Any] | None:
  """What a run draws: patches uniformly, in order, or in order's shares."""
  values = scale.patches
  if arm in (ONE, ALL):
    return {"values": values}
  if arm == "mixed":
    return {"values": values, "weights": scale.time}
  if arm == "curriculum":
    edges = [0.0, *itertools.accumulate(scale.time[:-1]), 1.0]
    only = np.eye(len(values)).tolist()
    stages = [
      (edge, tuple(row))
      for row, pair in zip(only, itertools.pairwise(edges))
      for edge in pair
    ]
    return {"values": values, "stages": tuple(stages)}
  return None


def macs(scale: Scale, patch: int) -> int:
  """Multiply-accumulates of one forward pass of an image."""
  options = {k: v for k, v in scale.model.items() if k != "family"}
  side = scale.data["size"]
  return vit.flops_per_image(
    {**options, "patch_size": patch, "num_classes": 10}, (side, side, 1)
  )


def steps(scale: Scale, arm: str) -> int:
  """Updates of an arm: X, or those that equal FLOPs buy."""
  cost = [macs(scale, patch) for patch in scale.patches]
  if arm == ALL:
    return round(scale.steps * sum(cost) / np.mean(cost))
  if arm in ORDERED:
    return round(scale.steps * cost[-1] / np.dot(scale.time, cost))
  return scale.steps


def config(
  scale: Scale,
  arm: str,
  *,
  lr: float,
  seed: int,
  split: str,
  tested: tuple[int, ...] | None = None,
) -> ConfigDict:
  """One run, scored on `split` at its end, at the patches `tested` or all."""
  drawn = draw(scale, arm)
  patch = scale.unit if drawn else int(arm.removeprefix("p"))
  every = 25.0 if arm in (*ORDERED, plain(scale.patches[-1])) else 100.0
  made = ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps(scale, arm),
      "data": dict(scale.data),
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        **scale.model, "patch_size": patch, "position_patch": scale.unit,
      },
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        plain(p): {
          "split": split, "every_percent": every, "batch_size": 500,
          "draw": {"patch_size": p},
        }
        for p in tested or scale.patches
      },
      "log": {"every_percent": 25.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip
  if drawn:
    made.draws = {"patch_size": drawn}
  return made


def families(scale: Scale) -> dict[str, tuple[int, ...]]:
  """What is tuned -> the patches whose mean loss chooses its rate."""
  own = {plain(p): (p,) for p in scale.patches}
  return {**own, ONE: scale.patches, "curriculum": scale.patches[-1:]}


def best_rate(
  scale: Scale, done: Mapping[str, Any], family: str
) -> float | None:
  """The pilots' rate with the lowest mean loss; None before they ran."""
  keys = [f"eval/{plain(p)}/nll" for p in families(scale)[family]]
  return best_of(done, keys, family=family)


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every family, then every arm at the rate they chose."""
  scale = SCALES[scale_name]
  named = [
    Run(
      f"pilot-{family}-{lr:g}",
      config(scale, family, lr=lr, seed=PILOT, split="val", tested=patches),
      {"arm": "pilot", "family": family, "lr": lr},
      cost=cost(scale, family),
      may_fail=True,
    )
    for family, patches in families(scale).items()
    for lr in scale.rates
  ]
  rates = {f: best_rate(scale, done, f) for f in families(scale)}
  if None in rates.values():
    return named
  for seed in scale.seeds:
    for arm in arms(scale):
      lr = rates[FAMILY.get(arm, arm)]
      made = config(scale, arm, lr=lr, seed=seed, split="test")
      facts = {"arm": arm, "seed": seed, "lr": lr}
      named.append(Run(f"{arm}-s{seed}", made, facts, cost(scale, arm)))
  return named


def cost(scale: Scale, arm: str) -> float:
  """Expected seconds, up to a factor: tokens, and an overhead a step."""
  drawn, side = draw(scale, arm), scale.data["size"]
  tokens = [(side // p) ** 2 for p in scale.patches]
  share = [float(arm == plain(p)) for p in scale.patches]
  if drawn:
    share = scale.time if arm in ORDERED else [1 / len(tokens)] * len(tokens)
  return steps(scale, arm) * (16 + float(np.dot(share, tokens)))


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results, SCALES[scale].patches)
