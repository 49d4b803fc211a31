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
