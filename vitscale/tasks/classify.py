"""Image classification: softmax or sigmoid cross-entropy, mixup, cutmix.

Sources: label smoothing (Szegedy et al. 1512.00567 §7), mixup (Zhang et al.
1710.09412), cutmix (Yun et al. 1905.04899), sigmoid loss for classification
(Beyer et al. 2006.07159). Mixing happens on the device over the global batch,
so that it does not depend on the number of processes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale.core.errors import UserError, nearest
from vitscale.nn.packed import Packed
from vitscale.tasks import Player, forward

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
  """Classification of normalised images into `classes`."""

  classes: int
  mean: tuple[float, ...]  # per channel, pixels in 0..1
  std: tuple[float, ...]
  kind: str = "softmax"  # or "sigmoid"
  label_smoothing: float = 0.0
  mixup: float = 0.0  # Beta(a, a) parameter, 0 = off
  cutmix: float = 0.0
  players: tuple[Player, ...] = (Player(),)
  any_draw = True  # `predict` asks nothing of a model but its call

  def init(self, model: nn.Module, key: jax.Array, batch: Batch) -> Any:
    """Boxed variables of the model, from any batch of the right shapes."""
    return model.init(key, self.inputs(batch))

  def inputs(self, batch: Batch) -> Any:
    """What the model is called with: images, or rows of them (data/pack.py)."""
    if "segment_ids" not in batch:
      return self.normalise(batch["image"])
    patches, channels = batch["image"], len(self.mean)
    pixels = patches.shape[-1] // channels
    x = self.normalise(patches.reshape(*patches.shape[:-1], pixels, channels))
    return Packed(
      x.reshape(patches.shape), batch["coordinates"], batch["segment_ids"],
      batch["grids"], math.isqrt(pixels),
    )  # fmt: skip

  def normalise(self, image: jax.Array) -> jax.Array:
    """uint8 (b, h, w, c) -> float32, zero mean and unit variance."""
    return normalised(image, self.mean, self.std)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean loss of a batch.

    Args:
      model: a family's Model; called with `train=True` and the draw.
      variables: parameters and mutable collections.
      batch: `image` (b, h, w, c) uint8, `label` (b,) int32; or rows, whose
        images count by their `weight`.
      rngs: streams "dropout" and "mix".
      draw: static values of this step, keywords of the model's call.

    Returns:
      Scalar loss and aux with `metrics`, `state`, `logits` (b, classes) and
      what else the model gave, `out`.
    """
    image, weight = self.inputs(batch), batch.get("weight")
    target = jax.nn.one_hot(batch["label"], self.classes)
    image, target = self.mix(image, target, rngs["mix"])
    if self.label_smoothing:
      target = optax.smooth_labels(target, self.label_smoothing)
    own = {"dropout": rngs["dropout"]}
    (logits, out), state = forward(model, variables, image, rngs=own, draw=draw)
    loss = mean(self.nll(logits, target), weight)
    hit = mean(logits.argmax(-1) == batch["label"], weight)
    return loss, {
      "metrics": {"loss": loss, "accuracy": hit},
      "state": state,
      "logits": logits,
      "out": out,
    }

  def probabilities(self, logits: jax.Array) -> jax.Array:
    """What `nll` takes as a target: softmax, or sigmoid of each class."""
    logits = logits.astype(jnp.float32)
    return nn.sigmoid(logits) if self.kind == "sigmoid" else nn.softmax(logits)

  def nll(self, logits: jax.Array, target: jax.Array) -> jax.Array:
    """Loss per example (b,), in nats; sigmoid sums over classes."""
    logits = logits.astype(jnp.float32)
    if self.kind == "sigmoid":
      return optax.sigmoid_binary_cross_entropy(logits, target).sum(-1)
    return optax.softmax_cross_entropy(logits, target)

  def mix(
    self, image: jax.Array, target: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with the one that a roll puts beside it."""
    if not (self.mixup or self.cutmix):
      return image, target
    if isinstance(image, Packed):
      raise UserError("task.mixup, task.cutmix: packed images have no partner")
    choose, lam, box = jax.random.split(key, 3)
    other_image, other_target = (
      jnp.roll(image, 1, 0),
      jnp.roll(target, 1, 0),
    )
    alpha = self.mixup or self.cutmix
    keep = jax.random.beta(lam, alpha, alpha)
    blended = keep * image + (1 - keep) * other_image
    cut_alpha = self.cutmix or self.mixup
    mask = _box(box, image.shape[1:3], cut_alpha)
    cut = jnp.where(mask[None, :, :, None], other_image, image)
    use_cut = (
      jax.random.bernoulli(choose)
      if self.mixup and self.cutmix
      else bool(self.cutmix)
    )
    share = jnp.where(use_cut, 1 - mask.mean(), keep)
    image = jnp.where(use_cut, cut, blended)
    return image, share * target + (1 - share) * other_target

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Per example: `nll` in nats, `correct` 0/1; `logits`, `probabilities`."""
    logits, _ = model.apply(variables, self.inputs(batch))
    return self.scores(logits, batch["label"])

  def scores(self, logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """What `predict` says of logits (..., classes) and labels (...)."""
    logits = logits.astype(jnp.float32)
    target = jax.nn.one_hot(label, self.classes)
    return {
      "nll": self.nll(logits, target),
      "correct": (logits.argmax(-1) == label).astype(jnp.float32),
      "logits": logits,
      "probabilities": self.probabilities(logits),
    }


def normalised(
  image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """uint8 (..., c) -> float32; `mean` and `std` by channel, pixels in 0..1."""
  mean, std = jnp.asarray(mean) * 255, jnp.asarray(std) * 255
  return (image.astype(jnp.float32) - mean) / std


def pixels(
  x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]
) -> jax.Array:
  """The inverse of `normalised`: (..., c) -> float32 in 0..255."""
  return (x * jnp.asarray(std) + jnp.asarray(mean)) * 255


def statistics(
  config: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """`task.mean` and `task.std`, by default those given, one per channel.

  Raises:
    UserError: another number of values than channels.
  """
  channels = len(mean)
  mean = tuple(config.get("mean") or mean)
  std = tuple(config.get("std") or std)
  if not len(mean) == len(std) == channels:
    raise UserError(
      f"task.mean and task.std need {channels} values, one per channel, got"
      f" {len(mean)} and {len(std)}"
    )
  return mean, std


def mean(x: jax.Array, weight: jax.Array | None) -> jax.Array:
  """Over all examples, those of weight 0 left out."""
  if weight is None:
    return x.mean()
  return (weight * x).sum() / jnp.maximum(weight.sum(), 1)


def _box(key: jax.Array, shape: tuple[int, ...], alpha: float) -> jax.Array:
  """A cutmix box (h, w): area share 1 - Beta(alpha, alpha), random centre."""
  lam, row, column = jax.random.split(key, 3)
  side = jnp.sqrt(1 - jax.random.beta(lam, alpha, alpha))
  spans = []
  for k, size in zip((row, column), shape):
    centre = jax.random.uniform(k) * size
    at = jnp.arange(size) + 0.5
    spans.append(jnp.abs(at - centre) < side * size / 2)
  return spans[0][:, None] & spans[1][None, :]


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task` and the data's normalisation.

  Raises:
    UserError: unknown kind, or smoothing outside [0, 1).
  """
  mean, std = statistics(config, source.mean, source.std)
  task = Task(
    classes=source.classes,
    mean=mean,
    std=std,
    kind=config.get("kind", "softmax"),
    label_smoothing=config.get("label_smoothing", 0.0),
    mixup=config.get("mixup", 0.0),
    cutmix=config.get("cutmix", 0.0),
  )
  kinds = ("softmax", "sigmoid")
  if task.kind not in kinds:
    raise UserError(f"task.kind {task.kind!r}{nearest(task.kind, kinds)}")
  for name in ("mixup", "cutmix"):
    if getattr(task, name) < 0:
      raise UserError(f"task.{name}={getattr(task, name)}: should be 0 or more")
  if not 0 <= task.label_smoothing < 1:
    raise UserError(
      f"task.label_smoothing={task.label_smoothing}: should be in [0, 1)"
    )
  return task
