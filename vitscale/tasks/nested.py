"""Nested training: the task of a family, on slices of one big model.

    config.task = {
      "name": "nested", "of": {"name": "classify"},
      "granularities": "matvit",      # a preset, or a tuple of specs
      "strategy": "sampled",          # joint | sandwich | round_robin
    }

A step draws granularities and trains each as the plain small model it is
(elastic/slice.py), so it costs what they cost. Which are drawn is a declared
draw (elastic/draw.py): one compiled step per value. The optimizer acts on the
whole model: what a step doesn't touch still feels momentum and decay, as in
the published runs, unless `untouched` is "frozen".
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale import plugin
from vitscale.core import axes, draws
from vitscale.core.errors import UserError, nearest
from vitscale.elastic import presets
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.draw import NAME, STRATEGIES
from vitscale.elastic.slice import boxed, nest
from vitscale.tasks import Player

REDUCE = ("sum", "mean")
UNTOUCHED = ("moves", "frozen")
DISTIL = {
  "none": "labels only",
  "inplace": "the largest part of a step teaches the others (1903.05134)",
  "progressive": "each teaches the next smaller one (Scala, NeurIPS 2024)",
}


@dataclasses.dataclass(frozen=True)
class Task:
  """A plain task, asked of parts of the model.

  Attributes:
    task: the plain task, with one player.
    granularities: spec texts, smallest first.
    draws: which of them a step trains.
    reduce: of the losses of one step, "sum" (released MatViT) or "mean".
    distil: a key of DISTIL. A taught part has its own loss too, as in Scala;
      US-Net's in-place distillation has the teacher's targets alone.
    distil_weight: of the cross-entropy with the teacher's probabilities.
    untouched: what the optimizer does to entries outside the parts of a step:
      it "moves" them on by momentum and decay, or they are "frozen".
  """

  task: Any
  granularities: tuple[str, ...]
  draws: tuple[draws.Draws, ...]
  reduce: str = "sum"
  distil: str = "none"
  distil_weight: float = 1.0
  untouched: str = "moves"

  @property
  def frozen(self) -> tuple[str, ...]:
    return getattr(self.task, "frozen", ())

  @property
  def teachers(self) -> dict[str, Any]:
    return getattr(self.task, "teachers", {})

  @property
  def players(self) -> tuple[Player, ...]:
    return self.task.players

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the whole model."""
    return self.task.init(model, key, batch)

  def normalise(self, image: jax.Array) -> jax.Array:
    return self.task.normalise(image)

  @property
  def inputs(self) -> Any:
    """The plain task's; none (AttributeError) where that has none."""
    return self.task.inputs

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The plain losses of the granularities drawn, of one batch.

    Args:
      model, variables, batch, rngs: as of the plain task; every granularity
        gets the same random streams.
      draw: `nest`, a tuple of spec texts (without it the whole model); the
        rest goes to the plain task.

    Returns:
      Their sum or mean, with what distillation adds; metrics are means over
      the granularities, without.

    Raises:
      UserError: a spec that doesn't fit, a family with mutable collections.
    """
    rest = {key: value for key, value in draw.items() if key != NAME}
    losses, metrics, teacher = [], [], None
    if hasattr(self.task, "prepare"):
      batch = self.task.prepare(variables, batch, rngs)
    for text in reversed(draw.get(NAME, ("full",))):  # largest first
      little, own = self.part(model, variables, batch, text)
      loss, aux = self.task.loss(little, own, batch, rngs, rest)
      if teacher is not None:
        soft = self.task.nll(aux["logits"], teacher).mean()
        loss += self.distil_weight * soft
      if self.distil == "progressive" or (
        self.distil == "inplace" and teacher is None
      ):
        probabilities = self.task.probabilities(aux["logits"])
        teacher = jax.lax.stop_gradient(probabilities)
      losses.append(loss)
      metrics.append(aux["metrics"])
    count = len(losses) if self.reduce == "mean" else 1
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *metrics)
    return sum(losses) / count, {"metrics": mean}

  def part(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    text: str,
  ) -> tuple[nn.Module, Mapping[str, Any]]:
    """The small model of a spec and its variables, slices of `variables`."""
    mutable = sorted(set(variables) - {"params", *self.frozen})
    if mutable:
      raise UserError(
        f"nested training of a family with {mutable[0]!r}: statistics of the"
        " parts would mix, each needs its own"
      )
    spec = spec_lib.parse(text)
    if not spec.touched():
      return model, variables
    little, layers = spec_lib.small(model, spec)
    names = axes.names_of(boxed(self.task, model, batch))["params"]
    shapes = axes.unbox(boxed(self.task, little, batch))["params"]
    own = nest(variables["params"], names, shapes, layers)
    return little, {**variables, "params": own}

  def touched(
    self, model: nn.Module, batch: Mapping[str, Any], draw: Mapping[str, Any]
  ) -> Any:
    """Which entries the parts of a step have, or None if it may move all.

    Returns:
      A tree of bool like the parameters: where the gradient of the slices'
      sum is not zero.
    """
    if self.untouched == "moves":
      return None
    whole = axes.unbox(boxed(self.task, model, batch))["params"]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), whole)

    def total(params):
      parts = [
        self.part(model, {"params": params}, batch, text)[1]
        for text in draw.get(NAME, ("full",))
      ]
      return sum(x.sum() for x in jax.tree.leaves(parts))

    return jax.tree.map(lambda g: g != 0, jax.grad(total)(zeros))

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """What the whole model predicts."""
    return self.task.predict(model, variables, batch)


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`, see the module.

  Raises:
    UserError: unknown preset, strategy or key of one; bad specs, all of them
      the whole model, or several players.
  """
  inner = config["of"]
  task = plugin.module("tasks", inner["name"]).make(inner, source)
  if len(task.players) != 1 or task.players[0].loss != "loss":
    raise UserError(f"task.of {inner['name']!r} has several players")
  texts = presets.texts(config["granularities"])
  if len(set(texts)) != len(texts) or len(texts) < 2:
    raise UserError(
      f"task.granularities {', '.join(texts)}: want two or more that differ"
    )
  name = _choice(config, "strategy", STRATEGIES, "sampled")
  reduce = _choice(config, "reduce", REDUCE, "sum")
  distil = _choice(config, "distil", DISTIL, "none")
  untouched = _choice(config, "untouched", UNTOUCHED, "moves")
  strategy, options = STRATEGIES[name]
  draw = strategy(texts, **{k: config[k] for k in options if k in config})
  if distil == "none":
    return Task(task, texts, (draw,), reduce, untouched=untouched)
  if not hasattr(task, "probabilities"):
    raise UserError(f"task.distil: {inner['name']!r} has no soft targets")
  if min(map(len, draw.values)) < 2:
    raise UserError(
      f"task.distil={distil}: with strategy {name} a step has one part and no"
      " teacher: use joint or sandwich"
    )
  weight = config.get("distil_weight", 1.0)
  return Task(task, texts, (draw,), reduce, distil, weight, untouched)


def _choice(config, key: str, known, default: str) -> str:
  value = config.get(key, default)
  if value not in known:
    raise UserError(f"task.{key} {value!r}{nearest(value, known)}")
  return value
