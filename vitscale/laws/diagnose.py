"""What a fit must admit: noise, lack of fit, degeneracy, thin data."""

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from vitscale.laws import delta, vertex
from vitscale.laws.data import Points
from vitscale.laws.forms import Law
from vitscale.laws.frame import Frame
from vitscale.laws.resampling import Draws
from vitscale.laws.solve import Best

if TYPE_CHECKING:
  from vitscale.laws.fit import Fit

Array = np.ndarray
FEW = 3  # points a parameter
FEW_RUNS = 10  # degrees of freedom between runs
DECADE = 10.0  # of a variable
SPREAD = 3.0  # of the loss above the floor
_EDGE = 1e-6  # share of a range that counts as "at the bound"
_SINGULAR = 1e13  # condition number past which float64 sees no difference


def noise(points: Points, residual: Array, k: int) -> tuple[float, float]:
  """(standard deviation of ln loss at equal x, lack-of-fit p)."""
  cell = points.cell
  cells = cell.max() + 1
  log = np.log(points.y)
  means = np.bincount(cell, log) / np.bincount(cell)
  within = ((log - means[cell]) ** 2).sum()
  dof = points.n - cells
  if dof == 0:
    dof = points.n - k
    if dof == 0:
      return float("nan"), float("nan")
    return float(np.sqrt((residual**2).sum() / dof)), float("nan")
  sigma = float(np.sqrt(within / dof))
  lack = float("nan")
  if cells > k and within > 0:
    between = max((residual**2).sum() - within, 0) / (cells - k)
    lack = float(special.fdtrc(cells - k, dof, between / (within / dof)))
  return sigma, lack


def search(law: Law, best: Best, w: Array) -> dict[str, Any]:
  """How the optimum was found, and how well the data determine it there."""
  where, t, k = best.frame, best.t, len(law.linear)
  free = np.flatnonzero(~where.pinned)
  bounds = []
  for i in free:
    span = where.high[i] - where.low[i]
    edge = _EDGE * (span if np.isfinite(span) else 1.0)
    if i >= k and min(t[i] - where.low[i], where.high[i] - t[i]) <= edge:
      bounds.append(law.parameters[i].name)
  return {
    "converged": best.converged,
    "starts": best.starts,
    "agree": best.agree,
    "start_gap": best.start_gap,
    "condition": _condition(law, where, t, w),
    "bounds": bounds,
  }


def _condition(law: Law, where: Frame, t: Array, w: Array) -> float:
  """Of the Gauss-Newton matrix with a unit diagonal."""
  free = np.flatnonzero(~where.pinned)
  columns = vertex.slopes(law, where, t, free).T * np.sqrt(w)
  scale = np.linalg.norm(columns, axis=1)
  if not scale.min() > 0:
    return float("inf")
  return float(np.linalg.cond(columns / scale[:, None]) ** 2)


def degenerate(
  law: Law,
  found: dict[str, Any],
  points: Points,
  residual: Array,
  w: Array,
) -> list[str]:
  """Reasons why the parameters are not determined."""
  reasons = []
  if not found["converged"]:
    reasons.append("degenerate: the fit did not converge")
  for name in found["bounds"]:
    reasons.append(f"degenerate: {name} sits at the bound of its range")
  if not found["condition"] < _SINGULAR:
    reasons.append(
      "degenerate: a combination of the parameters changes nothing"
      f" (condition number {found['condition']:.1g})"
    )
  if len(law.free) == 1:
    return reasons
  log = np.log(points.y)
  flat = (w * (log - np.average(log, weights=w)) ** 2).sum()
  curved = (w * residual**2).sum()
  extra, dof = len(law.free) - 1, points.n - len(law.free)
  p = 1.0
  if flat > 1e-24 * points.n:
    ratio = np.inf if curved <= 1e-24 * points.n else flat / curved - 1
    p = 0.0 if np.isinf(ratio) or not dof else 1.0
    if dof and np.isfinite(ratio):
      p = float(special.fdtrc(extra, dof, max(ratio, 0) * dof / extra))
  if p > 0.05:
    reasons.append(
      "degenerate: the curve is flat, a constant fits as well "
      f"(F test p = {p:.2g}); only the level is known"
    )
  return reasons


def warnings(fit: "Fit", drawn: Draws, bootstrap: int) -> list[str]:
  """What a reader must know before using the numbers.

  Args:
    fit: with everything but its draws.
    drawn: those; `bootstrap` how many were asked for.
  """
  return [
    *_thin(fit),
    *_reach(fit),
    *_resampled(fit, drawn, bootstrap),
    *_bounds(fit, drawn),
    *(
      [
        "lack of fit: the points miss the curve by more than run noise "
        f"(F test p = {fit.lack_of_fit:.2g})"
      ]
      if fit.lack_of_fit < 0.05
      else []
    ),
  ]


def _thin(fit: "Fit") -> list[str]:
  """Too few points."""
  points, k = fit.points, len(fit.law.free)
  variables, cells = ", ".join(fit.law.variables), int(points.cell.max()) + 1
  if points.n < k + 1:
    return [
      f"{points.n} points for {k} parameters: the curve passes through them "
      "and nothing checks the form"
    ]
  if cells < k + 1:
    return [
      f"{cells} different values of {variables} for {k} parameters: nothing "
      "checks the form"
    ]
  if points.n < FEW * k:
    return [
      f"only {points.n} points for {k} parameters: intervals are wide, and "
      f"their coverage is not known below {FEW} points a parameter"
    ]
  return []


def _reach(fit: "Fit") -> list[str]:
  """Too short a range to tell floor, factor and exponent apart."""
  out = []
  for name, x in zip(fit.law.variables, fit.points.x):
    span = float(x.max() / x.min())
    if 1 < span < DECADE:
      out.append(
        f"{name} spans a factor of {span:.3g}, less than a decade: floor and "
        "exponent trade against each other"
      )
  name = None if fit.degenerate else _floor(fit)
  if name is None:
    return out
  floor, y = fit.params[name], fit.points.y
  fitted = fit.predict(**dict(zip(fit.law.variables, fit.points.x)))
  above = fitted - floor
  if floor <= _EDGE * y.min():
    return out  # said as "at its bound"
  if above.max() < SPREAD * above.min():
    out.append(
      f"the loss above {name} falls by a factor of"
      f" {above.max() / above.min():.3g} only: {name} is an extrapolation"
    )
  if above.min() < fit.sigma * fitted.min():
    out.append(
      f"the smallest loss lies within run noise of {name}: the far end is "
      "flat, and says little of the exponent"
    )
  if fit.local.dof:
    _, error = delta.spread(fit.local, lambda p: p[name], log=False)
    if floor < 2 * float(error):
      out.append(
        f"{name} = {floor:.3g} can't be told from 0 (standard error"
        f" {float(error):.2g})"
      )
  return out


def _floor(fit: "Fit") -> str | None:
  """The free parameter that is a loss by itself, if the law has one."""
  fixed = dict(fit.law.pinned)
  for p in fit.law.linear:
    positive = p.low == 0 and p.name not in fixed
    if positive and not delta.is_scale(fit.local, p.name):
      return p.name
  return None


def _resampled(fit: "Fit", drawn: Draws, bootstrap: int) -> list[str]:
  """What the draws do not hold."""
  points, plan = fit.points, fit.plan
  variables = ", ".join(fit.law.variables)
  alone = np.flatnonzero(plan.sizes == 1)
  runs, rest = len(plan.stratum), points.n - len(fit.law.free)
  if bootstrap and not drawn.kind:
    return ["no interval: no degrees of freedom are left to see noise in"]
  if drawn.kind.startswith("residual") and len(alone) == len(plan.sizes):
    return [
      f"one run per {variables}: the interval rests on {rest} residual "
      "degrees of freedom, not on repeated runs"
    ]
  if drawn.kind.startswith("case") and runs < points.n:
    return [
      f"rows were drawn, though {runs} runs have {points.n}: what the rows of "
      "a run have in common is not in the interval"
    ]
  if not drawn.kind.startswith("cluster"):
    return []
  out = []
  if plan.dof and len(alone):
    first = [np.flatnonzero(plan.stratum == s)[0] for s in alone]
    where = [points.x[0][plan.cluster == c][0] for c in first]
    out.append(
      f"a single run at {fit.law.variables[0]} = "
      f"{', '.join(f'{v:g}' for v in where)}: its noise is not in the interval"
    )
  if drawn.dof < FEW_RUNS:
    out.append(
      f"{runs} runs leave {drawn.dof} degrees of freedom: so few make the "
      "interval too narrow"
    )
  return out


def _bounds(fit: "Fit", drawn: Draws) -> list[str]:
  """Parameters, or many of their draws, at the end of what is allowed."""
  out, k = [], len(fit.law.linear)
  scale = float(fit.points.y.min())
  free = {q.name for q in fit.law.free}
  for i, p in enumerate(fit.law.parameters):
    if p.name not in free or (i < k and p.low < 0) or (i >= k and p.per):
      continue
    edge = _EDGE * (scale if i < k else p.high - p.low)
    if i < k and fit.params[p.name] <= edge:
      reduced = ": no floor is seen" if p.name == _floor(fit) else ""
      out.append(f"{p.name} is at its bound 0{reduced}")
    v = drawn.values[p.name]
    at = (v - p.low <= edge) | (p.high - v <= edge)
    if len(v) and at.mean() > 0.025:
      out.append(
        f"{at.mean():.0%} of the draws put {p.name} at a bound: its interval "
        "is cut off there"
      )
  return out
