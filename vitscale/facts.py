"""What is known of a run before its first step: parameters, FLOPs, tokens."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax

from vitscale.core import accounting, draws
from vitscale.data.source import Source


def facts(
  task: Any,
  model: nn.Module,
  source: Source,
  batch: Any,
  abstract: Any,
  names: Any,
  chosen: tuple[draws.Draws, ...] = (),
) -> dict[str, Any]:
  """What run.json says before the first step.

  Args:
    task: the task.
    model: its model, with reference attention and no remat, so that FLOPs
      don't depend on either.
    source: training data.
    batch: shapes of a batch.
    abstract: variables as shapes.
    names: their axis names.
    chosen: what steps draw; FLOPs are the mean over the draws.
  """
  examples = min(batch["image"].shape[0], 2)
  small = {
    k: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype)
    for k, x in batch.items()
  }
  rest = {k: v for k, v in abstract.items() if k != "params"}

  def loss(params, rest, batch, draw):
    key, total = jax.random.key(0), 0.0
    for player in task.players:
      total += getattr(task, player.loss)(
        model,
        {**rest, "params": params},
        batch,
        {"dropout": key, "mix": key},
        draw,
      )[0]
    return total

  matmul = elementwise = 0.0
  for share, draw in draws.outcomes(chosen):
    train = accounting.train_flops(
      functools.partial(loss, draw=draw), abstract["params"], rest, small
    )
    matmul += share * train.matmul
    elementwise += share * train.elementwise
  _, out = jax.eval_shape(
    lambda v, b: model.apply(v, task.normalise(b["image"])), abstract, small
  )
  features = out["features"][-1][0]
  params = accounting.params_by_role(abstract["params"], names["params"])
  total = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract["params"]))
  return {
    "params": total,
    "params_non_embedding": params["non_embedding"],
    "params_by_role": params["roles"],
    "flops_per_example": matmul / examples,
    "elementwise_flops_per_example": elementwise / examples,
    "tokens_per_example": math.prod(features.shape[1:-1]),
    "train_examples": len(source),
    "data_fingerprint": source.fingerprint,
  }
