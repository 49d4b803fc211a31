"""One update: what the state holds, how it starts, how it moves.

The state is a plain tree, so that Orbax keeps it and a mesh shards it:

    step, data_step   updates done, batches consumed (int32)
    params            parameters
    opt               player -> optimizer state
    ema               averaged parameters, {} without
    mutable           other collections (batch statistics, codebooks)
    window            sums of the metrics since the last log row, and a count
    first_bad         first step with a loss or gradient that was not finite,
                      -1 while none
    guard             counters of dropped batches, where core/guard.py is on

Seed and learning rates are inputs of the step, so that a sweep over them
shares one compiled program.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale.core import axes, draws, optim, sharding, tree
from vitscale.core.errors import UserError
from vitscale.tasks import Player

State = dict[str, Any]


def owned(
  task: Any, abstract: Any, names: Any
) -> Iterator[tuple[Player, Any, Any]]:
  """(player, its parameters' shapes, their axis names) of each player.

  Raises:
    UserError: a parameter belongs to no player or to two.
  """
  owners = {name: [] for name in tree.flatten(abstract["params"])}
  for player in task.players:
    own = _own(player, abstract["params"])
    for name in tree.flatten(own):
      owners[name].append(player.name)
    yield player, own, _own(player, names["params"])
  for name, found in owners.items():
    if len(found) != 1:
      raise UserError(
        f"parameter {name!r} belongs to {found or 'no player'}: the players'"
        " patterns must cover each parameter once"
      )


def _own(player: Player, params: Any) -> Any:
  return tree.partition(params, player.params)[0]


def initializer(
  task: Any,
  model: nn.Module,
  players: Mapping[str, optim.Optimizer],
  example: Any,
  ema_decay: float,
  zeros: Mapping[str, jax.Array],
) -> Callable[[jax.Array], State]:
  """`seed -> state` before the first step; `zeros` is an empty window."""

  def init(seed: jax.Array) -> State:
    key = jax.random.fold_in(jax.random.key(seed), 0x1417)  # not a step's key
    with sharding.use(None):  # one example need not divide over a mesh
      variables = axes.unbox(task.init(model, key, example))
    drawn, params, opt = variables.pop("params"), {}, {}
    for player in task.players:
      optimizer = players[player.name]
      own = optim.mup_init(_own(player, drawn), optimizer.info)
      params = tree.merge(params, own)
      opt[player.name] = optimizer.init(own)
    return {
      "step": jnp.zeros((), jnp.int32),
      "data_step": jnp.zeros((), jnp.int32),
      "params": params,
      "opt": opt,
      "ema": jax.tree.map(jnp.array, params) if ema_decay else {},
      "mutable": variables,
      "window": dict(zeros),
      "first_bad": -jnp.ones((), jnp.int32),
    }

  return init


def stepper(
  task: Any,
  model: nn.Module,
  players: Mapping[str, optim.Optimizer],
  ema_decay: float,
  accumulate: int,
) -> Callable[..., State]:
  """`(state, batch, seed, lrs, draw) -> state`, all players in turn."""
  touched = getattr(task, "touched", lambda *_: None)

  def step(state: State, batch, seed, lrs, *, draw=()) -> State:
    key = jax.random.fold_in(jax.random.key(seed), state["step"])
    params, mutable = state["params"], state["mutable"]
    opt, metrics, finite = dict(state["opt"]), {}, jnp.bool_(True)
    masks = touched(model, batch, dict(draw))
    for index, player in enumerate(task.players):
      own, rest = tree.partition(params, player.params)
      gradient = _gradient(task, model, player, rest, mutable, dict(draw))
      (loss, aux), grads = optim.accumulate(
        gradient, own, batch, accumulate, rngs=jax.random.fold_in(key, index)
      )
      updates, moved = players[player.name].update(
        grads, opt[player.name], own, state["step"], lrs[player.name]
      )
      new = jax.tree.map(lambda p, u: p + u.astype(p.dtype), own, updates)
      if masks is not None:
        new, moved = (
          _where(masks, now, old)
          for now, old in ((new, own), (moved, opt[player.name]))
        )
      if player.every > 1:
        plays = state["step"] % player.every == 0
        new, moved = jax.tree.map(
          lambda now, old, plays=plays: jnp.where(plays, now, old),
          (new, moved),
          (own, opt[player.name]),
        )
      params, opt[player.name] = tree.merge(new, rest), moved
      mutable = {**mutable, **aux["state"]}
      metrics = {**metrics, **aux["metrics"]}
      # A finite loss may still have had a gradient that was not.
      finite &= jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    count = state["step"] + 1
    first_bad = jnp.where(
      (state["first_bad"] < 0) & ~finite, count, state["first_bad"]
    )
    window = {
      "count": state["window"]["count"] + 1,
      **{
        name: state["window"][name] + value.astype(jnp.float32)
        for name, value in metrics.items()
      },
    }
    ema = state["ema"]
    if ema_decay:
      ema = optim.ema_update(ema, params, ema_decay, state["step"])
    return {
      "step": count,
      "data_step": state["data_step"] + 1,
      "params": params,
      "opt": opt,
      "ema": ema,
      "mutable": mutable,
      "window": window,
      "first_bad": first_bad,
    }

  return step


def _gradient(task, model, player, rest, mutable, draw):
  """`(own, batch, key) -> ((loss, aux), gradients)` of one player."""
  objective = getattr(task, player.loss)

  def loss(own, batch, key):
    streams = dict(zip(("dropout", "mix"), jax.random.split(key)))
    variables = {"params": tree.merge(own, rest), **mutable}
    value, aux = objective(model, variables, batch, streams, draw)
    return value, {"metrics": aux["metrics"], "state": aux.get("state", {})}

  return jax.value_and_grad(loss, has_aux=True)


def _where(masks: Any, new: Any, old: Any) -> Any:
  """`new` where a mask is set, else `old`, for leaves that mirror parameters.

  Other leaves (counters, factored moments) are new.
  """
  flat, found = tree.flatten(masks), {}
  before = tree.flatten(old)
  for path, x in tree.flatten(new).items():
    mask = tree.mirrored(path, flat)
    fits = mask is not None and mask.shape == x.shape
    found[path] = jnp.where(mask, x, before[path]) if fits else x
  return tree.like(new, found)


def window(
  task: Any,
  model: nn.Module,
  batch: Any,
  abstract: Any,
  chosen: tuple[draws.Draws, ...],
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
) -> tuple[dict[str, jax.Array], sharding.Scope]:
  """Zero sums of everything the players log, and what they place on a mesh.

  Traces every combination of draws, so that a value the model or the mesh
  can't take is an error now and not at the step that draws it.
  """
  with sharding.use(mesh, rules) as scope:
    names = _logged(task, model, batch, abstract, chosen)
  zeros = {name: jnp.zeros((), jnp.float32) for name in ("count", *names)}
  return zeros, scope


def _logged(task, model, batch, abstract, chosen) -> list[str]:
  """Names of the players' metrics, the count aside."""
  key = jax.eval_shape(lambda: jax.random.key(0))  # no device is needed
  names: list[str] = []
  for _, draw in draws.outcomes(chosen):
    seen = []
    for player in task.players:
      objective = getattr(task, player.loss)
      _, aux = jax.eval_shape(
        lambda v, b, key, o=objective, draw=draw: o(
          model, v, b, {"dropout": key, "mix": key}, draw
        ),
        abstract,
        batch,
        key,
      )
      seen += list(aux["metrics"])
    twice = [name for name in seen if seen.count(name) > 1]
    if twice:
      raise UserError(f"two players log the metric {twice[0]!r}: rename one")
    names = names or seen
    if names != seen:
      raise UserError(f"metrics differ between draws: {names} and {seen}")
  return names
