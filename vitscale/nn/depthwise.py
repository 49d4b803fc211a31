"""A depthwise 3 x 3 convolution over a grid of tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes


class Depthwise(nn.Module):
  """Each channel's sum over its 3 x 3 neighbours, zeros beyond the edge.

  Written as nine shifted products: a convolution with one group per channel is
  slow on every device, and channels keep their axes.

  Attributes:
    name_of: axis name of the channels, the last axis.
    features: how many; axes before them (heads) share the kernel.
    kernel_init: its initializer.
    dtype: compute type.
  """

  name_of: str
  features: int
  kernel_init: Any = axes.lecun
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(b, rows, columns, ..., features) to the same shape."""
    kernel = axes.param(
      self, "kernel", f"kernel_h kernel_w -> {self.name_of}",
      (3, 3, self.features), self.kernel_init,
    )  # fmt: skip
    bias = axes.param(self, "bias", self.name_of, (self.features,), axes.zeros)
    kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
    _, rows, columns = x.shape[:3]
    wide = jnp.pad(x, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (x.ndim - 3))
    return bias + sum(
      wide[:, i : i + rows, j : j + columns] * kernel[i, j]
      for i in range(3)
      for j in range(3)
    )
