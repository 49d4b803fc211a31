"""Finite scalar quantisation: its grid, its indices, its gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.bottlenecks import util

LEVELS = (2, 3, 4, 5, 8)


def grid(level):
  """So many numbers from -1 to 1, equally far apart."""
  return np.linspace(-1, 1, level)


def test_levels_are_exactly_the_grid():
  made, variables = util.identity(f"fsq({LEVELS})")
  line = jnp.linspace(-6, 6, 4001)[None, :, None] * jnp.ones(len(LEVELS))
  z, _ = util.run(made, variables, line)
  for i, level in enumerate(LEVELS):
    found, counts = np.unique(np.asarray(z)[..., i], return_counts=True)
    util.close(found, grid(level), 1e-6)
    # Each is the nearest of its tanh, but that the outer ones are half as wide.
    t = np.tanh(np.asarray(line, np.float64)[0, :, i])
    step, edges = 2 / (level - 1), np.linspace(-1, 1, 2 * level - 1)[1::2]
    if level % 2:
      want = grid(level)[np.searchsorted(edges, t)]
    else:
      inner = (np.arange(level - 1) - (level - 2) / 2) * step
      want = grid(level)[np.searchsorted(inner, t)]
    clear = np.abs(np.asarray(z)[0, :, i] - want) < 1e-6
    assert clear.mean() > 0.998, level
    util.close(counts, counts[::-1], atol=1)  # symmetric
    assert (np.diff(np.asarray(z)[0, :, i]) >= 0).all()


@pytest.mark.parametrize("big", [-1e30, 1e30])
def test_saturates_at_the_last_level(big):
  made, variables = util.identity(f"fsq({(*LEVELS, 65536)})")
  x = jnp.full((1, 1, len(LEVELS) + 1), big)
  z, out = util.run(made, variables, x)
  util.close(z, np.full(z.shape, np.sign(big)), 1e-6)
  last = np.prod(LEVELS) * 65536 - 1
  assert out["indices"][0, 0] == (last if big > 0 else 0)


def test_indices_round_trip_for_all_codes():
  made, variables = util.identity(f"fsq({LEVELS})")
  total = int(np.prod(LEVELS))
  z = util.codes(made, variables, jnp.arange(total))
  # The first float changes quickest, and no code comes twice.
  quickest_last = itertools.product(*(grid(level) for level in LEVELS[::-1]))
  util.close(z, np.array(list(quickest_last))[:, ::-1], 1e-6)
  # Tokens that are these codes, put through the whole of it.
  inside = jnp.arctanh(jnp.clip(z, -0.9999, 0.9999))
  again, out = util.run(made, variables, inside[None])
  np.testing.assert_array_equal(out["indices"][0], np.arange(total))
  util.close(again[0], z, 1e-6)


def test_largest_index_fits():
  made, variables = util.identity("fsq((65536, 32768))")
  z, out = util.run(made, variables, jnp.full((1, 1, 2), 99.0))
  assert out["indices"][0, 0] == 2**31 - 1
  util.close(util.codes(made, variables, out["indices"]), z, 1e-6)


def test_gradient_is_that_of_tanh():
  made, variables = util.identity(f"fsq({LEVELS})")
  x = util.drawn(2, 7, len(LEVELS))
  weights = util.drawn(2, 7, len(LEVELS), seed=1)
  f = lambda x: (weights * made.apply(variables, x, train=True)[0]).sum()
  got = jax.jit(jax.grad(f))(x)
  util.close(got, weights * (1 - np.tanh(x) ** 2))
