"""How far parts follow the whole: agreement and divergence, by hand."""

import jax
import numpy as np
import pytest

from tests import toys
from vitscale.bench import build
from vitscale.core import sharding


@pytest.fixture(scope="module")
def bench():
  config = toys.config()
  config.task = {
    "name": "nested", "of": dict(config.task),
    "granularities": ("ffn=1/4", "full"),
  }  # fmt: skip
  for group in config.evals.values():
    group.name = "nested"
  return build(config)


def test_parts_follow_the_whole(bench):
  state = bench.init(np.uint32(0))
  rng = np.random.default_rng(0)
  noisy = lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype)
  params = jax.tree.map(noisy, state["params"])
  state = {**state, "params": params, "ema": state["ema"] and params}
  label = next(iter(bench.evals))
  scores = bench.evals[label].run(state)
  assert 0 <= scores["ffn=1/4/agreement"] <= 1 and "agreement" not in scores
  assert scores["ffn=1/4/kl"] > 0

  # One batch by hand.
  variables = {"params": state["params"]}
  batches = bench.batches(0, 0)
  batch = sharding.shard_batch(next(batches), bench.mesh)
  batches.close()
  batch["weight"] = np.ones(len(batch["label"]), np.float32)
  from vitscale.evals import nested

  sums = jax.jit(nested.make(bench.task, bench.model))
  found = nested.evaluate(sums, variables, [batch])
  part = bench.task.part(bench.model, variables, batch, "ffn=1/4")
  logits = [
    np.asarray(bench.task.task.predict(*pair, batch)["logits"], np.float64)
    for pair in (part, (bench.model, variables))
  ]
  own, whole = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
  kl = (np.exp(own) * (own - whole)).sum(-1).mean()
  same = (own.argmax(-1) == whole.argmax(-1)).mean()
  assert found["ffn=1/4/kl"] == pytest.approx(kl, rel=1e-4)
  assert found["ffn=1/4/agreement"] == pytest.approx(same)


def test_a_part_that_is_the_whole_agrees(bench):
  """At initialisation the head is zero: every part says the same."""
  label = next(iter(bench.evals))
  scores = bench.evals[label].run(bench.init(np.uint32(0)))
  assert scores["ffn=1/4/agreement"] == 1.0
  assert scores["ffn=1/4/kl"] == pytest.approx(0, abs=1e-6)
