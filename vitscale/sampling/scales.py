"""Images scale after scale: VAR's generation with a cache of keys and values.

    for every scale s:  draw all s x s codes at once, add them to the map,
                        show it, in its size, to the next scale

(2404.02905, section 3.2 and released code). The scales are unrolled in one
compiled program: each has shapes of its own, its tokens see the whole cache and
themselves, and nothing is masked. A layer's cache is its own pair of arrays, so
layers may keep different numbers of tokens after each scale: which ones they
do is a function that is passed in (sampling/scale_kv.py).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.nn.layers import layer_name, unstack_layers
from vitscale.sampling import categorical

Kept = tuple[jax.Array, jax.Array]  # keys and values, (b, m, h, hd) each
Cache = tuple[Kept | None, ...]  # of every layer
# (number of the layer, q (b, s^2, h, hd), keys and values) -> what it keeps.
Keep = Callable[[int, jax.Array, jax.Array, jax.Array], Kept]


def advance(
  model: nn.Module,
  variables: Mapping[str, Any],
  k: int,
  shown: jax.Array | None,
  condition: jax.Array,
  cache: Cache,
  keep: Keep | None = None,
) -> tuple[jax.Array, Cache]:
  """Logits of one scale, the scales before being in the cache.

  Args:
    model: of vitscale.models.var.
    variables: its variables; layers may be stacked.
    k: number of the scale, static.
    shown: (b, s^2, c) what is shown to it; None for the first.
    condition: (b, d), of the model's `condition`.
    cache: what each layer kept, `(None,) * depth` before the first scale.
    keep: what a layer keeps, once it has seen this scale; None for all.

  Returns:
    (b, s^2, vocabulary) float32, and the cache with this scale at the end.
  """
  call = functools.partial(model.apply, variables)
  side = model.scales[k]
  x = call(shown, condition, k, (side, side), method="tokens")
  layers = unstack_layers(variables["params"]["encoder"])
  block, grown = model.block()(), []
  for i, past in enumerate(cache):
    own = {"params": layers[layer_name(i)]}
    mine = None if keep is None else functools.partial(keep, i)
    x, kept = block.apply(own, x, condition, past, mine, method="cached")
    grown.append(kept)
  return call(x, condition, method="logits"), tuple(grown)


def generate(
  model: nn.Module,
  variables: Mapping[str, Any],
  neck: nn.Module,
  codebook: Any,
  key: jax.Array,
  n: int,
  label: Any = None,
  *,
  guidance: float | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  evict: Any = None,
) -> jax.Array:
  """Codes of all scales.

  With guidance w (2207.12598) the logits of scale k of 0..K-1 are those without
  class + v (those with class - those without), v from 1 at the first scale to w
  at the last, 1 + (w - 1) k / (K - 1). That is the release's ramp, its `cfg`
  being w - 1; w = 1 changes nothing, another w compiles nothing anew.

  Args:
    model, variables: of vitscale.models.var.
    neck, codebook: the tokenizer's `residual_vq` and its parameters.
    key: random key of the draws.
    n: b, samples.
    label: (b,) classes; None for no class.
    guidance: w; None asks the model once a scale.
    temperature, top_k, top_p: see `categorical.draw`.
    evict: a `scale_kv.Plan` of what is kept after each scale; None for all.

  Returns:
    (b, N) int32, scales coarse to fine.

  Raises:
    UserError: see `categorical.check`; a plan for other scales or layers;
      guidance of a model without classes or without labels; a label that does
      not exist.
  """
  categorical.check(model.vocabulary, temperature, top_k, top_p)
  if evict is not None:
    evict.check(model.scales, model.depth)
  if guidance is not None and not model.num_classes:
    raise UserError(
      f"guidance={guidance}: the model has no classes to be guided to; leave"
      " it out"
    )
  if guidance is not None and label is None:
    raise UserError(f"guidance={guidance} needs labels, one per sample")
  if label is not None:
    label = np.asarray(label, np.int32)
    wrong = label[(label < 0) | (label > model.num_classes)]
    if label.shape != (n,) or len(wrong):
      said = f"label {wrong[0]}" if len(wrong) else f"{label.size} labels"
      raise UserError(
        f"{said} for {n} samples: should be one of 0..{model.num_classes}"
        f" each, {model.num_classes} for no class"
      )
  asked = None if guidance is None else np.float32(guidance)
  return _generate(
    {"params": variables["params"]}, codebook, key, label, asked,
    model=model, neck=neck, n=n,
    options=(temperature, top_k, top_p), evict=evict,
  )  # fmt: skip


@functools.partial(
  jax.jit, static_argnames=("model", "neck", "n", "options", "evict")
)
def _generate(
  variables, codebook, key, label, guidance, *, model, neck, n, options, evict
):
  guided = guidance is not None
  if guided:  # with class, then without
    label = jnp.concatenate([label, jnp.full(n, model.num_classes)])
  condition = model.apply(
    variables, label, 2 * n if guided else n, method="condition"
  )
  cache, total, shown, drawn = (None,) * model.depth, None, None, []
  last = len(model.scales) - 1
  for k in range(last + 1):
    keep = None if evict is None else evict.keep(k, key)
    logits, cache = advance(model, variables, k, shown, condition, cache, keep)
    if guided:
      of_class, of_none = jnp.split(logits, 2)
      more = (guidance - 1) * (k / last if last else 1.0)
      logits = of_class + more * (of_class - of_none)
    codes = categorical.draw(jax.random.fold_in(key, k), logits, *options)
    drawn.append(codes)
    total, shown = neck.apply(
      {"params": codebook}, total, codes, k, method="add"
    )
    if guided and shown is not None:
      shown = jnp.concatenate([shown, shown])
  return jnp.concatenate(drawn, 1)
