"""Runs against budgets: who has the lowest loss where, and why that counts.

The pieces of Approach 1 (`envelope`).
"""

import dataclasses

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import intervals, optima
from vitscale.laws.levels import SAME, places

Array = np.ndarray
WHY = (
  "",
  "the winner beats no smaller size before, or no larger one after",
  "a cheaper run is better",
)


@dataclasses.dataclass(frozen=True)
class Stretch:
  """Neighbouring budgets with the lowest loss at one run.

  Attributes:
    low, high: the first and the last of them, FLOPs.
    n, d, loss: of the run, at the middle one.
    budgets: how many.
    why: why they are left out; empty if they are not.
  """

  run: str
  low: float
  high: float
  n: float
  d: float
  loss: float
  budgets: int
  why: str


@dataclasses.dataclass(frozen=True)
class Field:
  """Runs against budgets.

  Attributes:
    run, size: (runs,) name, and number of the size.
    ln_n: (runs,).
    ln_c, ln_d, ln_y: (runs, budgets), NaN where nothing is known.
  """

  run: Array
  size: Array
  ln_n: Array
  ln_c: Array
  ln_d: Array
  ln_y: Array
  curves: bool


def field(
  rows: optima.Budgets, label: Array, bins: int | None
) -> tuple[Field, tuple[str, ...]]:
  """Loss of every run at every budget, and warnings.

  Args:
    rows: of curves (a label repeats) or of finished runs.
    label: (rows,) run of each row.
    bins: number of log-spaced budgets, see `envelope`.
  """
  names, which = np.unique(label, return_inverse=True)
  curves = len(names) < len(label)
  ln_c, ln_d, ln_y = (np.log(v) for v in (rows.c, rows.d, rows.y))
  decades = np.ptp(ln_c) / np.log(10)
  if not decades > 0.01:
    raise UserError("all rows have the same compute: an envelope needs more")
  count = bins or (1000 if curves else int(np.ceil(4 * decades)) + 1)
  at = np.linspace(ln_c.min(), ln_c.max(), count)
  ln_n = np.empty(len(names))
  known = np.full((3, len(names), count), np.nan)
  short = 0
  for r, name in enumerate(names):
    mine = np.flatnonzero(which == r)
    mine = mine[np.argsort(ln_c[mine], kind="stable")]
    n, c = rows.n[mine], ln_c[mine]
    if np.log(n.max() / n.min()) > SAME:
      raise UserError(
        f"run {str(name)!r} has sizes from {n.min():g} to {n.max():g}: a run"
        " has one"
      )
    ln_n[r] = np.log(n[0])
    if not curves:  # budgets are the middles of bins
      j = np.abs(at - c[0]).argmin()
      known[:, r, j] = c[0], ln_d[mine[0]], ln_y[mine[0]]
    elif len(mine) < 2:
      short += 1
    else:
      j = (at >= c[0] - 1e-9) & (at <= c[-1] + 1e-9)
      known[0, r, j] = at[j]
      known[1, r, j] = np.interp(at[j], c, ln_d[mine])
      known[2, r, j] = np.interp(at[j], c, ln_y[mine])
  warnings: tuple[str, ...] = ()
  if curves:
    warnings += (
      "points within a run are too high where its learning rate still has to"
      " decay: read curves of constant rates, or finished runs",
    )
  else:
    warnings += (
      "no curves: the best of a bin is partly where the runs happen to lie; at"
      " the ends of a cloud that pulls the exponent down, and the interval"
      " does not know",
    )
  if short:
    warnings += (f"{short} runs of a single row among curves: left out",)
  return Field(names, places(np.exp(ln_n)), ln_n, *known, curves), warnings


def winners(table: Field, pick: Array) -> tuple[Array, Array]:
  """Best run of `pick` per budget, -1 if none; index into `WHY`.

  A size counts from the first budget at which it beats a smaller one to the
  last at which it beats a larger one: between them others need not be known,
  since the best size only grows with compute. Smaller means by a tenth of all
  sizes at least, so that a dense cloud has an edge too.
  """
  y = table.ln_y[pick]
  there, y = np.isfinite(y), np.where(np.isfinite(y), y, np.inf)
  best, size = y.min(0), table.size[pick][:, None]
  winner = np.where(np.isfinite(best), pick[y.argmin(0)], -1)
  won, j = table.size[winner], np.arange(len(best))
  step = max(len(np.unique(size)) // 10, 1)
  smallest = np.where(there, size, 1 << 30).min(0)
  largest = np.where(there, size, -1).max(0)
  above = there.any(0) & (won - smallest >= step)
  below = there.any(0) & (largest - won >= step)
  first = np.full(table.size.max() + 1, len(best))
  last = np.full(table.size.max() + 1, -1)
  np.minimum.at(first, won[above], j[above])
  np.maximum.at(last, won[below], j[below])
  cheaper = np.r_[np.inf, np.minimum.accumulate(best)[:-1]]
  fault = np.where(best >= cheaper, 2, 0)
  return winner, np.where((j < first[won]) | (j > last[won]), 1, fault)


def stretches(table: Field, winner: Array, fault: Array) -> list[Stretch]:
  """Neighbouring budgets with one winner and one fault, joined."""
  seen = np.flatnonzero(winner >= 0)
  change = (np.diff(winner[seen]) != 0) | (np.diff(fault[seen]) != 0)
  out = []
  for part in np.split(seen, np.flatnonzero(change) + 1):
    w, middle = winner[part[0]], part[len(part) // 2]
    c = np.exp(table.ln_c[w, part])
    out.append(
      Stretch(
        run=str(table.run[w]),
        low=float(c[0]),
        high=float(c[-1]),
        n=float(np.exp(table.ln_n[w])),
        d=float(np.exp(table.ln_d[w, middle])),
        loss=float(np.exp(table.ln_y[w, middle])),
        budgets=len(part),
        why=WHY[fault[part[0]]],
      )
    )
  return out


def steps(table: Field, winner: Array, fault: Array) -> Array:
  """(3, sizes): mean ln C, N, D over the budgets a size wins, NaN if none."""
  j = np.flatnonzero((winner >= 0) & (fault == 0))
  w, sizes = winner[j], table.size.max() + 1
  values = table.ln_c[w, j], table.ln_n[w], table.ln_d[w, j]
  count = np.bincount(table.size[w], minlength=sizes)
  totals = [np.bincount(table.size[w], v, sizes) for v in values]
  return np.where(count, totals, np.nan) / np.maximum(count, 1)


def resample(table: Field, draws: int, seed: int) -> tuple[Array, str]:
  """(draws, 3, sizes), the steps of resampled runs, and how they were drawn.

  Repeats of every size: runs are drawn within sizes. Else among all runs, and a
  draw lacks a third of them, so that the spacing of the sizes counts as noise.

  Measured coverage of nominal 95 % intervals of a (60 simulations of 300 draws,
  .3 to .5 % noise between runs): .97 with three runs of each of 5 or 8 sizes,
  .85 to .90 with two, 1.0 with one of each of 10 or 20 sizes; with one of each
  of 8 or fewer, too many draws have no optimum and there is no interval. For
  800 single points of random size and length it was no better than .5.
  """
  rng, runs = np.random.default_rng(seed), len(table.run)
  if within := np.bincount(table.size).min() >= 2:
    strata = intervals.Design(np.arange(runs), table.size)
    picked = intervals.cluster_weights(strata, draws, rng) > 0
  else:
    picked = rng.multinomial(runs, np.full(runs, 1 / runs), draws) > 0
  found = np.full((draws, 3, table.size.max() + 1), np.nan)
  for k in range(draws):
    found[k] = steps(table, *winners(table, np.flatnonzero(picked[k])))
  return found, "bootstrap of runs" + (" within sizes" if within else "")
