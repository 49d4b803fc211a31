"""What do token mixers cost, and how good are they? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: mixers, data, lengths, rates, runs. The judgement
is in analysis.py. Costs are measured by `analyse`, in a process of its own.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale import arms
from vitscale.core.config import load_module
from vitscale.race import clock
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")

RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2)  # the first; a grid grows where it must
MOST = 6  # rates tried in a cell
PILOT = 1000  # the pilots' seed, disjoint from every study's
PATCH = 2  # pixels; images of 12, 16, 24 px are 36, 64, 144 tokens

# In training: options that are no more than half of the 36 tokens.
TRAINED = {
  "softmax": "softmax",
  "window": "window(3)",
  "linear": "linear",
  "performer": "performer(32)",
  "linformer": "linformer(16)",
  "ecoformer": "ecoformer(16, 25)",
  "maelre": "maelre(18)",
  "scan": "scan(8)",
}
# On the clock: the same at every length, (mixer, back end of softmax).
TIMED = {
  "softmax": ("softmax", "reference"),
  "softmax, chunked": ("softmax", "chunked"),
  "window": ("window(8)", "auto"),
  "linear": ("linear", "auto"),
  "performer": ("performer(32)", "auto"),
  "linformer": ("linformer(64)", "auto"),
  "ecoformer": ("ecoformer(16, 25)", "auto"),
  "maelre": ("maelre(64)", "auto"),
  "scan": ("scan(8)", "auto"),
}
SETS = {
  "fashion": {"source": "fashion_mnist"},
  "strokes": {"source": "strokes", "n": 50_000},
}


@dataclasses.dataclass(frozen=True)
class Clock:
  """One block on the clock: forward and backward pass.

  Attributes:
    sides: of the square grids of tokens.
    least: seconds of a turn, at least one step.
  """

  sides: tuple[int, ...] = (16, 32, 48, 64)
  width: int = 64
  heads: int = 2
  batch: int = 1
  dtype: str = "float32"
  device: str = "cpu"  # or "gpu"
  rounds: int = 5
  least: float = 0.1
  mixers: Mapping[str, tuple[str, str]] = dataclasses.field(
    default_factory=lambda: TIMED
  )


@dataclasses.dataclass(frozen=True)
class Scale:
  """How much of the design runs, and for how long.

  Attributes:
    steps: by data set.
    sides: of the images, pixels.
    seeds: of every cell.
    clock: None for pilots alone.
    rates: entry of rates.json; None: tuned in the study, cell by cell.
    pilot_share: of the steps, for pilots.
    model: of all runs; a scanned stack compiles in half the time.
    mixers: keys of TRAINED.
  """

  steps: Mapping[str, int]
  sides: tuple[int, ...]
  seeds: tuple[int, ...]
  clock: Clock | None
  rates: str | None = None
  pilot_share: float = 1.0
  batch_size: int = 32
  model: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"variant": "mu", "mlp_dim": 128, "scan": True}
  )
  mixers: tuple[str, ...] = tuple(TRAINED)


QUICK = {"fashion": 750, "strokes": 1500}
SMOKE = ("softmax", "performer", "scan")
SCALES = {
  "smoke": Scale(
    {"strokes": 10}, (12,), (0,),
    Clock(
      (8, 12, 16), 32, rounds=2, least=0.0,
      mixers={k: TIMED[k] for k in ("softmax, chunked", *SMOKE)},
    ),
    rates="quick", mixers=SMOKE,
  ),
  "quick": Scale(QUICK, (12,), (0, 1, 2), Clock(), rates="quick"),
  # Makes the rates of `quick`.
  "tune": Scale(QUICK, (12,), (), None, pilot_share=0.5),
  "cpu": Scale(
    {"fashion": 3000, "strokes": 4000}, (12, 16, 24), (0, 1, 2),
    Clock((16, 32, 48, 64, 96), rounds=9), pilot_share=0.5,
  ),
  "gpu": Scale(
    {"fashion": 4000, "strokes": 8000}, (12, 16, 24), (0, 1, 2, 3, 4),
    Clock(
      (32, 64, 96, 128, 192), 768, 12, dtype="bfloat16", device="gpu",
      rounds=9,
    ),
    pilot_share=0.5, batch_size=128,
    model={"width": 192, "depth": 6, "mlp_dim": 768, "num_heads": 6},
  ),
}  # fmt: skip


def config(
  scale: Scale, cell: tuple[str, int, str], *, lr: float, seed: int,
  steps: int, split: str,
) -> ConfigDict:  # fmt: skip
  """One run, scored on `split` at its end."""
  data, side, mixer = cell
  few = {"n": 4000} if data == "strokes" else {}
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps,
      "data": {**SETS[data], "size": side},
      "train": {
        "split": "train",
        "transform": "flip_lr" if data == "fashion" else "",
      },
      "model": {
        "family": "vit", **scale.model, "patch_size": PATCH,
        "position": "sincos2d", "mixer": TRAINED[mixer],
      },
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {
          "split": split, "every_percent": 100.0, "batch_size": 500,
          "data": few,
        }
      },
      "log": {"every_percent": 20.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def cells(scale: Scale) -> list[tuple[str, int, str]]:
  """(data set, pixels a side, mixer)."""
  return [*itertools.product(scale.steps, scale.sides, scale.mixers)]


def facts(cell: tuple[str, int, str]) -> dict[str, Any]:
  data, side, mixer = cell
  return {"data": data, "mixer": mixer, "tokens": (side // PATCH) ** 2}


def name(cell: tuple[str, int, str]) -> str:
  return "{data}-{mixer}-n{tokens}".format(**facts(cell))


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every cell where rates are tuned, then seeds of every cell."""
  scale = SCALES[scale_name]
  found = [] if scale.rates else pilot_runs(scale, done)
  if not all(run.name in done for run in found):
    return found
  rates = chosen(scale, done)
  for cell in cells(scale):
    lr = rates.get(name(cell))
    for seed in scale.seeds if lr is not None else ():
      steps = scale.steps[cell[0]]
      made = config(scale, cell, lr=lr, seed=seed, steps=steps, split="test")
      about = {**facts(cell), "lr": lr, "seed": seed, "steps": steps}
      about["arm"] = name(cell)
      found.append(Run(f"{name(cell)}-s{seed}", made, about, _cost(about)))
  return found


def pilot_runs(scale: Scale, done: Mapping[str, Any]) -> list[Run]:
  """The grid of each cell, one step further where the best is at an end."""
  found = []
  for cell in cells(scale):
    rates = tried(done, cell)
    best = arms.best_rate(done, **facts(cell))
    if best is not None and len(rates) < MOST:
      if best == rates[0]:
        rates.insert(0, best / 2)
      elif best == rates[-1]:
        rates.append(best * 2)
    for lr in rates:
      steps = round(scale.steps[cell[0]] * scale.pilot_share)
      made = config(scale, cell, lr=lr, seed=PILOT, steps=steps, split="val")
      about = {**facts(cell), "arm": "pilot", "lr": lr, "steps": steps}
      label = f"pilot-{name(cell)}-lr{lr:g}"
      found.append(Run(label, made, about, _cost(about), may_fail=True))
  return found


def tried(done: Mapping[str, Any], cell: tuple[str, int, str]) -> list[float]:
  """The first rates, and those of the cell's pilots."""
  label = f"pilot-{name(cell)}-"
  more = [r["law_variables"]["lr"] for k, r in done.items() if label in k]
  return sorted({*RATES, *more})


def _cost(about: Mapping[str, Any]) -> float:
  """Of a run, relative to the others; a scan on a CPU is several times more."""
  more = {"scan": 4.0, "ecoformer": 1.5}.get(about["mixer"], 1.0)
  return about["steps"] * (16 + about["tokens"]) * more


def chosen(scale: Scale, done: Mapping[str, Any]) -> dict[str, float]:
  """Rate by cell: committed, or the pilots' with the lowest loss on `val`."""
  if scale.rates is not None:
    return json.loads((HERE / "rates.json").read_text())[scale.rates]
  found = {
    name(cell): arms.best_rate(done, **facts(cell)) for cell in cells(scale)
  }
  return {key: lr for key, lr in found.items() if lr is not None}


def analyse(done: Mapping[str, Any], scale_name: str) -> dict[str, Any]:
  """Verdicts, laws, tables and figures; of pilots their rates."""
  scale = SCALES[scale_name]
  if scale.clock is None:
    tables = {name(cell): tried(done, cell) for cell in cells(scale)}
    return analysis.pilots(done, chosen(scale, done), tables)
  return analysis.analyse(
    done, clock.timed(HERE / "clock.py", scale.clock), scale_name
  )
