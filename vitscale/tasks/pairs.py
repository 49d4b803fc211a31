"""Do two sequences belong together? Both are encoded by one model.

    config.model.num_classes = 0
    config.task = {"name": "pairs", "hidden": 512}

Retrieval of the Long Range Arena (2011.04006, section 2.2.3): an image holds
two sequences as rows (2, n, 1); they never see each other. Of their pooled
features u and v, [u, v, u - v, u * v] goes through two hidden layers, `hidden`
and half as wide. (The released configs leave the last two out.)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.linear import Linear
from vitscale.tasks import classify, with_head

PARAMS = "pair"  # where they lie among the model's


class Head(nn.Module):
  """Logits of features of both sequences."""

  classes: int
  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(b, 2, d) -> (b, classes) float32."""
    u, v = x[:, 0], x[:, 1]
    x = jnp.concatenate([u, v, u - v, u * v], -1)
    x = Linear("embed@pair -> mlp", (self.hidden,), name="first")(x)
    half = (self.hidden // 2,)
    x = Linear("mlp -> mlp@half", half, name="second")(nn.relu(x))
    out = Linear(
      "mlp@half -> classes", (self.classes,), init=axes.zeros, name="out"
    )
    return out(nn.relu(x))


@dataclasses.dataclass(frozen=True)
class Task(classify.Task):
  """Classification of pairs; no mixing of examples.

  Attributes:
    hidden: width of the first layer behind the features.
  """

  hidden: int = 512

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the model, and of the head.

    Raises:
      UserError: the model has a head of its own, or images aren't pairs.
    """
    if getattr(model, "num_classes", 0):
      raise UserError(
        f"task pairs reads features: want model.num_classes=0, got"
        f" {model.num_classes}"
      )
    if "segment_ids" in batch:
      raise UserError("task pairs wants a pair a row, not packed images")
    boxed = super().init(model, key, batch)
    features = jax.eval_shape(
      lambda v, b: self.features(model, v, b), axes.unbox(boxed), batch
    )
    return with_head(boxed, PARAMS, self._head, key, features)

  @property
  def _head(self) -> Head:
    return Head(self.classes, self.hidden)

  def normalise(self, image: jax.Array) -> jax.Array:
    """uint8 (b, 2, n, c) -> float32 (2 b, 1, n, c), pair by pair."""
    if image.shape[1] != 2:
      raise UserError(
        "task pairs wants images of two rows, a sequence each, got"
        f" {image.shape[1]} rows"
      )
    image = image.reshape(-1, 1, *image.shape[2:])
    return super().normalise(image)

  def features(
    self, model: nn.Module, variables: Any, batch: Any, **call: Any
  ) -> Any:
    """(b, 2, d) of the model, and whatever else `call` makes it return."""
    made = model.apply(variables, self.normalise(batch["image"]), **call)
    (x, _), *more = made if "mutable" in call else (made,)
    x = x.reshape(-1, 2, x.shape[-1])
    return (x, *more) if more else x

  def _logits(self, variables: Any, x: jax.Array) -> jax.Array:
    return self._head.apply({"params": variables["params"][PARAMS]}, x)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean loss of a batch of pairs, see `classify.Task.loss`."""
    x, state = self.features(
      model,
      variables,
      batch,
      train=True,
      rngs={"dropout": rngs["dropout"]},
      mutable=[name for name in variables if name != "params"],
      **draw,
    )
    logits = self._logits(variables, x)
    target = jax.nn.one_hot(batch["label"], self.classes)
    if self.label_smoothing:
      target = optax.smooth_labels(target, self.label_smoothing)
    loss = self.nll(logits, target).mean()
    hit = logits.argmax(-1) == batch["label"]
    return loss, {
      "metrics": {"loss": loss, "accuracy": hit.mean()},
      "state": state,
      "logits": logits,
    }

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """Per pair what `classify.Task` predicts per image."""
    logits = self._logits(variables, self.features(model, variables, batch))
    return self.scores(logits, batch["label"])


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`.

  Raises:
    UserError: what `classify.make` refuses, mixing, or `hidden` below 2.
  """
  base = classify.make(config, source)
  if base.mixup or base.cutmix:
    raise UserError(
      "task pairs mixes no examples: drop task.mixup, task.cutmix"
    )
  hidden = config.get("hidden", 512)
  if type(hidden) is not int or hidden < 2:
    raise UserError(f"task.hidden={hidden!r}: should be 2 or more")
  return Task(**vars(base), hidden=hidden)
