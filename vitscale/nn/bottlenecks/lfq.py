"""Lookup-free quantisation: each float a sign.

    z = sign(y),  y = W x + b in R^bits;  index = sum of [y_i > 0] 2^i

(MAGVIT-v2, 2310.05737, section 3.1.) The gradient of z goes straight through
to y. That y be near z, and all entries be used, is paid for:

    commit  = mean over tokens and bits of (y - sg[z])^2
    entropy = mean over tokens of H(q(y)) - H(mean over the batch of q(y))

q(y) is the softmax of -|y - e|^2 / temperature over all entries e. In it bits
are independent, with p_i = sigmoid(4 y_i / temperature), so that the first
entropy is a sum over bits exactly. The second is not: the sum over bits of
H(mean p_i), which is taken here, is the largest it can be with these means.
That costs no sum over 2^bits entries, but it asks for bits that are balanced,
not for independent ones: two that always agree are as good as any to it.

`entropy` is in nats per token, from -bits ln 2 (every token sure, every bit
balanced) to bits ln 2. As its second part belongs to the batch, the number of
an image is that image's first part less the batch's second.

What it loses: all but `bits` bits of a token. A bit with the same sign for
every token, far from 0, gets no gradient from `entropy`; `commit` brings it
back to where it does.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.bottlenecks import straight_through
from vitscale.nn.linear import Linear

SURE = 1e-6  # how near to 0 or 1 a mean is taken, where ln has a gradient


class Bottleneck(nn.Module):
  """Signs.

  Attributes:
    bits: c, floats of a token.
    temperature: of q, in the units of y squared.
    dtype: compute type of the linear map; the rest is float32.
  """

  bits: int = 10
  temperature: float = 1.0
  dtype: str = "float32"

  def setup(self):
    if not 1 <= self.bits <= 31:
      raise UserError(f"lfq({self.bits}): bits are 1 to 31, those of an index")
    if not self.temperature > 0:
      raise UserError(
        f"lfq({self.bits}, {self.temperature}): temperature is above 0"
      )
    self.project = Linear(
      "embed -> code", (self.bits,), init=axes.lecun, dtype=self.dtype
    )

  @property
  def code(self) -> int:
    """c, floats of a token."""
    return self.bits

  @property
  def entries(self) -> int:
    """Different tokens."""
    return 2**self.bits

  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, bits) of -1 and 1, and `indices` (b, n) int32.

    The penalties are `commit` and `entropy`.
    """
    del train
    y = self.project(x).astype(jnp.float32)
    bits = (y > 0).astype(jnp.int32)
    signs = 2.0 * bits - 1
    logits = 4 * y / self.temperature
    own = entropy(logits).sum(-1).mean(-1)  # (b,)
    share = jnp.clip(jax.nn.sigmoid(logits).mean((0, 1)), SURE, 1 - SURE)
    of_batch = -(share * jnp.log(share) + (1 - share) * jnp.log1p(-share))
    return straight_through(signs, y), {
      "indices": (bits << np.arange(self.bits, dtype=np.int32)).sum(-1),
      "penalties": {
        "commit": jnp.square(y - signs).mean((1, 2)),
        "entropy": own - of_batch.sum(),
      },
    }

  def codes(self, indices: jax.Array) -> jax.Array:
    """Indices of any shape (...) -> z (..., bits)."""
    bits = indices[..., None] >> np.arange(self.bits, dtype=np.int32)
    return 2.0 * (bits & 1) - 1


def entropy(logits: jax.Array) -> jax.Array:
  """H of a bit that is 1 with probability sigmoid(logits), in nats."""
  away = jnp.abs(logits)
  return jnp.log1p(jnp.exp(-away)) + away * jax.nn.sigmoid(-away)
