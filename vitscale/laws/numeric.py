"""Formulas that run on numpy and on traced jax arrays alike."""

from typing import Any

import numpy as np


def namespace(*values: Any) -> Any:
  """numpy, or jax.numpy where one of the values is a jax array."""
  for value in values:
    if not isinstance(value, np.ndarray | np.generic) and hasattr(
      value, "__array_namespace__"
    ):
      return value.__array_namespace__()
  return np


def raised(x: Any, a: Any) -> Any:
  """x ** a for positive x: the logarithm is taken once for all exponents."""
  xp = namespace(x, a)
  return xp.exp(a * xp.log(x))


def root(gap: Any, low: Any, high: Any, slope: Any, like: Any) -> Any:
  """The zero of a rising `gap` between `low` and `high`, differentiable.

  Args:
    gap: v -> array, rising in v; may close over traced parameters.
    low, high: brackets, arrays of the result's shape.
    slope: v -> derivative of `gap` in v.
    like: any array that tells numpy from jax.

  Bisection, then two Newton steps: they make first and second derivatives
  exact by the implicit function theorem, whatever came before.
  """
  xp = namespace(like, low, high)

  def halve(_, ends):
    low, high = ends
    middle = 0.5 * (low + high)
    below = gap(middle) < 0
    return xp.where(below, middle, low), xp.where(below, high, middle)

  if xp is np:
    for i in range(60):
      low, high = halve(i, (low, high))
    v = 0.5 * (low + high)
    return v - gap(v) / slope(v)
  import jax

  still = jax.lax.stop_gradient
  low, high = jax.lax.fori_loop(
    0, 60, lambda i, ends: still(halve(i, ends)), (still(low), still(high))
  )
  v = still(0.5 * (low + high))
  v = v - gap(v) / still(slope(v))
  return v - gap(v) / slope(v)
