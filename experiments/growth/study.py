"""Is it cheaper to grow a model than to train it at its size? See README.md.

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

from vitscale import plugin
from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.study import Run

analysis = load_module(Path(__file__).parent / "analysis.py")

IMAGE = (28, 28, 1)
RATES = (2e-3, 4e-3, 8e-3)
PILOT = 1000  # seed of pilots, disjoint from every study's
BORN = 12  # pairs of the smallest model, and the count that stays


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long, how often, and what is tuned.

  Attributes:
    steps: X, of one stage.
    seeds: of every arm.
    rates: tried by pilots.
    depth: layers of every model.
  """

  steps: int
  seeds: tuple[int, ...]
  rates: tuple[float, ...] = RATES
  depth: int = 4


SCALES = {
  "smoke": Scale(6, (0,), (2e-3,), depth=1),
  "quick": Scale(156, (0, 1, 2)),
  "cpu": Scale(624, (0, 1, 2)),
}


@dataclasses.dataclass(frozen=True)
class Stage:
  """One run of an arm.

  Attributes:
    model: its options.
    parent: the stage it grows from; empty from scratch.
    how, optimizer: of the growth.
    spends: the arm whose FLOPs, ancestors included, it gets; else X steps.
  """

  model: Mapping[str, Any]
  parent: str = ""
  how: str = "append"
  optimizer: str = "fresh"
  spends: str = ""


def pairs(tokens: int, frozen: bool = True) -> dict[str, Any]:
  """Options of a Pattention model; not frozen, the root is of its own count."""
  scale = BORN if frozen else None
  return {
    "family": "pattention_vit", "width": 64, "num_heads": 2, "patch_size": 7,
    "tokens": tokens, "ffn_tokens": 4 * tokens,
    "scale_tokens": scale, "ffn_scale_tokens": scale and 4 * scale,
  }  # fmt: skip


def plain(width: int = 64, num_heads: int = 2, mlp_dim: int = 256):
  """Options of a ViT with heads of 32."""
  return {
    "family": "vit", "width": width, "num_heads": num_heads, "head_dim": 32,
    "mlp_dim": mlp_dim, "patch_size": 7,
  }  # fmt: skip


LARGE = {"pattention_vit": pairs(48, False), "vit": plain()}
STAGES = {
  "small": Stage(pairs(12)),
  "grown-2": Stage(pairs(24), "small"),
  "grown": Stage(pairs(48), "grown-2"),
  "grown-carry-2": Stage(pairs(24), "small", optimizer="carry"),
  "grown-carry": Stage(pairs(48), "grown-carry-2", optimizer="carry"),
  "unfrozen-2": Stage(pairs(24, False), "small"),
  "unfrozen": Stage(pairs(48, False), "unfrozen-2"),
  "scratch": Stage(pairs(48, False), spends="grown"),
  "scratch-short": Stage(pairs(48, False)),
  "net2net-small": Stage(plain(num_heads=1, mlp_dim=128)),
  "net2net": Stage(plain(), "net2net-small", "net2net"),
  "net2net-scratch": Stage(plain(), spends="net2net"),
  "hypercloning-small": Stage(plain(32, 1, 128)),
  "hypercloning": Stage(plain(), "hypercloning-small", "hypercloning"),
  "hypercloning-scratch": Stage(plain(), spends="hypercloning"),
}


def macs(model: Mapping[str, Any], scale: Scale) -> int:
  """Multiply-accumulates of one forward pass of an image."""
  options = {"num_classes": 10, **model, "depth": scale.depth}
  family = plugin.module("models", options.pop("family"))
  return family.flops_per_image(options, IMAGE)


def steps(name: str, scale: Scale) -> int:
  """Updates of a stage."""
  stage = STAGES[name]
  if not stage.spends:
    return scale.steps
  total, at = 0, stage.spends
  while at:
    total += macs(STAGES[at].model, scale)
    at = STAGES[at].parent
  return round(scale.steps * total / macs(stage.model, scale))


def config(
  scale: Scale,
  model: Mapping[str, Any],
  total_steps: int,
  *,
  lr: float,
  seed: int,
  split: str,
  init: Mapping[str, Any] | None = None,
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  made = ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      "total_steps": total_steps,
      "data": {"source": "fashion_mnist", "size": 28},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {**model, "depth": scale.depth},
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {"split": split, "every_percent": 100.0, "batch_size": 500}
      },
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip
  if init:
    made.init = dict(init)
  return made


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of the large models, then stage after stage."""
  which = SCALES[scale]
  named = [
    Run(
      f"pilot-{family}-{lr:g}",
      config(which, model, which.steps, lr=lr, seed=PILOT, split="val"),
      {"arm": "pilot", "family": family, "lr": lr},
      may_fail=True,
    )
    for family, model in LARGE.items()
    for lr in which.rates
  ]
  rates = {family: best_rate(done, family=family) for family in LARGE}
  if None in rates.values():
    return named
  for seed in which.seeds:
    for name, stage in STAGES.items():
      parent = done.get(f"{stage.parent}-s{seed}")
      if stage.parent and (parent is None or parent["status"] != "finished"):
        continue
      made = config(
        which,
        stage.model,
        steps(name, which),
        lr=rates[stage.model["family"]],
        seed=seed + 100 * generation(name),  # other batches than its parent's
        split="test",
        init=parent and {
          "from": near(parent["workdir"]), "how": stage.how,
          "optimizer": stage.optimizer,
        },
      )  # fmt: skip
      facts = {"arm": name, "seed": seed, "parent": stage.parent}
      cost = made.total_steps * macs(stage.model, which)
      named.append(Run(f"{name}-s{seed}", made, facts, cost=cost))
  return named


def generation(name: str) -> int:
  """Growths before a stage."""
  parent = STAGES[name].parent
  return 1 + generation(parent) if parent else 0


def near(path: str) -> str:
  """Relative to the current directory where it lies below it."""
  below = Path(path).absolute().is_relative_to(Path.cwd())
  return os.path.relpath(path) if below else path


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results)
