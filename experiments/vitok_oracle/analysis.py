"""What the runs of vitok_oracle show: residuals beside their bounds."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import Results, difference, finished, judged, spread
from vitscale.data import fields
from vitscale.laws.verdict import Verdict
from vitscale.metrics import oracle
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

SIZE, POWER = 32, 3.0
CONTROL, HALF, CLOSE = -0.02, 0.5, math.log(1.1)
Cell = tuple[int, int]  # floats of an image, pixels of a patch
Residuals = dict[Cell, dict[int, float]]  # by seed


# ------------------------------------------------------------------ readings


def residuals(done: Results, alone: bool) -> Residuals:
  """Share of the variance that is lost, by cell and seed."""
  _, std = fields.statistics()
  found: Residuals = {}
  for (_, seed), run in finished(done).items():
    facts = run["law_variables"]
    if facts["alone"] == alone:
      cell = found.setdefault((facts["floats"], facts["patch"]), {})
      cell[seed] = run["metrics"]["eval/scored/mse"] / std**2
  return dict(sorted(found.items()))


def bounds(cell: Cell) -> tuple[float, float]:
  """What global PCA loses, and what PCA of patches loses."""
  floats, patch = cell
  spectrum = fields.spectrum(SIZE, POWER)
  return (
    oracle.global_residual(spectrum, floats),
    oracle.patch_residual(spectrum, patch, floats),
  )


def logs(cell: dict[int, float], against: float) -> dict[int, float]:
  """seed -> ln(residual / a bound)."""
  return {seed: math.log(r / against) for seed, r in cell.items()}


def name(cell: Cell) -> str:
  return f"E {cell[0]}, p {cell[1]}"


# ------------------------------------------------------------------ verdicts


def verdicts(whole: Residuals, alone: Residuals) -> list[Verdict]:
  """The README's claims."""

  def each(found: Residuals, bound: int, bar: float):
    return {
      name(cell): (list(logs(r, bounds(cell)[bound]).values()), bar)
      for cell, r in found.items()
    }

  shares, best = {}, {}
  for floats in dict.fromkeys(floats for floats, _ in whole):
    mine = {cell: r for cell, r in whole.items() if cell[0] == floats}
    small, large = min(mine), max(mine)
    apart = math.log(bounds(small)[1] / bounds(large)[1])
    of = lambda cell: {s: math.log(r) for s, r in whole[cell].items()}
    gaps = difference(of(small), of(large))
    if apart:
      shares[f"E {floats}"] = ([abs(g) / apart for g in gaps], HALF)
    closest = min(mine, key=lambda cell: np.mean(list(mine[cell].values())))
    near = logs(mine[closest], bounds(closest)[0])
    best[name(closest)] = (list(near.values()), CLOSE)
  none = {"": ([], 0.0)}
  return [
    judged(
      "attention crosses patches",
      "ln(residual / per-patch PCA) below 0 in every cell",
      each(whole, 1, 0.0) or none,
      direction="below",
      control="a model of single patches, below",
    ),
    judged(
      "global PCA bounds it",
      "ln(residual / global PCA) above 0 in every cell",
      each(whole, 0, 0.0) or none,
    ),
    judged(
      "control: alone, a patch stays at its own PCA",
      f"ln(residual / per-patch PCA) above {CONTROL} in every cell",
      each(alone, 1, CONTROL) or none,
    ),
    judged(
      "E decides, not the patch",
      f"the gap between patches below {HALF} of the gap of their bounds",
      shares or none,
      direction="below",
    ),
    judged(
      "the best patch comes near the best linear code",
      "ln(residual / global PCA) below ln 1.1 at each E",
      best or none,
      direction="below",
    ),
  ]


# -------------------------------------------------------------------- report


def table(done: Results, whole: Residuals, alone: Residuals) -> Table:
  """Residuals beside their bounds."""
  rates = {
    (f["floats"], f["patch"], f["alone"]): f["lr"]
    for f in (run["law_variables"] for run in finished(done).values())
  }
  mean = lambda cell, found: (
    round(float(np.mean(list(found[cell].values()))), 4)
    if cell in found
    else None
  )
  rows = [
    {
      "E": cell[0],
      "patch": cell[1],
      "tokens": (SIZE // cell[1]) ** 2,
      "global PCA": round(bounds(cell)[0], 4),
      "ViTok": mean(cell, whole),
      "per-patch PCA": round(bounds(cell)[1], 4),
      "alone": mean(cell, alone),
      "rate": f"{rates[(*cell, False)]:g}",
    }
    for cell in whole
  ]
  return Table("Share of the variance that is lost, means over seeds", rows)


def published(expected: Mapping[str, Any]) -> Table:
  """ViTok's sweep, for comparison of direction only."""
  return Table("Published: ImageNet, S-B", expected["sweep"], None,
               expected["source"])  # fmt: skip


def figures(whole: Residuals, alone: Residuals) -> list[Figure]:
  """Residual against E, a panel for each patch."""
  panels = []
  for patch in sorted({patch for _, patch in whole}):
    floats = [e for e, p in whole if p == patch]
    mine = [bounds((e, patch)) for e in floats]
    marks = [
      Line("global PCA", floats, [low for low, _ in mine]),
      Line("per-patch PCA", floats, [high for _, high in mine]),
    ]
    for label, found in (("ViTok", whole), ("alone", alone)):
      if all((e, patch) in found for e in floats):
        cells = [list(found[e, patch].values()) for e in floats]
        marks.append(Points(label, floats, *spread(cells)))
    axes = Axis("E, floats of an image", "log"), Axis("variance lost", "log")
    panels.append(Panel(*axes, marks, f"patch {patch}"))
  return [
    Figure("bounds", "Between two closed forms", panels,
           "Alone sees one patch at a time. Intervals are 95 % over seeds.",
           share_y=True)
  ] if panels else []  # fmt: skip


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  whole, alone = residuals(done, False), residuals(done, True)
  expected = json.loads(Path(__file__).with_name("expected.json").read_text())
  return {
    "title": "A tokenizer between two closed forms",
    "verdicts": verdicts(whole, alone),
    "tables": [table(done, whole, alone), published(expected)],
    "figures": figures(whole, alone),
  }
