"""What Approaches 1 and 2 share: budgets of runs, power laws through optima.

A run spends C FLOPs on N parameters and D tokens (examples). Its optimum per
budget follows `N* = k C^a`, `D* = k' C^b` (Hoffmann et al. 2022, arXiv
2203.15556, section 3): straight lines in logs.
"""

import dataclasses
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import data as tables
from vitscale.laws import intervals
from vitscale.laws.table import Table

Array = np.ndarray
LOST = 0.05  # share of draws without an optimum past which none is believed
NAN2 = (float("nan"), float("nan"))


# ---------------------------------------------------------------- budgets


@dataclasses.dataclass(frozen=True)
class Budgets:
  """Rows with their size, data, compute and loss, each (rows,) float64.

  Attributes:
    notes: what was derived, or does not agree.
    spread: largest |ln(C / (per N D))|; 0 where one of them was derived.
  """

  n: Array
  d: Array
  c: Array
  y: Array
  table: dict[str, Array]
  notes: tuple[str, ...]
  spread: float


def read(
  data: Any,
  *,
  compute: str = "C",
  n: str = "N",
  d: str = "D",
  y: str | None = "loss",
  per: float = 6.0,
) -> Budgets:
  """N, D, C and loss of a table; D or C may be missing.

  Args:
    data: dict of columns, data frame, or list of row dicts.
    compute, n, d, y: names of the columns; y None reads no loss.
    per: FLOPs a parameter and token, for what is derived.

  Raises:
    UserError: a column is missing, or is not positive in some rows.
  """
  table = Table(tables.columns_of(data))
  if compute not in table and d not in table:
    raise UserError(
      f"no column {compute!r} and no column {d!r}{nearest(compute, table)}:"
      " one of compute and data is needed"
    )
  if not per > 0:
    raise UserError(f"per is {per}, must be positive: FLOPs a parameter, token")
  size = positive(table, n)
  loss = np.full(len(size), np.nan) if y is None else positive(table, y)
  notes, spread = [], 0.0
  # All of it in float: int64 overflows silently at 6 N D of a large model.
  if compute not in table:
    tokens = positive(table, d)
    flops = per * size * tokens
    notes.append(f"{compute} = {per:g} {n} {d}")
  elif d not in table:
    flops = positive(table, compute)
    tokens = flops / (per * size)
    notes.append(f"{d} = {compute} / ({per:g} {n})")
  else:
    flops, tokens = positive(table, compute), positive(table, d)
    spread = float(np.abs(np.log(flops / (per * size * tokens))).max())
    if spread > 0.01:
      notes.append(
        f"{compute} differs from {per:g} {n} {d} by a factor of up to"
        f" {np.exp(spread):.3g}; {compute} is taken as counted"
      )
  return Budgets(size, tokens, flops, loss, dict(table), tuple(notes), spread)


def positive(table: Table, name: str) -> Array:
  value = table.numbers(name, finite=True)
  bad = np.flatnonzero(~(value > 0))
  if bad.size:
    raise UserError(
      f"column {name!r} is {value[bad[0]]:g} in {table.where(bad)}, must be"
      " positive"
    )
  return value


# ------------------------------------------------------------- power laws


@dataclasses.dataclass(frozen=True)
class Power:
  """`y = k C^exponent`: ordinary least squares in logs.

  Attributes:
    pivot: geometric mean of C; `middle` is ln y there.
    draws: (draws, 2) resampled (middle, exponent), empty without interval.
    dof: degrees of freedom of the noise behind the draws.
    n: optima on the line.
  """

  pivot: float
  middle: float
  exponent: float
  draws: Array
  dof: float
  n: int

  @property
  def k(self) -> float:
    return float(self.at(1.0))

  def at(self, c: float | Array) -> float | Array:
    """The optimum at C."""
    return np.exp(self.middle + self.exponent * np.log(c / self.pivot))

  def ci(self, level: float = 0.95) -> tuple[float, float]:
    """Interval of the exponent, NaN without draws."""
    return interval(self.draws[:, 1], self.dof, level)

  def at_ci(self, c: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of the optimum at C."""
    return interval(self.spread(c), self.dof, level)

  def spread(self, c: float) -> Array:
    """(draws,) resampled optima at C."""
    return np.exp(self.draws @ np.array([1.0, np.log(c / self.pivot)]))

  def as_dict(self) -> dict[str, Any]:
    return {
      "k": self.k,
      "exponent": self.exponent,
      "ci95": plain(self.ci()),
      "points": self.n,
    }


def power(
  c: Array,
  ln_y: Array,
  drawn: Array,
  dof: float,
  drawn_c: Array | None = None,
) -> Power:
  """The line through optima, and through each draw of them.

  Args:
    c: (m,) compute, m >= 2 different ones.
    ln_y: (m,) logs of the optima.
    drawn: (draws, k) resampled ln_y, NaN where a draw has no optimum. The line
      of a draw leaves those out; a draw of fewer than two is lost, and with
      more than 5 % of them lost there is no interval.
    dof: degrees of freedom of the noise behind the draws.
    drawn_c: (draws, k) compute of the draws; default c.
  """
  x = np.log(c)
  pivot = x.mean()
  middle, exponent = line(x - pivot, ln_y)
  if len(drawn):
    x = x if drawn_c is None else np.log(drawn_c)
    drawn = np.stack(line(x - pivot, drawn), -1)
    good = np.isfinite(drawn).all(-1)
    drawn = drawn[good] if good.mean() >= 1 - LOST else drawn[:0]
  return Power(
    pivot=float(np.exp(pivot)),
    middle=float(middle),
    exponent=float(exponent),
    draws=drawn if len(drawn) else np.empty((0, 2)),
    dof=dof,
    n=len(c),
  )


def line(x: Array, y: Array) -> tuple[Array, Array]:
  """(value at x = 0, slope) by least squares over the last axis, NaN apart."""
  seen = np.isfinite(y)
  x, y = np.where(seen, x, 0.0), np.where(seen, y, 0.0)
  w = seen / np.maximum(seen.sum(-1, keepdims=True), 1)
  mean_x, mean_y = (w * x).sum(-1), (w * y).sum(-1)
  off = x - mean_x[..., None]
  width = (w * off**2).sum(-1)
  ok = (seen.sum(-1) >= 2) & (width > 0)
  slope = np.where(ok, (w * off * y).sum(-1) / np.where(ok, width, 1.0), np.nan)
  return mean_y - slope * mean_x, slope


def interval(
  draws: Array, dof: float, level: float = 0.95
) -> tuple[float, float]:
  """Expanded percentile interval; NaN without draws, or if > 5 % are NaN."""
  good = draws[np.isfinite(draws)]
  if not len(good) or len(good) < (1 - LOST) * len(draws):
    return NAN2
  low, high = intervals.percentile(good, level, dof)
  return float(low), float(high)


def plain(value: Any) -> Any:
  """Plain JSON: numpy to Python, what is not finite to None."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple | np.ndarray):
    return [plain(v) for v in value]
  if isinstance(value, np.bool_ | bool):
    return bool(value)
  if isinstance(value, np.integer | int):
    return int(value)
  if isinstance(value, np.floating | float):
    return float(value) if np.isfinite(value) else None
  return value
