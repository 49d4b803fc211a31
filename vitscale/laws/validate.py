"""Does a law extrapolate? Fit the small runs, predict the large ones.

Three splits by scale: `holdout` keeps the largest runs back, `rollout` does so
at several cuts, `leave_one_out` drops each size in turn. A run counts as
inside if it falls into the interval of the curve *and* of run noise; an F test
says whether all misses together are more than that.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws.fit import Fit, fit
from vitscale.laws.forms import Law
from vitscale.laws.mixture import interval, log_draws, log_mean, misses
from vitscale.laws.scales import Far, Scales, held, scales, steps

Array = np.ndarray
SPARE = 2  # different points that a fit needs beyond its parameters


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Runs that a fit did not see, and what it said of them.

  Attributes:
    law: name, several joined by "+" for a log mean.
    by, far: what measures scale and which end of it is the far one.
    cut: the held-out scale nearest to the fitted ones.
    distance: farthest held-out scale over the farthest fitted one; 1 where
      the held-out ones lie between fitted ones.
    n_fit, n_test: rows.
    rmse_log: root mean square of ln(predicted / measured).
    bias_log: its mean; positive: the runs came out better than predicted.
    inside: share of held-out rows within their interval; None without one.
    p: p-value of "the misses are the fit's own uncertainty and run noise" (F
      test over all held-out rows); NaN without an interval, or where rows of
      one run repeat.
    rows: per held-out row its variables, `scale, measured, predicted, low,
      high, inside, log_error`.
    fits: what was fitted to the rest.
  """

  law: str
  by: str
  far: Far
  cut: float
  distance: float
  n_fit: int
  n_test: int
  rmse_log: float
  bias_log: float
  inside: float | None
  level: float
  p: float
  rows: tuple[dict[str, Any], ...]
  fits: tuple[Fit, ...]
  warnings: tuple[str, ...]

  @property
  def extrapolates(self) -> bool:
    return self.distance > 1

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types; of the fits their parameters."""
    out = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name != "fits"
    }
    return {
      **out,
      "extrapolates": self.extrapolates,
      "p": None if math.isnan(self.p) else self.p,
      "rows": [dict(row) for row in self.rows],
      "warnings": list(self.warnings),
      "params": {f.law.name: dict(f.params) for f in self.fits},
    }


@dataclasses.dataclass(frozen=True)
class Validation:
  """Several hold-outs of one law.

  Attributes:
    kind: "rollout" or "leave-one-out".
    checks: in the order of scale, towards the far end.
    warnings: what could not be checked and why.
  """

  kind: str
  checks: tuple[Holdout, ...]
  warnings: tuple[str, ...]

  @property
  def rmse_log(self) -> float:
    """Over the rows of all checks."""
    squares = [r["log_error"] ** 2 for c in self.checks for r in c.rows]
    return float(np.sqrt(np.mean(squares)))

  def as_dict(self) -> dict[str, Any]:
    return {
      "kind": self.kind,
      "rmse_log": self.rmse_log,
      "checks": [c.as_dict() for c in self.checks],
      "warnings": list(self.warnings),
    }


def holdout(
  law: Law,
  data: Any,
  *,
  by: str | None = None,
  far: Far = "high",
  share: float | None = None,
  y: str = "loss",
  groups: str | None = None,
  level: float = 0.95,
  **options,
) -> Holdout:
  """Predicts the largest runs from the others.

  Args:
    law: a declaration.
    data, y: as in `fit`; `groups` and `weights` are column names.
    by, far: see `scales`.
    share: of the rows held out, in whole levels; default see `automatic`.
    level: of the intervals.
    options: further arguments of `fit`.

  Raises:
    UserError: too few points below the cut, or bad columns.
  """
  where = scales(law, data, by=by, far=far, y=y)
  far_rows = held(where, len(law.free) + SPARE, share)
  fitted = fit(law, where.rows(~far_rows), y=y, groups=groups, **options)
  return judge(
    [fitted], where, ~far_rows, far_rows, y=y, groups=groups, level=level
  )


def rollout(
  law: Law,
  data: Any,
  *,
  by: str | None = None,
  far: Far = "high",
  folds: int = 4,
  y: str = "loss",
  groups: str | None = None,
  level: float = 0.95,
  **options,
) -> Validation:
  """Walks up the scale: fits below each cut, predicts up to the next.

  Args:
    folds: cuts at most, evenly spread over the levels that can be cut at.
    law, data, by, far, y, groups, level, options: see `holdout`.

  Raises:
    UserError: too few points below every cut, or bad columns.
  """
  where = scales(law, data, by=by, far=far, y=y)
  checks = []
  for near, next_ in steps(where, len(law.free) + SPARE, folds):
    fitted = fit(law, where.rows(near), y=y, groups=groups, **options)
    checks.append(
      judge([fitted], where, near, next_, y=y, groups=groups, level=level)
    )
  said = ()
  if len(checks) < folds:
    said = (f"{len(checks)} cuts instead of {folds}: the data have no more",)
  return Validation("rollout", tuple(checks), said)


def leave_one_out(
  law: Law,
  data: Any,
  *,
  by: str | None = None,
  far: Far = "high",
  most: int = 20,
  y: str = "loss",
  groups: str | None = None,
  level: float = 0.95,
  **options,
) -> Validation:
  """Leaves out each size in turn.

  Inner sizes test the form where it interpolates; the first and the last
  have `extrapolates`.

  Args:
    by: default the law's first variable (N).
    most: sizes at most; more are merged with their neighbours.
    law, data, far, y, groups, level, options: see `holdout`.

  Raises:
    UserError: a single size, or none whose rest can be fitted.
  """
  where = scales(law, data, by=by or law.variables[0], far=far, y=y)
  count = int(where.level.max()) + 1
  if count < 2:
    raise UserError(f"leave one out: all rows have the same {where.by}")
  label, said = where.level, []
  if count > most:
    label = where.level * most // count
    said.append(f"{count} values of {where.by} were merged into {most}")
  checks = []
  for j in range(label.max() + 1):
    out = label == j
    try:
      fitted = fit(law, where.rows(~out), y=y, groups=groups, **options)
    except UserError as error:
      value = where.values[out].min()
      said.append(f"{where.by} = {value:g} could not be left out: {error}")
      continue
    checks.append(
      judge([fitted], where, ~out, out, y=y, groups=groups, level=level)
    )
  if not checks:
    raise UserError(said[-1])
  return Validation("leave-one-out", tuple(checks), tuple(said))


def judge(
  fits: Sequence[Fit],
  where: Scales,
  near: Array,
  far: Array,
  *,
  y: str,
  groups: str | None,
  level: float,
) -> Holdout:
  """Compares the log mean of `fits` to the rows `far`."""
  variables = dict.fromkeys(v for f in fits for v in f.law.variables)
  rows = where.rows(far)
  x = {v: np.asarray(rows[v], np.float64) for v in variables}
  measured = np.asarray(rows[y], np.float64)
  value = log_mean(fits, x)
  error = value - np.log(measured)
  draws = log_draws(fits, x)
  low, high = interval(fits, draws, level, runs=1)
  inside = (low <= np.log(measured)) & (np.log(measured) <= high)
  known = len(draws) > 0
  alone = groups is None or len(set(rows[groups].tolist())) == far.sum()
  p = misses(fits, draws, error) if known and alone else math.nan
  t_near, t_held = where.t[near], where.t[far]
  beyond = max(t_held.max() - t_near.max(), t_near.min() - t_held.min(), 0.0)
  first = np.argmin(np.abs(t_held - t_near.max()))
  check = Holdout(
    law="+".join(f.law.name for f in fits),
    by=where.by,
    far=where.far,
    cut=float(where.values[far][first]),
    distance=float(np.exp(beyond)),
    n_fit=int(near.sum()),
    n_test=int(far.sum()),
    rmse_log=float(np.sqrt((error**2).mean())),
    bias_log=float(error.mean()),
    inside=float(inside.mean()) if known else None,
    level=level,
    p=p,
    rows=tuple(
      {
        **{v: float(x[v][i]) for v in variables},
        "scale": float(where.values[far][i]),
        "measured": float(measured[i]),
        "predicted": float(np.exp(value[i])),
        "low": float(np.exp(low[i])) if known else None,
        "high": float(np.exp(high[i])) if known else None,
        "inside": bool(inside[i]) if known else None,
        "log_error": float(error[i]),
      }
      for i in range(len(measured))
    ),
    fits=tuple(fits),
    warnings=(),
  )
  spread = float(np.exp(np.ptp(t_near)))
  return dataclasses.replace(check, warnings=tuple(_warn(check, spread, where)))


def _warn(check: Holdout, spread: float, where: Scales) -> Iterable[str]:
  """What weakens a check."""
  for f in check.fits:
    k = len(f.law.free)
    yield from f.warnings
    if f.n - k < 4:
      yield f"{f.n} points fitted for the {k} parameters of {f.law.name}"
  if check.n_test < 3:
    yield f"{check.n_test} held-out rows: the share inside means little"
  if spread < 10:
    yield f"the fitted {check.by} spans {spread:.3g}x only"
  if check.distance > spread:
    yield (
      f"predicts {check.distance:.3g}x beyond a range of {spread:.3g}x in"
      f" {check.by}"
    )
  loss = np.log([row["measured"] for row in check.rows])
  level = np.mean([np.log(f.points.y).mean() for f in check.fits])
  if check.extrapolates and where.far == "high" and loss.mean() > level:
    yield (
      f"the held-out losses are higher: if a small {check.by} is the larger"
      " scale, use far='low'"
    )
  if check.p < 0.05:
    side = "over" if check.bias_log > 0 else "under"
    yield (
      f"the held-out rows miss the forecast by more than noise (F test p ="
      f" {check.p:.2g}); the law {side}states them by"
      f" {100 * abs(math.expm1(check.bias_log)):.2g} %"
    )
