"""Who is a drafter and who a refiner: calibration of ScaleKV's caches.

A layer's selectivity at a scale is its mean attention to the map being said,
times the mean attention that its K best tokens of the scales before get. The
layers of the lowest z-scores at a scale are its drafters (Li et al.,
2505.19602); the release has their numbers, but not what made them. Images are
teacher-forced: their own codes are shown, nothing is drawn.

    selectivity = calibrate(model, variables, neck, codebook, batches)
    capacities = scale_kv.allocate(
      model.scales, drafters(selectivity, model.depth // 2), model.depth, 0.1
    )
    scale_kv.save(scale_kv.Plan(capacities), "plan.json")

`evicted` is what a model says of given codes under a plan, `held` the bytes of
the cache that it really had.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.sampling.scale_kv import Plan, weights
from vitscale.sampling.scales import Cache, Keep, advance

TOP = 16  # tokens of the history that selectivity counts; the paper prints none


def forced(
  model: nn.Module,
  variables: Mapping[str, Any],
  shown: jax.Array,
  label: Any,
  keeps: Sequence[Keep | None],
) -> tuple[jax.Array, list[Cache]]:
  """Teacher forcing scale after scale, through the cache; to be jitted.

  Args:
    model, variables: of vitscale.models.var.
    shown: (b, N - first, c), of `residual_vq`'s `inputs`.
    label: (b,) classes, or None.
    keeps: of each scale, see `advance`.

  Returns:
    logits (b, N, vocabulary), and the cache after each scale.
  """
  condition = model.apply(variables, label, len(shown), method="condition")
  ends = np.cumsum(np.square(model.scales[1:]))[:-1]
  parts = [None, *jnp.split(shown, ends, 1)][: len(model.scales)]
  cache, said, caches = (None,) * model.depth, [], []
  for k, (part, keep) in enumerate(zip(parts, keeps)):
    logits, cache = advance(model, variables, k, part, condition, cache, keep)
    said.append(logits)
    caches.append(cache)
  return jnp.concatenate(said, 1), caches


@functools.partial(jax.jit, static_argnames=("model", "neck", "plan"))
def evicted(
  model: nn.Module,
  variables: Mapping[str, Any],
  neck: nn.Module,
  codebook: Any,
  codes: jax.Array,
  label: Any,
  key: jax.Array,
  plan: Plan | None = None,
) -> tuple[jax.Array, list[Cache]]:
  """`forced` of codes (b, N) under a plan: what the model then says of them.

  The caches are those after each scale but the last.
  """
  shown = neck.apply({"params": codebook}, codes, method="inputs")
  numbers = range(len(model.scales))
  keeps = [plan.keep(k, key) if plan else None for k in numbers]
  logits, caches = forced(model, variables, shown, label, keeps)
  return logits, caches[:-1]


def held(caches: Sequence[Cache]) -> int:
  """Bytes of the largest cache, of its arrays."""
  sizes = [sum(x.nbytes for x in jax.tree.leaves(cache)) for cache in caches]
  return max(sizes, default=0)


def calibrate(
  model: nn.Module,
  variables: Mapping[str, Any],
  neck: nn.Module,
  codebook: Any,
  batches: Iterable[tuple[Any, Any]],
  *,
  top: int = TOP,
) -> np.ndarray:
  """Selectivity of every layer at every scale, of images' own codes.

  Teacher-forced with the full cache: mean attention to the current map, times
  the mean attention that the `top` best tokens of the scales before get
  together. Means are over queries, heads and images. The first scale has
  no history and selectivity 0.

  Args:
    model, variables: of vitscale.models.var.
    neck, codebook: the tokenizer's `residual_vq` and its parameters.
    batches: (codes (b, N), label (b,) or None), of equal b.
    top: K of the paper, which prints none; all where there are fewer.

  Returns:
    (layers, scales) float64.

  Raises:
    UserError: no batches, or `top` below 1.
  """
  if top < 1:
    raise UserError(f"cache: top={top}: should be 1 or more")
  found = [
    _selectivity(
      {"params": variables["params"]}, codebook, jnp.asarray(codes), label,
      model=model, neck=neck, top=top,
    )
    for codes, label in batches
  ]  # fmt: skip
  if not found:
    raise UserError("cache: calibration wants a batch of codes or more")
  current, past = np.mean(np.asarray(found, np.float64), 0)
  return current * past


@functools.partial(jax.jit, static_argnames=("model", "neck", "top"))
def _selectivity(variables, codebook, codes, label, *, model, neck, top):
  """(2, layers, scales): attention to the map, and to the best before."""
  shown = neck.apply({"params": codebook}, codes, method="inputs")
  seen = [[None] * len(model.scales) for _ in range(model.depth)]

  def watch(k, layer, q, keys, values):
    share = weights(q, keys)
    past, own = jnp.split(share, [keys.shape[1] - q.shape[1]], -1)
    best = jax.lax.top_k(past, min(top, past.shape[-1]))[0]
    seen[layer][k] = own.sum(-1).mean(), best.sum(-1).mean()
    return keys, values

  keeps = [functools.partial(watch, k) for k in range(len(model.scales))]
  forced(model, variables, shown, label, keeps)
  return jnp.moveaxis(jnp.asarray(seen), -1, 0)


def drafters(selectivity: np.ndarray, count: int) -> list[list[int]]:
  """The `count` layers of lowest z-score at each scale.

  z is over the layers of a scale, as published; it doesn't change their order.

  Args:
    selectivity: (layers, scales).
    count: N_d.
  """
  scores = zscores(selectivity)
  order = np.argsort(scores, 0, kind="stable")
  return [sorted(row) for row in order[:count].T.tolist()]


def zscores(selectivity: np.ndarray) -> np.ndarray:
  """(layers, scales), of mean 0 and variance 1 over layers; 0 if all alike."""
  centred = selectivity - selectivity.mean(0)
  spread = selectivity.std(0)
  return centred / np.where(spread > 0, spread, 1.0)
