"""How many floats a token should a generator get? See README.md.

This file is the design: tokenizers, their latents, generators of them. The
claims were written before the runs; analysis.py judges them.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale import encode
from vitscale.arms import best_rate
from vitscale.core.config import load_module
from vitscale.core.log import read_json
from vitscale.data.latents import CARD
from vitscale.study import Run

analysis = load_module(Path(__file__).parent / "analysis.py")

PILOT = 1000  # seed of pilots
TOKENS, MIDDLE = 36, 144  # of an image; E at which times are not shifted
ARMS = ("faithful", "controlled")


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large, how long, how often.

  Attributes:
    steps: of tokenizers and of generators; pilots take half.
    codes: c, floats of a token.
    guidance: tried in every cell.
    seeds: of everything.
    rates: of generators, tried by pilots; one is taken as it is.
    images: of val and of test that samples are compared with.
    denoise: steps of a sample.
    width, depth: of generators.
    limit: training images, None for all.
  """

  steps: tuple[int, int]
  codes: tuple[int, ...] = (1, 2, 4, 8, 16)
  guidance: tuple[float, ...] = (1.0, 2.0, 4.0)
  seeds: tuple[int, ...] = (0, 1, 2)
  rates: tuple[float, ...] = (1e-3, 2e-3)
  images: tuple[int, int] = (1000, 2000)
  denoise: int = 20
  width: int = 64
  depth: int = 4

  @property
  def middle(self) -> int:
    return self.codes[len(self.codes) // 2]


SCALES = {
  "smoke": Scale(
    (10, 10), (1, 4), (1.0, 2.0), (0,), (1e-3,), (600, 600), 2, 32, 1
  ),
  "quick": Scale((400, 800), (1, 4, 16), (1.0, 2.0), images=(600, 1200)),
  "cpu": Scale((1500, 2000)),
}


def common(seed: int, steps: int, lr: float) -> ConfigDict:
  """What tokenizers and generators share."""
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": 64,
      "total_steps": steps,
      "train": {"split": "train"},
      "optim": {
        "name": "adamw", "lr": lr, "b2": 0.95, "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 5.0},
      },
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def tokenizer(scale: Scale, code: int, seed: int) -> ConfigDict:
  """A tokenizer of c floats a token."""
  made = common(seed, scale.steps[0], 2e-3)
  made.data = {"source": "fashion_mnist", "size": 24}
  made.model = {
    "family": "vitok", "variant": "xs-xm/4", "bottleneck": f"kl({code})",
  }  # fmt: skip
  made.task = {"name": "reconstruct", "weights": {"l2": 1.0, "kl": 1e-3}}
  made.evals = {
    split: {
      "name": "reconstruction", "split": split, "batch_size": 500, "rfd": False
    }
    for split in ("val", "test")
  }  # fmt: skip
  return made


def generator(
  scale: Scale,
  arm: str,
  code: int,
  path: str,
  *,
  lr: float,
  seed: int,
  pilot: bool = False,
) -> ConfigDict:
  """A diffusion transformer on the latents in `path`."""
  made = common(seed, scale.steps[1] // (2 if pilot else 1), lr)
  made.ema = 0.99 if scale.steps[1] > 100 else 0.5
  made.data = {"source": "latents", "path": path}
  made.model = {
    "family": "dit", "patch_size": 1, "width": scale.width, "num_heads": 2,
    "depth": scale.depth, "mlp_dim": 4 * scale.width,
  }  # fmt: skip
  if arm == "faithful":
    raw = {"mean": (0.0,) * code, "std": (1 / 255,) * code}
    made.task = {"name": "diffuse", "process": "ddpm", **raw}
  else:
    shift = math.sqrt(TOKENS * code / MIDDLE)
    made.task = {"name": "diffuse", "process": "flow", "shift": shift}
  if pilot:
    made.evals = {"val": {"name": "denoise", "split": "val", "batch_size": 500}}
    return made
  made.evals = {
    f"{split}_{guidance:g}": {
      "name": "generation", "split": split, "data": {"limit": images},
      "batch_size": 200, "guidance": guidance, "kid": False,
      "seed": number, "sample": f"steps={scale.denoise}",
    }
    for number, (split, images) in enumerate(
      zip(("val", "test"), scale.images)
    )
    for guidance in scale.guidance
  }  # fmt: skip
  return made


def latents(run: Mapping[str, Any]) -> str | None:
  """The latents of a tokenizer that has finished, encoded if need be."""
  if run["status"] != "finished":
    return None
  path = Path(run["workdir"]) / "latents"
  card = read_json(path / CARD) if path.is_dir() else None
  if card is None or "mean" not in card:
    encode.encode(
      run["workdir"], path, splits=("train", "val", "test"), batch_size=500
    )
  return str(path)


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Tokenizers; pilots on the first one's latents; generators."""
  scale = SCALES[scale_name]
  named = [
    Run(
      f"tokenizer-c{code}-s{seed}",
      tokenizer(scale, code, seed),
      {"arm": "tokenizer", "code": code, "seed": seed},
    )
    for code in scale.codes
    for seed in scale.seeds
  ]
  found = {run.name: done.get(run.name) for run in named}
  if None in found.values():
    return named
  paths = {name: latents(run) for name, run in found.items()}
  where = paths[f"tokenizer-c{scale.middle}-s{scale.seeds[0]}"]
  rates = {}
  for arm in ARMS:
    rates[arm] = best_rate(done, "eval/val/loss", of=arm)
    if len(scale.rates) == 1:
      rates[arm] = scale.rates[0]
    elif where is not None:
      named += [
        Run(
          f"pilot-{arm}-{lr:g}",
          generator(
            scale, arm, scale.middle, where, lr=lr, seed=PILOT, pilot=True
          ),
          {"arm": "pilot", "of": arm, "lr": lr},
          may_fail=True,
        )
        for lr in scale.rates
      ]
  if None in rates.values():
    return named
  for seed in scale.seeds:
    for code in scale.codes:
      path = paths[f"tokenizer-c{code}-s{seed}"]
      if path is None:
        continue
      named += [
        Run(
          f"{arm}-c{code}-s{seed}",
          generator(scale, arm, code, path, lr=rates[arm], seed=seed),
          {"arm": arm, "code": code, "seed": seed, "lr": rates[arm]},
        )
        for arm in ARMS
      ]
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables, figures, and what was generated."""
  which = SCALES[scale]
  return analysis.analyse(results, which.codes, which.guidance)
