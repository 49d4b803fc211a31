"""Tokens as a grid, and convolutions on it."""

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.nn.attention import Attention
from vitscale.nn.depthwise import Depthwise
from vitscale.nn.grid import Grid


def test_split_and_join():
  grid = Grid(2, 3, prefix=1)
  x = jnp.arange(2 * grid.tokens * 4.0).reshape(2, grid.tokens, 4)
  prefix, image = grid.split(x)
  assert prefix.shape == (2, 1, 4) and image.shape == (2, 2, 3, 4)
  np.testing.assert_array_equal(grid.join(prefix, image), x)
  np.testing.assert_array_equal(image[:, 1, 2], x[:, -1])


def test_a_grid_is_static():
  assert jax.tree.leaves(Grid(2, 3)) == []
  assert jax.jit(lambda g, x: x.reshape(g.rows, g.columns))(
    Grid(2, 3), jnp.zeros(6)
  ).shape == (2, 3)


def test_depthwise_is_a_grouped_convolution():
  x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
  module = Depthwise("embed", 3)
  v = axes.unbox(module.init(jax.random.key(1), x))
  v = jax.tree.map(lambda p: p + 0.1, v)
  kernel, bias = v["params"]["kernel"], v["params"]["bias"]
  want = jax.lax.conv_general_dilated(
    x, kernel[:, :, None], (1, 1), "SAME", feature_group_count=3,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip
  np.testing.assert_allclose(module.apply(v, x), want + bias, atol=1e-5)


def test_the_local_part_starts_at_zero_and_leaves_the_prefix_alone():
  grid = Grid(2, 3, prefix=1)
  x = jax.random.normal(jax.random.key(0), (2, grid.tokens, 8))
  plain, local = (Attention(8, 2, 4, local=on) for on in (False, True))
  v = axes.unbox(local.init(jax.random.key(1), x, grid=grid))
  run = lambda module, v: module.apply(v, x, grid=grid)
  near = v["params"].pop("near")
  want = run(plain, v)
  v["params"]["near"] = near
  np.testing.assert_array_equal(run(local, v), want)
  v["params"]["near"] = jax.tree.map(jnp.ones_like, near)
  moved = abs(run(local, v) - want).max((0, 2))
  assert moved[0] == 0 and (moved[1:] > 1e-3).all()
