"""Times one block with each mixer at each length; prints one JSON object.

python clock.py '{"width": 64, ...}'     # a Clock of study.py
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitscale.core import accounting, axes
from vitscale.nn import block, mixers
from vitscale.nn.grid import Grid


def contestant(
  case: Mapping[str, Any], text: str, backend: str, side: int
) -> tuple[Callable[[], Any], dict[str, Any]]:
  """A compiled loss and gradient of one block, and what is known of it."""
  width, heads, batch = case["width"], case["heads"], case["batch"]
  grid, n = Grid(side, side), side * side
  module = block.Block(
    width, heads, width // heads, 4 * width, backend=backend,
    mixer=mixers.parse(text), dtype=case["dtype"],
  )  # fmt: skip
  call = functools.partial(module.apply, batch=batch, grid=grid)
  x = jax.random.normal(jax.random.key(0), (batch * n, width), case["dtype"])
  init = functools.partial(module.init, batch=batch, grid=grid)
  made = axes.unbox(jax.jit(init)(jax.random.key(1), x))

  def loss(made, x):
    return jnp.square(call(made, x)[0].astype(jnp.float32)).mean()

  step = jax.jit(jax.value_and_grad(loss, (0, 1)))
  compiled = step.lower(made, x).compile()
  count = accounting.train_flops(loss, made, x)
  facts = {
    "bytes": compiled.memory_analysis().temp_size_in_bytes,
    "flops": count.total // batch,
    "matmul": count.matmul // batch,
  }
  return lambda: compiled(made, x), facts


def main() -> None:
  case = json.loads(sys.argv[1])
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints is no answer
  say = lambda text: print(text, file=sys.stderr, flush=True)
  cells: list[dict[str, Any]] = []
  runs = []
  for name, (text, backend) in case["mixers"].items():
    for side in case["sides"]:
      say(f"compiling {name}, {side * side} tokens")
      run, facts = contestant(case, text, backend, side)
      jax.block_until_ready(run())
      runs.append(run)
      cells.append({"mixer": name, "tokens": side * side, **facts})
  for cell in cells:
    cell["seconds"] = []
  for turn in range(case["rounds"]):
    say(f"round {turn + 1} of {case['rounds']}")
    for at in list(range(len(runs)))[:: -1 if turn % 2 else 1]:
      jax.block_until_ready(runs[at]())  # caches hold its own arrays
      start, steps = time.perf_counter(), 0
      while True:
        out = runs[at]()
        steps += 1
        if steps % 4 == 1:  # short ones again, within a turn's time
          jax.block_until_ready(out)
          if time.perf_counter() - start > case["least"]:
            break
      jax.block_until_ready(out)
      cells[at]["seconds"].append((time.perf_counter() - start) / steps)
  device = jax.devices()[0].device_kind
  found = {"cells": cells, "device": device, "jax": jax.__version__}
  print(json.dumps(found), file=answers)


if __name__ == "__main__":
  main()
