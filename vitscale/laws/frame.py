"""How a fit sees parameters and data: scaled, so that all are alike.

Inside, a linear parameter is the share of the mean loss that its term has at
the (geometric) middle of the data. That takes the correlation between
factors and exponents away: the five parameters of Chinchilla's law have a
condition number near 1e11, these some tens.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitscale.laws.forms import Law
from vitscale.laws.numeric import namespace

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Frame:
  """How parameters and data are scaled inside; from the data, once.

  Attributes:
    x: (v, n) variables, padded to a common size.
    mask: (n,) 1 for real points.
    middle: (v,) geometric mean of each variable.
    level: geometric mean of the losses.
    unit: (k,) unit of each shape parameter, 1 for linear ones.
    low, high: (k,) bounds of the inner parameters.
    fixed: (k,) physical values of pinned parameters, NaN elsewhere.
    n: real points.
  """

  x: Array
  mask: Array
  middle: Array
  level: float
  unit: Array
  low: Array
  high: Array
  fixed: Array
  n: int

  @property
  def pinned(self) -> Array:
    return ~np.isnan(self.fixed)


def frame(law: Law, x: Sequence[Array], y: Array, *, size: int = 0) -> Frame:
  """The frame of a law over data x (v arrays of n), y (n,).

  `size`: pads to so many points at least, so that data of several lengths
  share one compiled program.
  """
  mean = lambda v: float(np.exp(np.mean(np.log(v))))
  units = {v: mean(a) for v, a in zip(law.variables, x)}
  units |= {f"1/{v}": 1 / u for v, u in units.items()}
  units |= {"": 1.0, "loss": mean(y), "floor": float(y.min())}
  fixed = dict(law.pinned)
  low, high, unit = [], [], []
  for p in law.parameters:
    u = units[p.per]
    unit.append(u)
    log = np.log if p.log else (lambda v: v)
    low.append(log(p.low))
    high.append(log(p.high))
  n = len(y)
  padded = max(bucket(n), size)
  fill = lambda a: np.r_[a, np.full(padded - n, a[0])]
  return Frame(
    x=np.stack([fill(np.asarray(a, float)) for a in x]),
    mask=np.r_[np.ones(n), np.zeros(padded - n)],
    middle=np.array([units[v] for v in law.variables]),
    level=mean(y),
    unit=np.array(unit),
    low=np.array(low, float),
    high=np.array(high, float),
    fixed=np.array([fixed.get(name, np.nan) for name in law.names]),
    n=n,
  )


def bucket(n: int) -> int:
  """Sizes that programs are compiled for: 8, 12, 16, 24, 32, 48, ..."""
  size = 8
  while size < n:
    size = size * 3 // 2 if math.log2(size).is_integer() else size * 4 // 3
  return size


# ------------------------------------------------------------ inside, outside


def outer(law: Law, frame: Frame, t: Any) -> list[Any]:
  """Physical parameters of inner ones t (..., k); numpy or jax."""
  shape, k = [], len(law.linear)
  for i, p in enumerate(law.shape, k):
    if frame.pinned[i]:
      shape.append(frame.fixed[i] + 0 * t[..., i])
    elif p.log:
      shape.append(namespace(t).exp(t[..., i]) * frame.unit[i])
    else:
      shape.append(t[..., i] * frame.unit[i])
  if not k:
    return shape
  scales = _middle(law, frame, shape)
  linear = [
    frame.fixed[i] + 0 * t[..., i]
    if frame.pinned[i]
    else t[..., i] * frame.level / scales[i]
    for i in range(k)
  ]
  return linear + shape


def inner(law: Law, frame: Frame, values: Sequence[Array]) -> Array:
  """The inverse of `outer` in numpy: (...,) each -> (..., k)."""
  k, out = len(law.linear), []
  values = [np.asarray(v, float) for v in values]
  scales = _middle(law, frame, values[k:]) if k else []
  for i, (p, v) in enumerate(zip(law.parameters, values)):
    if i < k:
      out.append(v * scales[i] / frame.level)
    else:
      v = v / frame.unit[i]
      out.append(np.log(v) if p.log else v)
  return np.clip(np.stack(np.broadcast_arrays(*out), -1), frame.low, frame.high)


def _middle(law: Law, frame: Frame, shape: Sequence[Any]) -> list[Any]:
  """Each column at the middle of the data, per lane."""
  middle = [v[None] for v in frame.middle]
  columns = law.basis(middle, [s[..., None] for s in shape])
  xp = namespace(*shape)
  sizes = [xp.abs(c[..., 0]) for c in columns]
  return [xp.where(size == 0, 1.0, size) for size in sizes]
