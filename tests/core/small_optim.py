"""A small tree of named parameters and an optimizer over it."""

import jax.numpy as jnp
import numpy as np

from vitscale.core import axes, optim

NAMES = {
  "stem": {"kernel": axes.parse("patch -> embed")},
  "position": axes.parse("pos embed"),
  "block_0": {
    "up": axes.parse("embed -> mlp"),
    "bias": axes.parse("mlp"),
    "down": axes.parse("mlp -> embed"),
  },
  "head": {"kernel": axes.parse("embed -> classes")},
}


def make_params(d=4, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
    "stem": {"kernel": draw(3, d)},
    "position": draw(5, d),
    "block_0": {
      "up": draw(d, 2 * d),
      "bias": draw(2 * d),
      "down": draw(2 * d, d),
    },
    "head": {"kernel": draw(d, 3)},
  }


def make(total_steps=20, names=NAMES, params=None, **config):
  params = make_params() if params is None else params
  return optim.make(config, params, names, total_steps=total_steps)
