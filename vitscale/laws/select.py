"""Which law, or which mean of laws: chosen by extrapolation inside the data.

    choice = select([power("x"), power_constant("x"), bnsl(1)], rows)
    choice.picked, choice.predict(x=1e9), choice.predict_ci(x=1e9)
    choice, check = nested_holdout(candidates, rows)

Every law is fitted to the nearer half and the nearer 70 % of the rows and
predicts the rest. Its score is the geometric mean over both of the RMSE of ln
loss. Laws are ranked by score; of the log means of the best one, two, three ...
that with the best score is taken and fitted to all rows.

Selection has noise of its own: on the public curves that this rule was made
with (125 of ColPret, 5 to 60 points), log means erred less than single picks.
For one curve `extrapolate` has a mean chosen for that.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws.fit import Fit, fit
from vitscale.laws.forms import Law
from vitscale.laws.mixture import interval, log_draws, log_mean
from vitscale.laws.scales import Far, Scales, held, scales
from vitscale.laws.validate import SPARE, Holdout, judge

Array = np.ndarray
SHARES = (0.5, 0.7)  # of the rows that the inner fits see


@dataclasses.dataclass(frozen=True)
class Selection:
  """The chosen laws.

  Attributes:
    picked: names; several stand for their log mean.
    scores: name -> geometric mean of its inner RMSE of ln loss.
    inner: name -> that RMSE at each cut.
    means: score of the log mean of the best one, two, ... laws.
    excluded: name -> why a law was not a candidate.
    by, far, cuts: what measures scale, its far end, and the first predicted
      scale of each inner check.
    fits: of the picked laws, to all rows.
  """

  picked: tuple[str, ...]
  scores: dict[str, float]
  inner: dict[str, tuple[float, ...]]
  means: tuple[float, ...]
  excluded: dict[str, str]
  by: str
  far: Far
  cuts: tuple[float, ...]
  fits: tuple[Fit, ...]
  warnings: tuple[str, ...]

  def predict(self, **x: float | Array) -> float | Array:
    """Loss at x: the log mean of the picked laws."""
    value = np.exp(log_mean(self.fits, x))
    return float(value) if np.ndim(value) == 0 else value

  def predict_ci(
    self, level: float = 0.95, *, runs: int | None = None, **x: float | Array
  ) -> tuple[Any, Any]:
    """Interval of the curve, or of the mean of `runs` runs, as `Fit` has it.

    It holds the curves of all picked laws. NaN where one of them has none.
    """
    low, high = interval(self.fits, log_draws(self.fits, x), level, runs=runs)
    low, high = np.exp(low), np.exp(high)
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types; of the fits their parameters."""
    return {
      "picked": list(self.picked),
      "scores": dict(self.scores),
      "inner": {k: list(v) for k, v in self.inner.items()},
      "means": list(self.means),
      "excluded": dict(self.excluded),
      "by": self.by,
      "far": self.far,
      "cuts": list(self.cuts),
      "params": {f.law.name: dict(f.params) for f in self.fits},
      "warnings": list(self.warnings),
    }


def select(
  laws: Sequence[Law],
  data: Any,
  *,
  by: str | None = None,
  far: Far = "high",
  y: str = "loss",
  groups: str | None = None,
  **options,
) -> Selection:
  """Chooses among laws by the rule of the module.

  Args:
    laws: candidates of different names.
    data, y, groups, options: see `validate.holdout`.
    by, far: see `scales.scales`; the first law gives the default.

  Raises:
    UserError: no candidates, two of one name, or too few points for each.
  """
  if not laws:
    raise UserError("select: no laws to choose from")
  by_name: dict[str, Law] = {}
  for law in laws:
    if law.name in by_name:
      raise UserError(f"select: two laws are called {law.name!r}")
    by_name[law.name] = law
  where = scales(laws[0], data, by=by, far=far, y=y)
  splits = _splits(where)
  least = min((near.sum() for near in splits), default=0)
  measured = np.log(np.asarray(where.table[y], np.float64))
  excluded, errors = {}, {}
  for law in laws:
    reason, found = _inner(law, where, splits, measured, y, groups, options)
    if reason:
      excluded[law.name] = reason
    else:
      errors[law.name] = found
  said = [f"{name} was no candidate: {why}" for name, why in excluded.items()]
  scores = {name: score(found) for name, found in errors.items()}
  picked, means = best_mean(errors)
  if not picked:
    simple = min(laws, key=lambda law: len(law.free))
    picked = [simple.name]
    said.append(
      f"{len(where.t)} rows are too few to choose by: {simple.name} has the"
      " fewest parameters"
    )
  elif least < 8:
    said.append(f"the choice rests on fits of {least} rows")
  fits = tuple(
    fit(by_name[name], where.table, y=y, groups=groups, **options)
    for name in picked
  )
  said += [f"{f.law.name}: {w}" for f in fits for w in f.warnings]
  return Selection(
    picked=tuple(picked),
    scores=scores,
    inner={k: tuple(_rmse(v)) for k, v in errors.items()},
    means=means,
    excluded=excluded,
    by=where.by,
    far=far,
    cuts=tuple(_first(where, near) for near in splits),
    fits=fits,
    warnings=tuple(said),
  )


def score(errors: Sequence[Array]) -> float:
  """Geometric mean over checks of the RMSE of ln loss."""
  return float(np.exp(np.mean(np.log(_rmse(errors)))))


def best_mean(
  errors: Mapping[str, Sequence[Array]],
) -> tuple[list[str], tuple[float, ...]]:
  """The log mean of the best one, two, ... that has the best score.

  Args:
    errors: name -> ln predicted - ln measured, an array for each check.

  Returns:
    Names, the best first; score of each of those means.
  """
  ranked = sorted(errors, key=lambda name: score(errors[name]))
  means = tuple(
    score([np.mean(e, 0) for e in zip(*(errors[r] for r in ranked[: i + 1]))])
    for i in range(len(ranked))
  )
  return ranked[: int(np.argmin(means)) + 1] if means else [], means


def nested_holdout(
  laws: Sequence[Law],
  data: Any,
  *,
  by: str | None = None,
  far: Far = "high",
  share: float | None = None,
  y: str = "loss",
  groups: str | None = None,
  level: float = 0.95,
  **options,
) -> tuple[Selection, Holdout]:
  """Selects without the largest runs, then predicts them.

  The held-out rows see neither the choice nor the fits, so the check is one
  of the whole procedure. Arguments as of `validate.holdout` and `select`.
  """
  if not laws:
    raise UserError("select: no laws to choose from")
  where = scales(laws[0], data, by=by, far=far, y=y)
  need = min(len(law.free) for law in laws) + SPARE
  out = held(where, need, share)
  near = where.rows(~out)
  choice = select(laws, near, by=by, far=far, y=y, groups=groups, **options)
  check = judge(choice.fits, where, ~out, out, y=y, groups=groups, level=level)
  return choice, check


# ----------------------------------------------------------------------- inner


def _splits(where: Scales) -> list[Array]:
  """Masks of the rows that inner fits see, whole levels of scale."""
  found = []
  for share in SHARES:
    counts = [(where.level < j).mean() for j in range(where.level.max() + 1)]
    below = [j for j, c in enumerate(counts) if 0 < c <= share + 1e-9]
    if below and (not found or below[-1] != found[-1]):
      found.append(below[-1])
  return [where.level < j for j in found]


def _inner(
  law: Law,
  where: Scales,
  splits: Sequence[Array],
  measured: Array,
  y: str,
  groups: str | None,
  options: dict[str, Any],
) -> tuple[str, list[Array]]:
  """(why it cannot be scored, ln predicted - ln measured beyond each cut)."""
  missing = [v for v in law.variables if v not in where.table]
  if missing:
    return f"the data have no column {missing[0]!r}", []
  if not splits:
    return f"all rows have the same {where.by}", []
  need, errors = len(law.free) + 1, []
  for near in splits:
    rows = where.rows(near)
    x = [np.asarray(rows[v], np.float64) for v in law.variables]
    seen = len(np.unique(np.stack(x, -1), axis=0))
    if seen < need:
      return f"it needs {need} different points, an inner fit sees {seen}", []
    try:
      inner = {**options, "bootstrap": 0}
      fitted = fit(law, rows, y=y, groups=groups, **inner)
    except UserError as error:
      return str(error), []
    far = where.rows(~near)
    far = {v: np.asarray(far[v], np.float64) for v in law.variables}
    error = log_mean([fitted], far) - measured[~near]
    if not np.isfinite(error).all():
      return "its inner forecast is not finite", []
    errors.append(error)
  return "", errors


def _rmse(errors: Sequence[Array]) -> list[float]:
  return [max(math.sqrt(np.mean(e**2)), 1e-12) for e in errors]


def _first(where: Scales, near: Array) -> float:
  """The held-out scale nearest to the fitted ones."""
  far = ~near
  return float(where.values[far][np.argmin(where.t[far])])
