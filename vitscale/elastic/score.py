"""Held-out losses of what a nested run can be cut to.

`judge` gives selectors something to ask: losses of many models at once. Mixes
share the layers they have in common (trunk.py). A family that can't is scored
mix by mix, as the whole model with hidden units masked, one compiled program
at the whole model's cost; other models by themselves, as they would be cut.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes as axes_lib
from vitscale.core import tree
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.mixes import Mix
from vitscale.elastic.slice import boxed, layer_of, nest
from vitscale.elastic.space import Space
from vitscale.elastic.spec import ElasticSpec
from vitscale.elastic.trunk import NotShared, Trunk, layers_run
from vitscale.evals import classify
from vitscale.nn.block import per_layer

Batches = Callable[[], Iterable[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Nest:
  """A nested model as scorers see it.

  Attributes:
    task: the plain task.
    model: the whole model.
    params, names: its parameters and their `Axes`.
  """

  task: Any
  model: nn.Module
  params: Any
  names: Any


class Judge:
  """Losses that are asked for once; it counts the models it scored."""

  def __init__(
    self,
    losses: Callable[[Sequence[Any]], Sequence[float]],
    soft: "Soft | None" = None,
  ):
    """Args:
    losses: of several candidates (mixes, or specs where nothing mixes).
    soft: what the router trains on.
    """
    self._losses, self.soft = losses, soft
    self._known: dict[Any, float] = {}

  def __call__(self, candidates: Sequence[Any]) -> list[float]:
    """Mean held-out loss of each candidate, in nats; lower is better."""
    new = [one for one in dict.fromkeys(candidates) if one not in self._known]
    if new:
      self._known |= zip(new, map(float, self._losses(new)))
    return [self._known[one] for one in candidates]

  @property
  def scored(self) -> int:
    """How many different models were scored."""
    return len(self._known)


def judge(nest: Nest, space: Space, batches: Batches) -> Judge:
  """A judge of what a nested run can be cut to.

  Args:
    nest: the run's model.
    space: what it can be cut to; it says whether candidates are mixes.
    batches: one pass over the images that selection sees, with `weight`.
  """
  if not space.levels:
    return Judge(lambda specs: [_cut_loss(nest, s, batches) for s in specs])
  soft = Soft(nest, space, batches)
  try:
    trunk = Trunk(
      nest.task, nest.model, nest.params, nest.names, space.levels,
      next(iter(batches())), sums,
    )  # fmt: skip
  except NotShared as reason:
    print(f"note: mixes are scored one by one: {reason}", file=sys.stderr)
    return Judge(masked_losses(nest, space, batches), soft)
  return Judge(lambda mixes: shared_losses(trunk, mixes, batches), soft)


# ------------------------------------------------------------------- shared


def sums(
  task: Any, model: nn.Module, variables: Any, batch: Any
) -> dict[str, jax.Array]:
  """What `Trunk` is asked for losses: sums over the real rows of a batch."""
  return classify.make(task, model)(variables, batch)


def shared_losses(
  trunk: Trunk, mixes: Sequence[Mix], batches: Batches
) -> list[float]:
  """Mean loss of every mix, one walk for each batch; `trunk` gives `sums`."""
  total, examples = np.zeros(len(mixes)), np.zeros(len(mixes))
  for batch in batches():
    for i, found in trunk.predictions(mixes, batch):
      total[i] += found["nll"]
      examples[i] += found["examples"]
  return list(total / examples)


def tables(
  trunk: Trunk, mixes: Sequence[Mix], batches: Batches
) -> dict[str, np.ndarray]:
  """Every mix on every image: `nll` float32 and `correct` bool, (mixes, n).

  Memory: five bytes for each mix and image. `trunk` gives predictions.
  """
  nll, correct = [], []
  for batch in batches():
    real = np.asarray(batch["weight"]) > 0
    own = np.empty((len(mixes), int(real.sum())), np.float32)
    hits = np.empty(own.shape, bool)
    for i, found in trunk.predictions(mixes, batch):
      own[i], hits[i] = found["nll"][real], found["correct"][real] > 0
    nll.append(own)
    correct.append(hits)
  return {
    "nll": np.concatenate(nll, 1), "correct": np.concatenate(correct, 1),
  }  # fmt: skip


def saving(mixes: Sequence[Mix]) -> dict[str, int]:
  """Layers that a walk runs, and those that the mixes have."""
  return {"layers_run": layers_run(mixes), "layers": sum(map(len, mixes))}


# ------------------------------------------------------------------ one by one


def masked_losses(
  nest: Nest, space: Space, batches: Batches
) -> Callable[[Sequence[Mix]], list[float]]:
  """Mean loss of mixes, each by itself as the whole model, masked."""
  run = jax.jit(lambda params, batch: sums(
    nest.task, nest.model, {"params": params}, batch
  ))  # fmt: skip

  def losses(mixes: Sequence[Mix]) -> list[float]:
    found = []
    for mix in mixes:
      little = spec_lib.small(nest.model, space.spec(mix))[0]
      sizes = per_layer(little.mlp_dim, space.depth, "mlp_dim")
      params = masked(nest.params, nest.names, sizes)
      found.append(_mean(run(params, batch) for batch in batches()))
    return found

  return losses


def _cut_loss(whole: Nest, spec: ElasticSpec, batches: Batches) -> float:
  little, layers = spec_lib.small(whole.model, spec)
  run = jax.jit(lambda params, batch: sums(
    whole.task, little, {"params": params}, batch
  ))  # fmt: skip
  first = next(iter(batches()))
  shapes = axes_lib.unbox(boxed(whole.task, little, first))["params"]
  params = nest(whole.params, whole.names, shapes, layers)
  return _mean(run(params, batch) for batch in batches())


def _mean(parts: Iterator[Mapping[str, jax.Array]]) -> float:
  parts = jax.device_get(list(parts))
  examples = sum(float(part["examples"]) for part in parts)
  return sum(float(part["nll"]) for part in parts) / examples


# --------------------------------------------------------------------- masks


def masked(params: Any, names: Any, sizes: Sequence[int]) -> Any:
  """Parameters of the big model in which small FFNs compute the same.

  Rows that only dropped hidden units write are zero: one compiled program
  scores every mix, at the cost of the big model.

  Args:
    params: of the big model, layers looped or scanned.
    names: the same tree of `Axes`.
    sizes: hidden units kept in each layer.
  """
  return scaled(
    params, names,
    lambda layer, width: (np.arange(width) < sizes[layer]).astype(np.float32),
  )  # fmt: skip


def scaled(
  params: Any, names: Any, scale: Callable[[int, int], jax.Array]
) -> Any:
  """Parameters with what each hidden unit writes times a number.

  Args:
    params: of the big model, layers looped or scanned; may be traced.
    names: the same tree of `Axes`.
    scale: `(layer, hidden units) -> (hidden units,)`. A mixer in no layer (of
      a pooling head) is scaled as the last one, as `spec.resolve` sizes it.
  """
  named, flat = tree.flatten(names), tree.flatten(params)
  out = {}
  for path, x in flat.items():
    axes = named[path]
    roles = [axes_lib.role(name) for name in axes.names]
    if "mlp" in [axes_lib.role(name) for name in axes.fan_in]:
      dim = roles.index("mlp")
      width, layer = x.shape[dim], layer_of(path)
      shape = [1] * len(x.shape)
      shape[dim] = width
      if "layers" in roles:
        stacked = roles.index("layers")
        shape[stacked] = depth = x.shape[stacked]
        by = jnp.stack([scale(i, width) for i in range(depth)])
        by = by if stacked < dim else by.T
      else:
        by = scale(-1 if layer is None else layer, width)
      x = x * jnp.reshape(by, shape)
    out[path] = x
  return tree.like(params, out)


class Soft:
  """The whole model between levels: a layer is a mixture of its levels.

  Levels are prefixes, so a mixture of their outputs is one FFN whose hidden
  units count by the sum of the weights of the levels that have them.
  """

  def __init__(self, nest: Nest, space: Space, batches: Batches):
    self._nest, self._space, self._batches = nest, space, batches

  def batches(self) -> Iterator[dict[str, Any]]:
    """The images with their weights, pass after pass, without end."""
    while True:
      yield from map(dict, self._batches())

  def loss(self, weights: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """Mean loss of a batch with (L, g) weights that sum to 1; traceable."""
    levels = self._space.levels

    def scale(layer: int, width: int) -> jax.Array:
      have = [np.arange(width) < part * width for part in levels]
      return weights[layer] @ jnp.asarray(np.stack(have), jnp.float32)

    params = scaled(self._nest.params, self._nest.names, scale)
    found = sums(
      self._nest.task, self._nest.model, {"params": params}, batch
    )  # fmt: skip
    return found["nll"] / found["examples"]
