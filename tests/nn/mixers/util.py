"""What the tests of token mixers share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.nn import attention, mixers
from vitscale.nn.grid import Grid

HEADS, HEAD_DIM = 2, 8


def qkv(n, seed=0, scale=1.0, b=2, dtype=jnp.float32):
  """q, k, v of (b, n, 2, 8)."""
  # By numpy: jax would compile the draw once for every shape.
  drawn = np.random.default_rng(seed).standard_normal(
    (3, b, n, HEADS, HEAD_DIM)
  )
  return [jnp.asarray(scale * x, dtype) for x in drawn]


def core(text, n=12, grid=None):
  """(module, its unboxed variables) of the core named `text`."""
  made = mixers.parse(text).keywords["core"]()
  init = functools.partial(made.init, grid=grid or Grid(1, n))
  args = jax.random.key(1), *qkv(n)
  if not jax.tree.leaves(jax.eval_shape(init, *args)):
    return made, {}
  return made, axes.unbox(jax.jit(init)(*args))


def run(text, q, k, v, *, grid=None, variables=None, **who):
  """What the core makes of q, k, v."""
  grid = grid or Grid(1, q.shape[1])
  made, fresh = core(text, q.shape[1], grid)
  given = fresh if variables is None else variables
  who = {key: x for key, x in who.items() if x is not None}
  call = jax.jit(functools.partial(made.apply, grid=grid))
  return call(given, q, k, v, **who)


@jax.jit
def softmax(q, k, v, lengths=None):
  return attention.attend(q, k, v, lengths=lengths, backend="reference")


def close(a, b, atol=1e-5, rtol=1e-5):
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  np.testing.assert_allclose(a, b, atol=atol, rtol=rtol)


def apart(a, b):
  """Largest difference."""
  return float(np.abs(np.asarray(a) - np.asarray(b)).max())
