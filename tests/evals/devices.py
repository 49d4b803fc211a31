"""Evaluations on 8 fake devices and on one; prints one JSON object.

label -> scores of the same weights, [on eight, on one].
"""

import json

import jax
import numpy as np

from tests.tasks.test_diffuse import config as generator_config
from tests.tasks.test_nested import config as nested_config
from tests.tasks.test_reconstruct import config as tokenizer_config
from vitscale.bench import build

EVALS = {
  "val": {"name": "nested", "split": "val", "batch_size": 24},
  "near": {
    "name": "retrieval", "split": "val", "batch_size": 24, "k": (1, 3),
    "gallery": {"split": "train", "data": {"limit": 40}},
  },
  "line": {
    "name": "linear_probe", "split": "val", "batch_size": 24,
    "solver": "ridge", "l2": 1.0,
  },
}  # fmt: skip
PIXELS = {
  "pixels": {
    "name": "reconstruction", "split": "val", "batch_size": 64,
    "data": {"n": 310},
  },
}  # fmt: skip
VIDEOS = {
  "videos": {
    "name": "reconstruction", "split": "val", "batch_size": 16, "rfd": False,
  },
}  # fmt: skip
SAMPLES = {
  "samples": {
    "name": "generation", "split": "val", "batch_size": 24, "fd": False,
    "sample": "steps=2",
  },
}  # fmt: skip


def scores(devices):
  nested = nested_config(granularities=("ffn=1/4", "full"), ema=0.0)
  tokenizer, moving = tokenizer_config(ema=0.0), tokenizer_config(ema=0.0)
  nested.evals, tokenizer.evals, moving.evals = EVALS, PIXELS, VIDEOS
  moving.data = {"source": "moving_fields", "size": 16, "n": 20, "frames": 4}
  moving.model.variant = "mu/2x8"
  tokenizer.model.hierarchy = "scales(1)"
  generator = generator_config(ema=0.0)
  generator.evals = SAMPLES
  configs = (nested, tokenizer, moving, generator)
  return {k: v for one in configs for k, v in of(one, devices).items()}


def of(config, devices):
  bench = build(config, devices=devices)
  state, rng = bench.init(np.uint32(0)), np.random.default_rng(0)
  noisy = lambda x: jax.device_put(
    np.asarray(x) + 0.2 * rng.normal(size=x.shape).astype(x.dtype), x.sharding
  )
  state = {**state, "params": jax.tree.map(noisy, state["params"])}
  return {label: one.run(state) for label, one in bench.evals.items()}


if __name__ == "__main__":
  assert jax.device_count() == 8
  many, one = scores(jax.devices()), scores(jax.devices()[:1])
  print(json.dumps({label: [many[label], one[label]] for label in many}))
