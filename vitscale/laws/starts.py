"""Where a fit begins: Sobol points, with the linear parameters solved.

Variable projection: for fixed exponents the linear parameters are a
non-negative least-squares problem of two to four unknowns, solved in closed
form for all starts at once (vpnls, arXiv 2603.22339, has the idea for one
law). Only the best few starts are polished (`solve`).
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitscale.laws.forms import Law, Parameter
from vitscale.laws.frame import inner, outer
from vitscale.laws.objective import Objective

Array = np.ndarray
_TRIES = 128  # starts tried for each shape parameter
_ROWS = 48  # points that they are tried on
_TINY = 1e-300


def candidates(
  law: Law,
  frame: Any,
  goal: Objective,
  points: Any,
  weights: Array,
  keep: int,
) -> tuple[Array, Array]:
  """The best Sobol starts: (keep, k) inner parameters, (keep,) objectives.

  Args:
    law, frame, goal: see `solve`.
    points: `data.Points`.
    weights: (n,).
    keep: how many, the best and then those unlike it.
  """
  k, dims = len(law.linear), len(law.shape)
  tries = _TRIES * max(dims, 1)
  few = _few(points.y)
  x, y = [v[few] for v in points.x], points.y[few]
  all_weights, weights = weights, weights[few]
  low, high = frame.low[k:], frame.high[k:]
  inside = low + (high - low) * sobol(dims, tries)  # (s, q)
  ones = np.ones((tries, k))
  full = np.concatenate([ones, inside], -1)
  values = outer(law, frame, full)
  shape = [np.asarray(v) for v in values[k:]]
  if k:
    fixed = frame.fixed[:k]
    linear, score = project(law, x, y, weights, goal, shape, fixed)
    values = [*np.moveaxis(linear, -1, 0), *shape]
  else:
    predicted = law.at(x, [s[:, None] for s in shape])
    r = goal.residual(np.maximum(predicted, _TINY), y)
    score = goal.total(np.nan_to_num(r, nan=1e3), weights)
  score = np.where(np.isfinite(score), score, np.inf)
  order = np.argsort(score, kind="stable")
  picked = _spread(inside, order, low, high, keep)
  values = [np.asarray(v)[picked] for v in values]
  all_x = [np.asarray(v) for v in points.x]
  predicted = law.at(all_x, [v[:, None] for v in values])
  r = goal.residual(np.maximum(predicted, _TINY), points.y)
  return inner(law, frame, values), goal.total(r, all_weights)


def _few(y: Array) -> Array:
  """Rows evenly over the ranks of the loss: a start needs no more."""
  order = np.argsort(y, kind="stable")
  return order[np.linspace(0, len(y) - 1, min(len(y), _ROWS)).astype(int)]


def _spread(where, order, low, high, keep) -> list[int]:
  """The best half, then the best that lie apart from those taken."""
  span = np.maximum(high - low, 1e-12)
  picked = list(order[: max(keep // 2, 1)])
  for i in order[len(picked) :]:
    if len(picked) == keep:
      break
    distance = np.abs((where[picked] - where[i]) / span).max(-1)
    if distance.min() > 0.15:
      picked.append(i)
  for i in order:
    if len(picked) >= min(keep, len(order)):
      break
    if i not in picked:
      picked.append(i)
  return picked


@functools.lru_cache(maxsize=32)
def sobol(dims: int, count: int) -> Array:
  """(count, dims) points of a scrambled Sobol sequence in (0, 1)."""
  if not dims:
    return np.zeros((count, 0))
  from scipy.stats import qmc

  power = int(np.ceil(np.log2(count)))
  points = qmc.Sobol(dims, seed=7).random_base2(power)[:count]
  return np.clip(points, 1e-3, 1 - 1e-3)


def project(
  law: Law,
  x: Sequence[Array],
  y: Array,
  weights: Array,
  goal: Objective,
  shape: Sequence[Array],
  fixed: Array,
  *,
  steps: int = 2,
) -> tuple[Array, Array]:
  """Best linear parameters for every start's shape.

  Args:
    x: one (n,) array per variable; y, weights: (n,).
    shape: (s,) per shape parameter.
    fixed: (k,) values of pinned linear parameters, NaN where free.
    steps: re-weighted least-squares steps.

  Returns:
    (s, k) linear parameters, (s,) objective.
  """
  columns = np.broadcast_arrays(*law.basis(x, [s[:, None] for s in shape]))
  scales = [np.abs(c).max(-1, keepdims=True) + _TINY for c in columns]
  columns = [c / s for c, s in zip(columns, scales)]
  held = [i for i, v in enumerate(fixed) if not np.isnan(v)]
  free = [i for i in range(len(fixed)) if i not in held]
  base = sum((fixed[i] * scales[i] * columns[i] for i in held), 0.0)

  # Logs are linearised around the last prediction m (Gauss-Newton):
  # ln(B b) - ln y ~ (B b - z) / m with z = m (1 - r). Huber adds weights.
  m = np.broadcast_to(y, columns[0].shape)
  best = None
  for _ in range(steps if goal.log else 1):
    omega, target = np.broadcast_to(weights, m.shape), y
    if goal.log:
      r = goal.residual(m, y)
      m = np.maximum(m, 1e-6 * y)  # far off: keep the weights finite
      omega = weights * goal.pull(r, max(goal.delta, 1e-3)) / m**2
      target = m * (1 - np.clip(r, -3, 3))
    linear = np.zeros((*m.shape[:-1], len(fixed)))
    if free:
      linear[..., free] = _non_negative(
        [law.linear[i] for i in free],
        [columns[i] for i in free],
        target - base,
        omega,
      )
    m = base + sum(linear[..., i, None] * columns[i] for i in free)
    value = goal.total(goal.residual(m, y), weights)
    if best is None:
      best = [linear, value]
      continue
    better = value < best[1]
    best[0] = np.where(better[..., None], linear, best[0])
    best[1] = np.where(better, value, best[1])
  linear, value = best
  linear = linear / np.concatenate(scales, -1)
  for i in held:
    linear[..., i] = fixed[i]
  return linear, value


def _non_negative(
  parameters: Sequence[Parameter],
  columns: Sequence[Array],
  target: Array,
  omega: Array,
) -> Array:
  """Weighted least squares with `low = 0` honoured, (..., k).

  k is two or three, so every set of parameters that may be non-zero is tried
  and the best admissible one kept: exact, branch-free and vectorised.
  """
  k = len(columns)
  weighted = [omega * c for c in columns]
  right = [(w * target).sum(-1) for w in weighted]
  gram = [[(w * c).sum(-1) for c in columns] for w in weighted]
  best = np.zeros(right[0].shape + (k,))
  best_gain = np.zeros(right[0].shape)
  bounded = {i for i, p in enumerate(parameters) if p.low == 0}
  for size in range(1, k + 1):
    for active in itertools.combinations(range(k), size):
      if not set(range(k)) - bounded <= set(active):
        continue
      values, regular = _solve(gram, right, active)
      gain = sum(right[i] * v for i, v in zip(active, values))
      ok = regular & (gain > best_gain)
      for i, v in zip(active, values):
        if i in bounded:
          ok &= v >= 0
      best_gain = np.where(ok, gain, best_gain)
      full = np.zeros_like(best)
      for i, v in zip(active, values):
        full[..., i] = v
      best = np.where(ok[..., None], full, best)
  return best


def _solve(
  gram: list[list[Array]], right: list[Array], active: tuple[int, ...]
) -> tuple[list[Array], Array]:
  """The normal equations of one active set, and where they are regular."""
  if len(active) == 1:
    (i,) = active
    regular = gram[i][i] > 0
    return [right[i] / np.where(regular, gram[i][i], 1)], regular
  if len(active) == 2:
    i, j = active
    product = gram[i][i] * gram[j][j]
    det = product - gram[i][j] ** 2
    regular = det > 1e-13 * product
    det = np.where(regular, det, 1)
    return [
      (right[i] * gram[j][j] - right[j] * gram[i][j]) / det,
      (right[j] * gram[i][i] - right[i] * gram[i][j]) / det,
    ], regular
  a = np.stack([np.stack([gram[i][j] for j in active], -1) for i in active], -2)
  b = np.stack([right[i] for i in active], -1)
  diagonal = np.sqrt(np.einsum("...ii->...i", a))
  regular = (diagonal > 0).all(-1)
  diagonal = np.where(diagonal > 0, diagonal, 1)
  a = a / (diagonal[..., None] * diagonal[..., None, :])
  regular &= np.linalg.det(a) > 1e-13
  a = np.where(regular[..., None, None], a, np.eye(len(active)))
  values = np.linalg.solve(a, (b / diagonal)[..., None])[..., 0] / diagonal
  return list(np.moveaxis(values, -1, 0)), regular
