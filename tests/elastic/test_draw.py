"""Strategies: what a step may train, and how often."""

from collections import Counter

import pytest

from vitscale.core import draws
from vitscale.core.errors import UserError
from vitscale.elastic import draw

FOUR = ("ffn=1/8", "ffn=1/4", "ffn=1/2", "full")


def drawn(one, steps=4000):
  return Counter(draws.at((one,), 0, step)["nest"] for step in range(steps))


def test_sampled_one_at_a_time():
  seen = drawn(draw.sampled(FOUR))
  assert set(seen) == {(text,) for text in FOUR}
  assert all(abs(count / 4000 - 0.25) < 0.03 for count in seen.values())
  seen = drawn(draw.sampled(FOUR, (0.17, 0.2, 0.22, 0.41)))
  assert abs(seen["full",] / 4000 - 0.41) < 0.03


def test_joint_all_at_once():
  assert drawn(draw.joint(FOUR), 9) == {FOUR: 9}


def test_sandwich_has_both_ends():
  five = (*FOUR[:3], "ffn=3/4", "full")
  seen = drawn(draw.sandwich(five))
  assert set(seen) == {
    ("ffn=1/8", "ffn=1/4", "ffn=1/2", "full"),
    ("ffn=1/8", "ffn=1/4", "ffn=3/4", "full"),
    ("ffn=1/8", "ffn=1/2", "ffn=3/4", "full"),
  }
  assert drawn(draw.sandwich(FOUR, 0), 3) == {("ffn=1/8", "full"): 3}


def test_round_robin_in_turn():
  made = draw.round_robin(FOUR)
  assert [made.at(7, step) for step in range(6)] == [
    (FOUR[i % 4],) for i in range(6)
  ]
  assert set(drawn(made, 8).values()) == {2}


def test_a_curriculum_moves_on():
  stages = ((0, (1, 1, 0, 0)), (50, (1, 1, 0, 0)), (50, (0, 0, 1, 3)),
            (100, (0, 0, 1, 1)))  # fmt: skip
  (made,) = draws.over((draw.curriculum(FOUR, stages),), 8000)
  early = Counter(made.at(0, step) for step in range(4000))
  late = Counter(made.at(0, step) for step in range(4000, 8000))
  assert set(early) == {(FOUR[0],), (FOUR[1],)}
  assert set(late) == {(FOUR[2],), (FOUR[3],)}
  assert abs(late["full",] / 4000 - 0.625) < 0.03  # from 3/4 to 1/2
  assert made.weights == pytest.approx((0.25, 0.25, 0.1875, 0.3125))
  seen = early + late
  for share, value in draws.outcomes((made,)):
    assert abs(seen[value["nest"]] / 8000 - share) < 0.02
  assert made.at(0, 7999) in late


def test_outcomes_are_shares_of_steps():
  made = (
    draw.sampled(FOUR[:2], (1.0, 3.0)),
    draws.Draw("patch_size", (2, 4), (1.0, 1.0)),
  )
  shares = {
    (value["nest"][0], value["patch_size"]): share
    for share, value in draws.outcomes(made)
  }
  assert shares == {
    ("ffn=1/8", 2): 0.125, ("ffn=1/8", 4): 0.125,
    ("ffn=1/4", 2): 0.375, ("ffn=1/4", 4): 0.375,
  }  # fmt: skip
  assert draws.outcomes(()) == [(1.0, {})]


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: draw.sampled(FOUR, (1.0,)), "weight to each of the 4"),
    (lambda: draw.sampled(FOUR, (1.0, 1.0, 0.0, 1.0)), "positive weight"),
    (lambda: draw.curriculum(FOUR), "percents .* rise from 0 to 100"),
    (lambda: draw.curriculum(FOUR, (1, 2)), "stages .* write"),
    (
      lambda: draw.curriculum(FOUR, ((0, (1,) * 4), (90, (1,) * 4))),
      "percents .*90.* rise from 0 to 100",
    ),
    (
      lambda: draw.curriculum(FOUR, ((0, (1,) * 4), (100, (1,)))),
      "each of the 4 granularities",
    ),
    (
      lambda: draw.curriculum(FOUR, ((0, (0,) * 4), (100, (1,) * 4))),
      "not all 0",
    ),
    (lambda: draw.sandwich(FOUR, 3), "middle=3 of 2 .* 0 choices"),
    (lambda: draw.sandwich([str(i) for i in range(22)], 5), "15504 choices"),
  ],
)
def test_bad_strategies(make, says):
  with pytest.raises(UserError, match=says):
    make()
