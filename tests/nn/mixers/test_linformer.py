"""Linformer: a projection that says nothing, others, and other grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.mixers import util
from vitscale.core.errors import UserError
from vitscale.nn.grid import Grid


def with_kernel(kernel):
  return {"params": {"keys": kernel, "values": kernel}}


def test_identity_is_softmax():
  grid = Grid(3, 4, prefix=2)
  q, k, v = util.qkv(14)
  same = with_kernel(jnp.eye(12).reshape(3, 4, 12))
  got = util.run("linformer(12)", q, k, v, grid=grid, variables=same)
  util.close(got, util.softmax(q, k, v))


def test_is_softmax_of_projected_keys():
  q, k, v = util.qkv(12)
  _, made = util.core("linformer(5)", 12)
  e, f = (made["params"][name][0] for name in ("keys", "values"))
  keys, values = (
    jnp.einsum("bnhd,nm->bmhd", x, p) for x, p in ((k, e), (v, f))
  )
  got = util.run("linformer(5)", q, k, v, variables=made)
  util.close(got, util.softmax(q, keys, values))
  # Fan-in is the sequence: a sum of independent keys is as long as a key.
  _, wide = util.core("linformer(400)", 400)
  assert abs(wide["params"]["keys"].std() * 20 - 1) < 0.1


def test_another_grid_resamples_and_keeps_means():
  """Smooth kernels on finer grids of the same picture: the same result."""
  rows = jnp.linspace(0, 1, 4)[:, None] + jnp.linspace(0, 2, 4)
  kernel = jnp.stack([rows, 1 - rows], -1) / 16
  variables = with_kernel(kernel)

  def run(side):
    picture = jnp.ones((1, side * side, 2, 8))
    return util.run(
      "linformer(2)", *[picture] * 3, grid=Grid(side, side),
      variables=variables,
    )  # fmt: skip

  coarse, fine = run(4), run(8)
  assert fine.shape[1] == 64
  util.close(fine[:, 0], coarse[:, 0], atol=1e-4)
  assert jnp.abs(coarse[:, 0] - 1).max() > 0.05  # the sums matter


def test_hidden_keys_change_nothing():
  q, k, v = util.qkv(12)
  run = lambda k, v: util.run("linformer(4)", q, k, v, lengths=ends)
  ends = jnp.array([7, 12])
  a, b = run(k, v), run(k.at[0, 7:].set(9.0), v.at[0, 7:].set(9.0))
  np.testing.assert_array_equal(a, b)
  zero = lambda x: x.at[0, 7:].set(0.0)
  util.close(a, util.run("linformer(4)", q, zero(k), zero(v)))


def test_refuses_what_it_cant_place():
  made, variables = util.core("linformer(4)")
  with pytest.raises(UserError, match="where tokens lie"):
    made.apply(variables, *util.qkv(12), grid=None)
  with pytest.raises(UserError, match="rank is 1 or more"):
    util.core("linformer(0)")


def test_gradients_reach_both_kernels():
  q, k, v = util.qkv(12)
  made, variables = util.core("linformer(4)")
  loss = lambda p: jnp.square(made.apply(p, q, k, v, grid=Grid(1, 12))).sum()
  grads = jax.grad(loss)(variables)["params"]
  assert all(jnp.abs(g).max() > 1e-3 for g in grads.values())
