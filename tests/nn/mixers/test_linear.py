"""Linear attention and Performer against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.mixers import util
from vitscale.nn.mixers import linear, performer


def test_linear_is_normalised_feature_products():
  q, k, v = (np.asarray(x, np.float64) for x in util.qkv(7))
  phi = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
  weights = np.einsum("bqhd,bkhd->bhqk", phi(q), phi(k))
  weights /= weights.sum(-1, keepdims=True)
  want = np.einsum("bhqk,bkhd->bqhd", weights, v)
  util.close(util.run("linear", *util.qkv(7)), want)


def error(features, scale=0.3):
  """Root mean square of performer minus softmax over four draws."""
  q, k, v = util.qkv(16, scale=scale)
  off = [
    util.run(f"performer({features}, seed={seed})", q, k, v)
    - util.softmax(q, k, v)
    for seed in range(4)
  ]
  return float(jnp.sqrt(jnp.square(jnp.stack(off)).mean()))


def test_performer_goes_to_softmax_as_features_grow():
  few, some, many = (error(m) for m in (16, 256, 4096))
  # A Monte Carlo error: 16 times the features, a quarter of it. (For vectors
  # much longer than these its tails are too heavy to see that.)
  assert 2.5 < few / some < 7 and 2.5 < some / many < 7
  assert many < 0.001


def test_performer_stays_finite_and_right_for_large_vectors():
  q, k, v = util.qkv(6, scale=30.0)
  run = lambda q, k: util.run("performer(32)", q, k, v)
  y, pull = jax.vjp(run, q, k)
  assert np.isfinite(y).all()
  assert all(np.isfinite(g).all() for g in pull(jnp.ones_like(y)))
  # An average of values, whatever the exponents.
  assert jnp.abs(y).max() <= jnp.abs(v).max() + 1e-5


def test_features_are_orthogonal_gaussians_and_heads_are_a_prefix():
  w = performer.draw(4, 20, 8, 0)
  gram = np.einsum("hmd,hnd->hmn", w[:, :8], w[:, :8])
  off = gram - np.eye(8) * np.diagonal(gram, axis1=1, axis2=2)[:, None]
  assert np.abs(off).max() < 1e-5
  many = performer.draw(2, 8000, 8, 1)
  util.close(many.mean(1), 0, atol=0.05)
  util.close(np.einsum("hmd,hme->hde", many, many) / 8000,
             np.broadcast_to(np.eye(8), (2, 8, 8)), atol=0.06)  # fmt: skip
  np.testing.assert_array_equal(performer.draw(2, 20, 8, 0), w[:2])
  assert np.abs(performer.draw(4, 20, 8, 1) - w).max() > 0.1
  assert np.abs(w[0] - w[1]).max() > 0.1


@pytest.mark.parametrize("text", ["linear", "performer(16)"])
def test_no_key_at_all_is_finite(text):
  q, k, v = util.qkv(4)
  loss = lambda q, k: util.run(text, q, k, v, lengths=jnp.array([0, 2])).sum()
  value, grads = jax.value_and_grad(loss, (0, 1))(q, k)
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


def test_sums_are_float32():
  """Of 4,096 ones: bfloat16 would stop at 256."""
  one = jnp.ones((1, 4096, 1, 1), jnp.bfloat16)
  far = one.at[0, 0].set(2.0)
  y = linear.mix(one.astype(jnp.float32), one.astype(jnp.float32), far)
  assert y.dtype == jnp.bfloat16
  util.close(y, 4097 / 4096, atol=0.005)
