"""Does test loss fall as the patch shrinks towards 1x1? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, tuned rates, runs. The judgement is
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
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")
frontier = load_module(HERE / "frontier.py")

# ------------------------------------------------------------------- design


@dataclasses.dataclass(frozen=True)
class Arm:
  """One line of the comparison: data, model changes, patches.

  `halves` also trains half as long at every patch, which is what decides
  whether a curve has flattened.
  """

  data: Mapping[str, Any]
  patches: tuple[int, ...]
  size: int = 12  # pixels a side that the model sees
  position: str = "sincos2d"  # no parameters: arms differ in p^2 d only
  transform: str = ""
  halves: bool = False
  length: float = 1.0  # times the scale's steps


FASHION = {"source": "fashion_mnist", "size": 12}
STROKES = {"source": "strokes", "size": 12, "n": 50_000}
FLIP = "flip_lr"
SMALL = (12, 6, 4, 3, 2)

ARMS = {
  "fashion": Arm(FASHION, SMALL, transform=FLIP, halves=True),
  "strokes": Arm(STROKES, SMALL, halves=True),
  # Controls: as many tokens as p = 3, no smaller patch; no neighbourhoods;
  # no detail below two pixels; a position table instead of sines.
  "longer": Arm({**STROKES, "tile": 2}, (6,), size=24),
  "permuted": Arm({**STROKES, "permute_seed": 1}, (12, 3)),
  "upsampled": Arm(
    {"source": "fashion_mnist", "size": 6, "upsample": 2},
    (12, 6, 2, 1),
    transform=FLIP,
    halves=True,
  ),
  "learned": Arm(STROKES, SMALL, position="learned"),
}


@dataclasses.dataclass(frozen=True)
class Scale:
  """How much of the design runs, and for how long."""

  arms: Mapping[str, Arm]
  seeds: tuple[int, ...]
  steps: int
  batch_size: int = 32
  model: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {
      "family": "vit",
      "variant": "mu",
      "mlp_dim": 128,
      "num_heads": 1,
    }
  )
  rates: str | None = None  # entry of rates.json; None: tuned in the study
  pilot_seeds: tuple[int, ...] = (1000,)  # disjoint from every study's seeds
  pilot_share: float = 1.0  # pilots train for this share of the steps
  only_pilots: bool = False


def arms(*names: str, **changes: Any) -> dict[str, Arm]:
  """The named arms, with fields replaced."""
  return {n: dataclasses.replace(ARMS[n], **changes) for n in names}


# Fashion-MNIST flattens at no length that ten minutes hold: it is here to show
# what under-training looks like, so strokes get the time.
QUICK = {
  **arms("fashion", length=0.5),
  **arms("strokes", "longer", "permuted"),
}
FULL_FASHION = {"source": "fashion_mnist", "path": "data/fashion_mnist"}
GPU = {
  "fashion": Arm(
    FULL_FASHION, (28, 14, 7, 4, 2, 1), 28, transform="random_shift(2)|flip_lr",
    halves=True,
  ),
  "strokes": Arm(
    {**STROKES, "size": 28, "n": 200_000, "strokes": 16, "majority": 6},
    (28, 14, 7, 4, 2, 1), 28, halves=True,
  ),
}  # fmt: skip
GPU["longer"] = Arm({**GPU["strokes"].data, "tile": 2}, (14,), 56)
GPU["permuted"] = Arm({**GPU["strokes"].data, "permute_seed": 1}, (28, 4), 28)
GPU["upsampled"] = Arm(
  {**FULL_FASHION, "size": 14, "upsample": 2}, (28, 14, 7, 4, 2, 1), 28,
  transform="random_shift(4)|flip_lr", halves=True,
)  # fmt: skip
GPU["learned"] = dataclasses.replace(GPU["strokes"], position="learned")

SCALES: dict[str, Any] = {
  # a few steps, to see that everything runs
  "smoke": Scale(
    {
      "strokes": Arm({**STROKES, "n": 2000}, SMALL),
      "longer": Arm({**STROKES, "n": 2000, "tile": 2}, (6,), 24),
    },
    seeds=(0,),
    steps=30,
    rates="quick",
  ),
  # two data sets, two controls, 3 seeds; at most 10 minutes on 2 cores
  "quick": Scale(QUICK, seeds=(0, 1, 2), steps=3000, rates="quick"),
  # makes the learning rates of `quick`; fashion trains twice as long as there
  "tune": Scale(
    arms(*QUICK), seeds=(), steps=3000, pilot_seeds=(1000, 1001),
    only_pilots=True,
  ),
  # everything, 1x1 on strokes included; at most 90 minutes on 2 cores
  "cpu": Scale(
    {
      **ARMS,
      # Real images flatten later than strokes do.
      "fashion": dataclasses.replace(ARMS["fashion"], length=2.0),
      "strokes": dataclasses.replace(ARMS["strokes"], patches=(*SMALL, 1)),
    },
    seeds=(0, 1, 2),
    steps=6000,
    pilot_share=0.5,
  ),
  # 28 px, all of Fashion-MNIST (`vitscale data get fashion_mnist --out
  # data/fashion_mnist`), 1x1 = 784 tokens, 5 seeds; unmeasured
  "gpu": Scale(
    GPU,
    seeds=(0, 1, 2, 3, 4),
    steps=9400,
    batch_size=256,
    model={
      "family": "vit", "width": 192, "depth": 6, "mlp_dim": 768,
      "num_heads": 3, "dtype": "bfloat16",
    },
    pilot_share=0.25,
  ),
  # resolution x patch x shape, a design of its own
  **frontier.SCALES,
}  # fmt: skip

START = (6e-3, 1.2e-2)  # the first rates; the grid grows where it must


def config(
  scale: Scale, arm: Arm, patch: int, *, lr: float, seed: int, steps: int
) -> ConfigDict:
  """One run."""
  generated = arm.data["source"] == "strokes"
  fewer = lambda n: {"n": n} if generated else {}
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps,
      "data": dict(arm.data),
      "train": {"split": "train", "transform": arm.transform},
      "model": {
        **scale.model, "patch_size": patch, "position": arm.position,
      },
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        "val": {
          "split": "val", "every_percent": 12.5, "batch_size": 500,
          "data": fewer(2000),
        },
        "test": {"split": "test", "batch_size": 500, "data": fewer(4000)},
      },
      "log": {"every_percent": 12.5},
      "checkpoint": {"keep": 1, "every_percent": 50.0},
      "law_variables": {"patch_size": patch},
    }
  )  # fmt: skip


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots until each cell's best rate lies inside its grid (or six rates have
  been tried), then the study's runs."""
  if scale_name in frontier.SCALES:
    return frontier.runs(scale_name, done)
  scale = SCALES[scale_name]
  found: list[Run] = []
  rates = committed(scale) if scale.rates else {}
  if not scale.rates:
    pilots = pilot_runs(scale, done)
    if len(pilots) > len(set(pilots) & set(done)):
      return list(pilots.values())
    found += pilots.values()
    rates = best_rates(scale, done)
  for name, arm in scale.arms.items():
    for patch in () if scale.only_pilots else arm.patches:
      if f"{name}/{patch}" not in rates:  # every pilot of this cell failed
        continue
      for seed in scale.seeds:
        for half in (False, True)[: 1 + arm.halves]:
          steps = round(scale.steps * arm.length / (1 + half))
          lr = rates[f"{name}/{patch}"]
          found.append(
            run(scale, name, patch, lr=lr, seed=seed, steps=steps, half=half)
          )
  return found


def run(scale, name, patch, *, lr, seed, steps, half=False, pilot=False) -> Run:
  arm = scale.arms[name]
  label = f"pilot-{name}-p{patch}-lr{lr:g}-s{seed}" if pilot else (
    f"{name}-p{patch}-s{seed}{'-half' if half else ''}"
  )  # fmt: skip
  return Run(
    label,
    config(scale, arm, patch, lr=lr, seed=seed, steps=steps),
    {
      "arm": name,
      "patch_size": patch,
      "tokens": (arm.size // patch) ** 2,
      "seed": seed,
      "steps": steps,
      "half": half,
      "pilot": pilot,
      "lr": lr,
    },
    may_fail=pilot,  # a rate that is too high says so by diverging
  )


# ---------------------------------------------------------------- tuned rates


def committed(scale: Scale) -> dict[str, float]:
  """Rates of rates.json; `--scale tune` makes them."""
  return json.loads((HERE / "rates.json").read_text())[scale.rates]["rates"]


def pilot_losses(done, name, patch) -> dict[float, float]:
  """Learning rate -> mean validation loss over the pilot seeds."""
  losses: dict[float, list[float]] = {}
  for result in done.values():
    v = result["law_variables"]
    if v.get("pilot") and (v["arm"], v["patch_size"]) == (name, patch):
      loss = result["metrics"].get("eval/val/nll") or math.inf
      losses.setdefault(v["lr"], []).append(loss)
  return {lr: float(np.mean(each)) for lr, each in sorted(losses.items())}


def pilot_runs(scale: Scale, done: Mapping[str, Any]) -> dict[str, Run]:
  """The grid of each cell, one step further where the best is at an edge."""
  found = {}
  for name, arm in scale.arms.items():
    for patch in arm.patches:
      losses = pilot_losses(done, name, patch)
      rates = sorted(set(START) | set(losses))
      best = min(losses, key=losses.get) if losses else None
      if best is not None and len(losses) < 6 and np.isfinite(losses[best]):
        if best == rates[0]:
          rates.insert(0, best / 2)
        if best == rates[-1]:
          rates.append(best * 2)
      for lr in rates:
        for seed in scale.pilot_seeds:
          steps = round(scale.steps * arm.length * scale.pilot_share)
          one = run(
            scale, name, patch, lr=lr, seed=seed, steps=steps, pilot=True
          )
          found[one.name] = one
  return found


def best_rates(scale: Scale, done: Mapping[str, Any]) -> dict[str, float]:
  cells = {
    f"{name}/{patch}": pilot_losses(done, name, patch)
    for name, arm in scale.arms.items()
    for patch in arm.patches
  }
  return {
    cell: min(losses, key=losses.get)
    for cell, losses in cells.items()
    if losses and math.isfinite(min(losses.values()))
  }


# ------------------------------------------------------------------ judgement


def analyse(done: Mapping[str, Any], scale_name: str) -> dict[str, Any]:
  """Laws, verdicts, tables and figures of the finished runs."""
  if scale_name in frontier.SCALES:
    return frontier.analyse(done, scale_name)
  scale = SCALES[scale_name]
  if scale.only_pilots:
    return analysis.pilots(best_rates(scale, done), done, scale_name)
  expected = json.loads((HERE / "expected.json").read_text())
  return analysis.analyse(done, scale_name, list(scale.arms), expected)
