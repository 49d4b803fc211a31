"""EcoFormer: codes that mean something, and attention over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.mixers import util
from vitscale.core.errors import UserError
from vitscale.nn import hashing
from vitscale.nn.mixers import ecoformer


@pytest.fixture(scope="module")
def fresh():
  return util.core("ecoformer(16, 25)", 40)[1]


@jax.jit
def codes(made, x):
  return hashing.codes(x, made["params"])


def test_is_attention_over_codes(fresh):
  q, k, v = util.qkv(40)
  both = codes(fresh, jnp.concatenate([q, k], 1))
  assert set(np.unique(both)) == {-1.0, 1.0}
  of_q, of_k = np.asarray(both[:, :40]), np.asarray(both[:, 40:])
  weights = 17 + np.einsum("bqhr,bkhr->bhqk", of_q, of_k)
  assert weights.min() >= 1
  weights /= weights.sum(-1, keepdims=True)
  want = np.einsum("bhqk,bkhd->bqhd", weights, v)
  util.close(util.run("ecoformer", q, k, v, variables=fresh), want)


def test_the_kernel_is_the_formula():
  x, anchors = util.qkv(5)[0], jax.random.normal(jax.random.key(3), (4, 2, 8))
  y = np.asarray(x, np.float64)
  y /= np.linalg.norm(y, axis=-1, keepdims=True)
  far = np.square(y[:, :, None] - np.asarray(anchors)).sum(-1)  # (b, n, m, h)
  s = far.mean((1, 2), keepdims=True)
  want = np.exp(-far / (2 * s)).swapaxes(2, 3)
  util.close(hashing.kernel(x, anchors), want)


def test_bits_of_a_new_hash_are_balanced(fresh):
  assert abs(codes(fresh, util.qkv(400)[0]).mean()) < 0.15


def test_gradients_go_straight_through(fresh):
  q, k, v = util.qkv(40)

  def loss(p, q, k):
    y = util.core("ecoformer", 40)[0].apply(p, q, k, v, grid=None)
    return jnp.square(y).sum()

  for g in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1, 2)))(fresh, q, k)):
    assert np.isfinite(g).all() and jnp.abs(g).max() > 0
  # Saturated sums get none.
  wide = jax.tree.map(lambda x: x, fresh)
  wide["params"]["projection"] = 1e4 * fresh["params"]["projection"]
  slope = jax.jit(jax.grad(lambda x: codes(wide, x).sum()))(q)
  assert (jnp.abs(slope).max(-1) == 0).mean() > 0.9


def pairs(q, k, made, top=4):
  """Mean products of codes for the likest and unlikest keys."""
  alike = jnp.einsum("bqhd,bkhd->bhqk", *map(hashing.unit, (q, k)))
  near = jnp.einsum(
    "bqhr,bkhr->bhqk", *(hashing.codes(x, made) for x in (q, k))
  )
  order = jnp.take_along_axis(near, alike.argsort(-1), -1)
  return order[..., -top:].mean((0, 2, 3)), order[..., :top].mean((0, 2, 3))


def cone(seed):
  """Queries and keys as layers have them: all in one corner, flat."""
  q, k, _ = util.qkv(40, seed=seed, b=8)
  shape = jnp.array([2, 1.5, 1, 0.7, 0.5, 0.3, 0.2, 0.1])
  return 3 + shape * q, 3 + shape * k


def test_fit_orders_pairs_as_attention_does_also_unseen_ones(fresh):
  (q, k), unseen = cone(0), cone(9)
  made = hashing.fit(q, k, jax.random.key(0), top=4)
  shapes = jax.tree.map(jnp.shape, made)
  assert shapes == jax.tree.map(jnp.shape, dict(fresh["params"]))
  # By head; between codes that differ in every bit it is 32.
  gap = lambda made, *x: np.subtract(*pairs(*x, made))
  before, after = gap(fresh["params"], *unseen), gap(made, *unseen)
  assert (after > 10).all() and (after > 2 * before).all()
  again = hashing.fit(q, k, jax.random.key(0), top=4)
  np.testing.assert_array_equal(again["projection"], made["projection"])


def test_codes_fall_with_the_angle():
  """Turning a vector away makes its code less alike, on average."""
  q, k, _ = util.qkv(40, b=4)
  made = hashing.fit(q, k, jax.random.key(0))
  x, other = (y[:, :, :1] for y in util.qkv(200)[:2])
  x, other = (jnp.concatenate([y, y], 2) for y in (x, other))
  alike = []
  for angle in np.linspace(0, np.pi, 5):
    y = np.cos(angle) * hashing.unit(x) + np.sin(angle) * hashing.unit(other)
    product = codes({"params": made}, x) * codes({"params": made}, y)
    alike.append(float(product.sum(-1).mean()))
  assert alike[0] == 16 and all(np.diff(alike) < 0)


def test_fit_refuses():
  q, k, _ = util.qkv(6)
  with pytest.raises(UserError, match="25 anchors and top=1 don't fit"):
    hashing.fit(q, k, jax.random.key(0))
  with pytest.raises(UserError, match="top=4"):
    hashing.fit(q, k, jax.random.key(0), anchors=5, top=4)
  with pytest.raises(UserError, match="bits and anchors"):
    util.core("ecoformer(0)")


def test_energy_by_hand():
  e = ecoformer.energy(10, 3, 8, bits=4, anchors=5)
  both = 2 * 10 * 5 * (8 + 2 + 4)
  assert e.multiplications == 3 * (both + 2 * 10 * 8)
  assert e.additions == 3 * (both + 2 * 10 * 5 * 9)
  one = ecoformer.softmax_energy(10, 3, 8)
  assert one.additions == 2 * 100 * 24
  assert one.multiplications == 2 * 100 * 24 + 300
  assert one.picojoules == pytest.approx(3.7 * 5100 + 0.9 * 4800)
  # Linear against quadratic: the saving grows with the sequence.
  saved = [
    ecoformer.energy(n, 3, 64).picojoules
    / ecoformer.softmax_energy(n, 3, 64).picojoules
    for n in (196, 784, 3136)
  ]
  assert saved[0] > 3.9 * saved[1] > 3.9 * 3.9 * saved[2]
