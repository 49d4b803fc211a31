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
) -> tuple[dict[str, Any], dict[draws.Drawn, float]]:
  """What run.json says before the first step, and FLOPs by what is drawn.

  Args:
    task: the task.
    model: its model, with reference attention and no remat, so that FLOPs
      don't depend on either.
    source: training data.
    batch: shapes of a batch.
    abstract: variables as shapes.
    names: their axis names.
    chosen: what steps draw.

  Returns:
    The facts, whose FLOPs are the mean over the draws; and matrix-product
    FLOPs of an example for each combination of draws.
  """
  # Of a whole batch: resizing a patch kernel is paid once for all of it.
  examples = batch["image"].shape[0]
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
  costs: dict[draws.Drawn, float] = {}
  for share, draw in draws.outcomes(chosen):
    train = accounting.train_flops(
      functools.partial(loss, draw=draw), abstract["params"], rest, batch
    )
    matmul += share * train.matmul
    elementwise += share * train.elementwise
    costs[tuple(sorted(draw.items()))] = train.matmul / examples
  plain = lambda b: task.normalise(b["image"])
  inputs = getattr(task, "inputs", plain)
  _, out = jax.eval_shape(
    lambda v, b: model.apply(v, inputs(b)), abstract, batch
  )
  features = out["features"][-1][0]
  params = accounting.params_by_role(abstract["params"], names["params"])
  total = sum(math.prod(x.shape) for x in jax.tree.leaves(abstract["params"]))
  found = {
    "params": total,
    "params_non_embedding": params["non_embedding"],
    "params_by_role": params["roles"],
    "flops_per_example": matmul / examples,
    "elementwise_flops_per_example": elementwise / examples,
    "tokens_per_example": math.prod(features.shape[1:-1]),
    "train_examples": len(source),
    "data_fingerprint": source.fingerprint,
  }
  return found, costs
