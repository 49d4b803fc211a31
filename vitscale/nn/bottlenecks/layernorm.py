"""Floats normalised token by token: an auto-encoder without a price.

    z = (y - mean y) / sqrt(var y + 1e-6),  y = W x + b in R^c

mean and variance over the c floats of one token, without scale and shift
(ViTok-v2, released code Na-VAE/vitok-release). Nothing is random and nothing
is paid for, so that z is as precise as float32 is: what bounds the information
is the decoder alone. A generator gets latents of known size.

What it loses: mean and length of y. Latents lie on a sphere of radius sqrt(c)
in c - 1 dimensions; with c = 2 only a sign would be left.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.linear import Linear
from vitscale.nn.norm import layer_norm

EPS = 1e-6


class Bottleneck(nn.Module):
  """A linear map, normalised.

  Attributes:
    code: c, floats of a token.
    dtype: compute type of the linear map; the rest is float32.
  """

  code: int = 16
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c); there are no penalties.

    Raises:
      UserError: so few floats that nothing passes.
    """
    del train
    if self.code < 3:
      raise UserError(
        f"layernorm({self.code}): code is 3 or more floats a token, of which"
        " their mean and length are lost"
      )
    y = Linear(
      "embed -> code", (self.code,), init=axes.lecun, dtype=self.dtype,
      name="project",
    )(x).astype(jnp.float32)  # fmt: skip
    one, zero = jnp.ones(self.code), jnp.zeros(self.code)
    return layer_norm(y, one, zero, EPS), {"penalties": {}}
