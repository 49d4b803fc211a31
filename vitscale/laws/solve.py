"""Variable projection: search the exponents, solve the rest exactly.

For fixed exponents the linear parameters are a non-negative least-squares
problem of two or three unknowns, solved in closed form; the exponents are
searched on a grid that is refined around its best point. Every draw of a
bootstrap is one more leading row, so 4000 fits are a few array operations
(facts: vpnls, arXiv 2603.22339, has the same idea for one fit).

Nothing here knows about data files, intervals or laws by name: `project` is
the seam behind which a compiled solver can stand.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws.forms import Law, Parameter

Array = np.ndarray

_OBJECTIVES = ("log-mse", "mse", "huber")
_CELLS = 1_500_000  # numbers per temporary array: keeps draws in cache
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised: residuals in logs or not, squared or Huber."""

  name: str
  log: bool
  delta: float = math.inf

  @classmethod
  def parse(cls, text: str) -> "Objective":
    """`mse`, `log-mse`, `huber` (delta 1e-3, on logs) or `huber:0.01`."""
    name, _, argument = text.partition(":")
    if name not in _OBJECTIVES or (argument and name != "huber"):
      raise UserError(f"unknown objective {text!r}{nearest(name, _OBJECTIVES)}")
    if name != "huber":
      return cls(text, log=name == "log-mse")
    try:
      delta = float(argument or 1e-3)
    except ValueError:
      delta = math.nan
    if not 0 < delta < math.inf:
      raise UserError(
        f"objective {text!r}: delta must be a positive number, as huber:1e-3"
      )
    return cls(text, log=True, delta=delta)

  def residual(self, predicted: Array, y: Array) -> Array:
    if not self.log:
      return predicted - y
    return np.log(np.maximum(predicted, _TINY)) - np.log(y)

  def total(self, residual: Array, weights: Array) -> Array:
    """Sum over the last axis: r^2, or Hoffmann et al.'s Huber (r^2 / 2)."""
    if math.isinf(self.delta):
      return (weights * residual**2).sum(-1)
    size = np.abs(residual)
    inside = 0.5 * residual**2
    outside = self.delta * (size - 0.5 * self.delta)
    return (weights * np.where(size <= self.delta, inside, outside)).sum(-1)

  def pull(self, residual: Array) -> Array:
    """Weights that make least squares agree with Huber near `residual`."""
    if math.isinf(self.delta):
      return np.ones_like(residual)
    return self.delta / np.maximum(np.abs(residual), self.delta)


class Solution(NamedTuple):
  linear: Array  # (draws, k)
  shape: Array  # (draws, q)
  value: Array  # (draws,) the summed objective


def project(
  law: Law,
  x: Sequence[Array],
  y: Array,
  weights: Array,
  objective: Objective,
  *,
  grid: int = 33,
  zooms: int = 6,
  steps: int | None = None,
) -> Solution:
  """Fits every draw.

  Args:
    x: one (n,) array per variable of the law.
    y, weights: (draws, n), or (1, n) where all draws share it.
    grid: points per exponent over its bounds; 4 ** -zooms of that spacing is
      the resolution of the answer.
    steps: re-weighted least-squares steps per stage at most, where each zoom
      starts from the best so far; default 4 for squares, 8 for Huber, which
      converges slowly where it acts as absolute values.
  """
  if steps is None:
    steps = 4 if math.isinf(objective.delta) else 8
  draws, n = max(len(y), len(weights)), y.shape[-1]
  size = max(grid, 9) ** len(law.shape)
  step = max(1, _CELLS // (size * n))
  parts = []
  for start in range(0, draws, step):
    rows = slice(start, min(start + step, draws))
    part_y, part_w = (v if len(v) == 1 else v[rows] for v in (y, weights))
    parts.append(_search(law, x, part_y, part_w, objective, grid, zooms, steps))
  return Solution(*(np.concatenate(v) for v in zip(*parts)))


def _search(
  law: Law,
  x: Sequence[Array],
  y: Array,
  weights: Array,
  objective: Objective,
  grid: int,
  zooms: int,
  steps: int,
) -> Solution:
  low = np.array([p.low for p in law.shape])
  high = np.array([p.high for p in law.shape])
  axes = [np.linspace(a, b, grid) for a, b in zip(low, high)]
  theta = np.array(list(itertools.product(*axes)))[None]  # (1, g, q)
  best = _profile(law, x, y, weights, objective, theta, steps)
  reach = (high - low) / (grid - 1)
  ring = np.linspace(-1, 1, 9)
  offsets = np.array(list(itertools.product(ring, repeat=len(low))))
  for _ in range(zooms):
    theta = best.shape[:, None, :] + reach * offsets
    theta = np.clip(theta, low, high)  # (d, g, q)
    found = _profile(law, x, y, weights, objective, theta, steps, best.linear)
    # Offset 0 is in the ring, so only rounding can make this one worse.
    better = found.value < best.value
    best = Solution(
      *(
        np.where(better if a.ndim == 1 else better[:, None], a, b)
        for a, b in zip(found, best)
      )
    )
    reach = reach / 4
  return best


def _profile(
  law: Law,
  x: Sequence[Array],
  y: Array,
  weights: Array,
  objective: Objective,
  theta: Array,
  steps: int,
  start: Array | None = None,
) -> Solution:
  """The best of the exponents `theta` (draws or 1, g, q), per draw.

  `start` (draws, k): linear parameters to begin from; default the least
  squares of relative errors.
  """
  shape = [theta[..., i, None] for i in range(theta.shape[-1])]
  columns = np.broadcast_arrays(*law.basis(x, shape))
  scales = [np.abs(c).max(-1, keepdims=True) + _TINY for c in columns]
  columns = [c / s for c, s in zip(columns, scales)]
  y, weights = y[:, None, :], weights[:, None, :]  # (d, 1, n)

  # Logs are linearised around the last prediction m (Gauss-Newton):
  # ln(B b) - ln y ~ (B b - z) / m with z = m (1 - r). Huber adds weights.
  m = y
  if start is not None:
    start = [start[:, None, i, None] * s for i, s in enumerate(scales)]
    m = sum(b * c for b, c in zip(start, columns))
  best = None
  for _ in range(steps if objective.log else 1):
    omega, target = weights, y
    if objective.log:
      r = objective.residual(m, y)
      m = np.maximum(m, 1e-6 * y)  # far off: keep the weights finite
      omega = weights * objective.pull(r) / m**2
      target = m * (1 - np.clip(r, -3, 3))
    linear = _non_negative(law.linear, columns, target, omega)
    m = sum(linear[..., i, None] * c for i, c in enumerate(columns))
    value = objective.total(objective.residual(m, y), weights)
    if best is None:
      best = [linear, value]
      continue
    better = value < best[1]
    gain = np.where(better, best[1] - value, 0).sum()
    best[0] = np.where(better[..., None], linear, best[0])
    best[1] = np.where(better, value, best[1])
    if gain <= 1e-12 * best[1].sum():
      break

  linear, value = best
  linear = linear / np.concatenate(
    [np.broadcast_to(s, value.shape + (1,)) for s in scales], -1
  )
  pick = value.argmin(-1)
  row = np.arange(len(value))
  theta = np.broadcast_to(theta, value.shape + theta.shape[-1:])
  return Solution(linear[row, pick], theta[row, pick], value[row, pick])


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
