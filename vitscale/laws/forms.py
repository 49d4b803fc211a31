"""Laws as short declarations: what is linear, what is not, where from.

A law is `sum_i linear_i * basis_i(x; shape)`. With the shape parameters (the
exponents) fixed, the linear ones are a small non-negative least-squares
problem, so the fitter searches the exponents alone; see `solve.py`. Every
form that separates this way (Chinchilla: E, A, B linear; alpha, beta shape)
is one more function and one more `Law(...)`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitscale.core.errors import UserError, nearest

Array = np.ndarray
# (one array per variable, one per shape parameter) -> one per linear parameter
Basis = Callable[[Sequence[Array], Sequence[Array]], tuple[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Parameter:
  """A named unknown. Linear ones are either free or bounded below by 0."""

  name: str
  low: float = -math.inf
  high: float = math.inf
  meaning: str = ""


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
  """

  name: str
  formula: str
  variables: tuple[str, ...]
  linear: tuple[Parameter, ...]
  shape: tuple[Parameter, ...]
  basis: Basis
  source: str

  @property
  def parameters(self) -> tuple[Parameter, ...]:
    return self.linear + self.shape

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(p.name for p in self.parameters)

  def __call__(self, params: Mapping[str, float | Array], **x) -> Array:
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
    shape = [np.asarray(params[p.name], np.float64) for p in self.shape]
    columns = self.basis(values, shape)
    return sum(params[p.name] * c for p, c in zip(self.linear, columns))


def _power(x: Sequence[Array], shape: Sequence[Array]) -> tuple[Array, ...]:
  (p,), (a,) = x, shape
  return (p**a,)


def _constant_power(
  x: Sequence[Array], shape: Sequence[Array]
) -> tuple[Array, ...]:
  (p,), (a,) = x, shape
  power = p**a
  return np.ones_like(power), power


_SOURCE = (
  "Wang et al. 2025, arXiv 2502.03738, scaling figure (log-log; the constants "
  "are not printed, the offset is read off the tick spacing)"
)


def power(
  variable: str = "p",
  *,
  exponent: tuple[float, float] = (-5.0, 5.0),
  source: str = _SOURCE,
) -> Law:
  """`L = c p^a`: no floor, a straight line in log-log axes."""
  return Law(
    name="power",
    formula=f"L = c {variable}^a",
    variables=(variable,),
    linear=(Parameter("c", 0.0, meaning=f"loss at {variable} = 1"),),
    shape=(Parameter("a", *exponent, meaning="exponent"),),
    basis=_power,
    source=source,
  )


def power_constant(
  variable: str = "p",
  *,
  exponent: tuple[float, float] = (-5.0, 5.0),
  source: str = _SOURCE,
) -> Law:
  """`L = L0 + c p^a`: a power law above the floor L0 >= 0."""
  return Law(
    name="power_constant",
    formula=f"L = L0 + c {variable}^a",
    variables=(variable,),
    linear=(
      Parameter("L0", 0.0, meaning="irreducible loss"),
      Parameter("c", 0.0, meaning=f"reducible loss at {variable} = 1"),
    ),
    shape=(Parameter("a", *exponent, meaning="exponent"),),
    basis=_constant_power,
    source=source,
  )
