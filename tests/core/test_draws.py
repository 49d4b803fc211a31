import json

import pytest

from vitscale.core import draws
from vitscale.core.errors import UserError


def test_a_draw_depends_on_seed_and_step_alone():
  made = draws.make({"patch_size": {"values": (2, 4, 8)}})
  first = [draws.at(made, 0, step)["patch_size"] for step in range(50)]
  later = [draws.at(made, 0, step)["patch_size"] for step in range(25, 50)]
  assert first[25:] == later
  assert first != [draws.at(made, 1, step)["patch_size"] for step in range(50)]


def test_weights_are_probabilities():
  (draw,) = draws.make({"width": {"values": ("a", "b"), "weights": (1.0, 3.0)}})
  share = sum(draw.at(0, step) == "b" for step in range(4000)) / 4000
  assert abs(share - 0.75) < 0.03


def test_two_draws_are_independent():
  made = draws.make({"a": {"values": (0, 1)}, "b": {"values": (0, 1)}})
  both = [draws.at(made, 0, step) for step in range(2000)]
  agree = sum(d["a"] == d["b"] for d in both) / len(both)
  assert abs(agree - 0.5) < 0.05


@pytest.mark.parametrize(
  "group",
  [
    {"values": ()},
    {"values": (1, 2), "weights": (1.0,)},
    {"values": (1, 2), "weights": (1.0, 0.0)},
  ],
)
def test_bad_declarations(group):
  with pytest.raises(UserError, match="one positive weight per value"):
    draws.make({"patch_size": group})


# --------------------------------------------------------------------- stages

LARGE_TO_SMALL = {
  "values": (4, 2, 1),
  "stages": (
    (0.0, (1, 0, 0)), (0.5, (2, 0, 0)), (0.5, (0, 1, 0)), (1.0, (0, 0, 3)),
  ),
}  # fmt: skip


def test_stages_are_probabilities_over_the_run():
  made = draws.over(draws.make({"patch_size": LARGE_TO_SMALL}), 4000)
  seen = [draws.at(made, 0, step)["patch_size"] for step in range(4000)]
  assert seen == [draws.at(made, 0, s)["patch_size"] for s in range(4000)]
  assert set(seen[:2000]) == {4} and set(seen[2000:]) == {2, 1}
  # From 2 to 1 in the second half, linearly.
  small = [sum(p == 1 for p in seen[i : i + 500]) / 500 for i in
           range(2000, 4000, 500)]  # fmt: skip
  assert small == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.06)
  shares = {d["patch_size"]: share for share, d in draws.outcomes(made)}
  assert shares == pytest.approx({4: 1 / 2, 2: 1 / 4, 1: 1 / 4})


def test_a_run_json_gives_the_same_draws():
  """It has lists where a config has tuples, patches of two sides too."""
  group = {
    "values": ((4, 2), (2, 2)),
    "stages": ((0.0, (1, 0)), (1.0, (0, 1))),
  }
  listed = json.loads(json.dumps({"patch_size": group}))
  assert draws.make(listed) == draws.make({"patch_size": group})
  assert hash(draws.make(listed))


@pytest.mark.parametrize(
  "change, words",
  [
    ({"weights": (1, 1, 1)}, "weights or stages, not both"),
    ({"stages": ()}, "should rise from 0 to 1"),
    ({"stages": ((0.0, (1, 1, 1)),)}, "should rise from 0 to 1"),
    ({"stages": ((0.1, (1, 1, 1)), (1, (1, 1, 1)))}, "rise from 0 to 1"),
    ({"stages": ((0, (1, 1, 1)), (0.9, (1, 1, 1)))}, "rise from 0 to 1"),
    (
      {"stages": ((0, (1, 1, 1)), (0.7, (1, 1, 1)), (0.6, (1, 1, 1)),
                  (1, (1, 1, 1)))},
      "rise from 0 to 1",
    ),
    ({"stages": ((0, (1, 1)), (1, (1, 1, 1)))}, "one per value"),
    ({"stages": ((0, (1, -1, 1)), (1, (1, 1, 1)))}, "none below 0"),
    ({"stages": ((0, (0, 0, 0)), (1, (1, 1, 1)))}, "not all 0"),
    ({"stages": ((0, (1, 0, 0)), (1, (0, 1, 0)))}, "1 is never drawn"),
    ({"stages": ((0, 1), (1, 2))}, "give pairs"),
    ({"stages": 3}, "give pairs"),
  ],
)  # fmt: skip
def test_bad_stages(change, words):
  with pytest.raises(UserError, match=words) as error:
    draws.make({"patch_size": {**LARGE_TO_SMALL, **change}})
  assert "draws.patch_size" in str(error.value)
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- costs


def test_the_mean_cost_is_of_what_was_drawn():
  made = draws.over(draws.make({"patch_size": LARGE_TO_SMALL}), 100)
  price = {4: 1.0, 2: 5.0, 1: 40.0}
  costs = {(("patch_size", p),): c for p, c in price.items()}
  one_by_one = [price[made[0].at(7, step)] for step in range(100)]
  resumed = draws.mean_of(made, costs, 7)
  for step in (3, 50, 51, 90, 100, 20):  # and back
    fresh = draws.mean_of(made, costs, 7)(step)
    assert resumed(step) == fresh == pytest.approx(
      sum(one_by_one[:step]) / step
    )  # fmt: skip
  assert draws.mean_of(made, costs, 8)(100) != fresh
  assert draws.mean_of((), {(): 3.0}, 0)(10) == 3.0
