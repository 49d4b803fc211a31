"""Can a generator forget nine tenths of what it said? See README.md.

The claims were written before the runs. This file is the design: tokenizers,
their codes, generators of them. measure.py evicts, analysis.py judges.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale import encode
from vitscale.core.config import load_module
from vitscale.core.log import read_json
from vitscale.data.latents import CARD
from vitscale.study import Run

analysis = load_module(Path(__file__).parent / "analysis.py")
measure = load_module(Path(__file__).parent / "measure.py")

SIDES = (1, 2, 3, 4, 5, 6, 7, 8)  # of the maps
ENTRIES, CODE = 64, 8  # of the codebook, floats of one
RATE = 2e-3  # of tokenizers and generators


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large, how long, how often.

  Attributes:
    steps: of tokenizers and of generators.
    depth, width: of generators.
    seeds: of everything.
    options: of what is measured.
  """

  steps: tuple[int, int]
  depth: int
  options: Any
  width: int = 64
  seeds: tuple[int, ...] = (0, 1, 2)


SCALES = {
  "smoke": Scale(
    (10, 10), 2, measure.Options((1.0, 0.1), 300, 100), 32, (0,)
  ),
  "quick": Scale((300, 400), 4, measure.Options((1.0, 0.1), 400)),
  "cpu": Scale((1000, 1200), 6, measure.Options((1.0, 0.5, 0.2, 0.1), 1000)),
}  # fmt: skip


def common(seed: int, steps: int, batch_size: int) -> ConfigDict:
  """What tokenizers and generators share."""
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": batch_size,
      "total_steps": steps,
      "ema": 0.99 if steps > 100 else 0.5,
      "train": {"split": "train"},
      "optim": {
        "name": "adamw", "lr": RATE, "b2": 0.95, "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 5.0},
      },
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def tokenizer(scale: Scale, seed: int) -> ConfigDict:
  """A tokenizer of all scales."""
  made = common(seed, scale.steps[0], 64)
  made.data = {"source": "fashion_mnist", "size": 24}
  made.model = {
    "family": "vitok", "variant": "xs-xs/3",
    "bottleneck": f"residual_vq({ENTRIES}, {CODE}, {SIDES})",
  }  # fmt: skip
  made.task = {"name": "reconstruct"}
  made.evals = {
    "test": {
      "name": "reconstruction", "split": "test", "batch_size": 500,
      "rfd": False,
    }
  }  # fmt: skip
  return made


def generator(scale: Scale, path: str, seed: int) -> ConfigDict:
  """A model of the codes in `path`."""
  made = common(seed, scale.steps[1], 32)
  made.data = {"source": "latents", "path": path}
  made.model = {
    "family": "var", "channels": CODE, "vocabulary": ENTRIES, "scales": SIDES,
    "width": scale.width, "depth": scale.depth, "num_heads": 4,
    "mlp_dim": 4 * scale.width,
  }  # fmt: skip
  made.task = {"name": "next_scale"}
  made.evals = {"test": {"name": "tokens", "split": "test", "batch_size": 250}}
  return made


def codes(run: Mapping[str, Any]) -> str | None:
  """The codes of a tokenizer that has finished, encoded if need be."""
  if run["status"] != "finished":
    return None
  path = Path(run["workdir"]) / "codes"
  card = read_json(path / CARD) if path.is_dir() else None
  if card is None or "mean" not in card:
    encode.encode(
      run["workdir"], path, splits=("train", "val", "test"), batch_size=500
    )
  return str(path)


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Tokenizers, then generators of their codes."""
  scale = SCALES[scale_name]
  named = [
    Run(
      f"tokenizer-s{seed}",
      tokenizer(scale, seed),
      {"arm": "tokenizer", "seed": seed},
    )
    for seed in scale.seeds
  ]
  found = {run.name: done.get(run.name) for run in named}
  if None in found.values():
    return named
  paths = {name: codes(run) for name, run in found.items()}
  for seed in scale.seeds:
    if (path := paths[f"tokenizer-s{seed}"]) is not None:
      facts = {"arm": "generator", "seed": seed}
      made = generator(scale, path, seed)
      named.append(Run(f"generator-s{seed}", made, facts))
  return named


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Evicts from every generator, then verdicts, tables, figures, pictures."""
  options = SCALES[scale].options
  measured = {
    run["law_variables"]["seed"]: measure.measured(run["workdir"], options)
    for run in results.values()
    if run["law_variables"]["arm"] == "generator"
    and run["status"] == "finished"
  }
  return analysis.analyse(results, measured, options.shares)
