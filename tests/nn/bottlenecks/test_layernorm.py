"""Latents normalised token by token."""

import jax.numpy as jnp
import numpy as np

from tests.nn.bottlenecks import util


def test_each_token_has_mean_0_and_length_1():
  made, variables = util.identity("layernorm(5)")
  x = util.drawn(2, 6, 5, scale=3.0) + 7
  z, out = util.run(made, variables, x)
  by_hand = np.asarray(x, np.float64)
  by_hand = by_hand - by_hand.mean(-1, keepdims=True)
  by_hand /= by_hand.std(-1, keepdims=True)
  util.close(z, by_hand, 1e-4)
  assert out["penalties"] == {}
  # What is lost: the mean and the length of a token.
  util.close(util.run(made, variables, 4 * x + 1)[0], z, 1e-4)
  assert jnp.abs(util.run(made, variables, -x)[0] - z).max() > 1


def test_has_no_scale_and_no_shift():
  _, variables = util.initial("layernorm(5)")
  assert set(variables["params"]) == {"project"}
