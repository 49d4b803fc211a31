"""One batch at several resolutions, which should agree on what they see.

    config.train.transform = {
      "image": "random_crop(28, pad=2)|flip_lr",
      "image@20": "random_crop(28, pad=2)|flip_lr|resize(20)",
    }
    config.task = {"name": "multiscale", "of": {"name": "classify"}}

ResFormer (Tian et al., 2212.00776 section 3.2): every step sees its images at
r1 > r2 > ..., each augmented by itself, with one set of weights. The loss is

    mean_i CE_i + weight * mean_i smoothL1(white(f_i+1), stop(white(f_i)))

with f_i the pooled feature at resolution i and white a LayerNorm without
parameters: the larger view is the target of the next smaller one. As in the
released code both sums are over the number of views; it whitens the target
alone, here both are, so that they are on one scale.

Views are the batch's keys `image` and `image@...`, in the order of their
sizes. Predictions are of `image`, at whatever size an evaluation gives it.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale import plugin
from vitscale.core.errors import UserError, nearest
from vitscale.tasks import Player

REDUCE = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class Task:
  """A plain task, asked of all views of a batch.

  Attributes:
    task: the plain task, with one player.
    weight: of the consistency between neighbouring sizes; 0 for none.
    reduce: "mean" over the views, or "sum".
  """

  task: Any
  weight: float = 1.0
  reduce: str = "mean"
  all_views = True  # of a batch are seen

  @property
  def players(self) -> tuple[Player, ...]:
    return self.task.players

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables, initialised at the size of `image`."""
    return self.task.init(model, key, batch)

  def normalise(self, image: jax.Array) -> jax.Array:
    return self.task.normalise(image)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The plain losses of all views, and their consistency.

    Args:
      model, variables, rngs, draw: as of the plain task. All views mix the
        same examples; dropout is each one's own.
      batch: views (b, h, w, c) uint8 and what else the plain task needs.

    Returns:
      The loss; aux is the largest view's, its metrics with `loss_H` for each
      height and `consistency`.

    Raises:
      UserError: fewer than two views, two of one size, a patch that divides
        one of them not, or a family without pooled features.
    """
    if mutable := sorted(set(variables) - {"params"}):
      raise UserError(
        f"multiscale training of a family with {mutable[0]!r}: statistics of"
        " the views would mix"
      )
    names = views(batch)
    total = agree = 0.0
    metrics, first, target = {}, None, None
    for i, name in enumerate(names):
      key = jax.random.fold_in(rngs["dropout"], i)
      one = {**batch, "image": batch[name]}
      try:
        loss, aux = self.task.loss(
          model, variables, one, {**rngs, "dropout": key}, draw
        )
      except UserError as error:
        raise UserError(f"train.transform {name!r}: {error}") from None
      first = first or aux
      total += loss
      metrics[f"loss_{batch[name].shape[1]}"] = aux["metrics"]["loss"]
      feature = whitened(_pooled(aux, model))
      if target is not None:
        agree += optax.huber_loss(feature, target).mean()
      target = jax.lax.stop_gradient(feature)
    count = len(names) if self.reduce == "mean" else 1
    total = (total + self.weight * agree) / count
    metrics |= {"loss": total, "consistency": agree / (len(names) - 1)}
    return total, {**first, "metrics": {**first["metrics"], **metrics}}

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """What the plain task predicts of `image`."""
    return self.task.predict(model, variables, batch)


def views(batch: Mapping[str, Any]) -> list[str]:
  """Names of a batch's views, largest first.

  Raises:
    UserError: fewer than two, or two of one size.
  """
  names = [n for n in batch if n.partition("@")[0] == "image"]
  if len(names) < 2:
    raise UserError(
      f"task.name=multiscale sees one view ({names[0]}): give train.transform"
      " several, {'image': ..., 'image@20': ...}"
    )
  pixels = {n: batch[n].shape[1] * batch[n].shape[2] for n in names}
  names.sort(key=pixels.get, reverse=True)
  for one, other in itertools.pairwise(names):
    if pixels[one] == pixels[other]:
      h, w = batch[one].shape[1:3]
      raise UserError(
        f"train.transform: {one!r} and {other!r} are both {h}x{w} px: give"
        " each view a size of its own"
      )
  return names


def whitened(x: jax.Array) -> jax.Array:
  """(b, d) -> (b, d) float32, mean 0 and variance 1 over d."""
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def _pooled(aux: Mapping[str, Any], model: nn.Module) -> jax.Array:
  if "pre_logits" not in aux.get("out", {}):
    family = type(model).__module__
    raise UserError(f"{family} has no out['pre_logits'] to compare")
  return aux["out"]["pre_logits"]


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`, see the module.

  Raises:
    UserError: unknown `reduce`, a negative weight, or an inner task with
      several players or a teacher.
  """
  inner = config["of"]
  task = plugin.module("tasks", inner["name"]).make(inner, source)
  if len(task.players) != 1 or getattr(task, "frozen", ()):
    raise UserError(f"task.of {inner['name']!r}: multiscale wants classify")
  weight, reduce = config.get("weight", 1.0), config.get("reduce", "mean")
  if type(weight) not in (int, float) or not 0 <= weight < float("inf"):
    raise UserError(f"task.weight={weight!r}: should be 0 or more")
  if reduce not in REDUCE:
    raise UserError(f"task.reduce {reduce!r}{nearest(reduce, REDUCE)}")
  return Task(task, float(weight), reduce)
