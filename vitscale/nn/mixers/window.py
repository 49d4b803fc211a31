"""Local attention: a token sees those near it.

    window(w)    blocks of w x w queries; their keys are the block and a halo
                 of w // 2 on every side; in a sequence, blocks of w

(blocked local attention with a halo, HaloNet, 2103.12731, section 3.2). Every
query sees w // 2 tokens in every direction or more. Class token and registers
see all tokens and all tokens see them, as global tokens do in 2004.05150.

Any grid: it is padded to whole blocks with keys nobody sees; one that is
smaller than a block is one block. O(n w^2) time and memory.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError
from vitscale.nn import attention, mixers
from vitscale.nn.grid import Grid
from vitscale.nn.tiled import NOBODY


class Core(nn.Module):
  """Softmax over neighbours; no parameters.

  Attributes:
    window: w, tokens along a side of a block.
  """

  window: int = 7

  @nn.compact
  def __call__(
    self, q, k, v, *, grid: Grid | None, lengths=None, segment_ids=None
  ) -> jax.Array:
    """q, k, v -> (b, n, h, hd)."""
    mixers.refuse("window", segment_ids=segment_ids)
    w = self.window
    if w < 1:
      raise UserError(f"window({w}): should be 1 or more")
    if grid is None:
      raise UserError("mixer 'window' needs whole images: where tokens lie")
    (_, of_q), (first_k, of_k), (first_v, of_v) = map(grid.split, (q, k, v))
    if lengths is None:
      seen = jnp.ones((1, grid.rows, grid.columns, 1, 1), bool)
    else:
      real = jnp.arange(grid.tokens) < lengths[:, None]
      seen = grid.split(real[..., None, None])[1]

    # (b, blocks, tokens of a block, h, hd), then each block as an example.
    of_q = blocks(of_q, w, 0)
    of_k, of_v, seen = (blocks(x, w, w // 2) for x in (of_k, of_v, seen))
    b, count, size = of_q.shape[:3]
    flat = lambda x: x.reshape(-1, *x.shape[2:])

    def keys(first, near):  # the prefix in front of every block's
      shape = (b, count, *first.shape[1:])
      first = jnp.broadcast_to(first[:, None], shape)
      return flat(jnp.concatenate([first, near], 2))

    seen = jnp.broadcast_to(seen[..., 0, 0], (b, *seen.shape[1:3]))
    ids = jnp.where(keys(jnp.ones((b, grid.prefix), bool), seen), 0, NOBODY)
    y = attention.attend(
      flat(of_q), keys(first_k, of_k), keys(first_v, of_v),
      segment_ids=(jnp.zeros((b * count, size), jnp.int32), ids),
      backend="reference",
    )  # fmt: skip
    y = unblocked(y.reshape(of_q.shape), w, grid)
    if not grid.prefix:
      return grid.join(q[:, :0], y)
    everywhere = attention.attend(
      q[:, : grid.prefix], k, v, lengths=lengths, backend="reference"
    )
    return grid.join(everywhere, y)


def sides(size: int, w: int) -> tuple[int, int]:
  """Length and number of the blocks of a side."""
  w = min(w, size)
  return w, -(-size // w)


def blocks(x: jax.Array, w: int, halo: int) -> jax.Array:
  """(b, rows, columns, ...) -> (b, blocks, tokens of a block and halo, ...).

  What lies outside of the grid is zero, False in a mask.
  """
  for side in (1, 3):  # rows; then columns, which stand behind two of rows
    x = _split(x, side, w, halo)
  x = x.swapaxes(2, 3)  # (b, row block, column block, row, column, ...)
  b, many, few, row, column, *rest = x.shape
  return x.reshape(b, many * few, row * column, *rest)


def _split(x: jax.Array, dim: int, w: int, halo: int) -> jax.Array:
  """One side in blocks, each with the end and the start of its neighbours."""
  size, count = sides(x.shape[dim], w)
  pad = lambda x, before, after: jnp.pad(
    x, [(before, after) if i == dim else (0, 0) for i in range(x.ndim)]
  )
  x = pad(x, 0, size * count - x.shape[dim])
  x = x.reshape(*x.shape[:dim], count, size, *x.shape[dim + 1 :])
  if not halo or count == 1:
    return x
  part = lambda x, axis, *at: jax.lax.slice_in_dim(x, *at, axis=axis)
  before = part(pad(x, 1, 0), dim, 0, count)
  after = part(pad(x, 0, 1), dim, 1, count + 1)
  ends = part(before, dim + 1, size - halo, size)
  return jnp.concatenate([ends, x, part(after, dim + 1, 0, halo)], dim + 1)


def unblocked(y: jax.Array, w: int, grid: Grid) -> jax.Array:
  """The inverse of `blocks` without a halo."""
  (row, many), (column, few) = (sides(s, w) for s in (grid.rows, grid.columns))
  y = y.reshape(len(y), many, few, row, column, *y.shape[3:]).swapaxes(2, 3)
  y = y.reshape(len(y), many * row, few * column, *y.shape[5:])
  return y[:, : grid.rows, : grid.columns]
