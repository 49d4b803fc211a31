"""Are Chinchilla's published fits found, exactly and quickly? See README.md.

No runs: the points were read off a figure by the replication. Thresholds are
in the README and were written before the measurement.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.core.config import load_module
from vitscale.study import Run
from vitscale.study_data import Data

HERE = Path(__file__).parent
oracle = load_module(HERE / "oracle.py")
race = load_module(HERE / "race.py")
claims = load_module(HERE / "claims.py")
show = load_module(HERE / "show.py")
Entry = race.Entry

POINTS = "epoch_chinchilla_svg_extracted_data.csv"
REPEATED = "datablations_points_cell26.csv"
DATA = Data(
  files=(POINTS,),
  source="epoch-research/analyzing-chinchilla, data/svg_extracted_data.csv",
  also=(REPEATED,),
)


@dataclasses.dataclass(frozen=True)
class Scale:
  """How much is drawn and timed.

  Attributes:
    draws: of the bootstrap.
    rounds: of the race.
    resamples, starts: how many of SciPy's 4000 draws and 4500 starts are
      timed; seconds are scaled.
    grid: starts of the package `chinchilla`.
  """

  draws: int
  rounds: int
  resamples: int
  starts: int
  grid: int
  times: int = 20


SCALES = {
  "smoke": Scale(100, 1, 10, 10, 32, times=2),
  "cpu": Scale(4000, 5, 200, 90, 1024),
}


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """None: the points are public."""
  del scale, done
  return []


def entries(scale: Scale) -> list[Entry]:
  """Who races, and at what."""
  bfgs = "analytic gradient, from Hoffmann et al.'s parameters"
  one, each = {"name": "SciPy BFGS"}, f"{scale.resamples} timed, scaled"
  grid = f"BFGS, {scale.starts} of 4500 starts timed, scaled"
  return [
    Entry("vitscale", "ours.py", "fit", times=scale.times,
          note="8 starts, the whole call"),
    Entry("vitscale", "ours.py", "draws", "draws", scale.draws, scale.draws,
          note="the whole call"),
    Entry(**one, file="with_scipy.py", job="fit", times=scale.times, note=bfgs),
    Entry(**one, file="with_scipy.py", job="draws", kind="draws",
          size=scale.resamples, of=scale.draws, note=f"{bfgs}, {each}"),
    Entry("SciPy grid", "with_scipy.py", "grid", size=scale.starts, of=4500,
          rounds=2, note=grid),
    Entry("SciPy curve_fit", "with_scipy.py", "curve_fit",
          note="Huber's loss, from Hoffmann et al.'s parameters"),
    Entry("chinchilla", "with_chinchilla.py", "fit", size=scale.grid,
          of=scale.grid, rounds=1, own=True, note=f"{scale.grid} starts"),
  ]  # fmt: skip


def analyse(
  results: Mapping[str, Any], scale: str, data: Mapping[str, Path]
) -> dict[str, Any]:
  """Optima, bootstrap, tests, allocation, race; claims, tables, figures."""
  del results
  chosen = SCALES[scale]
  expected = json.loads((HERE / "expected.json").read_text())
  epoch, n = expected["epoch"], expected["points"]
  points = oracle.read(data[POINTS])
  fits = oracle.fits(points, chosen.draws, epoch["seed"])
  lad, huber = fits["lad"], fits[oracle.HUBER]
  theirs = oracle.hoffmann(expected)
  compute = expected["chinchilla"]["compute"]
  best = laws.allocate(huber, compute)
  tests = (
    oracle.chi2(huber, lad.params, theirs["Hoffmann"]),
    oracle.likelihood_ratio(lad.params, theirs["Hoffmann"], points),
  )
  repeated = None
  if REPEATED in data:
    repeated = oracle.muennighoff(data[REPEATED], expected["muennighoff"])
  say = lambda text: print(text, file=sys.stderr, flush=True)
  raced = race.race(entries(chosen), points, chosen.rounds, say)
  lines = judged(raced, points)
  return {
    "title": f"Chinchilla's fits, exactly and quickly ({scale})",
    "text": show.TEXT,
    "laws": [{**f.card(), "name": f"chinchilla, {k}"} for k, f in fits.items()],
    "verdicts": [
      *(claims.optimum(f, expected["optima"][k], n) for k, f in fits.items()),
      claims.replication(huber, epoch, n),
      claims.rejected(*tests, epoch),
      claims.twenty(
        best,
        oracle.ratio(theirs["Hoffmann"], compute),
        expected["chinchilla"]["tokens a parameter"],
        compute,
      ),
      claims.repeated(repeated, expected["muennighoff"]),
      *speed(lines, chosen),
    ],
    "tables": [
      show.optima(fits, expected),
      show.intervals(huber, epoch),
      show.sets(fits, theirs, points, compute, oracle),
      show.race(lines),
    ],
    "figures": [
      show.parameters(huber, lad, theirs, epoch),
      show.valley(huber, theirs["Hoffmann"], compute, oracle.ratio),
      show.residuals(huber, points),
    ],
    "files": {"race.json": [{**x, "entry": vars(x["entry"])} for x in lines]},
  }


def judged(raced: list[dict[str, Any]], points: Mapping[str, Any]) -> list:
  """The race's lines with `excess`, relative to the lowest objective seen.

  For draws, `better` is the share of the peer's draws in which ours ends at
  most as high (1e-9).
  """
  lowest = min(
    oracle.total(x["found"]["params"], points)
    for x in raced
    if "found" in x and x["entry"].kind == "fit"
  )
  ours = next(x for x in raced if x["entry"].kind == "draws")
  lines = []
  for x in raced:
    line = {k: v for k, v in x.items() if k != "found"}
    if "found" in x and x["entry"].kind == "fit":
      found = x["found"]["params"]
      line["params"] = found
      line["excess"] = oracle.total(found, points) / lowest - 1
    if "found" in x and "found" in ours and x["entry"].kind == "draws":
      line["better"] = share(
        ours["found"]["draws"], x["found"]["draws"], points
      )
    lines.append(line)
  return lines


def share(
  ours: Mapping[str, Any], theirs: Mapping[str, Any], points: Mapping[str, Any]
) -> float:
  """Of the draws that both kept, how many end no higher with us."""
  n = len(points["loss"])
  old = np.random.RandomState(42)
  count = min(len(ours["A"]), len(theirs["A"]))
  wins = 0
  for i in range(count):
    counts = np.bincount(old.choice(n, n), minlength=n)
    here, there = (
      oracle.total({k: v[i] for k, v in d.items()}, points, counts=counts)
      for d in (ours, theirs)
    )
    wins += here <= there * (1 + 1e-9)
  return wins / count


def speed(lines: list[dict[str, Any]], scale: Scale) -> list[laws.Verdict]:
  """The bars, and two peers."""
  at = {(x["entry"].name, x["entry"].job): x for x in lines}
  fit, draws = at["vitscale", "fit"], at["vitscale", "draws"]
  package, bfgs = at["chinchilla", "fit"], at["SciPy BFGS", "draws"]
  inside = lambda line, key: [i[key] for i in line["inside"]]
  here, there = (x.get("excess", np.inf) for x in (fit, package))
  better = bfgs.get("better", 0.0)
  whole = scale == SCALES["cpu"]
  return [
    claims.quick(inside(fit, "fit"), inside(draws, "bootstrap"), scale.draws),
    claims.faster(
      "the package chinchilla", package, fit, 100,
      (here <= there + 1e-9, "an objective that is no higher",
       f"objective above the lowest seen: theirs {there:.1e}, ours {here:.1e}"),
      whole=whole,
    ),
    claims.faster(
      "SciPy's BFGS", bfgs, draws, 5,
      (better >= 0.99, "ours ends no higher in 99 % of the draws",
       f"ours ends no higher in {100 * better:.1f} % of {scale.resamples}"),
      whole=whole,
    ),
  ]  # fmt: skip
