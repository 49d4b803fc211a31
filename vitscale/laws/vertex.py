"""The exact end of a least-absolute-deviations fit: a vertex.

At the minimum of a sum of |r| as many residuals are zero as there are free
parameters, which smooth steps only approach. Sequential linear programs land
on it: each minimises the sum for linearised residuals within a trust region
(HiGHS through scipy), and near the vertex they converge like Newton's method.
"""

from typing import Any

import numpy as np

from vitscale.laws.forms import Law
from vitscale.laws.frame import outer

Array = np.ndarray


def slopes(law: Law, frame: Any, t: Array, free: Array) -> Array:
  """(n, free) derivatives of ln loss, central differences in inner t (k,)."""
  columns = []
  x = [v[: frame.n] for v in frame.x]
  for i in free:
    h = 1e-6 * max(abs(t[i]), 1e-2)
    ends = np.stack([t, t])
    ends[0, i], ends[1, i] = t[i] - h, t[i] + h
    values = outer(law, frame, ends)
    loss = law.at(x, [np.asarray(v)[:, None] for v in values])
    low, high = np.log(np.maximum(loss, 1e-300))
    columns.append((high - low) / (2 * h))
  return np.stack(columns, -1)


def descend(
  law: Law, frame: Any, t: Array, y: Array, weights: Array, *, steps: int = 60
) -> tuple[Array, float]:
  """Inner parameters and the sum of w |ln law - ln y| at the vertex.

  Args:
    t: (k,) where a smooth fit ended.
    y, weights: (n,).
  """
  from scipy.optimize import linprog
  from scipy.sparse import eye, hstack

  free = np.flatnonzero(~frame.pinned)
  x = [v[: frame.n] for v in frame.x]
  residual = lambda t: (
    np.log(np.maximum(law.at(x, outer(law, frame, t)), 1e-300)) - np.log(y)
  )
  total = lambda t: float((weights * np.abs(residual(t))).sum())
  value, radius = total(t), 1e-2
  identity = eye(frame.n)
  for _ in range(steps):
    r, jacobian = residual(t), slopes(law, frame, t, free)
    cost = np.r_[np.zeros(len(free)), weights, weights]
    room = [
      (max(-radius, frame.low[i] - t[i]), min(radius, frame.high[i] - t[i]))
      for i in free
    ]
    found = linprog(
      cost,
      A_eq=hstack([jacobian, -identity, identity]),
      b_eq=-r,
      bounds=room + [(0, None)] * (2 * frame.n),
      method="highs",
    )
    if not found.success or value - found.fun <= 1e-13 * value:
      break
    new = t.copy()
    new[free] += found.x[: len(free)]
    if (trial := total(new)) < value:
      t, value, radius = new, trial, 2 * radius
    else:
      radius = radius / 4
  return t, value
