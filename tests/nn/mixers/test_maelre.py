"""Merged attention: exact where it must be, groups of equals elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.mixers import util
from vitscale.core.errors import UserError
from vitscale.nn.grid import Grid
from vitscale.nn.mixers import maelre


def test_few_tokens_are_softmax():
  q, k, v = util.qkv(12)
  lengths = jnp.array([12, 5])
  got = util.run("maelre(12)", q, k, v, lengths=lengths)
  util.close(got, util.softmax(q, k, v, lengths=lengths))
  assert util.apart(util.run("maelre(11)", q, k, v), got) > 0.01


def repeated(n, times, prefix):
  """q, k, v in which every image token stands `times` times in a row."""
  image = [jnp.repeat(x, times, 1) for x in util.qkv(n // times)]
  first = util.qkv(prefix, seed=7)
  return [jnp.concatenate(both, 1) for both in zip(first, image)]


@pytest.mark.parametrize("times, rank", [(2, 25), (4, 17)])
def test_equal_tokens_merge_without_loss(times, rank):
  """One stage, two stages: 40 tokens in groups of 2 and of 4; and padding."""
  prefix = 1
  q, k, v = repeated(40, times, prefix)
  grid = Grid(5, 8, prefix)
  lengths = jnp.array([1 + 40, 1 + 24])
  got = util.run(f"maelre({rank})", q, k, v, grid=grid, lengths=lengths)
  want = util.softmax(q, k, v, lengths=lengths)
  util.close(got[0], want[0])
  util.close(got[1, :25], want[1, :25])


def test_merge_joins_the_most_alike_and_counts():
  axis = jnp.eye(4)
  keys = jnp.stack([axis[0], axis[1], 2 * axis[1], axis[0]])  # 0, 1, 1, 0
  x = jnp.concatenate([keys, keys, keys], -1)[None, None]
  y, size, how = maelre.merge(x, jnp.ones((1, 1, 4, 1)), 4)
  np.testing.assert_array_equal(size[0, 0, :, 0], [2, 2])
  util.close(y[0, 0, :, :4], jnp.stack([1.5 * axis[1], axis[0]]))
  back = maelre.unmerge(jnp.arange(2.0)[None, None, :, None], *how)
  np.testing.assert_array_equal(back[0, 0, :, 0], [1, 0, 0, 1])


def test_padding_is_in_no_mean():
  q, k, v = util.qkv(40)
  lengths = jnp.array([17, 40])
  run = lambda *x: util.run("maelre(8)", *x, lengths=lengths)
  junk = [x.at[0, 17:].set(1e3) for x in (q, k, v)]
  a, b = run(q, k, v), run(*junk)
  np.testing.assert_array_equal(a[0, :17], b[0, :17])


def test_the_class_token_is_not_merged():
  q, k, v = util.qkv(41)
  run = lambda q: util.run("maelre(8)", q, k, v, grid=Grid(5, 8, 1))
  moved = jnp.abs(run(q) - run(q.at[:, 0].add(1.0))).max((0, 2, 3)) > 0
  assert moved[0] and not moved[1:].any()


def test_refuses_more_registers_than_tokens():
  with pytest.raises(UserError, match="must be above 4"):
    util.run("maelre(4)", *util.qkv(9), grid=Grid(1, 5, 4))


def test_gradients_are_finite():
  q, k, v = util.qkv(40)
  lengths = jnp.array([0, 40])
  run = lambda *x: util.run("maelre(8)", *x, lengths=lengths)
  y, pull = jax.vjp(run, q, k, v)
  grads = pull(y)
  assert all(np.isfinite(g).all() and jnp.abs(g).max() > 0 for g in grads)
