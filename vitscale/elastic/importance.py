"""The most important heads and hidden units first, so that a prefix is them.

The importance of a unit is how much the loss changes without it, to first
order (Molchanov et al., 1611.06440; DynaBERT, 2004.04037, orders heads and
neurons by it before it nests them).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.bench import Bench
from vitscale.core import axes as axes_lib
from vitscale.core import sharding, tree
from vitscale.core.axes import AxisError
from vitscale.elastic.slice import layer_of, rewire

BATCHES = 8  # of training data that the order is measured on


def importance(params: Any, grads: Any, names: Any, axis: str) -> jax.Array:
  """|d loss / d m| of a mask m = 1 on what each unit writes.

  Args:
    params, grads: parameters and the gradient of a loss, layers looped or
      scanned; may be traced.
    names: the same tree of `Axes`.
    axis: "mlp" or "heads".

  Returns:
    (depth, n), a row per layer.

  Raises:
    AxisError: no layer has the axis, or layers differ in it.
  """
  named, rows = tree.flatten(names), {}
  slopes = tree.flatten(jax.tree.map(lambda p, g: p * g, params, grads))
  for path, x in slopes.items():
    axes = named[path]
    if axis not in map(axes_lib.role, axes.fan_in):
      continue
    roles = [axes_lib.role(name) for name in axes.names]
    layer = layer_of(path)
    kept = {roles.index(axis)} | (
      {roles.index("layers")} if "layers" in roles else set()
    )
    total = x.sum(tuple(dim for dim in range(x.ndim) if dim not in kept))
    if layer is not None:
      rows.setdefault(layer, []).append(total)
    elif "layers" in roles:
      for i in range(len(total)):
        rows.setdefault(i, []).append(total[i])
  sizes = {len(one) for parts in rows.values() for one in parts}
  if len(sizes) != 1:
    raise AxisError(f"axis {axis!r} has sizes {sorted(sizes)} in the layers")
  return jnp.abs(jnp.stack([sum(rows[i]) for i in sorted(rows)]))


def rewired(
  bench: Bench, state: Mapping[str, Any], over: Sequence[str]
) -> dict[str, Any]:
  """A state whose parameters compute the same, important units first.

  Measured with the task's loss on the first `BATCHES` training batches, on
  the averaged parameters where the run kept them. The optimizer starts anew.

  Args:
    bench: of the run, in one process.
    state: of the run.
    over: axes, "mlp" and "heads".
  """
  kept = state["ema"] or state["params"]

  @jax.jit
  def measure(params, mutable, batch, key):
    def loss(params):
      variables = {"params": params, **mutable}
      rngs = dict(zip(("dropout", "mix"), jax.random.split(key)))
      return bench.task.loss(bench.model, variables, batch, rngs, {})[0]

    grads = jax.grad(loss)(params)
    return {axis: importance(params, grads, bench.names, axis) for axis in over}

  batches = bench.batches(0, int(bench.config["seed"]))
  totals: dict[str, np.ndarray] = {}
  try:
    for i, batch in enumerate(itertools.islice(batches, BATCHES)):
      batch = sharding.shard_batch(batch, bench.mesh, bench.rules)
      with sharding.use(bench.mesh, bench.rules):
        found = measure(kept, state["mutable"], batch, jax.random.key(i))
      for axis, value in jax.device_get(found).items():
        totals[axis] = totals.get(axis, 0) + value
  finally:
    batches.close()
  order = {k: np.argsort(-v, -1, kind="stable") for k, v in totals.items()}
  moved = {
    name: rewire(state[name], bench.names, order)
    for name in ("params", "ema")
    if state[name]
  }
  start = bench.init(jnp.uint32(0))["opt"]
  return {**state, **moved, "opt": start}
