"""Local attention against softmax with a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.mixers import util
from vitscale.nn.grid import Grid


def visible(grid, w):
  """(n, n) bool, who sees whom, written token by token."""
  halo, first = w // 2, grid.prefix
  near = lambda a, b, size: (
    # Key b is in the block of query a or at most `halo` beyond it.
    (a // w) * w - halo <= b < (a // w + 1) * w + halo or size <= w
  )
  seen = np.ones((grid.tokens, grid.tokens), bool)
  places = [(r, c) for r in range(grid.rows) for c in range(grid.columns)]
  for i, (r, c) in enumerate(places):
    for j, (s, d) in enumerate(places):
      seen[first + i, first + j] = (
        near(r, s, grid.rows) and near(c, d, grid.columns)
      )  # fmt: skip
  return seen


def masked(q, k, v, seen, lengths):
  logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
  real = np.arange(q.shape[1]) < np.asarray(lengths)[:, None, None, None]
  logits = np.where(seen & real, logits, -1e9)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.mark.parametrize(
  "grid, w",
  [
    (Grid(1, 11), 4),  # a sequence, not whole blocks
    (Grid(1, 12, 2), 3),
    (Grid(5, 7, 1), 3),  # odd and not square
    (Grid(2, 9, 1), 4),  # smaller than a block on one side
    (Grid(4, 4), 1),  # itself alone
  ],
)
def test_window_is_masked_attention(grid, w):
  n = grid.tokens
  q, k, v = util.qkv(n)
  # The second example ends in its last row, where everybody keeps a key.
  lengths = np.array([n, n - 1])
  got = util.run(f"window({w})", q, k, v, grid=grid, lengths=lengths)
  want = masked(q, k, v, visible(grid, w), lengths)
  for i, end in enumerate(lengths):
    util.close(got[i, :end], want[i, :end])


def test_far_tokens_change_nothing_and_the_prefix_sees_them():
  grid, (q, k, v) = Grid(8, 8, 1), util.qkv(65)
  run = lambda v: util.run("window(2)", q, k, v, grid=grid)
  moved = jnp.abs(run(v) - run(v.at[:, 1 + 9].add(1.0))).max((0, 2, 3))
  assert moved[0] > 0  # the class token
  near = moved[1:].reshape(8, 8) > 0  # who sees the token at (1, 1)
  want = np.zeros((8, 8), bool)
  want[:4, :4] = True  # its own block, and those whose halo it is in
  np.testing.assert_array_equal(near, want)


def test_everything_hidden_is_finite():
  q, k, v = util.qkv(16)
  lengths = jnp.array([0, 3])
  run = lambda q: util.run(
    "window(2)", q, k, v, grid=Grid(4, 4), lengths=lengths
  )
  y, pull = jax.vjp(run, q)
  assert np.isfinite(y).all() and np.isfinite(pull(y)[0]).all()
