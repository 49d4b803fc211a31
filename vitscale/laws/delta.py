"""Intervals in closed form, from slopes at the optimum (the delta method).

The estimate moves with the data as an M-estimator does (Huber 1981, section
6.3): with residuals r, their influence psi = rho'(r) and slopes J of r,

    cov = (mean psi^2 / (mean psi')^2) (J' W J)^-1        equal noise at all x
    cov = A^-1 B A^-1,  A = J' W psi' J,  B = sum of s s'     the sandwich

where s sums W psi J over a row, or over the rows of a run. For squares the
first is s^2 (J'J)^-1. The sandwich needs many rows: it is used from 20 a
parameter (where `resampling` draws rows, not residuals) and where runs have
several rows.

All is in the solver's own coordinates, where the problem is almost linear; a
function of the parameters follows by its slopes there. Scales that span decades
(`is_scale`) get symmetric intervals of their logarithm.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import special

from vitscale.laws import vertex
from vitscale.laws.forms import Law
from vitscale.laws.frame import Frame, outer
from vitscale.laws.objective import LAD_DELTA, Objective
from vitscale.laws.resampling import MANY

Array = np.ndarray
STEP = 1e-2  # of slopes, in standard errors


@dataclasses.dataclass(frozen=True)
class Local:
  """A fit to first order around its optimum.

  Attributes:
    law, frame: of the fit; t (k,) its inner parameters.
    free: (f,) numbers of the parameters that were fitted.
    covariance: (f, f) of those inner parameters.
    equal: (f, f) the same if noise were equal at all x and rows independent.
    rise: what the objective gains per unit of F with that, see `profile`.
    dof: degrees of freedom of the noise.
  """

  law: Law
  frame: Frame
  t: Array
  free: Array
  covariance: Array
  equal: Array
  rise: float
  dof: int

  def params(self, t: Array) -> dict[str, Array]:
    """Physical parameters (m,) of inner ones (m, k)."""
    values = np.broadcast_arrays(*outer(self.law, self.frame, t))
    return dict(zip(self.law.names, values))


def local(
  law: Law,
  frame: Frame,
  goal: Objective,
  t: Array,
  y: Array,
  weights: Array,
  cluster: Array | None = None,
) -> Local:
  """The covariance of a fit.

  Args:
    t: (k,) inner parameters at the optimum.
    y: (n,) losses; weights: (n,) inverse variances in any unit.
    cluster: (n,) number of each row's run where runs have several rows.
  """
  free = np.flatnonzero(~frame.pinned)
  n, f = len(y), len(free)
  fitted = law.at([v[:n] for v in frame.x], outer(law, frame, t))
  r = goal.residual(fitted, y)
  slope = vertex.slopes(law, frame, t, free)
  if not goal.log:
    slope = slope * fitted[:, None]
  runs = n if cluster is None else int(cluster.max()) + 1
  dof = n - f if cluster is None else min(runs - 1, n - f)
  if dof <= 0 or not np.isfinite(slope).all():
    nan = np.full((f, f), np.nan)
    return Local(law, frame, t, free, nan, nan, np.nan, 0)
  psi, curve = influence(goal, r, f)
  square, mean = (weights * psi**2).sum() / (n - f), curve.mean()
  matrix = (weights[:, None] * slope).T @ slope
  equal = square / mean**2 * np.linalg.pinv(matrix, hermitian=True)
  covariance = equal
  if cluster is not None or n >= MANY * f:
    scores = np.zeros((runs, f))
    rows = np.arange(n) if cluster is None else cluster
    np.add.at(scores, rows, (weights * psi)[:, None] * slope)
    few = runs / (runs - 1) * (n - 1) / (n - f)
    matrix = ((weights * curve)[:, None] * slope).T @ slope
    inverse = np.linalg.pinv(matrix, hermitian=True)
    covariance = few * inverse @ (scores.T @ scores) @ inverse
  rise = square / mean * (1.0 if np.isinf(goal.delta) else 0.5)
  return Local(law, frame, t, free, covariance, equal, rise, dof)


def influence(goal: Objective, r: Array, k: int) -> tuple[Array, Array]:
  """psi and psi' of each residual.

  psi' of Huber's loss is 1 within delta and 0 outside: where few residuals are
  that small, it is spread over a wider window (Silverman's rule for a box; for
  absolute deviations this is Powell's estimate), the k that a sharp minimum
  passes through not counted.
  """
  psi = r * goal.pull(r)
  if np.isinf(goal.delta):
    return psi, np.ones_like(r)
  n = len(r)
  spread = 1.4826 * np.median(np.abs(r - np.median(r)))
  window = max(1.84 * spread * n**-0.2, goal.delta)
  curve = np.where(r > 0, goal.over, 1.0) * (np.abs(r) <= window)
  if window > goal.delta:
    count = max((np.abs(r) <= window).sum(), k + 1)
    curve *= goal.delta / window * (1 - k / count) * n / (n - k)
  unit = LAD_DELTA if goal.name == "lad" else 1.0  # its sum is that of |r|
  return psi / unit, curve / unit


def spread(
  near: Local, function: Callable[[Mapping[str, Array]], Any], *, log: bool
) -> tuple[Array, Array]:
  """A quantity and its standard error (of its logarithm for `log`).

  Args:
    function: parameters, each (m,), to values (m, ...).
  """
  values, vectors = np.linalg.eigh(near.covariance)
  root = vectors * np.sqrt(np.maximum(values, 0))  # (f, f), cov = root root'
  move = np.zeros((len(root), len(near.t)))
  move[:, near.free] = STEP * root.T
  t = np.concatenate([near.t[None], near.t + move, near.t - move])
  t = np.clip(t, near.frame.low, near.frame.high)
  found = np.asarray(function(near.params(t)), float)
  if log:
    found = np.log(found)
  middle, up, down = found[0], *np.split(found[1:], 2)
  return middle, np.sqrt((((up - down) / (2 * STEP)) ** 2).sum(0))


def interval(
  near: Local,
  function: Callable[[Mapping[str, Array]], Any],
  level: float,
  *,
  log: bool = False,
  noise: float = 0.0,
) -> tuple[Array, Array]:
  """Student t interval of a function of the parameters.

  Args:
    function: see `spread`.
    level: as 0.95.
    log: symmetric in the logarithm: for positive quantities.
    noise: a further standard deviation, independent of the fit.
  """
  if not near.dof:
    value = np.asarray(function(near.params(near.t[None])), float)[0]
    return np.full_like(value, np.nan), np.full_like(value, np.nan)
  middle, error = spread(near, function, log=log)
  half = quantile(level, near.dof) * np.hypot(error, noise)
  low, high = middle - half, middle + half
  return (np.exp(low), np.exp(high)) if log else (low, high)


def quantile(level: float, dof: float) -> float:
  """Two-sided quantile of Student's t."""
  return float(special.stdtrit(dof, 0.5 + level / 2))


def is_scale(near: Local, name: str) -> bool:
  """Whether a parameter is a factor that may span decades, as A and B are.

  Those are what is searched in logs, and positive linear parameters whose
  column varies over the data; a floor's does not.
  """
  law, frame, k = near.law, near.frame, len(near.law.linear)
  index = law.names.index(name)
  parameter = law.parameters[index]
  if index >= k:
    return parameter.log
  if parameter.low < 0:
    return False
  shape = outer(law, frame, near.t)[k:]
  column = law.basis([v[: frame.n] for v in frame.x], shape)[index]
  return bool(np.ptp(column) > 0)
