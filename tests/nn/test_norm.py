"""The hand-written LayerNorm against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.nn import norm


def plain(x, scale, bias, eps):
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True)
  std = jnp.sqrt(jnp.square(x32 - mean).mean(-1, keepdims=True) + eps)
  return ((x32 - mean) / std * scale + bias).astype(x.dtype)


def gradients(fn, dtype, shape=(3, 5, 16)):
  keys = jax.random.split(jax.random.key(0), 4)
  x = (2 + 3 * jax.random.normal(keys[0], shape)).astype(dtype)
  scale, bias = (jax.random.normal(k, shape[-1:]) for k in keys[1:3])
  dy = jax.random.normal(keys[3], shape).astype(dtype)
  y, vjp = jax.vjp(lambda *a: fn(*a, 1e-6), x, scale, bias)
  return y, *vjp(dy)


@pytest.mark.parametrize("shape", [(15, 16), (3, 5, 16)])
def test_layer_norm_equals_autodiff_in_float32(shape):
  want = gradients(plain, jnp.float32, shape)
  got = gradients(norm.layer_norm, jnp.float32, shape)
  for a, b in zip(want, got):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6)


def test_layer_norm_in_bfloat16():
  want = gradients(plain, jnp.float32)
  got = gradients(norm.layer_norm, jnp.bfloat16)
  assert [g.dtype for g in got] == [jnp.bfloat16] * 2 + [jnp.float32] * 2
  for a, b in zip(want, got):
    # Eight bits of mantissa, and sums over 15 tokens.
    np.testing.assert_allclose(a, b.astype(jnp.float32), atol=0.1)


def test_residual_is_the_input_in_its_own_type():
  x = jnp.ones((4, 8), jnp.bfloat16)
  _, residuals = norm._forward(x, jnp.ones(8), jnp.ones(8), 1e-6)
  assert residuals[0].dtype == jnp.bfloat16
  assert all(r.size <= 8 for r in residuals[1:])


def test_rms_norm():
  x = jax.random.normal(jax.random.key(0), (5, 8)) * 7
  y, _ = norm.RMSNorm().init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(jnp.square(y).mean(-1), 1, rtol=1e-5)
