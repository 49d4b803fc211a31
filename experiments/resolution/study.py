"""Is a model of several resolutions better at others? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, rates, runs. The judgement is in
analysis.py and uses nothing but the runs.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate as best_of
from vitscale.core.config import load_module
from vitscale.models import vit
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

PILOT = 1000  # seed of pilots, disjoint from every study's
RATES = (2e-3, 4e-3, 8e-3)
POSITIONS = analysis.POSITIONS
TRAINED, TESTED = analysis.TRAINED, analysis.TESTED  # pixels a side
PATCH = 4
MODEL = {
  "family": "vit", "width": 32, "depth": 2, "mlp_dim": 128, "num_heads": 2,
  "patch_size": PATCH,
}  # fmt: skip
LARGE = {
  **MODEL, "width": 192, "depth": 6, "mlp_dim": 768, "num_heads": 6,
  "dtype": "bfloat16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large, how long, how often.

  Attributes:
    steps: X, of a model of the largest resolution alone.
    seeds: of every arm.
    rates: tried by pilots.
    data: of all runs, at 28 px.
    batch_size: images, each seen in all views of a step.
    model: its options.
  """

  steps: int
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = RATES
  data: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"source": "fashion_mnist"}
  )
  batch_size: int = 32
  model: Mapping[str, Any] = dataclasses.field(default_factory=lambda: MODEL)


SCALES = {
  "smoke": Scale(20, (0,), (4e-3,)),
  "quick": Scale(1000, (0, 1, 2), (4e-3, 8e-3)),
  "cpu": Scale(6000, (0, 1, 2, 3, 4)),
  # All of Fashion-MNIST (`vitscale data get fashion_mnist`); unmeasured.
  "gpu": Scale(
    9400, (0, 1, 2, 3, 4), (5e-4, 1e-3, 2e-3),
    data={"source": "fashion_mnist", "path": "data/fashion_mnist"},
    batch_size=256, model=LARGE,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
  """What a model is trained on.

  Attributes:
    position: of the model.
    sizes: pixels a side of its views, largest first.
    weight: of the consistency between them.
    share: of the FLOPs that every other arm gets.
  """

  position: str
  sizes: tuple[int, ...]
  weight: float = 0.0
  share: float = 1.0


ARMS = {
  **{
    f"{kind}-{position}": arm
    for position in POSITIONS
    for kind, arm in {
      "single": Arm(position, TRAINED[:1]),
      "multi": Arm(position, TRAINED),
      "agree": Arm(position, TRAINED, 1.0),
    }.items()
  },
  **{
    f"own-{size}": Arm(analysis.MAIN, (size,), share=1 / len(TRAINED))
    for size in TRAINED
  },
}


def macs(scale: Scale, arm: Arm) -> int:
  """Multiply-accumulates of one image in all its views."""
  options = {k: v for k, v in scale.model.items() if k != "family"}
  options |= {"position": arm.position, "num_classes": 10}
  return sum(vit.flops_per_image(options, (s, s, 1)) for s in arm.sizes)


def steps(scale: Scale, arm: Arm) -> int:
  """Updates that the arm's FLOPs buy."""
  whole = Arm(arm.position, TRAINED[:1])
  bought = scale.steps * macs(scale, whole) / macs(scale, arm)
  return max(round(arm.share * bought), 1)


def views(sizes: tuple[int, ...]) -> str | dict[str, str]:
  """The transform of each view, every one shifted and flipped by itself."""
  made = [f"random_shift(2)|flip_lr|resize({size})" for size in sizes]
  if len(made) == 1:
    return made[0]
  names = ["image", *(f"image@{size}" for size in sizes[1:])]
  return dict(zip(names, made))


def config(
  scale: Scale,
  arm: Arm,
  *,
  lr: float,
  seed: int,
  split: str,
  tested: tuple[int, ...] = TESTED,
) -> ConfigDict:
  """One run, scored on `split` at the sizes `tested` at its end."""
  task = {"name": "classify"}
  if len(arm.sizes) > 1:
    task = {"name": "multiscale", "of": task, "weight": arm.weight}
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps(scale, arm),
      "data": dict(scale.data),
      "train": {"split": "train", "transform": views(arm.sizes)},
      "model": {**scale.model, "position": arm.position},
      "task": task,
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        f"r{size}": {
          "split": split, "every_percent": 100.0, "batch_size": 500,
          "transform": f"resize({size})",
        }
        for size in tested
      },
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def family(name: str) -> str:
  """The arm whose pilots choose a rate: consistency and size take another's."""
  kind, _, rest = name.partition("-")
  taken = {"own": f"single-{analysis.MAIN}", "agree": f"multi-{rest}"}
  return taken.get(kind, name)


FAMILIES = tuple(dict.fromkeys(map(family, ARMS)))


def best_rate(done: Mapping[str, Any], name: str) -> float | None:
  """The pilots' rate with the lowest mean loss at what the family trains on."""
  keys = [f"eval/r{size}/nll" for size in ARMS[name].sizes]
  return best_of(done, keys, family=name)


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every family, then every arm at the rate they chose."""
  scale = SCALES[scale_name]
  named = [
    Run(
      f"pilot-{name}-{lr:g}",
      config(
        scale,
        ARMS[name],
        lr=lr,
        seed=PILOT,
        split="val",
        tested=ARMS[name].sizes,
      ),
      {"arm": "pilot", "family": name, "lr": lr},
      cost=1.0,
      may_fail=True,
    )
    for name in FAMILIES
    for lr in scale.rates
  ]
  rates = {name: best_rate(done, name) for name in FAMILIES}
  if None in rates.values():
    return named
  for seed in scale.seeds:
    for name, arm in ARMS.items():
      lr = rates[family(name)]
      made = config(scale, arm, lr=lr, seed=seed, split="test")
      facts = {"arm": name, "seed": seed, "lr": lr}
      named.append(Run(f"{name}-s{seed}", made, facts, cost=arm.share))
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  del scale
  return analysis.analyse(results)
