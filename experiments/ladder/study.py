"""How does loss fall with size and data, and does the law foretell? See README.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: sizes, FLOP levels, rates, runs. The judgement is
in analysis.py and uses nothing but the runs.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vitscale.core.config import load_module
from vitscale.models import vit
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")
tuning = load_module(HERE / "tuning.py")

# ------------------------------------------------------------------- design

# (FLOPs of a training, width) -> seeds
Cells = Mapping[tuple[float, int], int]


def levels(sizes: Mapping[float, tuple[int, ...]], seeds: int) -> Cells:
  """Every size of every FLOP level, with so many seeds."""
  return {(c, w): seeds for c, widths in sizes.items() for w in widths}


@dataclasses.dataclass(frozen=True)
class Scale:
  """One ladder.

  Attributes:
    cells: what the law is fitted to.
    held: what it has to foretell; of more compute than any of `cells`.
    pilots: (images, width) whose rates are tried first; without them the rule
      of rates.json holds.
    pilot_seeds: disjoint from every ladder's seeds.
    size: pixels a side.
    head: width of an attention head; None for a single one.
    test: held-out images, of the test split for the ladder and of the
      validation split for pilots.
  """

  cells: Cells
  held: Cells
  pilots: tuple[tuple[int, int], ...] = ()
  pilot_seeds: tuple[int, ...] = (1000,)
  batch_size: int = 64
  size: int = 12
  depth: int = 2
  head: int | None = None
  dtype: str = "float32"
  test: int = 20_000


QUICK = {
  2.5e10: (12, 16, 24),
  5e10: (12, 16, 24, 32),
  1e11: (12, 16, 24, 32, 48),
  2e11: (16, 24, 32, 48),
}
CPU = {
  5e10: (12, 16, 24, 32),
  1e11: (12, 16, 24, 32, 48),
  2e11: (12, 16, 24, 32, 48, 64),
  4e11: (16, 24, 32, 48, 64, 96),
  8e11: (16, 24, 32, 48, 64, 96),
}
GPU = {
  1.25e14: (64, 96, 128, 192),
  2.5e14: (64, 96, 128, 192, 256),
  5e14: (96, 128, 192, 256, 384),
  1e15: (96, 128, 192, 256, 384),
  2e15: (128, 192, 256, 384, 512),
}
SCALES: dict[str, Scale] = {
  # a few steps, to see that everything runs
  "smoke": Scale(
    levels({5e8: (8, 12, 16), 1e9: (8, 12, 16)}, 1), {(4e9, 12): 2},
    depth=1, test=2000,
  ),
  "quick": Scale(levels(QUICK, 2), {(8e11, 48): 2}),
  "cpu": Scale(levels(CPU, 2), {(3.2e12, 64): 3}),
  # makes the rule of rates.json
  "tune": Scale(
    {}, {},
    pilots=(
      (32_768, 12), (262_144, 12), (65_536, 24), (262_144, 24),
      (32_768, 48), (131_072, 48), (32_768, 96),
    ),
  ),
  # 28 px, 49 tokens; tunes itself; unmeasured
  "gpu": Scale(
    levels(GPU, 2), {(8e15, 384): 3},
    pilots=(
      (262_144, 64), (2_097_152, 64), (524_288, 128), (2_097_152, 128),
      (262_144, 256), (1_048_576, 256), (262_144, 512),
    ),
    batch_size=256, size=28, depth=4, head=32, dtype="bfloat16",
    test=50_000,
  ),
}  # fmt: skip

RATES = (0.004, 0.008, 0.016)  # tried at width 32; others by 32 / width
MOST = 6  # rates a pilot cell tries


def model(scale: Scale, width: int) -> dict[str, Any]:
  """Keywords of the ViT: 4 px patches, an MLP of four times the width."""
  return {
    "width": width,
    "depth": scale.depth,
    "mlp_dim": 4 * width,
    "num_heads": width // (scale.head or width),
    "patch_size": 4,
    "position": "sincos2d",
    "dtype": scale.dtype,
  }


def examples(scale: Scale, flops: float, width: int) -> float:
  """About how many images a training of so many FLOPs sees.

  The bench divides by its own count, which is at most a few per cent lower
  (no gradient for the pixels).
  """
  kwargs = {**model(scale, width), "num_classes": 4}
  macs = vit.flops_per_image(kwargs, (scale.size, scale.size, 1))
  return flops / (6 * macs)


def config(
  scale: Scale,
  width: int,
  *,
  lr: float,
  seed: int,
  split: str = "test",
  **duration: Any,
) -> ConfigDict:
  """One run, scored on `split`; `duration` is total_flops or total_examples.

  The source is longer than the run, so that no image comes twice; a seed
  takes its own images of it, in its own order.
  """
  n = duration.get("total_examples") or examples(
    scale, duration["total_flops"], width
  )
  n = 2 ** math.ceil(math.log2(1.05 * n))
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      **duration,
      "data": {"source": "strokes", "size": scale.size, "n": n},
      "train": {"split": "train", "transform": ""},
      "model": {"family": "vit", **model(scale, width)},
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "split": split, "every_percent": 100.0, "batch_size": 1000,
          "data": {"n": scale.test},
        }
      },
      "log": {"every_percent": 10.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def run(
  scale: Scale,
  flops: float,
  width: int,
  *,
  rule: Mapping[str, float],
  seed: int,
  held: bool,
) -> Run:
  """One run of the ladder."""
  images = examples(scale, flops, width)
  lr = tuning.rate(rule, images, width)
  name = f"{'held-' if held else ''}{flops:.3g}-w{width}-s{seed}"
  return Run(
    name,
    config(scale, width, lr=lr, seed=seed, total_flops=flops),
    {
      "C": flops, "width": width, "seed": seed, "lr": lr, "held": held,
      "pilot": False,
    },
    cost=flops + OVERHEAD * images,
  )  # fmt: skip


OVERHEAD = 6e5  # what an image costs besides, in FLOPs of the larger models


# ---------------------------------------------------------------- tuned rates


def committed() -> dict[str, float]:
  """The rule of rates.json; `--scale tune` makes it."""
  return json.loads((HERE / "rates.json").read_text())["rule"]


def pilot(scale: Scale, images: int, width: int, *, lr: float, seed: int):
  return Run(
    f"pilot-d{images}-w{width}-lr{lr:g}-s{seed}",
    config(
      scale, width, lr=lr, seed=seed, split="val", total_examples=images
    ),
    {
      "D": images, "width": width, "seed": seed, "lr": lr, "held": False,
      "pilot": True,
    },
    cost=images * (OVERHEAD + 700.0 * width**2),
    may_fail=True,  # a rate that is too high says so by diverging
  )  # fmt: skip


def pilot_losses(scale: Scale, done: Mapping[str, Any]) -> tuning.Losses:
  """Per pilot cell: learning rate -> mean ln loss over its seeds."""
  found: dict[tuple[int, int], dict[float, list[float]]] = {
    cell: {} for cell in scale.pilots
  }
  for result in done.values():
    v = result["law_variables"]
    if v["pilot"]:
      loss = result["metrics"].get("eval/val/nll") or math.inf
      cell = found[v["D"], v["width"]]
      cell.setdefault(v["lr"], []).append(math.log(loss))
  return {
    cell: {lr: float(np.mean(each)) for lr, each in sorted(rates.items())}
    for cell, rates in found.items()
  }


def pilots(scale: Scale, done: Mapping[str, Any]) -> list[Run]:
  """The grid of each cell, one step further where the best is at an edge."""
  digits = lambda lr: float(f"{lr:.3g}")
  found = []
  for (images, width), losses in pilot_losses(scale, done).items():
    rates = sorted({digits(r * 32 / width) for r in RATES} | set(losses))
    best = min(losses, key=losses.get) if losses else None
    if best is not None and len(losses) < MOST and math.isfinite(losses[best]):
      if best == rates[0]:
        rates.insert(0, digits(best / 2))
      if best == rates[-1]:
        rates.append(digits(best * 2))
    found += [
      pilot(scale, images, width, lr=lr, seed=seed)
      for lr in rates
      for seed in scale.pilot_seeds
    ]
  return found


# ----------------------------------------------------------------------- runs


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots until each cell's best rate lies inside its grid (or six rates have
  been tried), then the ladder."""
  scale = SCALES[scale_name]
  if not scale.pilots:
    return ladder(scale, committed())
  tried = pilots(scale, done)
  if any(one.name not in done for one in tried):
    return tried
  return tried + ladder(scale, tuning.rule(pilot_losses(scale, done)))


def ladder(scale: Scale, rule: Mapping[str, float]) -> list[Run]:
  return [
    run(scale, c, width, rule=rule, seed=seed, held=held)
    for held, cells in ((False, scale.cells), (True, scale.held))
    for (c, width), seeds in cells.items()
    for seed in range(seeds)
  ]


def analyse(done: Mapping[str, Any], scale_name: str) -> dict[str, Any]:
  """Laws, verdicts, tables and figures of the finished runs."""
  scale = SCALES[scale_name]
  found: dict[str, Any] = {}
  if scale.pilots:
    found = tuning.report(pilot_losses(scale, done), scale_name)
  if scale.cells:
    tables = found.get("tables", [])
    found = analysis.analyse(done, scale_name)
    found["tables"] = [*found.get("tables", []), *tables]
  return found
