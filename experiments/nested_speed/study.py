"""Does a nested step cost what its parts cost? See README.md.

Contestants must have the machine to themselves, so `analyse` has them timed
in a process of its own (clock.py) and judges.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.laws import Verdict
from vitscale.race import clock
from vitscale.report.figures import Axis, Figure, Level, Panel, Points
from vitscale.report.page import Table
from vitscale.study import Run

SIZES = ("S", "M", "L", "XL")
BAR = 1.1  # of times
MOST = 2.66  # XL steps in FLOPs


@dataclasses.dataclass(frozen=True)
class Case:
  """A model, how much of it, and how often it is timed."""

  width: int = 768
  depth: int = 12
  heads: int = 12
  size: int = 224
  patch: int = 16
  batch: int = 4
  dtype: str = "float32"
  device: str = "cpu"  # or "gpu"
  steps: int = 1
  rounds: int = 6


SCALES = {
  "smoke": Case(width=64, depth=2, heads=2, size=32, patch=8, batch=16,
                steps=4, rounds=3),
  "cpu": Case(),
  "gpu": Case(batch=128, dtype="bfloat16", device="gpu", steps=10, rounds=9),
}  # fmt: skip


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """None: the contest is part of the analysis."""
  del scale, done
  return []


def ratios(
  seconds: Mapping[str, Sequence[float]], over: str, under: Sequence[str]
) -> np.ndarray:
  """Round by round: one contestant's time over the sum of others'."""
  return np.array(seconds[over]) / sum(np.array(seconds[n]) for n in under)


def judged(claim: str, each: np.ndarray, bar: float) -> Verdict:
  """Whether the geometric mean of ratios is below `bar`."""
  mean = laws.difference(np.log(each), np.zeros_like(each))
  low, high = (float(np.exp(x)) for x in mean.ci)
  return Verdict(
    claim,
    laws.decide((-high, -low), -bar),
    f"95 % interval over rounds below {bar:g}",
    f"{np.exp(mean.mean):.3f} [{low:.3f}, {high:.3f}], rounds from"
    f" {each.min():.3f} to {each.max():.3f}",
    "",
    float(np.exp(mean.mean)),
    (low, high),
  )


def verdicts(found: Mapping[str, Any]) -> list[Verdict]:
  """The README's claims."""
  seconds, flops = found["seconds"], found["flops"]
  share = flops["joint"] / flops["plain XL"]
  return [
    judged(
      "a joint step takes at most 1.1 times the sum of its parts",
      ratios(seconds, "joint", [f"plain {size}" for size in SIZES]),
      BAR,
    ),
    judged(
      "gradients of a sampled S take at most 1.1 times those of a plain S",
      ratios(seconds, "sampled S, gradient", ["plain S, gradient"]),
      BAR,
    ),
    Verdict(
      "a joint step counts at most 2.66 XL steps",
      "supported" if share <= MOST else "not supported",
      "FLOPs of the traced steps; masks count 4",
      f"{share:.3f}",
    ),
  ]


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row per size: what a step takes, and the optimizer's part of it."""
  middle = {k: float(np.median(v)) for k, v in found["seconds"].items()}
  out = []
  for size in SIZES:
    row: dict[str, Any] = {"size": size}
    for kind in ("plain", "sampled"):
      step = middle[f"{kind} {size}"]
      gradient = middle[f"{kind} {size}, gradient"]
      row[f"{kind}, ms"] = round(1e3 * step, 1)
      row[f"{kind} gradient, ms"] = round(1e3 * gradient, 1)
      row[f"{kind} optimizer, share"] = round(1 - gradient / step, 3)
    out.append(row)
  return out


def analyse(results: Mapping[str, Any], scale: str) -> dict[str, Any]:
  """Times everything and judges."""
  del results
  found = clock.timed(Path(__file__).with_name("clock.py"), SCALES[scale])
  seconds = found["seconds"]
  marks: list[Any] = [Level(1.0, "parts")]
  plain = [f"plain {size}" for size in SIZES]
  each = ratios(seconds, "joint", plain)
  marks.append(Points("joint / sum of parts", [0] * len(each), each))
  for at, size in enumerate(SIZES, 1):
    each = ratios(seconds, f"sampled {size}", [f"plain {size}"])
    marks.append(Points(f"sampled {size} / plain", [at] * len(each), each))
  names = ["joint", *SIZES]
  joint = float(np.median(seconds["joint"]))
  return {
    "title": f"What a nested step costs ({scale})",
    "text": f"{found['device']}, jax {found['jax']}; a joint step takes"
    f" {1e3 * joint:.1f} ms.",
    "verdicts": verdicts(found),
    "tables": [Table("Median step times", rows(found))],
    "figures": [
      Figure(
        "ratios", "Times of nested steps over plain ones",
        [Panel(Axis("", "category", names=names), Axis("ratio"), marks)],
      )
    ],
    "files": {"times.json": found},
  }  # fmt: skip
