"""Discriminators: how real an image looks, in one number or one per place.

    task.discriminator = "residual(64)"     # tasks/adversarial.py

    residual(width, most)   blocks down to 4 x 4, one score an image
    patch(width, depth)     a score for each of many overlapping patches

`residual` is StyleGAN2's (Karras et al., 1912.04958, section 2.2 and table 1's
training details): a 1 x 1 convolution, then blocks of two 3 x 3 convolutions
that halve rows and columns and have a shortcut, the sum divided by sqrt 2; the
spread over the batch as one more channel (1710.10196, section 3), taken over
all images of a call and not over groups of four; one convolution, two linear
maps. Here halving is a mean of 2 x 2 and no longer blur, and weights start with
variance 2 / fan-in and keep their learning rate (no equalised one).

`patch` is pix2pix's (Isola et al., 1611.07004, appendix 6.1.2): 4 x 4
convolutions of stride 2, the width doubling, then two of stride 1. It has no
batch normalisation: no statistics are kept, and each image is scored alone.

Both call units leaky with slope .2, keep parameters and arithmetic in float32,
and take images (b, h, w, c), or videos (b, t, h, w, c) frame by frame.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes, call
from vitscale.core.errors import UserError, nearest
from vitscale.nn.linear import Linear

SMALLEST = 4  # pixels a side, at the last block
SLOPE = 0.2
HE = axes.Fan(2.0)


class Residual(nn.Module):
  """One score an image.

  Attributes:
    width: channels at full size; they double with every halving.
    most: channels never exceed it.
  """

  width: int = 64
  most: int = 512

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """(b, h, w, c) or (b, t, h, w, c), about -1..1 -> (b,) or (b t,).

    Raises:
      UserError: images smaller than 4 pixels a side, or sides that can't be
        halved down to 4 to 7 of them.
    """
    x = _frames(image)
    side = min(x.shape[1:3])
    what = f"residual({self.width}, {self.most})"
    if self.width < 1 or self.most < self.width:
      raise UserError(f"{what}: want 1 <= width <= most")
    if side < SMALLEST:
      raise UserError(
        f"{what}: images need {SMALLEST} pixels a side, got {x.shape[1:3]}"
      )
    blocks = int(math.log2(side / SMALLEST))
    if any(size % 2**blocks for size in x.shape[1:3]):
      raise UserError(
        f"{what}: {x.shape[1]}x{x.shape[2]} pixels can't be halved {blocks}"
        f" times; want multiples of {2**blocks}"
      )
    x = _leaky(Conv(self.width, 1, name="rgb")(x))
    for block in range(blocks):
      last = min(self.width * 2**block, self.most)
      width = min(2 * last, self.most)
      y = _leaky(Conv(last, 3, name=f"first{block}")(x))
      y = _halved(_leaky(Conv(width, 3, name=f"second{block}")(y)))
      kept = Conv(width, 1, bias=False, name=f"shortcut{block}")(_halved(x))
      x = (kept + y) / math.sqrt(2)
    width = x.shape[-1]
    x = jnp.concatenate([x, spread(x)], -1)
    x = _leaky(Conv(width, 3, name="last")(x))
    x = x.reshape(len(x), -1)
    spec = "mlp@places -> mlp"
    x = _leaky(Linear(spec, (width,), init=HE, name="hidden")(x))
    return Linear("mlp -> ", (), name="score")(x)


class Patch(nn.Module):
  """A score at every place of a coarse grid.

  Attributes:
    width: channels after the first convolution.
    depth: convolutions of stride 2; a score sees 70 pixels a side for 3.
  """

  width: int = 64
  depth: int = 3

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    """(b, h, w, c) or (b, t, h, w, c), about -1..1 -> (b or b t, rows, cols).

    Raises:
      UserError: images too small for a score.
    """
    x = _frames(image)
    what = f"patch({self.width}, {self.depth})"
    if self.width < 1 or self.depth < 1:
      raise UserError(f"{what}: width and depth are 1 or more")
    least = 3 * 2**self.depth  # the two last convolutions take a place each
    if min(x.shape[1:3]) < least:
      raise UserError(
        f"{what}: images need {least} pixels a side, got {x.shape[1:3]}"
      )
    for level in range(self.depth):
      width = self.width * 2 ** min(level, 3)
      x = _leaky(Conv(width, 4, 2, name=f"down{level}")(x))
    x = _leaky(Conv(2 * x.shape[-1], 4, 1, pad=1, name="last")(x))
    return Conv(1, 4, 1, pad=1, init=axes.lecun, name="score")(x)[..., 0]


class Conv(nn.Module):
  """A convolution that keeps rows and columns, or halves them.

  Attributes:
    features: channels made.
    size: of the kernel, a side.
    stride: 1, or 2 for half as many places.
    pad: pixels of 0 on each side; None for what the stride wants.
    bias: adds one.
    init: of the kernel.
  """

  features: int
  size: int
  stride: int = 1
  pad: int | None = None
  bias: bool = True
  init: Any = HE

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(b, rows, columns, c) -> (b, rows', columns', features)."""
    kernel = axes.param(
      self, "kernel", "kernel_h kernel_w channel_in -> embed",
      (self.size, self.size, x.shape[-1], self.features), self.init,
    )  # fmt: skip
    pad = "SAME" if self.pad is None else [(self.pad, self.pad)] * 2
    x = jax.lax.conv_general_dilated(
      x, kernel, (self.stride, self.stride), pad,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    if not self.bias:
      return x
    return x + axes.param(self, "bias", "embed", (self.features,), axes.zeros)


def spread(x: jax.Array) -> jax.Array:
  """How much a batch differs: (b, h, w, c) -> (b, h, w, 1), one number.

  The standard deviation over the batch, a mean over places and channels.
  """
  variance = jnp.square(x - x.mean(0)).mean(0)
  number = jnp.sqrt(variance + 1e-8).mean()
  return jnp.broadcast_to(number, (*x.shape[:3], 1))


def _frames(image: jax.Array) -> jax.Array:
  return image.astype(jnp.float32).reshape(-1, *image.shape[-3:])


def _leaky(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, SLOPE)


def _halved(x: jax.Array) -> jax.Array:
  return nn.avg_pool(x, (2, 2), (2, 2))


KINDS: dict[str, Any] = {"residual": Residual, "patch": Patch}


@functools.cache
def parse(text: str) -> Callable[..., nn.Module]:
  """The factory of a discriminator: "residual(64)", "patch(width=32)".

  Raises:
    UserError: unknown name or option, or an option of another type.
  """
  what = f"task.discriminator {text!r}"
  name, args, kwargs = call.read(text, what)
  if name not in KINDS:
    raise UserError(f"{what}: no such discriminator{nearest(name, KINDS)}")
  module = KINDS[name]
  known = call.fields(module)
  options = call.options(known, args, kwargs, what=what)
  return functools.partial(module, **options)
