"""Shapes over depth: how many there are, and that they are what they say."""

import itertools

import pytest

from vitscale.core.errors import UserError
from vitscale.elastic import mixes

FOUR = 4


def falls_then_rises(mix, sign):
  steps = [sign * (b - a) for a, b in itertools.pairwise(mix)]
  turned = list(itertools.dropwhile(lambda step: step <= 0, steps))
  return all(step >= 0 for step in turned)


IS = {
  "increasing": lambda mix: list(mix) == sorted(mix),
  "decreasing": lambda mix: list(mix) == sorted(mix, reverse=True),
  "increasing_decreasing": lambda mix: falls_then_rises(mix, -1),
  "decreasing_increasing": lambda mix: falls_then_rises(mix, 1),
  "least_slope": lambda mix: (
    list(mix) == sorted(mix) and max(mix) - min(mix) <= 1
  ),
  "all": lambda mix: True,
}


@pytest.mark.parametrize("name", list(mixes.SHAPES))
@pytest.mark.parametrize(("levels", "depth"), [(4, 5), (3, 4), (2, 1)])
def test_a_shape_is_every_mix_that_has_it(name, levels, depth):
  every = itertools.product(range(levels), repeat=depth)
  want = [mix for mix in every if IS[name](mix)]
  assert mixes.shape(name, levels, depth) == want
  assert mixes.count(name, levels, depth) == len(want)


@pytest.mark.parametrize(
  ("depth", "rising", "least"), [(12, 455, 37), (16, 969, 49), (24, 2925, 73)]
)
def test_published_counts(depth, rising, least):
  for name in ("increasing", "decreasing"):
    assert len(mixes.shape(name, FOUR, depth)) == rising
  assert len(mixes.shape("least_slope", FOUR, depth)) == least


def test_what_cannot_be_listed():
  with pytest.raises(UserError, match="did you mean 'increasing'"):
    mixes.shape("increasin", FOUR, 3)
  with pytest.raises(UserError, match=r"492871 mixes of shape incr.*_decr"):
    mixes.shape("increasing_decreasing", FOUR, 24)
