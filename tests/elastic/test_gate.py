"""A gate that learns when depth pays, image by image."""

import jax
import numpy as np
import pytest

from tests.elastic.test_cascade import IMAGES, ready
from vitscale.core.errors import UserError
from vitscale.elastic import exits
from vitscale.elastic import gate as gate_lib
from vitscale.elastic.gate import Gate

RNG = np.random.default_rng(0)


def images(n, seed=0):
  """Features whose first entry says which of three exits pays."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, 6)) * np.array([2, 1, 1, 5, 0.1, 1]) + 3
  hard = x[:, 0]
  q = np.stack(
    [-2 * (hard > 2), -1.5 * (hard > 4), np.zeros(n)], 1
  ) + 0.01 * rng.normal(size=(n, 3))
  return x, q


def test_quality_is_minus_the_cross_entropy():
  logits = RNG.normal(size=(5, 3, 4))
  labels = np.array([0, 1, 2, 3, 0])
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  want = [[np.log(p[i, k, labels[i]]) for k in range(3)] for i in range(5)]
  np.testing.assert_allclose(gate_lib.quality(logits, labels), want)


def test_targets_trade_quality_for_depth():
  q = np.array([[-1.0, -0.5, -0.4], [-0.1, -0.1, -0.1]])
  assert gate_lib.targets(q, 0).tolist() == [2, 0]
  assert gate_lib.targets(q, 0.2).tolist() == [1, 0]
  assert gate_lib.targets(q, 1.0).tolist() == [0, 0]


def test_the_loss_of_an_image_does_not_depend_on_its_batch():
  """A softmax over the batch axis, as released, would make it."""
  made = Gate(RNG.normal(size=(6, 3)), RNG.normal(size=3))
  x, q = images(12)
  target = gate_lib.targets(q, 0.1)
  whole = gate_lib.loss(made, x, target)
  order = RNG.permutation(12)
  np.testing.assert_allclose(
    gate_lib.loss(made, x[order], target[order]), whole[order]
  )
  halves = [
    gate_lib.loss(made, x[i : i + 4], target[i : i + 4]) for i in (0, 4, 8)
  ]
  np.testing.assert_allclose(np.concatenate(halves), whole)
  alone = [
    gate_lib.loss(made, x[i : i + 1], target[i : i + 1]) for i in range(12)
  ]
  np.testing.assert_allclose(np.concatenate(alone), whole)
  # By hand, for one.
  y = x[0] @ made.kernel + made.bias
  want = np.log(np.exp(y).sum()) - y[target[0]]
  assert whole[0] == pytest.approx(want)


def test_fit_finds_the_least_loss():
  """Of its own objective: no step to any side lowers it."""
  x, q = images(300)
  target = gate_lib.targets(q, 0.1)
  made = gate_lib.fit(x, q, 0.1, decay=1e-2)

  def objective(gate):
    shrunk = gate.kernel * x.std(0)[:, None]
    value = gate_lib.loss(gate, x, target).mean()
    return value + 0.5e-2 * (shrunk**2).sum()

  least = objective(made)
  for _ in range(20):
    step = 0.02 * RNG.normal(size=(6, 3)) / x.std(0)[:, None]
    moved = Gate(made.kernel + step, made.bias - x.mean(0) @ step)
    assert objective(moved) > least
  assert least < objective(Gate(np.zeros((6, 3)), np.zeros(3))) / 2


def test_the_gate_generalises_where_features_tell():
  x, q = images(1000)
  made = gate_lib.fit(x, q, 0.1)
  assert made.kernel.shape == (6, 3) and made.macs == 18
  other, quality = images(1000, seed=1)
  want = gate_lib.targets(quality, 0.1)
  hit = (gate_lib.choose(made, other) == want).mean()
  mixed = (gate_lib.choose(made, RNG.permutation(other)) == want).mean()
  assert hit > 0.8 > mixed + 0.2


def test_beta_moves_exits_and_nothing_else():
  """Another trade-off is step C again: the parent's outputs are arguments."""
  x, q = images(500)
  before = x.copy(), q.copy()
  depth = [
    gate_lib.choose(gate_lib.fit(x, q, beta), x).mean()
    for beta in (0.0, 0.1, 1.0, 3.0)
  ]
  assert depth == sorted(depth, reverse=True) and depth[-1] == 0 < depth[0]
  np.testing.assert_array_equal(x, before[0])
  np.testing.assert_array_equal(q, before[1])


def test_bad_fits():
  x, q = images(10)
  with pytest.raises(UserError, match="beta=-1: should be 0 or more"):
    gate_lib.fit(x, q, -1)
  with pytest.raises(UserError, match="9 pooled images for 10 qualities"):
    gate_lib.fit(x[:9], q, 0)


def test_a_new_trade_off_leaves_the_parent_alone():
  """Steps B and C on a real parent: one pass, then gates of its record."""
  stages, variables, _ = ready()
  labels = np.arange(len(IMAGES)) % 4
  before = jax.tree.map(np.array, variables)
  logits, pooled = exits.everything(stages, variables, IMAGES, size=8)
  assert pooled[0].shape == (len(IMAGES), 16)
  seen = [stage._cache_size() for stage in stages]
  q = gate_lib.quality(logits, labels)
  few, many = (gate_lib.fit(pooled[0], q, beta) for beta in (1.0, 0.0))
  assert not np.array_equal(few.kernel, many.kernel)
  jax.tree.map(np.testing.assert_array_equal, variables, before)
  assert [stage._cache_size() for stage in stages] == seen
