"""A budget router: from a budget to a level for every layer.

After Flextron (2406.10260) and Nemotron Elastic (2511.16664): a
small MLP reads the budget and gives each layer logits of its levels. They are
made nearly discrete by a Gumbel-softmax whose temperature falls, and learn
from the task's loss and from how far the cost is from the target. Here the
nested model is frozen, the images are held out from its training, and one
router learns all budgets of a run at once, drawn anew in every step.

The choice at the end has no noise: the most likely mix that fits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitscale.elastic.mixes import Mix
from vitscale.elastic.score import Soft
from vitscale.elastic.space import Space

STEPS, RATE = 300, 5e-2
ANCHORS, HIDDEN = 11, 32  # budgets that the MLP tells apart, its width
HOT, COLD = 1.0, 0.05  # temperature, first and last (Nemotron Elastic)
MISSED = 10.0  # weight of |cost - target|, in shares of the span


@dataclasses.dataclass(frozen=True)
class Router:
  """A trained router.

  Attributes:
    space: of the run.
    params: of the MLP.
    steps: of its training, each a forward and backward pass of one batch
      through the whole model.
    history: loss and miss of each step.
  """

  space: Space
  params: Any
  steps: int
  history: np.ndarray

  def pick(self, limit: float) -> Mix:
    """The mix for a limit within the space's ends; nothing is scored."""
    low, high = self.space.ends()
    target = (limit - low) / (high - low) if high > low else 1.0
    logits = np.asarray(_logits(self.params, jnp.float32(target)))
    return repaired(self.space, logits, limit)


def train(
  space: Space, soft: Soft, seed: int, steps: int | None = None
) -> Router:
  """A router of every budget between the space's ends.

  Args:
    space: of the run, with levels.
    soft: the nested model between levels, on held-out images.
    seed: of weights, noise and targets.
    steps: of training; default `STEPS`.
  """
  steps = STEPS if steps is None else steps
  g, depth = len(space.levels), space.depth
  low, high = space.ends()
  saved = np.array(
    [[space.saved(i, k) for k in range(g)] for i in range(depth)], np.float64
  )
  span = max(high - low, 1e-12)
  whole, saved = (space.whole() - low) / span, jnp.float32(saved / span)
  start, key = jax.random.split(jax.random.key(seed))
  params = _init(start, depth, g)
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))

  def loss(params, key, temperature, batch):
    draw, noise = jax.random.split(key)
    target = jax.random.uniform(draw)
    gumbel = jax.random.gumbel(noise, (depth, g))
    weights = jax.nn.softmax((_logits(params, target) + gumbel) / temperature)
    miss = jnp.abs(whole - (weights * saved).sum() - target)
    return soft.loss(weights, batch) + MISSED * miss, miss

  @jax.jit
  def step(params, state, key, temperature, batch):
    (value, miss), grads = jax.value_and_grad(loss, has_aux=True)(
      params, key, temperature, batch
    )
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, (value, miss)

  state, history = optimizer.init(params), []
  for i, batch in zip(range(steps), soft.batches()):
    temperature = HOT * (COLD / HOT) ** (i / max(steps - 1, 1))
    params, state, seen = step(
      params, state, jax.random.fold_in(key, i), temperature, batch
    )
    history.append(seen)
  return Router(space, params, steps, np.asarray(jax.device_get(history)))


def repaired(space: Space, logits: np.ndarray, limit: float) -> Mix:
  """The most likely mix that fits, raised where that leaves room.

  Without a limit that is each layer's best level. Raised is, a level at a
  time, the layer that loses the least likelihood for it.
  """
  mix = space.least(-logits, limit)
  while True:
    room = [m for m in space.raised(mix) if space.of(m) <= limit]
    if not room:
      return mix
    likely = lambda m: sum(logits[i, level] for i, level in enumerate(m))
    mix = max(room, key=likely)


def _init(key: jax.Array, depth: int, g: int) -> dict[str, jax.Array]:
  """Of the MLP; its last layer is zero, so that all levels start equal."""
  return {
    "in": jax.random.normal(key, (ANCHORS, HIDDEN)),
    "out": jnp.zeros((HIDDEN, depth, g)),
    "bias": jnp.zeros((depth, g)),
  }


def _logits(params: dict[str, jax.Array], target: jax.Array) -> jax.Array:
  """(L, g) from a target in 0..1, one-hot where it is an anchor."""
  place = jnp.arange(ANCHORS) - target * (ANCHORS - 1)
  near = jnp.maximum(1 - jnp.abs(place), 0)
  hidden = jax.nn.gelu(near @ params["in"])
  return params["bias"] + jnp.einsum("h,hlg->lg", hidden, params["out"])
