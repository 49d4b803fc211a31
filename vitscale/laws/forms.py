"""What a law is: formula, parameters with bounds, what is linear, source.

    L = sum_i linear_i * basis_i(x; shape)

With the shape parameters (exponents, scales) fixed, the linear ones are a small
least-squares problem, and the fitter searches the others alone (`solve`). A
formula that does not separate gives `value` instead and is searched whole.
The laws by name are in `registry`; your own is `expression.law("E + A/N^a",
("N",))`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest

Array = np.ndarray
# (one array per variable, one per shape parameter) -> one per linear parameter
Basis = Callable[[Sequence[Array], Sequence[Array]], tuple[Array, ...]]
# (variables, all parameters in order) -> loss
Value = Callable[[Sequence[Array], Sequence[Array]], Array]


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A named unknown.

  Attributes:
    low, high: bounds. Linear parameters are either free or bounded below by
      0; the others need finite bounds.
    meaning: in words, with its unit.
    log: searched on a logarithmic scale (scales and counts).
    per: a variable in whose unit it is measured: its bounds are multiples
      of that variable's geometric mean in the data ("1/x" for its inverse).
      "loss" measures it in the geometric mean of the losses, "floor" in the
      smallest loss.
  """

  name: str
  low: float = -math.inf
  high: float = math.inf
  meaning: str = ""
  log: bool = False
  per: str = ""


@dataclasses.dataclass(frozen=True)
class Law:
  """One functional form, independent of any data.

  Attributes:
    name: what the command line and the report call it.
    formula: as a reader would write it.
    variables: columns that the data must have, all positive.
    linear: parameters in which the law is linear, in the order of `basis`.
    shape: the others, with finite bounds.
    basis: see `Basis`; broadcasts shape arrays against variable arrays.
    source: paper and section.
    value: the formula of a law that does not separate; then `linear` is empty
      and `basis` None.
    pinned: parameters with a fixed value (see `pin`).
    derived: further quantities from the parameters, for the card.
  """

  name: str
  formula: str
  variables: tuple[str, ...]
  linear: tuple[Parameter, ...]
  shape: tuple[Parameter, ...]
  basis: Basis | None
  source: str
  value: Value | None = None
  pinned: tuple[tuple[str, float], ...] = ()
  derived: Callable[[Mapping[str, float]], dict[str, float]] | None = None

  @property
  def parameters(self) -> tuple[Parameter, ...]:
    """All of them, linear first."""
    return self.linear + self.shape

  @property
  def free(self) -> tuple[Parameter, ...]:
    """Those a fit determines."""
    fixed = dict(self.pinned)
    return tuple(p for p in self.parameters if p.name not in fixed)

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(p.name for p in self.parameters)

  def at(self, x: Sequence[Any], values: Sequence[Any]) -> Any:
    """Loss at variables `x` for parameter `values`, both in order."""
    if self.value is not None:
      return self.value(x, values)
    k = len(self.linear)
    columns = self.basis(x, values[k:])
    return sum(c * column for c, column in zip(values[:k], columns))

  def __call__(self, params: Mapping[str, float | Array], /, **x) -> Array:
    """Loss at `x`; parameters and variables broadcast against each other."""
    for name in x:
      if name not in self.variables:
        raise UserError(
          f"law {self.name!r} has no variable {name!r}"
          f"{nearest(name, self.variables)}"
        )
    missing = [v for v in self.variables if v not in x]
    if missing:
      raise UserError(f"law {self.name!r} needs a value for {missing[0]!r}")
    values = [np.asarray(x[v], np.float64) for v in self.variables]
    given = [np.asarray(params[p.name], np.float64) for p in self.parameters]
    return self.at(values, given)

  def pin(self, **values: float) -> "Law":
    """The law with some parameters fixed, as `law.pin(E=1.69)`.

    Raises:
      UserError: no such parameter, or a value outside of its bounds.
    """
    by_name = {p.name: p for p in self.parameters}
    for name, value in values.items():
      if name not in by_name:
        raise UserError(
          f"law {self.name!r} has no parameter {name!r}{nearest(name, by_name)}"
        )
      p = by_name[name]
      bounded = not p.per
      if bounded and not p.low <= value <= p.high:
        raise UserError(
          f"law {self.name!r}: {name}={value:g} lies outside of its bounds"
          f" [{p.low:g}, {p.high:g}]"
        )
    pinned = {**dict(self.pinned), **{k: float(v) for k, v in values.items()}}
    if len(pinned) == len(by_name):
      raise UserError(f"law {self.name!r}: nothing is left to fit")
    return dataclasses.replace(self, pinned=tuple(sorted(pinned.items())))

  def bound(self, bounds: Mapping[str, "Bound"]) -> "Law":
    """The law with other bounds, as `law.bound({"alpha": (0, 1)})`.

    Raises:
      UserError: no such parameter, no interval, or a parameter in which the
        law is linear and that can't have such bounds.
    """
    new = {}
    for name, bound in bounds.items():
      if name not in self.names:
        raise UserError(
          f"law {self.name!r} has no parameter {name!r}"
          f"{nearest(name, self.names)}"
        )
      low, high, log = bound_of(name, bound)
      p = self.parameters[self.names.index(name)]
      finite = math.isfinite(low) and math.isfinite(high)
      if p in self.linear and (high != math.inf or low not in (0, -math.inf)):
        raise UserError(
          f"law {self.name!r} is linear in {name}: its bounds are 0:inf or"
          " -inf:inf, or pin it"
        )
      if p in self.shape and not finite:
        raise UserError(f"bound of {name}: {low:g}:{high:g} must be finite")
      if p.log and low > 0:
        log = True
      new[name] = dataclasses.replace(p, low=low, high=high, log=log, per="")
    swap = lambda group: tuple(new.get(p.name, p) for p in group)
    return dataclasses.replace(
      self, linear=swap(self.linear), shape=swap(self.shape)
    )


# (low, high), or (low, high, "log") to search on a logarithmic scale
Bound = tuple[float, float] | tuple[float, float, str]


def bound_of(name: str, bound: Bound) -> tuple[float, float, bool]:
  """(low, high, whether logarithmic) of a `Bound`.

  Raises:
    UserError: it is empty, or logarithmic and not positive.
  """
  low, high, *scale = bound
  if scale not in ([], ["log"]):
    raise UserError(f"bound of {name}: the scale is {scale[0]!r}, not 'log'")
  if not low < high:
    raise UserError(f"bound of {name}: {low:g} is not below {high:g}")
  if scale and not low > 0:
    raise UserError(f"bound of {name}: {low:g} is not positive, as log needs")
  return float(low), float(high), bool(scale)


def positive(name: str, meaning: str = "") -> Parameter:
  """A linear parameter that is not negative."""
  return Parameter(name, 0.0, meaning=meaning)


def exponent(
  name: str, meaning: str = "", *, low: float = 0.0, high: float = 3.0
) -> Parameter:
  """A shape parameter between bounds."""
  return Parameter(name, low, high, meaning)
