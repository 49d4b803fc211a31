"""Likeness of two images, one number an image: PSNR and SSIM.

Images are float (b, h, w, c) in 0..1: the data range is 1 throughout. Values
are not cut to it: cut (and round to 8 bits) first where that is what is
compared. All arithmetic is float32 and elementwise, so that no accelerator
may shorten it.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from vitscale.core.errors import UserError

SIGMA = 1.5  # pixels
RADIUS = 5  # pixels on both sides of the centre: a window of 11
C1, C2 = 0.01**2, 0.03**2  # (K1 range)^2, (K2 range)^2


def psnr(x: Array, y: Array) -> Array:
  """Peak signal-to-noise ratio in dB of each image: (b,) float32.

  -10 log10 of the mean squared error over pixels and channels; peak 1. Equal
  images have inf, so that a mean over images may be inf: the mean of errors
  is the safer summary.
  """
  x, y = _pair(x, y, 1, "psnr")
  return -10 * jnp.log10(jnp.mean((x - y) ** 2, (1, 2, 3)))


def ssim(x: Array, y: Array) -> Array:
  """Structural similarity of each image, at most 1: (b,) float32.

  Wang, Bovik, Sheikh, Simoncelli 2004 (IEEE TIP 13(4)), eq. 13 to 16: Gaussian
  window of 11 x 11 and sigma 1.5, weights summing to 1, K1 .01, K2 .03,
  moments with those weights and no n/(n - 1). Each channel for itself, then
  the mean over channels and over the (h - 10, w - 10) places where the window
  lies inside the image. As scikit-image's `structural_similarity` with
  `gaussian_weights=True, use_sample_covariance=False, data_range=1,
  channel_axis=-1`. Some codes pad the border or turn colours to grey first:
  their numbers differ.
  """
  x, y = _pair(x, y, 2 * RADIUS + 1, "ssim")
  # Variances do not mind a shift, and small means keep more digits of them.
  x0, y0 = (jnp.mean(a, (1, 2), keepdims=True) for a in (x, y))
  u, v = x - x0, y - y0
  u, v, uu, vv, uv = _windowed(jnp.stack((u, v, u * u, v * v, u * v)))
  mx, my = u + x0, v + y0
  like = (2 * mx * my + C1) / (mx * mx + my * my + C1)
  like *= (2 * (uv - u * v) + C2) / (uu - u * u + vv - v * v + C2)
  return jnp.mean(like, (1, 2, 3))


def _windowed(x: Array) -> Array:
  """Weighted means: (k, b, h, w, c) -> (k, b, h - 10, w - 10, c)."""
  weights = [
    math.exp(-0.5 * (i / SIGMA) ** 2) for i in range(-RADIUS, RADIUS + 1)
  ]
  weights = [w / sum(weights) for w in weights]
  for axis in (2, 3):
    inside = x.shape[axis] - 2 * RADIUS
    x = sum(
      w * lax.slice_in_dim(x, i, i + inside, axis=axis)
      for i, w in enumerate(weights)
    )
  return x


def _pair(x: Array, y: Array, least: int, what: str) -> tuple[Array, Array]:
  """Both as float32, or what is wrong with them."""
  if x.shape != y.shape or x.ndim != 4:
    raise UserError(
      f"{what}: images are two (b, h, w, c) of one shape, got {x.shape} and "
      f"{y.shape}"
    )
  if min(x.shape[1:3]) < least:
    raise UserError(
      f"{what}: images need {least} pixels a side, got {x.shape[1:3]}"
    )
  for array in (x, y):
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise UserError(
        f"{what}: images are float in 0..1, got {array.dtype}; divide by 255"
      )
  return x.astype(jnp.float32), y.astype(jnp.float32)
