"""Do 95 % intervals hold the truth in 95 % of cases? See README.md.

No runs: points are drawn from known laws, fitted as a user would, and every
kind of interval is asked whether it holds what was put in. Claims, designs and
thresholds are in the README and were written before the run.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.laws import Verdict, intervals, resampling, simulate
from vitscale.report.figures import Axis, Figure, Level, Panel, Points
from vitscale.report.page import Section, Table

LOW, HIGH, SURE = 0.92, 0.97, 0.01  # thresholds; SURE: largest standard error
SIGMA = 0.01
TOP = 3e21  # largest budget, FLOPs

# ----------------------------------------------------------------------- truth

CHINCHILLA, POWER = laws.chinchilla(), laws.power_constant("C")
TRUTH = {
  "chinchilla": {
    "E": 1.817, "A": 482.0, "B": 2085.0, "alpha": 0.348, "beta": 0.366,
  },
  "power_constant": {"L0": 0.5, "c": 1.0, "a": -0.35},
}  # fmt: skip


def best_size(params: Mapping[str, Any], budget: float) -> Any:
  """N* of Chinchilla's law at C = 6 N D (2203.15556, eq. 4)."""
  alpha, beta = params["alpha"], params["beta"]
  g = (alpha * params["A"] / (beta * params["B"])) ** (1 / (alpha + beta))
  return g * (budget / 6) ** (beta / (alpha + beta))


def _chinchilla_targets():
  n = best_size(TRUTH["chinchilla"], 10 * TOP)
  return {
    "a (N*)": lambda p: p["beta"] / (p["alpha"] + p["beta"]),
    "N*": lambda p: best_size(p, TOP),
    "L at 10x": lambda p: CHINCHILLA(p, N=n, D=10 * TOP / 6 / n),
  }


TARGETS = {
  "chinchilla": _chinchilla_targets(),
  "power_constant": {"L at 10x": lambda p: POWER(p, C=1e4)},
}

# ---------------------------------------------------------------------- design


@dataclasses.dataclass(frozen=True)
class Cell:
  """One law, one design, one noise.

  Attributes:
    kinds: of intervals that are tried.
    judged: the kind whose coverage a claim is about; empty for the default.
    options: of `simulate.coverage`.
  """

  law: laws.Law
  design: Mapping[str, np.ndarray]
  kinds: tuple[str, ...] = simulate.KINDS
  judged: str = ""
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def n(self) -> int:
    return len(next(iter(self.design.values())))

  @property
  def default(self) -> str:
    """What `fit` resamples here unless told otherwise."""
    x = [self.design[v] for v in self.law.variables]
    runs = self.design["run"] if "groups" in self.options else None
    plan = intervals.design(x, runs)
    return resampling.choose(plan, self.n, len(self.law.free))


def _isoflop(budgets: int, sizes: int) -> dict[str, np.ndarray]:
  return simulate.isoflop(np.geomspace(6e18, TOP, budgets), sizes)


def _line(n: int, high: float = 1e3) -> dict[str, np.ndarray]:
  return {"C": np.geomspace(1, high, n)}


def _curves(runs: int, points: int) -> dict[str, np.ndarray]:
  """Whole curves of several seeds: a run's rows lie at all C."""
  return {
    "C": np.tile(_line(points)["C"], runs),
    "run": np.repeat(np.arange(runs), points),
  }


def _repeats(places: int, runs: int, rows: int) -> dict[str, np.ndarray]:
  """Several evaluations of each run: a run's rows lie at one C."""
  return {
    "C": np.repeat(_line(places)["C"], runs * rows),
    "run": np.repeat(np.arange(places * runs), rows),
  }


DEFAULTS = {
  "chinchilla, n = 40": Cell(CHINCHILLA, _isoflop(5, 8)),
  "chinchilla, n = 240": Cell(CHINCHILLA, _isoflop(8, 30)),
  "power_constant, n = 40": Cell(POWER, _line(40)),
  "power_constant, n = 240": Cell(POWER, _line(240)),
}
_HEAVY = {"tails": 3.0, "objective": "huber:1e-3"}
HEAVY = {
  "power_constant, n = 40, heavy tails": Cell(
    POWER, _line(40), options=_HEAVY
  ),
  "chinchilla, n = 240, heavy tails": Cell(
    CHINCHILLA, _isoflop(8, 30), ("case", "delta"), options=_HEAVY
  ),
}  # fmt: skip
FEW = {
  "power_constant, n = 12": Cell(
    POWER, _line(12), ("case", "residual", "delta", "profile"), judged="case"
  ),
}
_SHARED = {"run_sigma": SIGMA, "sigma": SIGMA / 2}
_RUNS = {**_SHARED, "groups": "run"}
RUNS = {
  "power_constant, 24 runs of 10": Cell(
    POWER, _repeats(8, 3, 10), ("cluster", "delta"), options=_RUNS
  ),
  "power_constant, 12 curves of 10": Cell(
    POWER, _curves(12, 10), ("cluster", "delta"), options=_RUNS
  ),
}
IGNORED = {
  f"{name}, runs ignored": Cell(
    POWER, cell.design, ("case", "delta"), judged="case", options=_SHARED
  )
  for name, cell in RUNS.items()
}
CONTROLS = (*FEW, next(iter(IGNORED)))  # must fail


@dataclasses.dataclass(frozen=True)
class Scale:
  cells: Mapping[str, Cell]
  simulations: int
  draws: int


ALL = {**DEFAULTS, **HEAVY, **FEW, **RUNS, **IGNORED}
SCALES = {
  "smoke": Scale(
    {k: ALL[k] for k in ("power_constant, n = 40", *CONTROLS)}, 12, 40
  ),
  "quick": Scale(ALL, 100, 200),
  "cpu": Scale(ALL, 1000, 400),
}


def runs(scale_name: str, done: Mapping[str, Any]) -> list:
  """None: nothing is trained."""
  return []


# ------------------------------------------------------------------- judgement


def analyse(done: Mapping[str, Any], scale_name: str) -> dict[str, Any]:
  """Coverage of every cell, and the claims."""
  scale = SCALES[scale_name]
  found = {name: _measure(name, cell, scale) for name, cell in
           scale.cells.items()}  # fmt: skip
  tables = [
    _table(name, scale.cells[name], rows, "coverage")
    for name, rows in found.items()
  ]
  widths = [
    _table(name, scale.cells[name], rows, "width")
    for name, rows in found.items()
  ]
  return {
    "title": f"Coverage of 95 % intervals ({scale_name})",
    "text": (
      f"{scale.simulations} simulations of {scale.draws} draws a cell;"
      f" a coverage near .95 has a standard error of"
      f" {np.sqrt(0.05 * 0.95 / scale.simulations):.3f}."
    ),
    "verdicts": _verdicts(scale, found),
    "tables": tables,
    "sections": [Section("How wide the intervals are", tables=widths)],
    "figures": [_figure(scale, found)],
    "files": {
      "coverage.json": {
        "scale": scale_name,
        "simulations": scale.simulations,
        "draws": scale.draws,
        "cells": {
          name: {"n": scale.cells[name].n,
                 "default": scale.cells[name].default, "rows": rows}
          for name, rows in found.items()
        },
      }
    },
  }  # fmt: skip


def _measure(name: str, cell: Cell, scale: Scale) -> list[dict[str, Any]]:
  start = time.perf_counter()
  rows = simulate.coverage(
    cell.law,
    TRUTH[cell.law.name],
    cell.design,
    kinds=cell.kinds,
    targets=TARGETS[cell.law.name],
    simulations=scale.simulations,
    draws=scale.draws,
    **{"sigma": SIGMA, **cell.options},
  )
  seconds = time.perf_counter() - start
  print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
  return rows


def _of(rows: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
  """quantity -> row of one kind."""
  return {r["quantity"]: r for r in rows if r["kind"] == kind}


def _verdicts(scale: Scale, found: Mapping[str, Any]) -> list[Verdict]:
  out = []
  for name in (*DEFAULTS, *HEAVY, *RUNS):
    if name in found:
      kind = scale.cells[name].default
      out.append(_holds(name, kind, _of(found[name], kind)))
  for name in CONTROLS:
    kind = scale.cells[name].judged
    out.append(_too_narrow(name, kind, _of(found[name], kind)))
  return out


def _span(row: Mapping[str, Any]) -> tuple[float, float]:
  """95 % interval of a coverage (Wilson 1927)."""
  share, n, z = row["coverage"], row["n"], 1.96
  middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
  half = np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
  half *= z / (1 + z**2 / n)
  return float(middle - half), float(middle + half)


def _holds(name: str, kind: str, rows: Mapping[str, Any]) -> Verdict:
  """Claim 1: the default interval holds the truth in 92 to 97 %."""
  shares = {k: r["coverage"] for k, r in rows.items()}
  sure = all(r["se"] <= SURE for r in rows.values())
  inside = all(LOW <= v <= HIGH for v in shares.values())
  outside = any(_span(r)[1] < LOW or _span(r)[0] > HIGH for r in rows.values())
  return Verdict(
    claim=f"{name}: the default ({kind}) holds the truth in 92 to 97 %",
    verdict="supported" if inside and sure
    else "not supported" if outside else "inconclusive",
    threshold=f"every quantity in [{LOW}, {HIGH}], standard error at most "
    f"{SURE}; not supported if one lies outside beyond its error",
    measured=", ".join(f"{k} {v:.3f}" for k, v in shares.items()),
    control=f"must fail: {'; '.join(CONTROLS)}",
  )  # fmt: skip


def _too_narrow(name: str, kind: str, rows: Mapping[str, Any]) -> Verdict:
  """Claim 2: a bad interval is seen to be bad."""
  worst = min(rows.values(), key=lambda r: r["coverage"])
  low, high = _span(worst)
  answer = laws.decide((low, high), LOW, "below")
  return Verdict(
    claim=f"{name}: plain {kind} percentiles are seen to be too narrow",
    verdict=answer,
    threshold=f"the lowest coverage lies below {LOW} with its whole interval",
    measured=f"{worst['quantity']}: {worst['coverage']:.3f}",
    control="this is the control",
    value=worst["coverage"],
    ci=(low, high),
  )


def _table(name: str, cell: Cell, rows: list, key: str) -> Table:
  title = {"coverage": "Coverage", "width": "Median width / truth"}[key]
  quantities = dict.fromkeys(r["quantity"] for r in rows)
  table = []
  for quantity in quantities:
    line = {"quantity": quantity}
    for kind in cell.kinds:
      row = _of(rows, kind).get(quantity)
      mark = " *" if kind == cell.default and not cell.judged else ""
      line[kind + mark] = "-" if row is None else f"{row[key]:.3f}"
    table.append(line)
  given = min(r["given"] for r in rows)
  caption = f"{given:.1%} of the fits gave intervals. * the default."
  return Table(f"{title}: {name}", table, caption=caption)


def _figure(scale: Scale, found: Mapping[str, Any]) -> Figure:
  panels = []
  for name, rows in found.items():
    cell = scale.cells[name]
    quantities = list(dict.fromkeys(r["quantity"] for r in rows))
    marks = [Level(LOW, ""), Level(HIGH, "")]
    for j, kind in enumerate(cell.kinds):
      of = _of(rows, kind)
      aside = 0.15 * (j - (len(cell.kinds) - 1) / 2)
      x = [i for i, q in enumerate(quantities) if q in of]
      spans = [_span(of[quantities[i]]) for i in x]
      marks.append(
        Points(
          kind, [i + aside for i in x],
          [of[quantities[i]]["coverage"] for i in x],
          [s[0] for s in spans], [s[1] for s in spans],
        )
      )  # fmt: skip
    axis = Axis("", "category", names=quantities)
    panels.append(Panel(axis, Axis("coverage"), marks, title=name))
  return Figure(
    "coverage", "How often 95 % intervals hold the truth", panels, columns=2,
    caption="Bars: binomial 95 %. Lines: 92 and 97 %.",
  )  # fmt: skip
