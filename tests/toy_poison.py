"""A family whose logits are NaN for chosen training batches, and no others."""

import flax.linen as nn
import jax.numpy as jnp

from vitscale.core import axes, sharding


class Model(nn.Module):
  """A linear classifier that counts its updates; `poison`: means of images."""

  num_classes: int
  poison: tuple[float, ...] = ()

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
    logits = flat @ kernel
    for mean in self.poison:
      hit = train & (jnp.abs(image.mean() - mean) < 1e-5)
      logits = jnp.where(hit, jnp.nan, logits)
    return logits, {"features": [(image, (1, 1))]}


def poisoned(config, *numbers):
  """`config` with this family, NaN at the batches of these numbers."""
  from vitscale.bench import build

  config.model = {"family": "tests.toy_poison"}
  bench = build(config)
  batches = bench.batches(0, config.seed)
  means = [
    float(bench.task.normalise(next(batches)["image"]).mean())
    for _ in range(max(numbers, default=0) + 12)
  ]
  batches.close()
  assert len({round(mean, 4) for mean in means}) == len(means)
  config.model.poison = tuple(means[n] for n in numbers)
  return config
