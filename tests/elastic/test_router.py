"""A router learns which layers are worth their cost, and keeps the budget."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.elastic.test_space import space
from vitscale.elastic import router, select
from vitscale.elastic.score import Judge
from vitscale.elastic.space import Budget


class Worth:
  """A model whose loss falls with the levels of some layers only."""

  def __init__(self, *worth):
    self._worth = jnp.asarray(worth, jnp.float32)

  def batches(self):
    return itertools.repeat(None)

  def loss(self, weights, batch):
    return -(weights @ jnp.arange(4.0)) @ self._worth


def between(share):
  low, high = space().ends()
  return low + share * (high - low)


@pytest.fixture(scope="module")
def trained():
  return router.train(space(), Worth(0.1, 1.0, 0.2), seed=0, steps=300)


def test_it_spends_where_it_is_worth_most(trained):
  half = trained.pick(between(0.5))
  assert half[1] == 3 and half[0] <= half[2]
  assert trained.pick(between(1.0)) == (3, 3, 3)
  assert trained.pick(between(0.0)) == (0, 0, 0)


def test_it_reads_the_budget_and_learns_to_keep_it(trained):
  picks = [trained.pick(between(share)) for share in (0.2, 0.5, 0.8)]
  costs = [space().of(mix) for mix in picks]
  assert costs == sorted(costs) and len(set(costs)) == 3
  for share, cost in zip((0.2, 0.5, 0.8), costs):
    assert cost <= between(share)
  missed = trained.history[:, 1]
  assert missed[-20:].mean() < missed[:20].mean() / 2


def test_a_seed_is_a_choice():
  one, same, other = (
    router.train(space(), Worth(1.0, 1.0, 1.0), seed, steps=3)
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one.history, same.history)
  assert not np.array_equal(one.history, other.history)


@pytest.mark.parametrize("seed", range(4))
def test_repaired_is_the_argmax_where_it_fits_and_fits_always(seed):
  logits = np.random.default_rng(seed).normal(size=(3, 4))
  for share in (0.0, 0.3, 0.6, 1.0):
    mix = router.repaired(space(), logits, between(share))
    assert space().of(mix) <= between(share)
    if share < 1:  # no room is left
      assert all(space().of(m) > between(share) for m in space().raised(mix))
  exact = tuple(int(k) for k in logits.argmax(-1))
  assert router.repaired(space(), logits, space().of(exact)) == exact


def test_as_a_selector():
  judge = Judge(lambda mixes: [0.0] * len(mixes), Worth(1.0, 0.1, 0.1))
  found = select.choose(
    space(), Budget("macs", between(0.4), ""), "router", judge
  )
  assert found.scored == 0 and found.detail == {"steps": router.STEPS}
  assert space().mix(found.spec)[0] == 3
