"""Linformer: keys and values projected along the sequence (2006.04768).

    y = softmax(q (E k)^T / sqrt(hd)) (F v),   E, F: (rank, n), learned

(equation 7; E and F are shared by the heads of a layer, "headwise sharing" of
section 4). O(n rank) time and memory.

E and F belong to one grid, that of the first call. For another one they are
resampled along their positions like a table of positions is, and divided by
how many more tokens are summed. A part of a nested model with a patch of its
own gets them resampled without that division, so don't nest `patch` with it.
Class token and registers are keys as they are, not projected. `lengths` zero
the keys and values that don't exist, before they are summed.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import attention, mixers
from vitscale.nn.grid import Grid
from vitscale.nn.mixers.linear import dot, exist
from vitscale.nn.position import resample


class Core(nn.Module):
  """Softmax over `rank` sums of keys.

  Attributes:
    rank: k of the paper, which takes 128 to 256 for 512 to 4,096 tokens.
  """

  rank: int = 64

  @nn.compact
  def __call__(
    self, q, k, v, *, grid: Grid | None, lengths=None, segment_ids=None
  ) -> jax.Array:
    """q, k, v -> (b, n, h, hd)."""
    mixers.refuse("linformer", segment_ids=segment_ids)
    if self.rank < 1:
      raise UserError(f"linformer({self.rank}): rank is 1 or more")
    if grid is None:
      raise UserError("mixer 'linformer' needs whole images: where tokens lie")
    real = jnp.asarray(exist(k.shape[1], lengths), k.dtype)

    def summed(x, name):
      first, image = grid.split(x * real)
      kernel = self._kernel(name, grid).astype(x.dtype)
      image = dot("brchd,rcm->bmhd", image, kernel).astype(x.dtype)
      return jnp.concatenate([first, image], 1)

    keys, values = summed(k, "keys"), summed(v, "values")
    return attention.attend(q, keys, values, backend="reference")

  def _kernel(self, name: str, grid: Grid) -> jax.Array:
    """E or F, (rows, columns, rank), for this grid."""
    stored = here = grid.rows, grid.columns
    if self.has_variable("params", name):
      stored = axes.unbox(self.get_variable("params", name)).shape[:-1]
    spec = "pos@row pos@column -> rank"
    kernel = axes.param(self, name, spec, (*stored, self.rank), axes.lecun)
    if stored == here:
      return kernel
    share = stored[0] * stored[1] / (here[0] * here[1])
    return resample(kernel, here) * share
