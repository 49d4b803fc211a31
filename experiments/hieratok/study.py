"""Do coarse copies of the token map make a better tokenizer? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, rates, runs. The judgement is in
analysis.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.core.log import read_rows
from vitscale.models import vitok
from vitscale.study import Run

analysis = load_module(Path(__file__).parent / "analysis.py")

PILOT = 1000  # seed of pilots, disjoint from every study's
SIZE, PATCH = 24, 4  # pixels a side
CODE = 4  # floats of a token: E = 144
ARMS = {
  "causal": "scales(1, 2, 3, blocks=2)",
  "finest": "scales(blocks=2)",
  "full": "scales(1, 2, 3, blocks=2, mask='full')",
  "deeper": "scales(blocks=3)",
}


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long and how often.

  Attributes:
    steps: of every run; pilots take half.
    seeds: of every arm.
    rates: tried by pilots; a single one is taken as it is.
    batch_size: images.
  """

  steps: int
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3)
  batch_size: int = 32


SCALES = {
  "smoke": Scale(20, (0,), rates=(3e-3,)),
  "quick": Scale(600, (0, 1, 2)),
  "cpu": Scale(2000, (0, 1, 2, 3, 4)),
}


def model(arm: str) -> dict[str, Any]:
  """Options of `vitok.Model`."""
  sizes = {"width": 64, "mlp_dim": 170, "num_heads": 2}
  halves = {
    f"{half}_{name}": value
    for half, depth in (("encoder", 1), ("decoder", 2))
    for name, value in {**sizes, "depth": depth}.items()
  }
  return {
    "channels": 1, "patch_size": PATCH, "bottleneck": f"plain({CODE})",
    "hierarchy": ARMS[arm], **halves,
  }  # fmt: skip


def config(
  scale: Scale, arm: str, *, lr: float, seed: int, pilot: bool = False
) -> ConfigDict:
  """One run: its curve on `val`, and unless a pilot its scores on `test`."""
  steps = scale.steps // 2 if pilot else scale.steps
  scored = {"name": "reconstruction", "batch_size": 500}
  curve = {
    **scored, "split": "val", "rfd": False,
    "every_percent": 100.0 if pilot else 5.0,
    "data": {} if pilot else {"limit": 1000},
  }  # fmt: skip
  test = {**scored, "split": "test", "every_percent": 100.0}
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps,
      "data": {"source": "fashion_mnist", "size": SIZE},
      "train": {"split": "train"},
      "model": {"family": "vitok", **model(arm)},
      "task": {"name": "reconstruct", "weights": {"l2": 1.0}},
      "optim": {
        "name": "adamw", "lr": lr, "b2": 0.95, "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 5.0},
      },
      "evals": {"val": curve} if pilot else {"val": curve, "test": test},
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def pilots(scale: Scale) -> list[Run]:
  """Every arm at every rate."""
  return [
    Run(
      f"pilot-{arm}-{lr:g}",
      config(scale, arm, lr=lr, seed=PILOT, pilot=True),
      {"arm": "pilot", "family": arm, "lr": lr},
      cost=cost(arm) / 2,
      may_fail=True,
    )
    for arm in ARMS
    for lr in scale.rates
    if len(scale.rates) > 1
  ]


def cost(arm: str) -> float:
  """Multiply-accumulates of an image."""
  return vitok.flops_per_image(model(arm), (SIZE, SIZE, 1))


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every arm, then every arm at the rate they chose."""
  scale = SCALES[scale_name]
  named, single = pilots(scale), len(scale.rates) == 1
  rates = {
    arm: scale.rates[0] if single
    else best_rate(done, "eval/val/mse", family=arm)
    for arm in ARMS
  }  # fmt: skip
  if None in rates.values():
    return named
  for arm, lr in rates.items():
    for seed in scale.seeds:
      facts = {"arm": arm, "seed": seed, "lr": lr}
      made = config(scale, arm, lr=lr, seed=seed)
      named.append(Run(f"{arm}-s{seed}", made, facts, cost(arm)))
  return named


def curve(run: Mapping[str, Any]) -> list[tuple[int, float]]:
  """(step, validation error) of a run, in order."""
  rows = read_rows(Path(run["workdir"]) / "metrics.jsonl")
  return [(r["step"], r["eval/val/mse"]) for r in rows if "eval/val/mse" in r]


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  curves = {name: {**run, "curve": curve(run)} for name, run in results.items()}
  return analysis.analyse(curves)
