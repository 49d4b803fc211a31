"""A class for every pixel: semantic segmentation.

    config.task = {"name": "dense", "head": "linear"}   # or "decoder"
    config.model.num_classes = 0

The last channel of an image holds the classes of its pixels
(vitscale/data/scenes.py); the model sees the others. A head reads the last of
`out["features"]`, its parameters lie among the model's under `dense`. Loss is
the mean cross-entropy over pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale.core.errors import UserError, nearest
from vitscale.heads.dense import HEADS
from vitscale.tasks import Player, classify, forward, with_head

PARAMS = "dense"  # where the head's lie
Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
  """Segmentation of normalised images into `classes`.

  Attributes:
    classes: of a pixel.
    mean, std: of each channel that is seen, pixels in 0..1.
    head: made by `make`.
  """

  classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  head: nn.Module
  players: tuple[Player, ...] = (Player(),)

  def init(self, model: nn.Module, key: jax.Array, batch: Batch) -> Any:
    """Boxed variables of the model and of the head."""
    image = self.normalise(batch["image"])
    boxed = model.init(key, image)
    _, out = jax.eval_shape(model.apply, nn.meta.unbox(boxed), image)
    seen = out["features"][-1][0]
    return with_head(boxed, PARAMS, self.head, key, seen, image.shape[1:3])

  def normalise(self, image: jax.Array) -> jax.Array:
    """uint8 (b, h, w, c + 1) -> float32 (b, h, w, c), without the classes."""
    return classify.normalised(image[..., :-1], self.mean, self.std)

  def target(self, image: jax.Array) -> jax.Array:
    """uint8 (b, h, w, c + 1) -> int32 (b, h, w), the class of each pixel."""
    return image[..., -1].astype(jnp.int32)

  def logits(
    self, variables: Mapping[str, Any], out: Mapping[str, Any], image: Any
  ) -> jax.Array:
    """(b, h, w, classes) from what the model gave."""
    own = {"params": variables["params"][PARAMS]}
    return self.head.apply(own, out["features"][-1][0], image.shape[1:3])

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean cross-entropy over pixels; metrics `loss` and `accuracy`.

    Args: as of `classify.Task.loss`.
    """
    image, own = self.normalise(batch["image"]), {"dropout": rngs["dropout"]}
    (_, out), state = forward(model, variables, image, rngs=own, draw=draw)
    logits = self.logits(variables, out, batch["image"])
    target = self.target(batch["image"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    hit = logits.argmax(-1) == target
    metrics = {"loss": loss.mean(), "accuracy": hit.mean()}
    return metrics["loss"], {"metrics": metrics, "state": state}

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Per image: `nll` and `correct`, means over pixels; `confusion` (k, k),
    pixels by class (row) and prediction (column)."""
    _, out = model.apply(variables, self.normalise(batch["image"]))
    logits = self.logits(variables, out, batch["image"])
    target = self.target(batch["image"])
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    said = logits.argmax(-1)
    one_hot = lambda x: jax.nn.one_hot(x, self.classes)
    return {
      "nll": nll.mean((1, 2)),
      "correct": (said == target).mean((1, 2), dtype=jnp.float32),
      "confusion": jnp.einsum("bhwi,bhwj->bij", one_hot(target), one_hot(said)),
    }


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`: `head`, `width` of a decoder.

  Raises:
    UserError: unknown head, or images without a channel of classes.
  """
  name = config.get("head", "linear")
  if name not in HEADS:
    raise UserError(f"task.head {name!r}{nearest(name, HEADS)}")
  if len(source.mean) < 2:
    raise UserError(
      "task 'dense' wants images whose last channel is the class of a pixel,"
      " such as data.source='scenes'"
    )
  head = HEADS[name](source.classes, config.get("width", 64))
  mean, std = source.mean[:-1], source.std[:-1]
  return Task(source.classes, tuple(mean), tuple(std), head)
