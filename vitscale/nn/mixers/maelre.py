"""Merging tokens until attention is affordable, after MAELRE (2507.19409).

Fidelity: interpretation. The paper says that tokens are merged from stage to
stage, that attention is approximated at a cost of O(D^2) while there are more
tokens than D, and exact afterwards; a block of this bench gives back as many
tokens as it got. So here a layer with more than D = `rank` tokens

  1. merges neighbours, halving them again and again until at most D are left:
     within blocks of BLOCK tokens every even one joins the odd one whose key
     is most like its own (bipartite matching, ToMe, 2210.03461, within blocks,
     so that its cost is linear); q, k and v become means, with counts s;
  2. attends exactly among those, softmax(q k^T / sqrt(hd) + log s) v, which
     is what s equal keys would weigh (ToMe, equation 1);
  3. gives every token what its group got,

O(n) for merging and O(D^2) for attention; with at most D tokens it is softmax
attention. Neighbours are those of the row-major order. Heads merge apart, and
class token and registers not at all; padding (`lengths`) has count 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError
from vitscale.nn import attention, mixers, tiled
from vitscale.nn.grid import Grid
from vitscale.nn.mixers.linear import dot

BLOCK = 16  # tokens among which pairs are sought


class Core(nn.Module):
  """Softmax attention among at most `rank` merged tokens; no parameters.

  Attributes:
    rank: D, more than the number of class token and registers.
  """

  rank: int = 64

  @nn.compact
  def __call__(
    self, q, k, v, *, grid: Grid | None, lengths=None, segment_ids=None
  ) -> jax.Array:
    """q, k, v -> (b, n, h, hd)."""
    mixers.refuse("maelre", segment_ids=segment_ids)
    b, n, h, hd = q.shape
    first = grid.prefix if grid else 0
    if self.rank <= first:
      raise UserError(
        f"maelre({self.rank}): rank must be above {first}, the number of class"
        " token and registers"
      )
    if n <= self.rank:
      return attention.attend(q, k, v, lengths=lengths, backend="reference")
    x = jnp.concatenate([q, k, v], -1).swapaxes(1, 2)  # (b, h, n, 3 hd)
    real = jnp.ones((1, n), bool)
    if lengths is not None:
      real = jnp.arange(n) < lengths[:, None]
    size = jnp.broadcast_to(real[:, None, :, None], (b, h, n, 1))
    size = size.astype(jnp.float32)

    (head, x), (head_size, size) = (
      (y[:, :, :first], y[:, :, first:]) for y in (x, size)
    )
    joined = []
    while x.shape[2] > self.rank - first:
      x, size, how = merge(x, size, hd)
      joined.append(how)
    x = jnp.concatenate([head, x], 2)
    size = jnp.concatenate([head_size, size], 2)
    y = attend(x, size)
    head, y = y[:, :, :first], y[:, :, first:]
    for how in reversed(joined):
      y = unmerge(y, *how)
    return jnp.concatenate([head, y], 2).swapaxes(1, 2)


def merge(x: jax.Array, size: jax.Array, hd: int):
  """Halves the tokens.

  Args:
    x: (b, h, n, 3 hd), q, k and v side by side.
    size: (b, h, n, 1) float32, how many tokens each one is; 0 for padding.
    hd: width of a head.

  Returns:
    x and size of the merged ones, and (joins, n) for `unmerge`: joins is
    (b, h, blocks, even, odd), 1 where an even token goes to an odd one.
  """
  b, h, n, _ = x.shape
  block = min(BLOCK, n + n % 2)

  def split(y):  # (b, h, n, c) -> even and odd, (b, h, blocks, block / 2, c)
    y = jnp.pad(y, ((0, 0), (0, 0), (0, -n % block), (0, 0)))
    y = y.reshape(b, h, -1, block // 2, 2, y.shape[-1])
    return y[..., 0, :], y[..., 1, :]

  (even, odd), (few, many) = split(x), split(size)
  unit = lambda y: _unit(y[..., hd : 2 * hd].astype(jnp.float32))
  alike = dot("bhcid,bhcjd->bhcij", unit(even), unit(odd))
  alike = jnp.where(many[..., None, :, 0] > 0, alike, -2.0)  # below any cosine
  joins = jax.nn.one_hot(alike.argmax(-1), block // 2, dtype=jnp.float32)
  into = lambda y: dot("bhcij,bhcid->bhcjd", joins, y)
  total = many + into(few)
  mean = (many * odd + into(few * even)) / jnp.maximum(total, 1.0)
  flat = lambda y: y.reshape(b, h, -1, y.shape[-1])
  return flat(mean.astype(x.dtype)), flat(total), (joins, n)


def unmerge(y: jax.Array, joins: jax.Array, n: int) -> jax.Array:
  """(b, h, merged, hd) -> (b, h, n, hd): each token gets its group's."""
  b, h, blocks, half, _ = joins.shape
  odd = y.reshape(b, h, blocks, half, -1)
  even = dot("bhcij,bhcjd->bhcid", joins, odd).astype(y.dtype)
  return jnp.stack([even, odd], 4).reshape(b, h, -1, y.shape[-1])[:, :, :n]


def attend(x: jax.Array, size: jax.Array) -> jax.Array:
  """Softmax attention where each key counts `size` times."""
  q, k, v = jnp.split(x, 3, -1)
  logits = dot("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
  size = size.swapaxes(2, 3)  # (b, h, 1, keys)
  count = jnp.log(jnp.maximum(size, 1.0))
  logits = jnp.where(size > 0, logits + count, tiled.MASKED)
  weights = jax.nn.softmax(logits, -1).astype(v.dtype)
  return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


def _unit(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
