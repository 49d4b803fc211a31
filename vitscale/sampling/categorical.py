"""Draws of one of a vocabulary: temperature, the k likeliest, a nucleus.

Truncation works on the logits in falling order, so that ties are cut where
`top_k` says, and one sort serves both.
"""

import math

import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError


def check(
  vocabulary: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> None:
  """Refuses options that `draw` can't mean, before anything is compiled.

  Raises:
    UserError: a temperature below 0, a `top_k` outside 1..vocabulary, or a
      `top_p` outside (0, 1].
  """
  real = lambda x: type(x) in (int, float)
  if not real(temperature) or not 0 <= temperature < math.inf:
    raise UserError(f"temperature={temperature!r}: should be 0 or more")
  if top_k is not None and (
    type(top_k) is not int or not 1 <= top_k <= vocabulary
  ):
    raise UserError(f"top_k={top_k!r}: should be in 1..{vocabulary}")
  if top_p is not None and (not real(top_p) or not 0 < top_p <= 1):
    raise UserError(f"top_p={top_p!r}: should be above 0, 1 at most")


def draw(
  key: jax.Array,
  logits: jax.Array,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> jax.Array:
  """One entry of the vocabulary for each row of logits.

  Args:
    key: random key.
    logits: (..., v) of any float type.
    temperature: divides the logits; 0 takes the likeliest. A static number, as
      are the next two.
    top_k: only the k likeliest may be drawn; of equals the first.
    top_p: only the smallest set of the likeliest that holds this probability,
      after temperature and `top_k` (nucleus sampling, Holtzman et al.,
      1904.09751, section 3.1).

  Returns:
    (...) int32 in 0..v - 1.
  """
  logits = logits.astype(jnp.float32)
  if temperature == 0:
    return logits.argmax(-1).astype(jnp.int32)
  logits = logits / temperature
  if top_k is None and top_p is None:
    return jax.random.categorical(key, logits).astype(jnp.int32)
  values, entries = jax.lax.top_k(logits, top_k or logits.shape[-1])
  if top_p is not None:
    chance = jax.nn.softmax(values)
    before = jnp.cumsum(chance, -1) - chance  # of those likelier
    values = jnp.where(before < top_p, values, -jnp.inf)
  at = jax.random.categorical(key, values)
  return jnp.take_along_axis(entries, at[..., None], -1)[..., 0]
