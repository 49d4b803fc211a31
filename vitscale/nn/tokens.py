"""Sequences of integers: a table instead of a patch kernel, and padding.

A sequence is an image of one row; a picture whose pixel values are looked up,
each a token of its own, is the dictionary of pixel transformers (2406.09415).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError


class TokenEmbed(nn.Module):
  """Looks every value of an image up.

  Attributes:
    width: d.
    vocabulary: values are 0 to vocabulary - 1; another one gives NaN.
    dtype: type of the result.
  """

  width: int
  vocabulary: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, image: jax.Array, patch: tuple[int, int]) -> jax.Array:
    """(b, h, w, 1) whole numbers -> (b, h, w, d).

    Raises:
      UserError: several channels, or a patch that isn't (1, 1).
    """
    if image.shape[-1] != 1 or tuple(patch) != (1, 1):
      raise UserError(
        f"a vocabulary needs one channel and patch 1, got {image.shape[-1]}"
        f" channels and patch {patch[0]}x{patch[1]}"
      )
    shape = (self.vocabulary, self.width)
    table = axes.param(self, "table", "code embed", shape, axes.normal(0.02))
    ids = jnp.rint(image[..., 0]).astype(jnp.int32)
    x = table.at[ids].get(mode="fill", fill_value=jnp.nan)
    return x.astype(self.dtype)


def lengths_of(image: jax.Array, pad: int) -> jax.Array:
  """(b,) int32: tokens of (b, h, w, 1) before the padding at the end.

  One at least: of nothing but padding, the first is a token.
  """
  ids = jnp.rint(image).reshape(len(image), -1)
  last = jnp.arange(1, ids.shape[1] + 1) * (ids != pad)
  return jnp.maximum(last.max(1), 1)


def real(lengths: jax.Array, n: int) -> jax.Array:
  """(b,), n -> (b, n, 1) bool: which tokens are no padding."""
  return (jnp.arange(n) < lengths[:, None])[..., None]
