"""Profile likelihood: how far a parameter can go while the others adapt.

For each value v of a parameter the others are fitted again (`Law.pin`, the same
solver); the interval holds the v whose objective rises by no more than

    s^2 F(1, dof)                          squares, s^2 = sum r^2 / (n - k)
    1/2 (mean psi^2 / mean psi') F(1, dof)      Huber's and absolute losses

The second is the robust likelihood ratio (Schrader and Hettmansperger 1980;
Hampel et al. 1986, section 7.3), which needs no density of the noise beyond
its spread near zero, see `delta.influence`. Both assume equal noise at all x
and independent rows; where the sandwich is used instead (many rows, or runs of
several), the rise is multiplied by the ratio of its variance to theirs (Kent
1982; Royall 1986).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from vitscale.laws import delta, solve
from vitscale.laws.frame import outer
from vitscale.laws.objective import Objective

Array = np.ndarray
NEAR = 1e-3  # of the half width
FAR = 30.0  # half widths that are searched
TRIES = 16


@dataclasses.dataclass(frozen=True)
class Profile:
  """The interval of one parameter.

  Attributes:
    low, high: its ends; the parameter's bound, or infinity, where the
      objective never rises enough.
    notes: what stopped an end, and whether a better optimum was met.
  """

  low: float
  high: float
  notes: tuple[str, ...] = ()


def profile(
  near: delta.Local,
  name: str,
  goal: Objective,
  best: float,
  y: Array,
  weights: Array,
  level: float,
) -> Profile:
  """The profile-likelihood interval of parameter `name`.

  Args:
    near: the fit around its optimum.
    goal, best: objective and its value there.
    y, weights: (n,) as fitted.
    level: as 0.95.
  """
  law, frame, t = near.law, near.frame, near.t
  index = law.names.index(name)
  parameter, log = law.parameters[index], delta.is_scale(near, name)
  value_of = lambda params: params[name]
  if not near.dof:
    return Profile(np.nan, np.nan)
  value = float(value_of(near.params(t[None]))[0])
  if frame.pinned[index]:
    return Profile(value, value)
  to, back = (np.log, np.exp) if log else (float, float)
  if log and value <= 0:
    return Profile(parameter.low, np.inf, (f"{name} is at its bound",))

  u, error = delta.spread(near, value_of, log=log)
  half = delta.quantile(level, near.dof)
  plain = dataclasses.replace(near, covariance=near.equal)
  _, without = delta.spread(plain, value_of, log=log)
  # F(1, dof) is the square of t.
  limit = near.rise * half**2 * float(error / without) ** 2
  along = _direction(near, value_of, log)
  alone = len(law.free) == 1
  # The values of pins are no part of the compiled program: any will do here.
  at = parameter.low if np.isfinite(parameter.low) else 1.0
  pinned = law if alone else law.pin(**{name: at})
  notes: list[str] = []
  last: list[Array] = [t]

  def rise(v: float) -> float:
    """0 at the optimum, 1 at the end of the interval, near linear between."""
    starts = np.stack([t + along * (v - u), last[0], t])
    fixed = frame.fixed.copy()
    fixed[index] = back(v)
    where = dataclasses.replace(frame, fixed=fixed)
    starts = np.clip(starts, frame.low, frame.high)
    if alone:
      fitted = law.at([x[: frame.n] for x in frame.x], outer(law, where, t))
      ends, values = starts, goal.total(goal.residual(fitted, y), weights)[None]
    else:
      ends, values, _ = solve.polish(
        pinned, where, goal, starts, y[None], weights[None]
      )
    i = int(np.nanargmin(values))
    last[0] = ends[i]
    if values[i] < best - 1e-3 * limit:
      notes.append(f"at {name} = {back(v):.6g} the fit is better")
    return float(np.sqrt(max(values[i] - best, 0.0) / limit))

  ends = []
  low, high = _bounds(near, index)
  for side, bound in ((-1, low), (1, high)):
    last[0] = t
    with np.errstate(divide="ignore"):
      stop = to(bound)
    end = _search(rise, float(u), side * half * float(error), stop)
    if end is None:
      notes.append(f"{name} may go to {bound:g}: the interval is open there")
    ends.append(bound if end is None else float(back(end)))
  return Profile(*ends, tuple(dict.fromkeys(notes)))


def _bounds(near: delta.Local, index: int) -> tuple[float, float]:
  """Physical bounds of a parameter."""
  parameter, frame = near.law.parameters[index], near.frame
  if index < len(near.law.linear):
    return parameter.low, parameter.high
  ends = np.array([frame.low[index], frame.high[index]])
  low, high = (np.exp(ends) if parameter.log else ends) * frame.unit[index]
  return float(low), float(high)


def _direction(near: delta.Local, function: Callable, log: bool) -> Array:
  """(k,) where the optimum moves to per unit of the parameter, at first."""
  step = delta.STEP * np.sqrt(np.diag(near.covariance))
  t = np.repeat(near.t[None], 2 * len(step), 0)
  rows = np.arange(len(step))
  t[rows, near.free] += step
  t[rows + len(step), near.free] -= step
  found = function(near.params(t))
  found = np.log(np.maximum(found, 1e-300)) if log else found
  slope = (found[: len(step)] - found[len(step) :]) / (2 * step)
  along = np.zeros(len(near.t))
  moved = near.covariance @ slope
  along[near.free] = moved / (slope @ moved)
  return along


def _search(
  rise: Callable[[float], float], u: float, step: float, stop: float
) -> float | None:
  """Where `rise` is 1 on the way from u to `stop`; None if it stays below."""
  inside, outside = (0.0, 0.0), None  # (distance, rise), distance in steps
  reach = min((stop - u) / step, FAR) if np.isfinite(stop) else FAR
  if reach <= 0:
    return None
  at = min(1.0, reach)
  for _ in range(TRIES):
    g = rise(u + at * step)
    if abs(g - 1) < NEAR:
      break
    if g < 1:
      if at >= reach:
        return None
      inside = (at, g)
    else:
      outside = (at, g)
    if outside is None:
      at = min(reach, at * min(1.02 / max(g, 1e-3), 3.0))
      continue
    (a, low), (b, high) = inside, outside
    if not np.isfinite(high):
      high = 1e3
    share = (1 - low) / (high - low)
    at = a + np.clip(share, 0.05, 0.95) * (b - a)
  return u + at * step
