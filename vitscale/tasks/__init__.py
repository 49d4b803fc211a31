"""Tasks: what a run minimises. The loop knows only this contract.

A task module has `make(config, source) -> Task`; a Task offers

    init(model, key, batch) -> boxed variables
    loss(model, variables, batch, rngs, draw) -> (loss, aux)
    predict(model, variables, batch) -> dict of per-example arrays
    players: tuple[Player, ...]
    inputs(batch) (optional) -> what the model is called with; without it,
      normalise(batch["image"]), and no packed batches
    draws: tuple (optional), what it samples itself (core/draws.py)
    all_views: True (optional) where several views of a batch are seen
    any_draw: True (optional) where `predict` does at any draw of the model
    weighted: True (optional) where the loss is no plain mean over examples, so
      that a batch can't be taken in parts
    touched(model, batch, draw) (optional) -> tree of masks or None, the
      entries of the parameters that a step may move
    prepare(variables, batch, rngs) (optional) -> batch, with what all parts of
      a nested model need of it
    frozen: names (optional) of collections that no step changes
    merged(variables) -> variables (optional), the plain model's, of a task that
      trains others in their place; evaluations and who loads the run see those,
      with `task`, the plain one
    teachers: collection -> Parent (optional), whose weights fill it
    sample(model, variables, key, label, shape, **options) (optional) -> (b,
      *shape) as batch["image"] holds them, of a generator; label (b,) of
      classes, num_classes for none; `guidance` is among the options

`aux["metrics"]` are scalars to log, `aux["state"]` (optional) new mutable
collections. Several players (GANs, teachers) each name their own loss method,
parameter subset and optimizer group; the one loop updates them in turn.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Player:
  """One optimised set of parameters."""

  name: str = "model"
  params: str = ".*"  # regex on parameter names this player owns
  loss: str = "loss"  # method of the task
  optim: str = "optim"  # config group
  every: int = 1  # plays every k-th step
  frozen: str = ""  # regex on names among its own that stay as they are


def with_head(
  boxed: Any, name: str, head: nn.Module, key: jax.Array, seen: Any, *rest: Any
) -> Any:
  """A model's boxed variables with those of a task's head among them.

  Args:
    boxed: of the model.
    name: where the head's parameters lie.
    head: called with what `seen` describes, and `rest`.
    key: of the model's initialisation; the head's is drawn from it.
    seen: shape and type of what the head reads.
  """
  zeros = jnp.zeros(seen.shape, seen.dtype)
  made = head.init(jax.random.fold_in(key, 1), zeros, *rest)
  return {**boxed, "params": {**boxed["params"], name: made["params"]}}


def forward(
  model: nn.Module,
  variables: Mapping[str, Any],
  *inputs: Any,
  rngs: Mapping[str, jax.Array],
  draw: Mapping[str, Any],
) -> tuple[tuple[Any, Any], Any]:
  """A training call of a model: `(y, out)`, and its new mutable collections.

  Args:
    model: called with `train=True`.
    variables: of it.
    *inputs: what it is called with.
    rngs: its random streams.
    draw: static values of this step, keywords of its call.
  """
  mutable = [name for name in variables if name != "params"]
  return model.apply(
    variables, *inputs, train=True, rngs=rngs, mutable=mutable, **draw
  )


def sample_options(task: Any) -> list[str]:
  """What a task's `sample` may be told besides guidance, by name."""
  names = list(inspect.signature(task.sample).parameters)[5:]
  return [name for name in names if name != "guidance"]


def fingerprint(image: jax.Array) -> jax.Array:
  """(b,) uint32 of pixels or latents (b, ...), for draws that are their own.

  The same in every batch, however it is put together.
  """
  flat = image.reshape(len(image), -1)
  if jnp.issubdtype(flat.dtype, jnp.floating):
    flat = jax.lax.bitcast_convert_type(flat.astype(jnp.float32), jnp.uint32)
  flat = flat.astype(jnp.uint32)
  weight = jnp.arange(1, flat.shape[1] + 1, dtype=jnp.uint32)
  return (flat * weight * jnp.uint32(2654435761)).sum(1)
