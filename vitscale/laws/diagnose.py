"""What a fit must admit: noise, lack of fit, degeneracy, thin data."""

from typing import Any

import numpy as np
from scipy import special

from vitscale.laws import intervals, vertex
from vitscale.laws.data import Points
from vitscale.laws.forms import Law
from vitscale.laws.solve import Best

Array = np.ndarray
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
  columns = vertex.slopes(law, where, t, free).T * np.sqrt(w)
  scale = np.linalg.norm(columns, axis=1)
  condition = float("inf")
  if scale.min() > 0:
    condition = float(np.linalg.cond(columns / scale[:, None]) ** 2)
  return {
    "converged": best.converged,
    "starts": best.starts,
    "agree": best.agree,
    "start_gap": best.start_gap,
    "condition": condition,
    "bounds": bounds,
  }


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


def warnings(
  law: Law,
  params: dict[str, float],
  points: Points,
  plan: intervals.Design,
  bootstrap: int,
  kind: str,
  draws: dict[str, Array],
  lack: float,
) -> list[str]:
  out = []
  k, variables = len(law.free), ", ".join(law.variables)
  cells = int(points.cell.max()) + 1
  if points.n < k + 1:
    out.append(
      f"{points.n} points for {k} parameters: the curve passes through them "
      "and nothing checks the form"
    )
  elif cells < k + 1:
    out.append(
      f"{cells} different values of {variables} for {k} parameters: nothing "
      "checks the form"
    )
  scale = float(points.y.min())
  for p in law.linear:
    if p.low == 0 and params[p.name] <= _EDGE * scale:
      reduced = ": degenerate, no floor is seen" if p.name == "L0" else ""
      out.append(f"{p.name} is at its bound 0{reduced}")
  alone = np.flatnonzero(plan.sizes == 1)
  if bootstrap and not kind:
    out.append(
      "no interval: no degrees of freedom are left to see noise in"
      if len(plan.stratum) == points.n
      else "no interval: no two runs were measured at the same places"
    )
  elif kind.startswith("pooled") and len(alone) == len(plan.sizes):
    out.append(
      f"one run per {variables}: the interval rests on {points.n - k} residual "
      "degrees of freedom, not on repeated runs"
    )
  elif kind.startswith("stratified") and len(alone):
    first = [np.flatnonzero(plan.stratum == s)[0] for s in alone]
    where = [points.x[0][plan.cluster == c][0] for c in first]
    out.append(
      f"a single run at {law.variables[0]} = "
      f"{', '.join(f'{v:g}' for v in where)}: its noise is not in the interval"
    )
  for p in law.shape if kind else ():
    if p.per or p.name not in {q.name for q in law.free}:
      continue
    edge = _EDGE * (p.high - p.low)
    v = draws[p.name]
    share = float(((v - p.low <= edge) | (p.high - v <= edge)).mean())
    if share > 0.025:
      out.append(
        f"{share:.0%} of the draws put {p.name} at a bound: its interval is "
        "cut off there"
      )
  if lack < 0.05:
    out.append(
      f"lack of fit: the points miss the curve by more than run noise "
      f"(F test p = {lack:.2g})"
    )
  return out
