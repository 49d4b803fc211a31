"""A family whose logits turn to NaN at one training step, not before."""

import flax.linen as nn
import jax.numpy as jnp

from vitscale.core import axes, sharding


class Model(nn.Module):
  """A linear classifier that counts its training steps."""

  num_classes: int
  fuse: int = 5

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    flat = sharding.constrain(image.reshape(len(image), -1), "batch", "patch")
    kernel = axes.param(
      self, "kernel", "patch -> classes", (flat.shape[1], self.num_classes),
      axes.lecun,
    )  # fmt: skip
    count = axes.variable(
      self, "batch_stats", "count", "state", (1,), axes.zeros
    )
    if train and not self.is_initializing():
      count.value = count.value + 1
    burnt = train & (count.value >= self.fuse)
    logits = jnp.where(burnt, jnp.nan, flat @ kernel)
    return logits, {"features": [(image, (1, 1))]}
