"""Adaptive norms and embedded times, against plain numpy."""

import jax.numpy as jnp
import numpy as np

from vitscale.nn import modulation


def noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def test_modulation_by_hand():
  x, shift, scale = noise(2, 3, 8), noise(2, 8, seed=1), noise(2, 8, seed=2)
  centred = x - x.mean(-1, keepdims=True)
  want = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
  want = want * (1 + scale[:, None]) + shift[:, None]
  got = modulation.modulate(jnp.asarray(x), shift, scale)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  flat = modulation.modulate(jnp.asarray(x).reshape(6, 8), shift, scale)
  np.testing.assert_array_equal(flat.reshape(2, 3, 8), got)


def test_sines_are_those_of_a_thousand_steps():
  got = modulation.sines(jnp.asarray([0.0, 0.25]))
  omega = 10_000.0 ** (-np.arange(128) / 128)
  np.testing.assert_array_equal(got[0], [1.0] * 128 + [0.0] * 128)
  want = np.concatenate([np.cos(250 * omega), np.sin(250 * omega)])
  np.testing.assert_allclose(got[1], want, atol=1e-4)
