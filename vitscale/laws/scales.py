"""Which rows are the large runs: scale, its levels, and where to cut."""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import data as tables
from vitscale.laws.forms import Law

Array = np.ndarray
Far = Literal["high", "low"]
LEVEL = math.log(1.05)  # scales closer than this are one level
REACH = math.log(3.0)  # how far beyond the fit the automatic cut looks


@dataclasses.dataclass(frozen=True)
class Scales:
  """Rows ordered by scale.

  Attributes:
    table: columns, all of them.
    values: (n,) scale of each row.
    t: (n,) its logarithm, growing towards the far end.
    level: (n,) number of the level of each row, 0 the nearest.
    cell: (n,) number of the different x.
  """

  by: str
  far: Far
  table: dict[str, Array]
  values: Array
  t: Array
  level: Array
  cell: Array

  def rows(self, mask: Array) -> dict[str, Array]:
    return {k: v[mask] for k, v in self.table.items()}

  def cuts(self, need: int) -> list[int]:
    """Levels that can be the first held out: `need` different x below."""
    return [
      j
      for j in range(1, self.level.max() + 1)
      if len(np.unique(self.cell[self.level < j])) >= need
    ]


def scales(
  law: Law,
  data: Any,
  *,
  by: str | None = None,
  far: Far = "high",
  y: str = "loss",
) -> Scales:
  """Measures the scale of every row.

  Args:
    by: a column, or "C" for compute (the column if there is one, else
      6 N D); default compute for laws of N and D, else the first variable.
    far: the end that is predicted; "low" for a patch size.

  Raises:
    UserError: no such column, or values that are not positive numbers.
  """
  if far not in ("high", "low"):
    raise UserError(f"far is {far!r}, must be high or low")
  table = tables.columns_of(data)
  points = tables.read(law, table, y=y)
  if by is None:
    joint = {"N", "D"} <= set(law.variables)
    by = "C" if joint else law.variables[0]
  if by == "C" and by not in table and {"N", "D"} <= set(table):
    n, d = (np.asarray(table[v], np.float64) for v in ("N", "D"))
    values = 6.0 * n * d
  elif by in table:
    try:
      values = np.asarray(table[by]).astype(np.float64)
    except (TypeError, ValueError):
      raise UserError(f"column {by!r} (the scale) must be numbers") from None
  else:
    raise UserError(f"no column {by!r} to measure scale{nearest(by, table)}")
  bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
  if bad.size:
    raise UserError(
      f"column {by!r} (the scale): row {bad[0]} is {values[bad[0]]}, must be"
      " positive"
    )
  t = np.log(values) * (1 if far == "high" else -1)
  return Scales(by, far, table, values, t, levels(t), points.cell)


def levels(t: Array, width: float = LEVEL) -> Array:
  """Numbers rows by level: values within `width` of a level's first."""
  out, level, first = np.empty(len(t), int), -1, -math.inf
  for i in np.argsort(t, kind="stable"):
    if t[i] - first > width:
      level, first = level + 1, t[i]
    out[i] = level
  return out


def automatic(where: Scales, need: int) -> int:
  """The first held-out level.

  Of the cuts that leave `need` different x and hold out at most a third of
  the rows (the last level always may be), it is the one that holds out least
  among those that reach 3x beyond the fit with a tenth of the rows; where
  none does, the one that reaches farthest.

  Raises:
    UserError: too few points.
  """
  last = int(where.level.max())
  share = lambda j: (where.level >= j).mean()
  reach = lambda j: where.t.max() - where.t[where.level < j].max()
  able = [j for j in where.cuts(need) if j == last or share(j) <= 1 / 3]
  if not able:
    raise too_few(where, need)
  enough = [j for j in able if reach(j) >= REACH and share(j) >= 0.1]
  return max(enough) if enough else min(able)


def held(where: Scales, need: int, share: float | None = None) -> Array:
  """(n,) rows to hold out: see `automatic`, or `share` in whole levels.

  Raises:
    UserError: too few points are left, or a bad share.
  """
  cut = automatic(where, need) if share is None else top(where, share)
  if cut not in where.cuts(need):
    raise too_few(where, need)
  return where.level >= cut


def top(where: Scales, share: float) -> int:
  """The first held-out level where `share` of the rows are held out."""
  if not 0 < share < 1:
    raise UserError(f"share is {share}, must lie between 0 and 1, as 0.2")
  last = int(where.level.max())
  held = [j for j in range(1, last + 1) if (where.level >= j).mean() >= share]
  return max(held, default=last)


def too_few(where: Scales, need: int) -> UserError:
  last = where.level.max()
  left = len(np.unique(where.cell[where.level < last]))
  return UserError(
    f"holding out by {where.by} needs {need} different points below the"
    f" held-out ones, the data have {left} below their last level"
  )


def steps(where: Scales, need: int, folds: int) -> list[tuple[Array, Array]]:
  """(fitted, predicted) masks of a rollout."""
  if folds < 1:
    raise UserError(f"folds is {folds}, must be 1 at least")
  able = where.cuts(need)
  if not able:
    raise too_few(where, need)
  even = np.linspace(0, len(able), folds, endpoint=False).astype(int)
  cuts = [able[i] for i in np.unique(even)]
  ends = [*cuts[1:], where.level.max() + 1]
  return [
    (where.level < a, (where.level >= a) & (where.level < b))
    for a, b in zip(cuts, ends)
  ]
