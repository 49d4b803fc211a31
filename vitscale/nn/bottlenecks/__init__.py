"""Bottlenecks of a visual tokenizer, by name: what passes to the decoder.

    model.bottleneck = "kl(16)"        # nn/bottlenecks/kl.py, 16 floats a token

    plain(16)          floats as they are
    kl(16)             a Gaussian per float, paid for in nats
    layernorm(16)      floats of mean 0 and variance 1 in each token
    vq(512, 8)         the nearest of 512 learned vectors of 8 floats
    residual_vq(512, 8, (1, 2, 4))   a pyramid of them, coarse to fine
    fsq((8, 5, 5, 5))  each float one of so many levels
    lfq(10)            each float a sign

A module here has a `Bottleneck`, a flax module of the options and `dtype`:

    Bottleneck(options..., dtype=)(x, *, train) -> (z, out)

x are tokens (b, n, d) in compute type, z (b, n, c) float32, c = `self.code`.
`out["penalties"]` has name -> (b,) float32, what a task may weigh, a mean over
the floats of a token unless its file says otherwise; besides `mean` and
`log_variance`, or `indices` (b, n) int32, which `codes(indices)` turns into z
again (of `residual_vq` more than n, those of all scales). In training draws
come from the stream "latent"; otherwise nothing is random. All tokens are taken
as real, padded examples too.
"""

import functools
import pkgutil
from collections.abc import Callable

import flax.linen as nn
import jax

from vitscale import plugin
from vitscale.core import call
from vitscale.core.errors import UserError, nearest

MOST = 2**31  # different tokens: indices are int32


def names() -> tuple[str, ...]:
  """Every bottleneck that `parse` knows."""
  return tuple(m.name for m in pkgutil.iter_modules(__path__))


@functools.cache
def parse(text: str) -> Callable[..., nn.Module]:
  """The factory of a bottleneck, called with `dtype` and `name`.

  Args:
    text: `NAME(options)`.

  Raises:
    UserError: unknown bottleneck or option, or an option of another type.
  """
  what = f"model.bottleneck {text!r}"
  name, args, kwargs = call.read(text, what)
  if name not in names():
    raise UserError(f"{what}: no bottleneck {name!r}{nearest(name, names())}")
  module = plugin.module("nn.bottlenecks", name).Bottleneck
  known = {k: v for k, v in call.fields(module).items() if k != "dtype"}
  options = call.options(known, args, kwargs, what=what)
  return functools.partial(module, **options)


def straight_through(value: jax.Array, x: jax.Array) -> jax.Array:
  """`value` to the bit; its gradient goes to x as if they were one.

  The estimator of Bengio et al. (1308.3432, section 4). x is finite.
  """
  return jax.lax.stop_gradient(value) + (x - jax.lax.stop_gradient(x))
