"""Contestants: `vitscale`, the step of `bench.build`, and its two controls."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vitscale import bench as bench_lib
from vitscale.core import sharding
from vitscale.nn import attention, block, ffn, norm
from vitscale.race import contest


def plain_layer_norm(x, scale, bias, eps):
  """LayerNorm differentiated by JAX."""
  x32 = x.astype(jnp.float32)
  x32 = x32 - x32.mean(-1, keepdims=True)
  rstd = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + eps)
  return (x32 * rstd * scale + bias).astype(x.dtype)


def remove_tricks() -> None:
  """Makes vitscale, in this process, the step that the control stands for."""
  block.flatten = lambda x: x
  norm.layer_norm = plain_layer_norm


def keep_products() -> None:
  """Leaves the products with weights: attention, GELU and norm become sums."""
  attention.Attention.attend = lambda self, q, k, v, **who: q + k + v
  ffn.GELU["erf"] = lambda x: x
  norm.layer_norm = lambda x, scale, bias, eps: x * scale + bias


CHANGES = {"control": remove_tricks, "products": keep_products}


def config(case: contest.Case) -> ConfigDict:
  return ConfigDict(
    {
      "seed": 0,
      "batch_size": case.batch,
      "total_steps": 1_000_000,
      "data": {
        "source": "noise", "size": case.size, "channels": case.channels,
        "classes": case.classes, "n": case.batch,
      },
      "model": {
        "family": "vit", "patch_size": case.patch, "width": case.width,
        "depth": case.depth, "mlp_dim": 4 * case.width,
        "num_heads": case.heads, "gelu": "erf", "dtype": case.dtype,
        "attention": case.attention, "remat": case.remat,
      },
      "task": {"name": "classify"},
      "train": {"split": "train", "transform": ""},
      "optim": {"name": "adamw", "lr": 1e-3, "clip_norm": 0.0},
    }
  )  # fmt: skip


def build(name: str, case: contest.Case):
  if name in CHANGES:
    CHANGES[name]()
  chosen = config(case)
  bench = bench_lib.build(chosen)
  state = bench.init(np.uint32(0))
  batch = sharding.shard_batch(next(bench.batches(0, 0)), bench.mesh)
  lrs = {p.name: np.float32(1e-3) for p in bench.task.players}

  def step():
    nonlocal state
    state = bench.step(state, batch, np.uint32(0), lrs)

  def about():
    facts = {
      "params": bench.facts["params"],
      "flops": bench.facts["flops_per_example"],
      "attention": bench.facts["attention"],
      "version": f"jax {jax.__version__}",
      "device": jax.devices()[0].device_kind,
    }
    if case.device == "gpu":
      stats = jax.devices()[0].memory_stats()
      facts["memory"] = stats["peak_bytes_in_use"]
    return facts

  return step, lambda: jax.block_until_ready(state), about


if __name__ == "__main__":
  contest.serve(build)
