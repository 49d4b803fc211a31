"""Which runs to train next, to know the loss at a target best.

    plan = next_runs(fit, {"N": 1e9, "D": 2e10}, budget=1e19, count=4)
    plan.runs, plan.before, plan.after

A c-optimal design (Chaloner and Verdinelli 1995, Statistical Science 10): what
counts is the variance of ln loss that is left at the target, averaged over
resampled parameters (`information`). It holds noise and open parameters, not
the doubt whether the law is the right one.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import data as tables
from vitscale.laws import delta
from vitscale.laws.fit import Fit
from vitscale.laws.information import Information, information, order, search

Array = np.ndarray
Cost = Callable[..., Array]
GRID = 16  # candidates along each variable
RATIO = 3.0  # how far D/N of a candidate may leave that of data and target


@dataclasses.dataclass(frozen=True)
class NextRuns:
  """A plan.

  Attributes:
    target: variables of the forecast; `loss` the law's there.
    level: of the intervals.
    before, after: width of the interval of the curve at the target in loss,
      as the fit gives it, and narrowed by what the delta method expects of
      all runs.
    runs: the most useful first; of each its variables, its `cost` (and for
      laws of N and D its compute `C`), predicted `loss`, `width` after it and
      those before it, and the budget that is `left`.
    budget, spent: in units of the cost (FLOPs).
    noise: standard deviation of ln loss of one run.
  """

  target: dict[str, float]
  loss: float
  level: float
  before: float
  after: float
  runs: tuple[dict[str, float], ...]
  budget: float
  spent: float
  noise: float
  warnings: tuple[str, ...]

  def as_dict(self) -> dict[str, Any]:
    out = dataclasses.asdict(self)
    return {**out, "runs": list(out["runs"]), "warnings": list(self.warnings)}


def next_runs(
  fit: Fit,
  target: Mapping[str, float],
  *,
  budget: float,
  count: int,
  per: float = 6.0,
  cost: Cost | str | None = None,
  candidates: Any = None,
  limits: Mapping[str, tuple[float, float]] | None = None,
  level: float = 0.95,
  seed: int = 0,
) -> NextRuns:
  """The runs within a budget that narrow the forecast most.

  Args:
    fit: of any law.
    target: a value for each variable of the law.
    budget: of all runs together, FLOPs (or units of the cost).
    count: runs at most; the same place may come twice, with two seeds.
    per: FLOPs a parameter and token, for laws of N and D.
    cost: `cost(N=..., D=...)` of the law's variables or a column of the
      candidates; default per N D, else C, else the only variable.
    candidates: a table of places; default a grid, logarithmic, over N and D or
      what else the cost depends on, other variables as at the target. D/N
      stays within 3x of what data and target have: farther off the law has
      not been seen.
    limits: lowest and highest value of a variable in that grid; default from
      the smallest in the data to the larger of data and target.
    level: of the intervals.
    seed: of the draws of the parameters.

  Raises:
    UserError: a variable without a target, a budget that buys no run, no
      known noise, or a fit that did not converge.
  """
  law = fit.law
  target = _target(law.variables, target)
  if count < 1:
    raise UserError(f"count is {count}, must be 1 at least")
  if not fit.search["converged"]:
    raise UserError("next runs: the fit did not converge")
  if not fit.local.dof:
    raise UserError(
      f"next runs: {fit.n} points for {len(law.free)} parameters leave no"
      " degree of freedom to see noise in"
    )
  places, price = _candidates(
    fit, target, budget, per, cost, candidates, limits or {}
  )
  known = information(fit, places, target, seed)
  chosen = order(known, search(known, price, float(budget), count))
  spent = np.cumsum(price[chosen])
  loss = fit.predict(**target)
  widths = [
    _width(known, chosen[:i], loss, level) for i in range(len(chosen) + 1)
  ]
  low, high = fit.predict_ci(level, **target)
  wider = (high - low) / widths[0] if np.isfinite(high - low) else 1.0
  widths = [wider * width for width in widths]
  at = fit.predict(**places)
  runs = tuple(
    {
      **{v: float(places[v][c]) for v in law.variables},
      **_compute(places, c, per),
      "cost": float(price[c]),
      "loss": float(at[c]),
      "width": widths[i + 1],
      "left": float(budget - spent[i]),
    }
    for i, c in enumerate(chosen)
  )
  plan = NextRuns(
    target=target,
    loss=float(loss),
    level=level,
    before=widths[0],
    after=widths[-1],
    runs=runs,
    budget=float(budget),
    spent=float(spent[-1]),
    noise=known.noise,
    warnings=(),
  )
  said = tuple(_warn(fit, known, plan, chosen, count, wider))
  return dataclasses.replace(plan, warnings=said)


def _compute(places: Mapping[str, Array], c: int, per: float) -> dict:
  if not {"N", "D"} <= set(places):
    return {}
  return {"C": float(per * places["N"][c] * places["D"][c])}


# ------------------------------------------------------------------ candidates


def _target(variables: Sequence[str], target: Mapping[str, Any]) -> dict:
  for v in target:
    if v not in variables:
      raise UserError(f"target: no variable {v!r}{nearest(v, variables)}")
  for v in variables:
    if v not in target:
      raise UserError(f"target: needs a value for {v!r}")
    if not 0 < target[v] < math.inf:
      raise UserError(f"target: {v} is {target[v]}, must be positive")
  return {v: float(target[v]) for v in variables}


def _candidates(
  fit: Fit,
  target: dict[str, float],
  budget: float,
  per: float,
  cost: Cost | str | None,
  candidates: Any,
  limits: Mapping[str, tuple[float, float]],
) -> tuple[dict[str, Array], Array]:
  """Places and prices, those within the budget."""
  variables = fit.law.variables
  if cost is None:
    axes, cost = _cost(variables, per)
  else:
    axes = variables
  table = {}
  if candidates is None:
    if isinstance(cost, str):
      raise UserError(f"cost {cost!r} is a column: it needs candidates")
    places = _grid(fit, target, axes, limits)
  else:
    table = tables.columns_of(candidates)
    missing = [v for v in variables if v not in table]
    if missing:
      raise UserError(f"candidates: no column {missing[0]!r}")
    places = {v: np.asarray(table[v], np.float64) for v in variables}
  if isinstance(cost, str):
    if cost not in table:
      raise UserError(f"candidates: no column {cost!r}{nearest(cost, table)}")
    price = np.asarray(table[cost], np.float64)
  else:
    price = np.asarray(cost(**places), np.float64)
  for name, v in {**places, "cost": price}.items():
    if not (np.isfinite(v) & (v > 0)).all():
      raise UserError(f"candidates: {name} must be positive everywhere")
  able = price <= budget
  if not able.any():
    raise UserError(
      f"a budget of {budget:.3g} buys no run: the cheapest candidate costs"
      f" {price.min():.3g}"
    )
  return {k: v[able] for k, v in places.items()}, price[able]


def _cost(variables: Sequence[str], per: float) -> tuple[Sequence[str], Cost]:
  """(variables it depends on, cost of a run)."""
  if {"N", "D"} <= set(variables):
    return ("N", "D"), lambda N, D, **_: per * N * D
  if "C" in variables:
    return variables, lambda C, **_: C
  if len(variables) == 1:
    return variables, lambda **x: x[variables[0]]
  raise UserError(
    f"next runs: what a run costs does not follow from {', '.join(variables)};"
    " give cost"
  )


def _grid(
  fit: Fit,
  target: dict[str, float],
  axes: Sequence[str],
  limits: Mapping[str, tuple[float, float]],
) -> dict[str, Array]:
  for v in limits:
    if v not in axes:
      raise UserError(f"limits: no variable {v!r}{nearest(v, axes)}")
  lines = []
  for v, x in zip(fit.law.variables, fit.points.x):
    low, high = min(x.min(), target[v]), max(x.max(), target[v])
    low, high = limits.get(v, (low, high))
    if not 0 < low <= high < math.inf:
      raise UserError(f"limits of {v} are {low:g} to {high:g}")
    lines.append(np.geomspace(low, high, GRID) if v in axes else [target[v]])
  mesh = np.meshgrid(*lines, indexing="ij")
  places = {v: m.ravel() for v, m in zip(fit.law.variables, mesh)}
  if {"N", "D"} <= set(axes):
    x = dict(zip(fit.law.variables, fit.points.x))
    seen = np.r_[x["D"] / x["N"], target["D"] / target["N"]]
    ratio = places["D"] / places["N"]
    able = (ratio >= seen.min() / RATIO) & (ratio <= seen.max() * RATIO)
    if not able.any():
      raise UserError(
        f"limits leave no candidate with {seen.min() / RATIO:.3g} to"
        f" {seen.max() * RATIO:.3g} tokens a parameter"
      )
    places = {v: values[able] for v, values in places.items()}
  return places


# --------------------------------------------------------------------- reading


def _width(
  known: Information, chosen: Sequence[int], loss: float, level: float
) -> float:
  """Expected width of the curve's interval at the estimate, in loss."""
  error = known.noise * math.sqrt(known.variance(chosen)[0])
  half = delta.quantile(level, known.dof + len(chosen)) * error
  return float(loss * 2 * math.sinh(min(half, 700.0)))


def _warn(
  fit: Fit,
  known: Information,
  plan: NextRuns,
  chosen: list[int],
  count: int,
  wider: float,
) -> Iterable[str]:
  yield from fit.degenerate
  if wider > 1.5:
    yield (
      f"the fit's interval is {wider:.2g}x that of equal noise everywhere: what"
      " a run is worth here depends on where the noise is"
    )
  if fit.lack_of_fit < 0.05:
    yield (
      "lack of fit: the law's form is in doubt, which no width here holds (F"
      f" test p = {fit.lack_of_fit:.2g})"
    )
  inside = all(
    x.min() <= plan.target[v] <= x.max()
    for v, x in zip(fit.law.variables, fit.points.x)
  )
  if inside:
    yield "the target lies inside of the data: the law interpolates there"
  if math.sqrt(known.variance([])[0]) < 1:
    yield (
      "the curve at the target is known better than one run there would tell:"
      f" noise is {100 * known.noise:.2g} %"
    )
  if len(chosen) < count:
    yield f"the budget ends after {len(chosen)} of {count} runs"
  if plan.after > 0.9 * plan.before:
    yield (
      f"the budget narrows the interval by {1 - plan.after / plan.before:.0%}"
      " only"
    )
  each = np.sqrt(known.variance(chosen))
  low, high = np.quantile(each, (0.1, 0.9))
  if high > 3 * low:
    yield (
      f"the width after depends on the parameters, {high / low:.2g}x over their"
      " draws: plan again after the first runs"
    )
