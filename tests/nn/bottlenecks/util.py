"""What the tests of bottlenecks share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.nn import bottlenecks


def drawn(*shape, seed=0, scale=1.0):
  """Normal float32, by numpy: jax would compile the draw for every shape."""
  draw = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(scale * draw, jnp.float32)


@functools.cache
def initial(text, d=16, n=16):
  """(module, unboxed variables) for n tokens of width d."""
  made = bottlenecks.parse(text)()
  init = jax.jit(lambda key, x: made.init(key, x, train=False))
  return made, axes.unbox(init(jax.random.key(1), jnp.zeros((1, n, d))))


def identity(text, **params):
  """(module, variables) whose linear map is the identity: y = x."""
  made = bottlenecks.parse(text)()
  c = made.code
  linear = {"kernel": jnp.eye(c), "bias": jnp.zeros(c)}
  return made, {"params": {"project": linear, **params}}


def run(made, variables, x, train=False, seed=0):
  """z and out."""
  keys = {"latent": jax.random.key(seed)} if train else {}
  call = jax.jit(lambda v, x: made.apply(v, x, train=train, rngs=keys))
  return call(variables, x)


def codes(made, variables, indices):
  call = jax.jit(lambda v, i: made.apply(v, i, method="codes"))
  return call(variables, indices)


def close(a, b, atol=1e-5, rtol=1e-5):
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  np.testing.assert_allclose(a, b, atol=atol, rtol=rtol)
