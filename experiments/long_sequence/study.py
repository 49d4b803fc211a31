"""What do more tokens cost, and what brings it down? See README.md.

Nothing trains through the study's runs: contestants must have the machine to
themselves, so `analyse` times them in turns (vitscale/race). The judgement is
in analysis.py.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitscale.core.config import load_module
from vitscale.race import contest
from vitscale.race.contest import Case
from vitscale.study import Run

analysis = load_module(Path(__file__).with_name("analysis.py"))

# Arm -> what it changes.
ARMS: dict[str, dict[str, Any]] = {
  "reference": {"attention": "reference"},
  "auto": {},
  "chunked": {"attention": "chunked"},
  "save_attention": {"attention": "chunked", "remat": "save_attention"},
  "full": {"attention": "chunked", "remat": "full"},
}
TIMM = "timm"


@dataclasses.dataclass(frozen=True)
class Scale:
  """Cases by number of tokens: which arms run there, and how often.

  Attributes:
    cases: in order of tokens.
    arms: run at every case, "timm" too.
    rounds: turns of each.
    last: a case for one arm alone, run once, for its memory.
  """

  cases: tuple[Case, ...]
  arms: Mapping[str, Mapping[str, Any]]
  rounds: int
  last: tuple[str, Case] | None = None


def pixels(side: int, *, width: int, depth: int, batch: int) -> Case:
  """side x side images of one channel, a token for each pixel."""
  return Case(
    str(side * side), side, 1, width, depth, 1, batch, channels=1, classes=10,
    steps=1,
  )  # fmt: skip


def base(patch: int, batch: int, *, steps: int, target: float = 1.0) -> Case:
  """ViT-B at 224 px; timm compiles, or recomputes where it must.

  The target is that of heads of 64, as timm has; see `analysis.WIDE`.
  """
  tokens = (224 // patch) ** 2
  return Case(
    str(tokens), 224, patch, 768, 12, 12, batch, dtype="bfloat16",
    device="gpu", steps=steps, target=target, recompute=tokens >= 12_544,
  )  # fmt: skip


# Heads of 128 in place of 64: half of the exponentials for equal products.
WIDE = {"heads": 6}
GPU_ARMS = {
  "auto": {},
  "auto, heads of 128": WIDE,
  "save_attention": {"remat": "save_attention"},
  "save_attention, heads of 128": {"remat": "save_attention", **WIDE},
  "full": {"remat": "full"},
}
_SMALL = {"width": 64, "depth": 2}
SCALES = {
  "smoke": Scale(
    tuple(pixels(s, width=16, depth=1, batch=2) for s in (8, 12, 16)),
    {k: ARMS[k] for k in ("reference", "chunked", "save_attention", "full")},
    rounds=2,
  ),
  "cpu": Scale(
    (
      pixels(14, batch=16, **_SMALL), pixels(28, batch=4, **_SMALL),
      pixels(56, batch=1, **_SMALL), pixels(112, batch=1, **_SMALL),
    ),
    ARMS,
    rounds=5,
    last=("save_attention", pixels(224, batch=1, **_SMALL)),
  ),
  "gpu": Scale(
    (
      base(16, 256, steps=20), base(8, 64, steps=10),
      base(4, 16, steps=10, target=1.15), base(2, 4, steps=3),
      base(1, 2, steps=1, target=1.35),
    ),
    GPU_ARMS,
    rounds=5,
  ),
}  # fmt: skip


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """None: the contest is part of the analysis."""
  del scale, done
  return []


def analyse(results: Mapping[str, Any], scale: str) -> dict[str, Any]:
  """Times every case, then judges."""
  del results
  chosen, found = SCALES[scale], {}
  say = lambda text: print(text, file=sys.stderr, flush=True)
  missing = contest.missing_peers()
  for case in chosen.cases:
    entries = {
      arm: ("vitscale", dataclasses.replace(case, **change))
      for arm, change in chosen.arms.items()
    }
    if not missing:
      entries[TIMM] = (TIMM, case)
    times, errors = contest.contest(entries, chosen.rounds, say)
    found[int(case.name)] = analysis.Seen(case, times, errors)
  if chosen.last is not None:
    arm, case = chosen.last
    entry = ("vitscale", dataclasses.replace(case, **chosen.arms[arm]))
    times, errors = contest.contest({arm: entry}, 1, say)
    found[int(case.name)] = analysis.Seen(case, times, errors)
  return analysis.analyse(found, scale, missing)
