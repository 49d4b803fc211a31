"""The evaluations of a config: passes over held-out data during training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from vitscale import plugin
from vitscale.core import placement, sharding
from vitscale.core.errors import UserError
from vitscale.data import pipeline, transforms


@dataclasses.dataclass
class Eval:
  """One held-out evaluation of a config: `evals.NAME`."""

  every: int  # steps between passes; the last step always runs it
  run: Callable[[dict[str, Any]], dict[str, float]]


def evals(
  read, make, task, model, source, mesh, rules, every, batch_size, ema
) -> dict[str, Eval]:
  """`evals.NAME = {name, split, every_*, batch_size, transform}`."""
  made, data = {}, read["data"]
  for label, group in read.group("evals").items():
    module = plugin.module("evals", group.get("name", "classify"))
    held_out = make(
      data["source"],
      split=group["split"],
      **{**data.kwargs("source"), **group.group("data").kwargs()},
    )
    if held_out.classes != source.classes:
      raise UserError(
        f"evals.{label}: {held_out.classes} classes, training has"
        f" {source.classes}"
      )
    size = group.get("batch_size", batch_size)
    placement.check_batch(f"evals.{label}.batch_size", size, mesh, rules)
    batches = functools.partial(
      pipeline.eval_batches,
      held_out,
      batch_size=size,
      transform=transforms.parse(group.get("transform", "")),
    )
    sums = jax.jit(module.make(task, model))

    def run(state, module=module, batches=batches, sums=sums):
      params = state["ema"] if ema else state["params"]
      variables = {"params": params, **state["mutable"]}
      block, blocks = sharding.data_block(mesh, rules)
      mine = batches(process_index=block, process_count=blocks)
      with sharding.use(mesh, rules):
        placed = (sharding.shard_batch(b, mesh, rules) for b in mine)
        return module.evaluate(sums, variables, placed)

    interval = every(group, f"evals.{label}", default=1 << 60)
    made[label] = Eval(interval, run)
  return made
