"""What the runs of latent_generation show: parabolas, gaps, pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vitscale import sample, tokenizer, workdir
from vitscale.arms import (
  Results,
  difference,
  finished,
  interval,
  judged,
  spread,
)
from vitscale.core.errors import UserError
from vitscale.laws.verdict import Verdict, within
from vitscale.report.figures import Axis, Band, Figure, Line, Panel
from vitscale.report.page import Section, Table
from vitscale.report.pictures import Picture, sheet

BAR_DB, BAR_FLOOR = 1.0, 6.0
ARMS = ("faithful", "controlled")
FD = "fd_random_conv"

Cell = dict[int, float]  # seed -> log2 FD


def scores(
  done: Results, arm: str, code: int, split: str, guidance: float
) -> Cell:
  """log2 FD of a cell, by seed."""
  return {
    seed: math.log2(
      max(run["metrics"][f"eval/{split}_{guidance:g}/{FD}"], 1e-9)
    )
    for (_, seed), run in cell(done, arm, code).items()
  }


def cell(done: Results, arm: str, code: int) -> dict[Any, Mapping[str, Any]]:
  """(arm, seed) -> run of one cell."""
  mine = {
    name: run
    for name, run in done.items()
    if run["law_variables"].get("code") == code
    and run["law_variables"].get("arm") == arm
  }
  return finished(mine)


def tuned(
  done: Results, arm: str, code: int, guidance: Sequence[float]
) -> float | None:
  """The guidance of a cell with the lowest mean on `val`."""
  found = {
    w: np.mean(list(mine.values()))
    for w in guidance
    if (mine := scores(done, arm, code, "val", w))
  }
  return min(found, key=found.__getitem__) if found else None


def at_best(
  done: Results, arm: str, codes: Sequence[int], guidance: Sequence[float]
) -> dict[int, Cell]:
  """c -> log2 FD on `test` at the guidance that `val` chose, by seed."""
  found = {}
  for code in codes:
    w = tuned(done, arm, code, guidance)
    if w is not None:
      found[code] = scores(done, arm, code, "test", w)
  return found


def curve(cells: Mapping[int, Cell], degree: int) -> dict[int, np.ndarray]:
  """seed -> coefficients of a polynomial in log2 c, highest first."""
  seeds = set.intersection(*map(set, cells.values())) if cells else set()
  if len(cells) <= degree:
    return {}
  x = np.log2(list(cells))
  return {
    seed: np.polyfit(x, [mine[seed] for mine in cells.values()], degree)
    for seed in sorted(seeds)
  }


def optimum(arm: str, cells: Mapping[int, Cell], text: str) -> Verdict:
  """Claims 1 and 2."""
  bar = "curvature above 0 and vertex within the range of c"
  claim = f"{arm}: {text}"
  fits = list(curve(cells, 2).values())
  bent = [float(fit[0]) for fit in fits]
  verdict = judged(claim, bar, {"curvature": (bent, 0.0)})
  if verdict.verdict != "supported":
    return verdict
  vertex = [float(-fit[1] / (2 * fit[0])) for fit in fits]
  ci, ends = interval(vertex), (math.log2(min(cells)), math.log2(max(cells)))
  middle, half = sum(ends) / 2, (ends[1] - ends[0]) / 2
  shifted = ci and (ci[0] - middle, ci[1] - middle)
  said = (
    f"{verdict.measured}; vertex c = {2 ** np.mean(vertex):.1f}"
    f" [{2 ** ci[0]:.1f}, {2 ** ci[1]:.1f}]"
  )
  return Verdict(claim, within(shifted, half), bar, said)


def verdicts(
  done: Results, codes: Sequence[int], guidance: Sequence[float]
) -> list[Verdict]:
  best = {arm: at_best(done, arm, codes, guidance) for arm in ARMS}
  last, middle = codes[-1], codes[len(codes) // 2]
  gap = {
    arm: minus(cells.get(last, {}), cells.get(middle, {}))
    for arm, cells in best.items()
  }
  slopes = [
    {
      seed: float(fit[0])
      for seed, fit in curve(
        {c: scores(done, "faithful", c, "test", w) for c in codes}, 1
      ).items()
    }
    for w in (guidance[-1], guidance[0])
  ]
  psnr = [
    {
      seed: run["metrics"]["eval/test/psnr"]
      for (_, seed), run in cell(done, "tokenizer", code).items()
    }
    for code in (codes[-1], codes[0])
  ]
  return [
    optimum("faithful", best["faithful"], "generation has an optimum in c"),
    optimum(
      "controlled", best["controlled"], "so it has with normalised latents"
    ),
    judged(
      "part of the penalty for many floats is the schedule's",
      "log2 FD of the largest c minus the middle, faithful minus controlled,"
      " above 0",
      {"": (difference(gap["faithful"], gap["controlled"]), 0.0)},
    ),
    judged(
      "guidance turns the ranking",
      "slope in log2 c at the largest guidance minus without, below 0",
      {"": (difference(*slopes), 0.0)},
      direction="below",
    ),
    judged(
      "control: reconstruction gets better with c",
      f"PSNR of the largest c minus the smallest above {BAR_DB:g} dB",
      {"": (difference(*psnr), BAR_DB)},
    ),
    judged(
      "control: the generator learned its data",
      f"log2 of FD over its floor below {BAR_FLOOR:g} in every cell",
      {
        f"{arm} c {code}": (over_floor(done, arm, code, guidance), BAR_FLOOR)
        for arm in ARMS
        for code in codes
      },
      direction="below",
    ),
  ]


def minus(one: Cell, other: Cell) -> Cell:
  return {s: one[s] - other[s] for s in sorted(set(one) & set(other))}


def over_floor(
  done: Results, arm: str, code: int, guidance: Sequence[float]
) -> list[float]:
  """log2 of FD over what two halves of the images measure, by seed."""
  w = tuned(done, arm, code, guidance)
  if w is None:
    return []
  name = f"eval/test_{w:g}/{FD}"
  return [
    math.log2(run["metrics"][name] / run["metrics"][f"{name}_floor"])
    for run in cell(done, arm, code).values()
  ]


# --------------------------------------------------------- tables and figures


def table(
  done: Results, codes: Sequence[int], guidance: Sequence[float]
) -> Table:
  rows = []
  for arm in ARMS:
    for code in codes:
      row: dict[str, Any] = {"arm": arm, "c": code, "E": 36 * code}
      found = [
        run["metrics"]["eval/test/psnr"]
        for run in cell(done, "tokenizer", code).values()
      ]
      row["PSNR of the tokenizer"] = float(np.mean(found)) if found else None
      for w in guidance:
        mine = list(scores(done, arm, code, "test", w).values())
        row[f"FD at {w:g}"] = float(2 ** np.mean(mine)) if mine else None
      row["tuned"] = tuned(done, arm, code, guidance)
      rows.append(row)
  return Table(
    "Cells", rows, caption="FD in random convolutions, geometric means over"
    " seeds; `tuned` is the guidance that `val` chose.",
  )  # fmt: skip


def figure(
  done: Results, codes: Sequence[int], guidance: Sequence[float]
) -> Figure | None:
  panels = []
  for arm in ARMS:
    marks: list[Any] = []
    for w in guidance:
      cells = {c: scores(done, arm, c, "test", w) for c in codes}
      cells = {c: list(mine.values()) for c, mine in cells.items() if mine}
      if len(cells) > 1:
        mean, low, high = spread(list(cells.values()))
        name = f"guidance {w:g}"
        marks += [
          Band(name, list(cells), low, high), Line(name, list(cells), mean)
        ]  # fmt: skip
    if marks:
      panels.append(
        Panel(Axis("floats a token", "log"), Axis("log2 FD"), marks, arm)
      )
  if not panels:
    return None
  return Figure("cells", "Generation against floats of a token", panels)


def pictures(done: Results, codes: Sequence[int]) -> list[Section]:
  """Originals, reconstructions and samples of the first seed, by arm and c."""
  sections = []
  for arm in ARMS:
    for code in codes:
      mine = cell(done, arm, code)
      if not mine:
        continue
      run = mine[min(mine)]
      try:
        bench, variables, _ = workdir.restored(run["workdir"])
      except UserError:  # a workdir that was thrown away
        continue
      decoder = tokenizer.of(bench.source.tokenizer)
      label = np.arange(32, dtype=np.int32) % bench.source.classes
      z = bench.task.sample(
        bench.model, variables, jax.random.key(0), label,
        bench.source.shape, guidance=2.0, steps=20,
      )  # fmt: skip
      sheets = sample.side_by_side(bench, decoder, 32)
      sheets["samples"] = decoder.decode(np.asarray(z))
      sections.append(
        Section(
          f"{arm}, c = {code}",
          pictures=[
            Picture(f"{arm}-c{code}-{name}", name, sheet(image, 16))
            for name, image in sheets.items()
          ],
        )
      )
  return sections


def analyse(
  done: Results, codes: Sequence[int], guidance: Sequence[float]
) -> dict[str, Any]:
  """Verdicts, tables, figures, pictures."""
  drawn = figure(done, codes, guidance)
  return {
    "verdicts": verdicts(done, codes, guidance),
    "tables": [table(done, codes, guidance)],
    "figures": [drawn] if drawn else [],
    "sections": pictures(done, codes),
  }
