"""Policies by hand, controls that hold, and a cascade that really stops."""

import functools

import jax
import numpy as np
import pytest

from vitscale.core import axes
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.elastic import cascade, exits
from vitscale.models import vit
from vitscale.tasks import nested

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(200, 3, 5))
LABELS = RNG.integers(0, 5, 200)
CORRECT = LOGITS.argmax(-1) == LABELS[:, None]
COST = np.array([1.0, 2.0, 4.0])


# ------------------------------------------------------------------- policies


def test_doubts_by_hand():
  sure, even = np.log([0.97, 0.01, 0.01, 0.01]), np.zeros(4)
  p = np.exp(sure)
  want = -(p * np.log(p)).sum() / np.log(4)
  np.testing.assert_allclose(cascade.entropy([sure, even]), [want, 1])
  np.testing.assert_allclose(cascade.margin(sure), 1 - 0.96)
  np.testing.assert_allclose(cascade.max_prob([sure, even]), [0.03, 0.75])
  far = np.array([1000.0, 0, 0])
  for doubt in cascade.DOUBTS.values():
    assert doubt(far) == 0


def test_the_first_exit_that_is_sure():
  doubt = np.array([[0.1, 0.9, 0.9], [0.6, 0.2, 0.1], [0.9, 0.9, 0.9]])
  assert cascade.by_threshold(doubt, 0.5).tolist() == [0, 1, 2]
  assert cascade.by_threshold(doubt, 0).tolist() == [2, 2, 2]
  assert cascade.by_threshold(doubt, 1.01).tolist() == [0, 0, 0]
  assert cascade.by_threshold(doubt, (0.0, 0.95)).tolist() == [1, 1, 1]
  with pytest.raises(UserError, match="3 thresholds for 3 exits: give one, or"):
    cascade.by_threshold(doubt, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("target", [1.0, 1.7, 2.5, 3.2, 4.0])
def test_a_threshold_for_a_cost(target):
  doubt = cascade.entropy(LOGITS)
  found = cascade.threshold_for(doubt, COST, target)
  spent = lambda t: cascade.mean_cost(COST, cascade.by_threshold(doubt, t))
  every = [spent(t) for t in np.append(np.unique(doubt), 1.01)]
  assert abs(spent(found) - target) == min(abs(c - target) for c in every)


# ------------------------------------------------------------------- controls


def test_nobody_beats_who_knows_the_labels():
  best = cascade.cheapest_correct(CORRECT)
  top = cascade.accuracy(CORRECT, best)
  assert top == CORRECT.any(1).mean() > CORRECT.mean(0).max()
  for _ in range(50):
    others = RNG.integers(0, 3, 200)
    assert cascade.accuracy(CORRECT, others) <= top
    as_right = np.where(CORRECT.any(1), best, others)
    assert cascade.mean_cost(COST, as_right) >= cascade.mean_cost(COST, best)
  assert cascade.cheapest_correct(np.zeros((1, 3))) == [0]


def test_shuffled_is_the_mean_over_shuffles():
  taken = cascade.by_threshold(cascade.entropy(LOGITS), 0.4)
  assert len(set(taken)) == 3
  draws = [
    cascade.accuracy(CORRECT, RNG.permutation(taken)) for _ in range(4000)
  ]
  error = np.std(draws) / np.sqrt(len(draws))
  assert abs(cascade.shuffled(CORRECT, taken) - np.mean(draws)) < 4 * error


def test_the_static_line_is_the_upper_hull():
  line = functools.partial(
    cascade.static_line, [1, 2, 3, 5], [0.5, 0.6, 0.8, 0.7]
  )
  np.testing.assert_allclose(
    line([1, 1.5, 2, 3, 4, 5]), [0.5, 0.575, 0.65, 0.8, 0.8, 0.8]
  )
  # Another model at a cost that is there already: the better one counts.
  assert cascade.static_line([1, 2, 2], [0.5, 0.6, 0.7], 2) == 0.7
  assert cascade.static_line([2, 1, 2], [0.7, 0.5, 0.6], 2) == 0.7
  assert cascade.static_line([1, 1], [0.4, 0.5], 1) == 0.5


def test_a_policy_that_knows_something_beats_the_line():
  """Of exits that are right where they are sure; mixed up it doesn't."""
  n = 4000
  rng = np.random.default_rng(3)
  hard = rng.random(n)
  right = np.stack([hard < 0.6, hard < 0.7, hard < 0.9], 1)
  doubt = np.stack([hard, hard, hard], 1)
  taken = cascade.by_threshold(doubt, (0.6, 0.7))
  spent = cascade.mean_cost(COST, taken)
  line = cascade.static_line(COST, right.mean(0), spent)
  assert cascade.accuracy(right, taken) > line + 0.1
  blind = cascade.by_threshold(rng.permutation(doubt), (0.6, 0.7))
  assert abs(cascade.accuracy(right, blind) - line) < 0.05


# ------------------------------------------------------------------- for real

DEPTHS = ("depth=1/2", "full")
MODEL = vit.Model(
  num_classes=4, width=16, depth=2, mlp_dim=16, num_heads=2, patch_size=4
)
IMAGES = RNG.integers(0, 256, (23, 8, 8, 1), dtype=np.uint8)


class Source:
  classes, mean, std = 4, (0.5,), (0.25,)


@functools.cache
def ready():
  """Stages of a model, its variables and all its exits."""
  group = {"of": {"name": "classify"}, "granularities": DEPTHS}
  task = nested.make(Reader(group), Source)
  boxed = jax.eval_shape(
    lambda: task.init(MODEL, jax.random.key(0), {"image": IMAGES[:1]})
  )
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype("f4"), axes.unbox(boxed)
  )
  stages = exits.by_depth(task, MODEL, DEPTHS)
  return (
    stages,
    variables,
    exits.everything(stages, variables, IMAGES, size=8)[0],
  )


@pytest.mark.parametrize("doubt", list(cascade.DOUBTS))
def test_running_it_takes_the_exits_of_the_policy(doubt):
  stages, variables, logits = ready()
  unsure = cascade.DOUBTS[doubt](logits)
  limit = float(np.median(unsure[:, 0]))
  want = cascade.by_threshold(unsure, limit)
  assert len(set(want)) == 2
  ran = cascade.run(stages, variables, IMAGES, limit, doubt=doubt, size=8)
  np.testing.assert_array_equal(ran.exits, want)
  np.testing.assert_allclose(ran.logits, logits[np.arange(23), want], atol=1e-5)
  # Who left costs no more: what ran is what stayed, rounded up.
  assert ran.images.tolist() == [24, 8 * -(-(want == 1).sum() // 8)]


def test_running_it_with_nobody_left_and_with_everybody():
  stages, variables, logits = ready()
  early = cascade.run(stages, variables, IMAGES, 1.01, size=8)
  assert early.images.tolist() == [24, 0] and not early.exits.any()
  late = cascade.run(stages, variables, IMAGES, 0.0, size=8)
  assert late.images.tolist() == [24, 24] and late.exits.all()
  np.testing.assert_allclose(late.logits, logits[:, 1], atol=1e-5)


def test_running_it_compiles_each_stage_once():
  stages, variables, logits = ready()
  cascade.run(stages, variables, IMAGES, 0.0, size=8)
  compiled = [stage._cache_size() for stage in stages]
  some = float(np.median(cascade.entropy(logits)[:, 0]))
  for count, limit in ((23, some), (17, some), (5, 0.0)):
    cascade.run(stages, variables, IMAGES[:count], limit, size=8)
  assert [stage._cache_size() for stage in stages] == compiled


def test_bad_cascades():
  with pytest.raises(UserError, match="did you mean 'entropy'"):
    cascade.run((), {}, IMAGES, 0.5, doubt="entropie")
  with pytest.raises(UserError, match="2 thresholds for 2 exits"):
    cascade.run(ready()[0], {}, IMAGES, (0.5, 0.5))


# ------------------------------------------------------------------ agreement


def test_acceptance_by_confidence():
  large = np.eye(4)[[0, 1, 2, 3]] * 5
  draft = np.eye(4)[[0, 1, 0, 0]] * np.array([[9], [8], [1], [0.5]])
  share, rows = cascade.acceptance(draft, large, bins=2)
  assert share == 0.5
  assert [row["accepted"] for row in rows] == [0, 1]
  assert [row["images"] for row in rows] == [0.5, 0.5]
  assert rows[0]["confidence"] < rows[1]["confidence"]
  small, large = LOGITS[:, 0], LOGITS[:, 1]
  share, rows = cascade.acceptance(small, large, bins=7)
  assert share == (small.argmax(1) == large.argmax(1)).mean()
  weighted = sum(row["images"] * row["accepted"] for row in rows)
  assert weighted == pytest.approx(share)
  assert sum(row["images"] for row in rows) == pytest.approx(1)


def test_savings_and_disagreement():
  small, large = LOGITS[:, 0], LOGITS[:, 1]
  rows = cascade.savings(small, large, (0.0, 0.5, 1.01))
  assert rows[0] == {"threshold": 0.0, "saved": 0.0, "disagreement": 0.0}
  other = small.argmax(1) != large.argmax(1)
  assert rows[2]["saved"] == 1 and rows[2]["disagreement"] == other.mean()
  kept = cascade.entropy(small) < 0.5
  assert 0 < kept.mean() < 1
  assert rows[1]["saved"] == kept.mean()
  assert rows[1]["disagreement"] == (kept & other).mean()
