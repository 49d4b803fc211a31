"""A prediction for every pixel, from the tokens of a ViT.

    linear     one linear map a token, enlarged bilinearly: no decoder
    decoder    3 x 3 convolutions while the map is doubled, up to the pixels

The smaller the patch, the less there is to enlarge: at 1 x 1 the linear head is
the whole of it (Wang et al., 2502.03738, table 2).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.linear import Linear
from vitscale.nn.norm import LayerNorm


class LinearHead(nn.Module):
  """Logits of each token, resized to the image."""

  classes: int
  width: int = 0  # of the decoder; one constructor call serves both heads

  @nn.compact
  def __call__(self, x: jax.Array, image: tuple[int, int]) -> jax.Array:
    """(b, gh, gw, d), (h, w) -> (b, h, w, classes) float32."""
    x = Linear("embed -> classes", (self.classes,), init=axes.zeros)(
      x.astype(jnp.float32)
    )
    return _resized(x, image)


class Decoder(nn.Module):
  """Project to `width`; (double, convolve, normalise, GELU) to the pixels.

  As many steps as doublings fit, one at least, so that a decoder stays one at a
  patch of 1; a last bilinear resize takes what is no power of two.

  Attributes:
    classes: of a pixel.
    width: channels inside.
  """

  classes: int
  width: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, image: tuple[int, int]) -> jax.Array:
    """(b, gh, gw, d), (h, w) -> (b, h, w, classes) float32."""
    x = Linear("embed -> channel_in", (self.width,), name="into")(
      x.astype(jnp.float32)
    )
    steps = max(int(math.log2(max(image[0] // x.shape[1], 1))), 1)
    for i in range(steps):
      grown = tuple(min(2 * n, m) for n, m in zip(x.shape[1:3], image))
      x = _resized(x, grown)
      x = Convolution(self.width, name=f"step_{i}")(x)
      x = LayerNorm(1e-6, "channel_in", name=f"norm_{i}")(x)
      x = jax.nn.gelu(x)
    out = Linear(
      "channel_in -> classes", (self.classes,), init=axes.zeros, name="out"
    )
    return out(_resized(x, image))


class Convolution(nn.Module):
  """3 x 3, same size."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, h, w, width)."""
    kernel = axes.param(
      self, "kernel", "kernel_h kernel_w channel_in@below -> channel_in",
      (3, 3, x.shape[-1], self.width), axes.xavier,
    )  # fmt: skip
    bias = axes.param(self, "bias", "channel_in", (self.width,), axes.zeros)
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + bias


HEADS = {"linear": LinearHead, "decoder": Decoder}


def _resized(x: jax.Array, image: tuple[int, int]) -> jax.Array:
  if x.shape[1:3] == tuple(image):
    return x
  if any(n > m for n, m in zip(x.shape[1:3], image)):
    raise UserError(f"{x.shape[1:3]} tokens for an image of {image} pixels")
  return jax.image.resize(x, (len(x), *image, x.shape[-1]), "bilinear")
