"""Times nested and plain steps in turns; prints one JSON object.

python clock.py '{"width": 768, ...}'     # a Case of study.py
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vitscale import bench as bench_lib
from vitscale.core import sharding

PARTS = {"S": (1, 8), "M": (1, 4), "L": (1, 2), "XL": (1, 1)}
SPECS = {k: "full" if a == b else f"ffn={a}/{b}" for k, (a, b) in PARTS.items()}


def config(
  case: dict[str, Any], mlp_dim: int, strategy: str = ""
) -> ConfigDict:
  task: dict[str, Any] = {"name": "classify"}
  if strategy:
    task = {
      "name": "nested", "of": task, "strategy": strategy,
      "granularities": tuple(SPECS.values()),
    }  # fmt: skip
  return ConfigDict(
    {
      "seed": 0, "batch_size": case["batch"], "total_steps": 1_000_000,
      "data": {
        "source": "noise", "size": case["size"], "channels": 3,
        "classes": 1000, "n": case["batch"],
      },
      "model": {
        "family": "vit", "patch_size": case["patch"], "width": case["width"],
        "depth": case["depth"], "mlp_dim": mlp_dim,
        "num_heads": case["heads"], "dtype": case["dtype"], "scan": True,
      },
      "task": task,
      "train": {"split": "train", "transform": ""},
      "optim": {"name": "adamw", "lr": 1e-4, "clip_norm": 1.0},
    }
  )  # fmt: skip


class Contestant:
  """A bench with its state; its steps by draw, and its gradients."""

  def __init__(self, made: ConfigDict):
    self.bench = bench_lib.build(made)
    self.state = self.bench.init(np.uint32(0))
    host = next(self.bench.batches(0, 0))
    self.batch = sharding.shard_batch(host, self.bench.mesh)

  def step(self, bench: bench_lib.Bench, draw: tuple) -> Callable[[], Any]:
    """A training step by a bench of the same state."""
    lrs = {"model": np.float32(1e-4)}

    def run():
      args = (self.state, self.batch, np.uint32(0), lrs)
      self.state = bench.step(*args, draw=draw)
      return self.state

    return run

  def gradient(self, draw: dict[str, Any]) -> Callable[[], Any]:
    """Loss and gradient alone."""
    task, model, key = self.bench.task, self.bench.model, jax.random.key(0)

    def loss(params, batch):
      rngs = {"dropout": key, "mix": key}
      return task.loss(model, {"params": params}, batch, rngs, draw)[0]

    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda: compiled(self.state["params"], self.batch)


def contestants(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """name -> what one turn runs, and FLOPs of one image by name."""
  whole, runs, flops = 4 * case["width"], {}, {}
  nested = Contestant(config(case, whole, "sampled"))
  joint = bench_lib.build(config(case, whole, "joint"))
  runs["joint"] = nested.step(joint, (("nest", tuple(SPECS.values())),))
  flops["joint"] = joint.facts["flops_per_example"]
  for name, (a, b) in PARTS.items():
    plain = Contestant(config(case, whole * a // b))
    runs[f"plain {name}"] = plain.step(plain.bench, ())
    runs[f"plain {name}, gradient"] = plain.gradient({})
    flops[f"plain {name}"] = plain.bench.facts["flops_per_example"]
    draw = ("nest", (SPECS[name],))
    runs[f"sampled {name}"] = nested.step(nested.bench, (draw,))
    runs[f"sampled {name}, gradient"] = nested.gradient(dict([draw]))
  return runs, flops


def main() -> None:
  case = json.loads(sys.argv[1])
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints is no answer
  runs, flops = contestants(case)
  for name, run in runs.items():
    print(f"compiling {name}", file=sys.stderr, flush=True)
    jax.block_until_ready(run())
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for turn in range(case["rounds"]):
    print(f"round {turn + 1}", file=sys.stderr, flush=True)
    for name in list(runs)[:: -1 if turn % 2 else 1]:
      jax.block_until_ready(runs[name]())  # caches hold its own arrays
      start = time.perf_counter()
      for _ in range(case["steps"]):
        out = runs[name]()
      jax.block_until_ready(out)
      seconds[name].append((time.perf_counter() - start) / case["steps"])
  device = jax.devices()[0].device_kind
  found = {"seconds": seconds, "flops": flops, "device": device}
  print(json.dumps({**found, "jax": jax.__version__}), file=answers)


if __name__ == "__main__":
  main()
