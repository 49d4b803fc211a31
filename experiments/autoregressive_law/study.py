"""Raster models of known entropy: laws, floors, forecasts. See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design; the judgement is in analysis.py.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.models import raster
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

PILOT = 1000  # seed of pilots, disjoint from every study's
RATES = (0.004, 0.008, 0.016)  # at width 32; others by 32 / width
OVERHEAD = 2e6  # what an image costs besides, in FLOPs of the larger models


@dataclasses.dataclass(frozen=True)
class Scale:
  """Which budgets and sizes, how often.

  Attributes:
    budgets: FLOPs -> widths; the largest is held out.
    images: that every size sees, for L(N).
    widths: of L(N); the largest is held out.
    size: pixels a side.
  """

  budgets: Mapping[float, tuple[int, ...]]
  images: int
  widths: tuple[int, ...]
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = RATES
  size: int = analysis.SIZE
  batch_size: int = 16
  test: int = 2000
  dtype: str = "float32"


SCALES = {
  # a few steps, to see that everything runs
  "smoke": Scale(
    {1e8: (8, 16, 24), 2e8: (8, 16, 24), 4e8: (16,)}, 128, (8, 12, 16, 24, 32),
    (0,), (0.008,), size=6, test=200,
  ),
  "quick": Scale(
    {
      5e10: (16, 24, 32), 1e11: (16, 24, 32, 48), 2e11: (16, 24, 32, 48),
      4e11: (24, 32, 48), 8e11: (32, 48),
    },
    4096, (16, 24, 32, 48, 64), (0, 1),
  ),
  "cpu": Scale(
    {
      5e10: (16, 24, 32), 1e11: (16, 24, 32, 48), 2e11: (16, 24, 32, 48),
      4e11: (16, 24, 32, 48, 64), 8e11: (24, 32, 48, 64),
      1.6e12: (32, 48, 64),
    },
    16_384, (16, 24, 32, 48, 64, 96), (0, 1, 2),
  ),
  # up to three million parameters; unmeasured
  "gpu": Scale(
    {
      1e14: (64, 96, 128), 2e14: (64, 96, 128, 192), 4e14: (64, 96, 128, 192),
      8e14: (96, 128, 192, 256), 1.6e15: (96, 128, 192, 256),
      6.4e15: (128, 192, 256),
    },
    131_072, (64, 96, 128, 192, 256, 384), (0, 1, 2), size=16, batch_size=128,
    test=10_000, dtype="bfloat16",
  ),
}  # fmt: skip


def model(scale: Scale, width: int) -> dict[str, Any]:
  """Keywords of the raster model."""
  return {
    **raster.shaped(width), "vocabulary": analysis.LEVELS, "num_classes": 0,
    "dtype": scale.dtype,
  }  # fmt: skip


def price(scale: Scale, width: int) -> float:
  """FLOPs that an image costs in training, about: the bench counts its own."""
  side = scale.size
  return 6.0 * raster.flops_per_image(model(scale, width), (side, side, 1))


def config(
  scale: Scale, width: int, *, lr: float, seed: int, split: str, **duration: Any
) -> ConfigDict:
  """One run, scored on `split` at its end.

  Args:
    duration: total_flops or total_examples. The source is longer than the
      run, so that no image comes twice; a seed has its own order.
  """
  n = duration.get("total_examples") or (
    duration["total_flops"] / price(scale, width)
  )
  n = 2 ** math.ceil(math.log2(1.1 * n))
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      **duration,
      "data": {
        "source": "fields", "size": scale.size, "power": analysis.POWER, "n": n,
      },
      "train": {"split": "train", "transform": ""},
      "model": {"family": "raster", **model(scale, width)},
      "task": {"name": "next_token", "levels": analysis.LEVELS},
      "optim": {
        "name": "adamw", "lr": lr, "b2": 0.95, "weight_decay": 0.0,
        "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "name": "tokens", "split": split, "every_percent": 100.0,
          "batch_size": 100, "data": {"n": scale.test},
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def rounded(lr: float) -> float:
  return float(f"{lr:.3g}")


def tuned(scale: Scale) -> list[int]:
  """Widths that pilots try rates of: all but the largest of L(N)."""
  used = {w for widths in scale.budgets.values() for w in widths}
  return sorted((used | set(scale.widths)) - {max(scale.widths)})


def pilots(scale: Scale) -> list[Run]:
  images = max(scale.images // 4, scale.batch_size)
  return [
    Run(
      f"pilot-w{width}-lr{lr:g}",
      config(
        scale, width, lr=lr, seed=PILOT, split="val", total_examples=images
      ),
      {"arm": "pilot", "width": width, "lr": lr},
      cost=images * (price(scale, width) + OVERHEAD),
      may_fail=True,
    )
    for width in tuned(scale)
    for lr in (rounded(rate * 32 / width) for rate in scale.rates)
  ]


def chosen(scale: Scale, done: Mapping[str, Any]) -> dict[int, float] | None:
  """Width -> learning rate; None before the pilots have run."""
  found = {w: best_rate(done, width=w) for w in tuned(scale)}
  if None in found.values():
    return None
  last, top = max(found), max(scale.widths)
  return {**found, top: rounded(found[last] * last / top)}


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots, then the budgets and L(N) at the rates they chose."""
  scale = SCALES[scale_name]
  named = pilots(scale)
  rates = chosen(scale, done)
  if rates is None:
    return named
  top, widest = max(scale.budgets), max(scale.widths)
  for seed in scale.seeds:
    for flops, widths in scale.budgets.items():
      for w in widths:
        made = config(
          scale, w, lr=rates[w], seed=seed, split="test", total_flops=flops
        )
        facts = {
          "arm": f"c{flops:.3g}", "C": flops, "width": w, "seed": seed,
          "lr": rates[w], "held": flops == top,
        }  # fmt: skip
        images = flops / price(scale, w)
        named.append(
          Run(
            f"c{flops:.3g}-w{w}-s{seed}",
            made,
            facts,
            cost=flops + OVERHEAD * images,
          )
        )
    for w in scale.widths:
      made = config(
        scale, w, lr=rates[w], seed=seed, split="test",
        total_examples=scale.images,
      )  # fmt: skip
      facts = {
        "arm": "size", "width": w, "seed": seed, "lr": rates[w],
        "held": w == widest,
      }  # fmt: skip
      cost = scale.images * (price(scale, w) + OVERHEAD)
      named.append(Run(f"size-w{w}-s{seed}", made, facts, cost=cost))
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results, SCALES[scale].size)
