"""No bottleneck but the number of floats: z is linear in a token.

Nothing is random and nothing paid for: an auto-encoder with E floats, whose
linear optimum is known (metrics/oracle.py). Floats are taken as exact, so that
it says what E allows, not what a generator can make of it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.linear import Linear


class Bottleneck(nn.Module):
  """One linear map.

  Attributes:
    code: c, floats of a token.
    dtype: compute type.
  """

  code: int = 16
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c) and no penalty.

    Raises:
      UserError: no float.
    """
    del train
    if self.code < 1:
      raise UserError(f"plain({self.code}): code is 1 or more floats a token")
    z = Linear(
      "embed -> code", (self.code,), init=axes.lecun, dtype=self.dtype,
      name="into",
    )(x)  # fmt: skip
    return z.astype(jnp.float32), {"penalties": {}}
