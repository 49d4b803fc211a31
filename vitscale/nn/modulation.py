"""Adaptive norms: what a model is told, as shifts, scales and gates (adaLN).

A time and a class become one vector, and of it each branch reads what to do to
its normalised input and result (Peebles & Xie, 2212.09748, section 3.2).
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.nn.linear import Linear

SINES = 256  # of a time, half of them cosines
EPS = 1e-6  # of every norm


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """norm(x) (1 + scale) + shift, the norm without parameters of its own.

  Args:
    x: tokens (b * n, d) or (b, n, d).
    shift, scale: (b, d), for all tokens of an example.
  """
  y = x.astype(jnp.float32).reshape(len(shift), -1, x.shape[-1])
  y = y - y.mean(-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPS)
  shift, scale = (z.astype(jnp.float32)[:, None] for z in (shift, scale))
  return (y * (1 + scale) + shift).astype(x.dtype).reshape(x.shape)


def gated(y: jax.Array, gate: jax.Array) -> jax.Array:
  """A branch (b * n, d) or (b, n, d) times its gates (b, d)."""
  of = y.reshape(len(gate), -1, y.shape[-1])
  return (of * gate[:, None].astype(y.dtype)).reshape(y.shape)


def sines(time: jax.Array) -> jax.Array:
  """Times (b,) in 0..1 -> (b, SINES) float32, as of steps 0 to 1000."""
  half = SINES // 2
  omega = np.exp(-math.log(10_000) * np.arange(half) / half)
  angle = 1000 * time.astype(jnp.float32)[:, None] * omega.astype(np.float32)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class Modulation(nn.Module):
  """silu, then a linear map to `count` vectors, zero at first."""

  count: int
  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, condition: jax.Array) -> tuple[jax.Array, ...]:
    """(b, d) -> `count` times (b, d)."""
    y = Linear(
      "embed -> modulation embed@out", (self.count, self.width),
      init=axes.zeros, dtype=self.dtype, name="map",
    )(nn.silu(condition))  # fmt: skip
    return tuple(y[:, i] for i in range(self.count))


class Condition(nn.Module):
  """Time and class as one vector.

  Attributes:
    width: d.
    num_classes: 0 for no classes; else the table has one entry more, for no
      class.
    dtype: compute type.
  """

  width: int
  num_classes: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, time: jax.Array, label: jax.Array | None) -> jax.Array:
    """Times (b,) in 0..1 and classes (b,) or None -> (b, d).

    A class that does not exist gives NaN.
    """
    linear = functools.partial(
      Linear, features=(self.width,), init=axes.normal(0.02), dtype=self.dtype
    )
    y = linear("pos -> embed", name="time_in")(sines(time))
    y = linear("embed -> embed@out", name="time_out")(nn.silu(y))
    if not self.num_classes:
      return y
    shape = (self.num_classes + 1, self.width)
    init = axes.normal(0.02)
    table = axes.param(self, "classes", "classes embed", shape, init)
    if label is None:
      label = jnp.full(time.shape, self.num_classes)
    of_class = table.at[label].get(mode="fill", fill_value=jnp.nan)
    return y + of_class.astype(y.dtype)
