"""Do the floats of a latent say how well an image comes back? See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: arms, scales, rates, runs. The judgement is in
analysis.py.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate as best_of
from vitscale.core.config import load_module
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.models import vitok
from vitscale.study import Run

HERE = Path(__file__).parent
analysis = load_module(HERE / "analysis.py")
yardsticks = analysis.yardsticks

PILOT = 1000  # seed of pilots, disjoint from every study's
SHUFFLE = 7  # seed of the order of the pixels, one for all runs
LINEAR = 10_000  # training images that PCA is fitted to, at most


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large, how long, how often.

  Attributes:
    steps: of every run; pilots take half.
    seeds: of every cell.
    patches: pixels a side.
    floats: E, of an image.
    middle: E at which rates are tuned and where the grid is.
    grid_seeds: of every pair of encoder and decoder.
    grid_patch: of the grid.
    shuffled: the patches and the floats of the control.
    rates: tried by pilots; a single one is taken as it is.
    data: of all runs.
    size: pixels a side of an image.
    batch_size: images.
    width, heads: of encoder and decoder.
    depths: layers of encoder and decoder of the cells.
    grid_depths: small and large, of both in the grid.
    dtype: compute type.
  """

  steps: int
  seeds: tuple[int, ...]
  patches: tuple[int, ...] = (4, 8, 12)
  floats: tuple[int, ...] = (36, 72, 144, 288)
  middle: int = 144
  grid_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
  grid_patch: int = 8
  shuffled: tuple[tuple[int, ...], tuple[int, ...]] = ((8, 12), (72, 288))
  rates: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3)
  data: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {"source": "fashion_mnist", "size": 24}
  )
  size: int = 24
  batch_size: int = 32
  width: int = 96
  heads: int = 2
  depths: tuple[int, int] = (2, 4)
  grid_depths: tuple[int, int] = (1, 4)
  dtype: str = "float32"


SCALES = {
  "smoke": Scale(
    20, (0,), patches=(8, 12), floats=(36, 144), grid_seeds=(0,),
    shuffled=((8,), (144,)), rates=(3e-3,), depths=(1, 1), grid_depths=(1, 2),
  ),
  "quick": Scale(
    600, (0, 1, 2), patches=(8, 12), floats=(36, 108, 288), middle=108,
    grid_seeds=(0, 1, 2), shuffled=((8, 12), (108,)),
  ),
  "cpu": Scale(1500, (0, 1, 2)),
  # Fields of 64 px, made on the fly; unmeasured.
  "gpu": Scale(
    2000, (0, 1, 2), patches=(4, 8, 16), floats=(256, 512, 1024, 2048),
    middle=1024, shuffled=((8, 16), (512, 2048)), grid_seeds=(0, 1, 2),
    rates=(2.5e-4, 5e-4, 1e-3),
    data={"source": "fields", "size": 64, "n": 20_000}, size=64,
    batch_size=256, width=384, heads=6, depths=(6, 12), grid_depths=(3, 12),
    dtype="bfloat16",
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Arm:
  """One model.

  Attributes:
    family: arms that share a tuned rate.
    patch, floats: p and E.
    depths: layers of encoder and decoder.
    shuffled: pixels of every image in one random order.
    kind: "cell", "grid" or "shuffled".
  """

  family: str
  patch: int
  floats: int
  depths: tuple[int, int]
  kind: str

  @property
  def name(self) -> str:
    floats = "" if self.kind == "grid" else f"-e{self.floats}"
    return f"{self.family}{floats}"

  def tokens(self, scale: Scale) -> int:
    return (scale.size // self.patch) ** 2


def arms(scale: Scale) -> list[Arm]:
  """Cells, shuffled cells, pairs of encoder and decoder."""
  cells = [
    Arm(f"p{p}", p, e, scale.depths, "cell")
    for p in scale.patches
    for e in scale.floats
  ]
  shuffled = [
    Arm(f"shuffled-p{p}", p, e, scale.depths, "shuffled")
    for p, e in itertools.product(*scale.shuffled)
  ]
  grid = [
    Arm(f"grid-{a}-{b}", scale.grid_patch, scale.middle, (a, b), "grid")
    for a, b in itertools.product(scale.grid_depths, repeat=2)
  ]
  return cells + shuffled + grid


def model(scale: Scale, arm: Arm) -> dict[str, Any]:
  """Options of `vitok.Model`, and its family.

  Raises:
    UserError: a token can't have its share of E, or not carry it.
  """
  code, rest = divmod(arm.floats, arm.tokens(scale))
  if rest or code > scale.width:
    tokens = arm.tokens(scale)
    raise UserError(f"{arm.name}: E {arm.floats} does not suit {tokens} tokens")
  sizes = {
    f"{half}_{field}": value
    for half, depth in zip(("encoder", "decoder"), arm.depths)
    for field, value in {
      "width": scale.width, "depth": depth,
      "mlp_dim": 8 * scale.width // 3, "num_heads": scale.heads,
    }.items()
  }  # fmt: skip
  return {
    "family": "vitok", "channels": 1, "patch_size": arm.patch,
    "bottleneck": f"plain({code})", "dtype": scale.dtype, **sizes,
  }  # fmt: skip


def config(
  scale: Scale, arm: Arm, *, lr: float, seed: int, split: str, steps: int
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  data = dict(scale.data)
  if arm.kind == "shuffled":
    data["permute_seed"] = SHUFFLE
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps,
      "data": data,
      "train": {"split": "train"},
      "model": model(scale, arm),
      "task": {"name": "reconstruct", "weights": {"l2": 1.0}},
      "optim": {
        "name": "adamw", "lr": lr, "b2": 0.95, "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 5.0},
      },
      "evals": {
        "scored": {
          "name": "reconstruction", "split": split, "every_percent": 100.0,
          "batch_size": 500, "rfd": split == "test",
          **({"data": {"n": 4000}} if "n" in data else {}),
        },
      },
      "log": {"every_percent": 50.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def cost(scale: Scale, arm: Arm) -> float:
  """Expected seconds of a step, up to a factor."""
  options = {k: v for k, v in model(scale, arm).items() if k != "family"}
  return 1e6 + vitok.flops_per_image(options, (scale.size, scale.size, 1))


def families(scale: Scale) -> dict[str, Arm]:
  """What is tuned -> the arm that is: the largest E up to `middle`."""
  found: dict[str, Arm] = {}
  for arm in arms(scale):
    if arm.family not in found or arm.floats <= scale.middle:
      found[arm.family] = arm
  return found


def best_rate(
  scale: Scale, done: Mapping[str, Any], family: str
) -> float | None:
  """The pilots' rate with the lowest error; None before they ran."""
  if len(scale.rates) == 1:
    return scale.rates[0]
  return best_of(done, "eval/scored/mse", family=family)


def pilots(scale: Scale) -> list[Run]:
  """Of half the steps, on `val`, every family at every rate."""
  steps = scale.steps // 2
  return [
    Run(
      f"pilot-{family}-{lr:g}",
      config(scale, arm, lr=lr, seed=PILOT, split="val", steps=steps),
      {"arm": "pilot", "family": family, "lr": lr},
      cost=cost(scale, arm) / 2,
      may_fail=True,
    )
    for family, arm in families(scale).items()
    for lr in scale.rates
    if len(scale.rates) > 1
  ]


def runs(scale_name: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of every family, then every arm at the rate they chose."""
  scale = SCALES[scale_name]
  named = pilots(scale)
  rates = {f: best_rate(scale, done, f) for f in families(scale)}
  if None in rates.values():
    return named
  for arm in arms(scale):
    lr = rates[arm.family]
    for seed in scale.grid_seeds if arm.kind == "grid" else scale.seeds:
      made = config(
        scale, arm, lr=lr, seed=seed, split="test", steps=scale.steps
      )
      facts = {
        "arm": arm.name, "seed": seed, "lr": lr, "kind": arm.kind,
        "patch": arm.patch, "floats": arm.floats, "encoder": arm.depths[0],
        "decoder": arm.depths[1],
      }  # fmt: skip
      named.append(Run(f"{arm.name}-s{seed}", made, facts, cost(scale, arm)))
  return named


def linear(scale: Scale) -> dict[tuple[int, int], float]:
  """(patch, E) -> PSNR of the test images as PCA of patches gives them back."""
  read = lambda split: yardsticks.pixels(
    sources.make(scale.data["source"], split=split, **_sized(scale, split))
  )
  train, test = read("train"), read("test")
  return {
    (p, e): yardsticks.linear_psnr(train, test, p, e)
    for p in (*scale.patches, scale.size)
    for e in scale.floats
  }


def _sized(scale: Scale, split: str) -> dict[str, Any]:
  data = {k: v for k, v in scale.data.items() if k != "source"}
  if "n" in data:
    data["n"] = LINEAR if split == "train" else 4000
  return data


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results, linear(SCALES[scale]))
