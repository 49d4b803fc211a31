"""Nested widths that think on: each round sees what the one before it saw.

    config.task = {
      "name": "thinking", "of": {"name": "classify"},
      "rounds": ("heads=1/2 embed=1/2 ffn=1/2", "full"),
    }

ThinkingViT (2507.10800): round i runs part i of one nested model on

    E' = omega * Proj(z) + E

where E are tokens that enter the layers, z those the round before ended with
(`out["tokens"]`, behind the final norm, as in its code), Proj a linear map to
the wider part and omega a scalar; one pair of them for each later round. The
loss is sum_i alpha_i CE_i, all rounds in every step. At inference an image
stops after a round that is sure (elastic/cascade.py, with `Task.stages`).

As in the released code omega starts at zero, Proj doesn't, and alpha is one
over the number of rounds. The published start from a DeiT-Ti and averaged
weights are no part of the task.

`vs.load` of such a run gives the whole model; `model.apply` is its last round
without recycling.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale import plugin
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.elastic import presets
from vitscale.elastic.exits import Carry, Stage, at_stack
from vitscale.nn.linear import Linear
from vitscale.tasks import Player, nested

PARAMS = "recycle"  # where they lie among the model's


class Recycle(nn.Module):
  """x + omega * Proj(z), omega zero at first."""

  @nn.compact
  def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
    """Tokens (b, n, d) and those of the round before (b, n, e) -> (b, n, d)."""
    if z.shape[1] != x.shape[1]:
      raise UserError(
        f"task.rounds: {z.shape[1]} tokens can't be added to {x.shape[1]}:"
        " rounds share a patch"
      )
    project = Linear(
      "embed@previous -> embed", (x.shape[-1],), name="projection"
    )
    omega = axes.param(self, "omega", "", (), axes.zeros)
    return x + (omega * project(z)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Task:
  """A plain task, asked of one part after another.

  Attributes:
    parts: the nested task of the rounds.
    weights: alpha, of the loss of each round.
  """

  parts: nested.Task
  weights: tuple[float, ...]

  @property
  def task(self) -> Any:
    return self.parts.task

  @property
  def rounds(self) -> tuple[str, ...]:
    return self.parts.granularities

  @property
  def players(self) -> tuple[Player, ...]:
    return self.task.players

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the whole model, and of recycling."""
    boxed = self.task.init(model, key, batch)
    shapes = [
      jax.eval_shape(
        lambda v, b, i=i: self._tokens(model, v, b, i), axes.unbox(boxed), batch
      )
      for i in range(len(self.rounds))
    ]
    made = {}
    for i in range(1, len(shapes)):
      x, z = (
        jnp.zeros(s.shape, s.dtype) for s in (shapes[i][0], shapes[i - 1][1])
      )
      own = jax.random.fold_in(key, i)
      made[_name(i)] = Recycle().init(own, x, z)["params"]
    return {**boxed, "params": {**boxed["params"], PARAMS: made}}

  def _tokens(self, model, variables, batch, i) -> tuple[jax.Array, jax.Array]:
    """(tokens that enter, tokens that a later round gets) of round i."""
    little, own = self.parts.part(model, variables, batch, self.rounds[i])
    with at_stack() as seen:
      little.apply(own, self.normalise(batch["image"]))
    return seen["entered"], _end(seen, model)

  def normalise(self, image: jax.Array) -> jax.Array:
    return self.task.normalise(image)

  def round(
    self,
    i: int,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, Any],
    z: jax.Array | None,
    ask: Callable[[nn.Module, Any], Any],
  ) -> tuple[Any, jax.Array]:
    """Round i, from 0 on: what `ask(part, its variables)` says, and z.

    Args:
      i: which round.
      model, variables, batch: of the whole.
      z: what the round before left; None in the first.
      ask: applies the part it is given, once.
    """
    little, own = self.parts.part(model, variables, batch, self.rounds[i])
    enter = None
    if i:
      recycle = {"params": variables["params"][PARAMS][_name(i)]}
      enter = lambda x: Recycle().apply(recycle, x, z)
    with at_stack(enter) as seen:
      said = ask(little, own)
    return said, _end(seen, model)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """sum_i alpha_i CE_i; every round gets the same random streams.

    Metrics are `loss`, `accuracy` of the last round, and `loss_round_I`.
    """
    ask = lambda part, own: self.task.loss(part, own, batch, rngs, draw)
    total, z, metrics = 0.0, None, {}
    for i, weight in enumerate(self.weights):
      (loss, aux), z = self.round(i, model, variables, batch, z, ask)
      total += weight * loss
      metrics[f"loss_{_name(i)}"] = aux["metrics"]["loss"]
    return total, {"metrics": {**aux["metrics"], "loss": total, **metrics}}

  def predictions(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> list[dict[str, jax.Array]]:
    """What every round predicts, as the plain task does."""
    ask = lambda part, own: self.task.predict(part, own, batch)
    said, z = [], None
    for i in range(len(self.rounds)):
      one, z = self.round(i, model, variables, batch, z, ask)
      said.append(one)
    return said

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """What the last round predicts, nobody having stopped."""
    return self.predictions(model, variables, batch)[-1]

  def stages(self, model: nn.Module) -> tuple[Stage, ...]:
    """The rounds as jitted stages of a cascade, see elastic/exits.py."""

    def one(i: int) -> Stage:
      def stage(variables: Any, carry: Carry) -> tuple[jax.Array, Carry]:
        image = carry["image"]
        ask = lambda part, own: part.apply(own, self.normalise(image))[0]
        batch, z = {"image": image}, carry.get("tokens")
        logits, z = self.round(i, model, variables, batch, z, ask)
        return logits, {"image": image, "tokens": z}

      return jax.jit(stage)

    return tuple(one(i) for i in range(len(self.rounds)))


def _name(i: int) -> str:
  return f"round_{i + 1}"


def _end(seen: Mapping[str, Any], model: nn.Module) -> jax.Array:
  if "tokens" not in seen["out"]:
    family = type(model).__module__
    raise UserError(f"{family} has no out['tokens']: nothing to recycle")
  return seen["out"]["tokens"]


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`, see the module.

  Raises:
    UserError: unknown preset, bad specs or weights, or several players.
  """
  inner = config["of"]
  task = plugin.module("tasks", inner["name"]).make(inner, source)
  if len(task.players) != 1 or task.players[0].loss != "loss":
    raise UserError(f"task.of {inner['name']!r} has several players")
  if getattr(task, "frozen", ()):
    raise UserError("rounds that recycle have no teacher: task.of=classify")
  texts = presets.texts(config["rounds"])
  if len(texts) < 2:
    raise UserError(f"task.rounds {', '.join(texts)}: want two or more")
  weights = config.get("weights") or (1 / len(texts),) * len(texts)
  if not isinstance(weights, tuple | list):
    raise UserError(f"task.weights={weights!r}: should be one number a round")
  weights = tuple(weights)
  if len(weights) != len(texts) or min(weights) < 0 or not sum(weights):
    raise UserError(
      f"task.weights {weights}: give one weight to each of the {len(texts)}"
      " rounds"
    )
  return Task(nested.Task(task, texts, ()), weights)
