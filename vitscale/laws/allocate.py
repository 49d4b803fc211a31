"""Decisions from a law: the best model and data size for a budget.

Works for every law of N and D (and further variables held fixed): the loss
along a budget C = k N D is minimised over N numerically, for the fit and for
each of its draws at once, so that intervals come with the answer. For
Chinchilla's law this equals the closed form (Hoffmann et al. 2022, eq. 4).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import intervals
from vitscale.laws.fit import Fit

Array = np.ndarray
GOLDEN = (5**0.5 - 1) / 2
REACH = 12.0  # decades of N that are searched around the data


@dataclasses.dataclass(frozen=True)
class Allocation:
  """The compute-optimal point of one budget.

  Attributes:
    compute: C, FLOPs of a training.
    n, d: best parameters and tokens (examples); `loss` there.
    exponent: d ln N* / d ln C at C.
    ci: interval of each of n, d, loss, exponent, tokens_per_param; NaN
      without draws.
    inside: whether N* lies in the range of N that was fitted.
    at_edge: the minimum lies at the end of the search: the law has none.
  """

  compute: float
  n: float
  d: float
  loss: float
  exponent: float
  tokens_per_param: float
  ci: dict[str, tuple[float, float]]
  inside: bool
  at_edge: bool

  def as_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def allocate(
  fit: Fit,
  compute: float,
  *,
  per: float = 6.0,
  level: float = 0.95,
  fixed: Mapping[str, float] | None = None,
) -> Allocation:
  """The best N and D for `compute` = per x N x D.

  Args:
    fit: of a law with variables N and D.
    compute: FLOPs.
    per: FLOPs a parameter and token (6: forward and backward of dense
      layers, attention not counted).
    level: of the intervals.
    fixed: values of the law's other variables (U of repeated data).

  Raises:
    UserError: the law has no N and D, a variable is missing, or the budget
      is not positive.
  """
  law, fixed = fit.law, dict(fixed or {})
  if not {"N", "D"} <= set(law.variables):
    raise UserError(
      f"allocation needs a law of N and D, {law.name!r} has"
      f" {', '.join(law.variables)}"
    )
  missing = [v for v in law.variables if v not in ("N", "D", *fixed)]
  if missing:
    raise UserError(f"allocation needs a value for {missing[0]!r}")
  if not 0 < compute < np.inf:
    raise UserError(f"compute is {compute}, must be positive")
  x = dict(zip(law.variables, fit.points.x))["N"]
  middle = float(np.log(x).mean())

  def best(params: Mapping[str, Any], budget: float) -> Array:
    """ln N* for scalar or (draws,) parameters."""
    total = np.log(float(budget) / per)
    loss = lambda ln_n: law(
      params, N=np.exp(ln_n), D=np.exp(total - ln_n), **fixed
    )
    like = np.zeros(
      np.broadcast_shapes(*(np.shape(v) for v in params.values()))
    )
    reach = REACH * np.log(10) / 2
    return golden(loss, like + middle - reach, like + middle + reach)

  def facts(params: Mapping[str, Any]) -> dict[str, Array]:
    ln_n = best(params, compute)
    step = 0.05
    rise = best(params, compute * np.exp(step)) - best(
      params, compute * np.exp(-step)
    )
    n = np.exp(ln_n)
    d = compute / per / n
    return {
      "n": n,
      "d": d,
      "loss": law(params, N=n, D=d, **fixed),
      "exponent": rise / (2 * step),
      "tokens_per_param": d / n,
    }

  point = {k: float(v) for k, v in facts(fit.params).items()}
  nan = (float("nan"),) * 2
  ci = dict.fromkeys(point, nan)
  if fit.interval and not fit.degenerate:
    ci = {
      k: tuple(float(b) for b in intervals.percentile(v, level, fit.dof))
      for k, v in facts(fit.draws).items()
    }
  edge = abs(np.log(point["n"]) - middle) > 0.499 * REACH * np.log(10)
  return Allocation(
    compute=float(compute),
    **point,
    ci=ci,
    inside=bool(x.min() <= point["n"] <= x.max()),
    at_edge=bool(edge),
  )


def golden(
  function: Callable[[Array], Array], low: Array, high: Array, steps: int = 90
) -> Array:
  """Minimum of a one-valley function between `low` and `high`, elementwise."""
  a, b = np.array(low, float), np.array(high, float)
  c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
  at_c, at_d = function(c), function(d)
  for _ in range(steps):
    left = at_c < at_d
    a, b = np.where(left, a, c), np.where(left, d, b)
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    at_c, at_d = function(c), function(d)
  return 0.5 * (a + b)


def compute_ratio(
  better: Fit, worse: Fit, loss: float, *, variable: str = "C"
) -> float:
  """How much less of `variable` the better family needs for the same loss.

  Args:
    better, worse: fits of laws of one variable that fall with it.
    loss: the common loss.

  Returns:
    x_worse / x_better; infinite where the worse never gets there.

  Raises:
    UserError: the laws are not of `variable` alone, or the better one never
      reaches the loss.
  """
  found = []
  for fit in (better, worse):
    if fit.law.variables != (variable,):
      raise UserError(
        f"compute_ratio needs laws of {variable!r} alone, {fit.law.name!r} has"
        f" {', '.join(fit.law.variables)}"
      )
    x = np.log(fit.points.x[0])
    low, high = x.min() - 30.0, x.max() + 60.0
    value = lambda t, fit=fit: float(fit.predict(**{variable: np.exp(t)}))
    if value(high) > loss:
      found.append(np.inf)
      continue
    for _ in range(200):
      middle = 0.5 * (low + high)
      low, high = (middle, high) if value(middle) > loss else (low, middle)
    found.append(0.5 * (low + high))
  if np.isinf(found[0]):
    raise UserError(f"the better family never reaches loss {loss:g}")
  return float(np.exp(found[1] - found[0]))
