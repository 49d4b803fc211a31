"""What a fit minimises: residuals in logs or not, squared, Huber, absolute."""

import dataclasses
import math
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws.numeric import namespace

NAMES = ("log-mse", "mse", "huber", "lad", "asymmetric")
TINY = 1e-300
# Least absolute deviations are the limit of Huber's; its sum differs from this
# by less than delta a point.
LAD_DELTA = 1e-11


@dataclasses.dataclass(frozen=True)
class Objective:
  """The sum over points of w rho(r), r = ln(law / y) (or law - y for mse).

  Attributes:
    name: as the user wrote it.
    log: residuals of logarithms.
    delta: below it rho is r^2 / 2, above it delta (|r| - delta / 2); infinite
      for squares, which are r^2.
    over: factor on points the law lies above of.
  """

  name: str
  log: bool = True
  delta: float = math.inf
  over: float = 1.0

  @classmethod
  def parse(cls, text: str) -> "Objective":
    """`mse`, `log-mse`, `lad`, `huber[:1e-3]`, `asymmetric[:10]`.

    `huber` is that of Hoffmann et al. (2203.15556, section D.2). `asymmetric`
    is `huber` with overestimates counted so many times (10: OLMo's ladder).
    """
    name, _, argument = text.partition(":")
    usual = {"huber": 1e-3, "asymmetric": 10.0}
    if name not in NAMES or (argument and name not in usual):
      raise UserError(f"unknown objective {text!r}{nearest(name, NAMES)}")
    if name not in usual:
      if name == "lad":
        return cls(text, delta=LAD_DELTA)
      return cls(text, log=name == "log-mse")
    try:
      number = float(argument or usual[name])
    except ValueError:
      number = math.nan
    if not 0 < number < math.inf:
      raise UserError(
        f"objective {text!r}: the number must be positive, as"
        f" {name}:{usual[name]:g}"
      )
    if name == "huber":
      return cls(text, delta=number)
    return cls(text, delta=1e-3, over=number)

  def residual(self, predicted: Any, y: Any) -> Any:
    if not self.log:
      return predicted - y
    xp = namespace(predicted, y)
    return xp.log(xp.maximum(predicted, TINY)) - xp.log(y)

  def rho(self, r: Any, delta: Any = None) -> Any:
    """Contribution of each residual; `delta` replaces the objective's own."""
    if math.isinf(self.delta):
      return r**2
    xp = namespace(r, delta)
    delta = self.delta if delta is None else delta
    size = xp.abs(r)
    inside, outside = 0.5 * r**2, delta * (size - 0.5 * delta)
    value = xp.where(size <= delta, inside, outside)
    return self._over(xp, r, value)

  def pull(self, r: Any, delta: Any = None) -> Any:
    """w of re-weighted least squares: w r = rho'(r), half of it for squares."""
    xp = namespace(r, delta)
    if math.isinf(self.delta):
      return xp.ones_like(r)
    delta = self.delta if delta is None else delta
    weight = delta / xp.maximum(xp.abs(r), delta)
    return self._over(xp, r, weight)

  def _over(self, xp: Any, r: Any, value: Any) -> Any:
    """`value`, counted `over` times where the law lies above the point."""
    if self.over == 1:
      return value
    return xp.where(r > 0, self.over * value, value)

  def total(self, residual: Any, weights: Any) -> Any:
    """The sum over the last axis; of `lad`, of |r| itself."""
    if self.name == "lad":
      return (weights * np.abs(residual)).sum(-1)
    return (weights * self.rho(residual)).sum(-1)
