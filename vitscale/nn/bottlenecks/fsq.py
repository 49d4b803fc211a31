"""Finite scalar quantisation: each float one of a few levels.

    t = tanh(W x + b) in (-1, 1)^c
    k_i = floor((L_i - 1) / 2 t_i + L_i / 2)  in {0 ... L_i - 1}
    z_i = 2 k_i / (L_i - 1) - 1               in -1 ... 1, equally far apart

(2309.15505, section 3.1.) As there (L - 1) / 2 tanh is rounded, to integers for
odd L and to halves of odd integers for even L. The paper then shifts even
levels by half, to -L/2 ... L/2 - 1 over L/2, and the tanh's argument so that 0
is a level; here the grid stays symmetric, which makes L = 2 a sign. The
gradient of z goes straight through to t. `indices` are in mixed radix, the
first float changing quickest: sum of k_i L_1 ... L_(i-1).

What it loses: all but sum log2 L_i bits of a token. It needs no codebook and
no penalty, but few floats: section 3.2 takes levels of 5 or more, such as (8,
6, 5) for 2^8, (8, 5, 5, 5) for 2^10 or (7, 5, 5, 5, 5) for 2^12 entries. Where
|W x + b| grows, tanh passes no gradient, and the outer levels are half as
wide in t.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.bottlenecks import MOST, straight_through
from vitscale.nn.linear import Linear

LARGEST = 2**16  # levels of a float that float32 tells apart with ease


class Bottleneck(nn.Module):
  """Rounded floats.

  Attributes:
    levels: L_i, of each float of a token.
    dtype: compute type of the linear map; the rest is float32.
  """

  levels: tuple[int, ...] = (8, 5, 5, 5)
  dtype: str = "float32"

  def setup(self):
    what, levels = f"fsq({self.levels!r})", self.levels
    if not isinstance(levels, tuple) or not levels:
      raise UserError(f"{what}: levels are a tuple, such as (8, 5, 5, 5)")
    for level in levels:
      if type(level) is not int or not 2 <= level <= LARGEST:
        raise UserError(
          f"{what}: {level!r} levels; want integers of 2 to {LARGEST}"
        )
    if math.prod(levels) > MOST:
      raise UserError(
        f"{what}: {math.prod(levels)} entries, more than the {MOST} of an index"
      )
    self.project = Linear(
      "embed -> code", (self.code,), init=axes.lecun, dtype=self.dtype
    )

  @property
  def code(self) -> int:
    """c, floats of a token."""
    return len(self.levels)

  @property
  def entries(self) -> int:
    """Different tokens."""
    return math.prod(self.levels)

  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c), and `indices` (b, n) int32; no penalties."""
    del train
    t = jnp.tanh(self.project(x).astype(jnp.float32))
    levels = np.asarray(self.levels, np.float32)
    k = jnp.floor((levels - 1) / 2 * t + levels / 2).astype(jnp.int32)
    indices = (k * self._places()).sum(-1)
    out = {"indices": indices, "penalties": {}}
    return straight_through(self._grid(k), t), out

  def codes(self, indices: jax.Array) -> jax.Array:
    """Indices of any shape (...) -> z (..., c)."""
    digits = indices[..., None] // self._places()
    return self._grid(digits % np.asarray(self.levels, np.int32))

  def _places(self) -> np.ndarray:
    return np.cumprod((1, *self.levels[:-1])).astype(np.int32)

  def _grid(self, k: jax.Array) -> jax.Array:
    last = np.asarray(self.levels, np.float32) - 1
    return 2 * k.astype(jnp.float32) / last - 1
