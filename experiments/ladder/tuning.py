"""Learning rates of the ladder: pilots, and one rule through their optima.

A table of best rates would carry the noise of single pilots into the ladder,
and the largest run needs a rate where no pilot was. So the optimum of each
pilot cell is the vertex of a parabola in ln rate, and a plane goes through
them:

    rate = k (32 / width)^x (65536 / images)^y

A run of more images than any pilot takes the rate of the longest pilot.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale.report.page import Table

WIDTH, IMAGES = 32, 65_536
# (images, width) -> {learning rate: mean ln loss}
Losses = Mapping[tuple[int, int], Mapping[float, float]]


def rate(rule: Mapping[str, float], images: float, width: int) -> float:
  """The rule's learning rate, to three digits."""
  images = min(images, rule["longest"])
  lr = rule["k"] * (WIDTH / width) ** rule["x"] * (IMAGES / images) ** rule["y"]
  return float(f"{lr:.3g}")


def vertex(losses: Mapping[float, float]) -> tuple[float, bool]:
  """(best rate, whether both neighbours were tried).

  The vertex of the parabola through the best rate and its neighbours, in logs;
  at an edge the edge itself.
  """
  rates = sorted(r for r, v in losses.items() if math.isfinite(v))
  best = min(rates, key=lambda r: losses[r])
  i = rates.index(best)
  if not 0 < i < len(rates) - 1:
    return best, False
  x = np.log(rates[i - 1 : i + 2])
  c2, c1, _ = np.polyfit(x - x[1], [losses[r] for r in rates[i - 1 : i + 2]], 2)
  move = -c1 / (2 * c2) if c2 > 0 else 0.0
  return float(np.exp(x[1] + np.clip(move, x[0] - x[1], x[2] - x[1]))), True


def rule(losses: Losses) -> dict[str, float]:
  """k, x, y by least squares in logs over the cells' best rates; `longest`."""
  cells = [cell for cell, found in losses.items() if found]
  images, width = np.array(cells, float).T
  best = np.log([vertex(losses[cell])[0] for cell in cells])
  basis = np.stack(
    [np.ones(len(cells)), np.log(WIDTH / width), np.log(IMAGES / images)], 1
  )
  ln_k, x, y = np.linalg.lstsq(basis, best, rcond=None)[0]
  found = {"k": math.exp(ln_k), "x": x, "y": y}
  digits = {name: float(f"{value:.3g}") for name, value in found.items()}
  return {**digits, "longest": float(images.max())}


def report(losses: Losses, scale: str) -> dict[str, Any]:
  """The study's analysis of a scale that only tunes."""
  found = rule(losses)
  cells, tried = [], []
  for (images, width), cell in losses.items():
    best, inside = vertex(cell)
    cells.append({
      "width": width, "images": images, "best rate": f"{best:.3g}",
      "bracketed": "yes" if inside else "no",
      "rule": f"{rate(found, images, width):g}",
    })  # fmt: skip
    tried += [
      {"width": width, "images": images, "rate": f"{lr:g}",
       "test loss": f"{math.exp(v):.4f}"}
      for lr, v in cell.items()
    ]  # fmt: skip
  return {
    "title": f"Learning rates ({scale})",
    "text": f"rate = {found['k']:g} (32/width)^{found['x']:g}"
    f" (65536/images)^{found['y']:g}",
    "laws": [],
    "verdicts": [],
    "tables": [Table("Cells", cells), Table("Pilots", tried)],
    "files": {"rates.json": {"rule": found, "cells": cells}},
  }
