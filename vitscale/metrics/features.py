"""Features of images from a network that nobody trained and nobody downloads.

A pyramid of 3 x 3 convolutions with random weights of a fixed seed. Networks
with random weights can judge images much as trained ones do (Lee, Kim, Lee,
2208.09218), though they know no objects. A Frechet distance on these features
is no FID: it is called `rfd_random_conv`, and compares models on one set of
images with each other, with nothing published.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.data.random import Rng

NAME = "random_conv"
SEED = 0
WIDTHS = (16, 16, 16, 16)  # channels of each level, each half the size before
DIM = 2 * sum(WIDTHS)
LEAST = 2 ** (len(WIDTHS) - 1)  # pixels a side: one place at the last level
IDENTITY = (
  f"{NAME}(seed={SEED}, widths={'-'.join(map(str, WIDTHS))}, kernel=3,"
  f" features={DIM})"
)


def features(images: jax.Array) -> jax.Array:
  """What the pyramid sees in each image: (b, DIM) float32.

  Of each channel of each level the mean over places and the root of the mean
  square.

  Args:
    images: as of `layers`.
  """
  found = []
  for x in layers(images):
    found += [x.mean((1, 2)), jnp.sqrt(jnp.square(x).mean((1, 2)))]
  return jnp.concatenate(found, -1)


def distance(x: jax.Array, y: jax.Array) -> jax.Array:
  """How far two images look apart to the pyramid: (b,) float32.

  As LPIPS (metrics/lpips.py) without its trained network and weights, and not
  to be called that: at each place features are brought to length 1; squared
  differences, a sum over channels, a mean over places, a sum over levels.

  Args:
    x, y: as of `layers`.
  """
  far = jnp.zeros(len(x))
  for u, v in zip(layers(x), layers(y)):
    far += jnp.square(_unit(u) - _unit(v)).sum(-1).mean((1, 2))
  return far


def _unit(x: jax.Array) -> jax.Array:
  """Of length 1 over channels; 0 stays 0, with a gradient of 0."""
  squares = jnp.square(x).sum(-1, keepdims=True)
  return jnp.where(squares > 0, x * jax.lax.rsqrt(squares + 1e-10), 0)


def layers(images: jax.Array) -> list[jax.Array]:
  """The levels of the pyramid: (b, rows, columns, width) float32 of each.

  The first has the image's size, the others stride 2; weights are normal with
  variance 2 / (inputs of a unit), biases 0, units rectified.

  Args:
    images: (b, h, w, c) float in 0..1, h and w at least LEAST, c 1 or 3; grey
      is seen as three equal channels.
  """
  if images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise UserError(
      f"{NAME}: images are (b, h, w, c) with 1 or 3 channels, got"
      f" {images.shape}"
    )
  if min(images.shape[1:3]) < LEAST:
    raise UserError(
      f"{NAME}: images need {LEAST} pixels a side, got {images.shape[1:3]}"
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(
      f"{NAME}: images are float in 0..1, got {images.dtype}; divide by 255"
    )
  x = 2 * images.astype(jnp.float32) - 1
  x = jnp.broadcast_to(x, (*x.shape[:3], 3))
  found = []
  for level, kernel in enumerate(weights()):
    stride = (2, 2) if level else (1, 1)
    x = jax.lax.conv_general_dilated(
      x, kernel, stride, "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
    )  # fmt: skip
    x = jax.nn.relu(x)
    found.append(x)
  return found


@functools.cache
def weights() -> tuple[np.ndarray, ...]:
  """Kernels (3, 3, inputs, width) float32 of each level.

  A pure function of SEED by data/random.py, whatever jax or numpy is here.
  """
  made = []
  for level, (c, width) in enumerate(zip((3, *WIDTHS), WIDTHS)):
    draws = Rng(SEED, 0, level).normal(NAME, 9 * c * width)
    kernel = draws.reshape(3, 3, c, width) * (2 / (9 * c)) ** 0.5
    made.append(kernel.astype(np.float32))
  return tuple(made)
