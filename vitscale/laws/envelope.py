"""Approach 1: the lower envelope of training curves, and its growth.

At each of many log-spaced budgets the run of lowest loss gives N*(C) and D*(C);
power laws go through them (Hoffmann et al. 2022, arXiv 2203.15556, section
3.1). Finished runs without curves do as well: the lowest in each bin of C.

Three things bend an envelope, and each is dealt with or said:
* a budget won by the smallest or largest size shows where the ladder ends, not
  where the optimum is: a size counts from the first budget at which it beats a
  smaller one to the last at which it beats a larger one;
* a budget at which a cheaper run is better still (its learning rate had already
  decayed): left out, see `pareto`;
* a size wins a whole step of budgets. A line through all budgets of k steps is
  too flat by a factor 1 - 1/k^2 (noise-free, a = .5, 6 steps: .469 to .483), so
  each size counts once, at the geometric mean of the budgets it wins (.495 to
  .505). Noise flattens what is left: by .01 at .5 % noise and 15 single runs.
"""

import dataclasses
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import ladder, optima
from vitscale.laws.optima import Power, plain

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Envelope:
  """Lowest losses over compute and the power laws through them.

  Attributes:
    stretches: who is lowest where, by rising compute.
    n, d: N* and D* over C; None below two different winning sizes.
    curves: whether runs had several rows.
    runs: number of them; `sizes`: of winning sizes, which the laws go through.
    interval: how the intervals were made; empty if there are none.
  """

  stretches: tuple[ladder.Stretch, ...]
  n: Power | None
  d: Power | None
  curves: bool
  runs: int
  sizes: int
  interval: str
  notes: tuple[str, ...]
  warnings: tuple[str, ...]

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types."""
    return plain(
      {
        "stretches": [dataclasses.asdict(v) for v in self.stretches],
        "n": self.n and self.n.as_dict(),
        "d": self.d and self.d.as_dict(),
        "curves": self.curves,
        "runs": self.runs,
        "sizes": self.sizes,
        "interval": self.interval or None,
        "notes": self.notes,
        "warnings": self.warnings,
      }
    )


def pareto(c: Array, y: Array) -> Array:
  """The frontier of compute and loss, as a mask (points,).

  A point is on it unless another one is at least as cheap and at least as good,
  and better in one of the two. Zhai et al. 2021 (arXiv 2106.04560, section 2)
  fit their law, `laws.zhai`, to this frontier alone.

  Args:
    c: (points,) compute; y: (points,) loss, lower is better.

  Raises:
    UserError: shapes differ, or a value is not finite.
  """
  c, y = (np.asarray(v, np.float64) for v in (c, y))
  if c.ndim != 1 or c.shape != y.shape:
    raise UserError(f"pareto: c {c.shape} and y {y.shape} must be equal (n,)")
  bad = np.flatnonzero(~(np.isfinite(c) & np.isfinite(y)))
  if bad.size:
    raise UserError(f"pareto: point {bad[0]} is ({c[bad[0]]}, {y[bad[0]]})")
  order = np.lexsort((y, c))
  a, b = c[order], y[order]
  before = np.r_[np.inf, np.minimum.accumulate(b)[:-1]]
  twin = np.r_[False, (np.diff(a) == 0) & (np.diff(b) == 0)]
  on = b < before
  for i in np.flatnonzero(twin):
    on[i] = on[i - 1]
  mask = np.empty(len(c), bool)
  mask[order] = on
  return mask


def envelope(
  data: Any,
  *,
  run: str | None = None,
  compute: str = "C",
  n: str = "N",
  d: str = "D",
  y: str = "loss",
  bins: int | None = None,
  per: float = 6.0,
  bootstrap: int = 2000,
  seed: int = 0,
) -> Envelope:
  """Best run per budget, and power laws through them.

  Curves are interpolated (ln loss over ln C) at each budget within their span.
  Single points are binned, and the best of a bin stands at its own C.

  Intervals resample whole runs, see `ladder.resample`: neighbouring budgets are
  won by the same one and are no independent evidence.

  Args:
    data: dict of columns, data frame, or list of row dicts. D or C may be
      missing.
    run: column that says which rows are one run's curve; None takes each row
      as a finished run.
    compute, n, d, y: names of its columns.
    bins: number of budgets; default 1000 for curves, four a decade for points.
    per: FLOPs a parameter and token, to derive D or C.
    bootstrap: draws; 0 for no intervals.
    seed: of the draws.

  Raises:
    UserError: bad columns, or a run of several sizes.
  """
  rows = optima.read(data, compute=compute, n=n, d=d, y=y, per=per)
  if run is not None and run not in rows.table:
    raise UserError(f"run: no column {run!r}{nearest(run, rows.table)}")
  if bins is not None and bins < 2:
    raise UserError(f"bins is {bins}, must be 2 at least")
  label = np.arange(len(rows.n)) if run is None else rows.table[run]
  field, warnings = ladder.field(rows, label.astype(str), bins)
  winner, fault = ladder.winners(field, np.arange(len(field.run)))
  for i, why in enumerate(ladder.WHY):
    lost = int((fault[winner >= 0] == i).sum())
    if why and lost:
      total = (winner >= 0).sum()
      warnings += (f"{lost} of {total} budgets left out: {why}",)
  steps = ladder.steps(field, winner, fault)
  steps = steps[:, np.isfinite(steps[0])]
  sizes = steps.shape[1]
  law_n = law_d = None
  how = ""
  if sizes < 2:
    warnings += (f"{sizes} sizes win a budget: no exponent, 2 are needed",)
  else:
    drawn, how = ladder.resample(field, bootstrap if sizes >= 3 else 0, seed)
    law_n, law_d = (
      optima.power(
        np.exp(steps[0]), steps[i], drawn[:, i], sizes - 2, np.exp(drawn[:, 0])
      )
      for i in (1, 2)
    )
    how = how if len(law_n.draws) else ""
  if bootstrap and law_n and not how:
    warnings += (
      "no interval: 3 winning sizes are needed"
      if sizes < 3
      else "no interval: over 5 % of the resamples have no two winning sizes",
    )
  return Envelope(
    stretches=tuple(ladder.stretches(field, winner, fault)),
    n=law_n,
    d=law_d,
    curves=field.curves,
    runs=len(field.run),
    sizes=sizes,
    interval=how,
    notes=rows.notes,
    warnings=warnings,
  )
