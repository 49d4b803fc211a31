"""Budgets, costs, and what fits."""

import functools

import pytest

from vitscale.core.errors import UserError
from vitscale.elastic import presets
from vitscale.elastic import space as space_lib
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.space import Budget, Space
from vitscale.models import vit

FOUR = presets.preset("matvit")
IMAGE = (8, 8, 1)
MODEL = vit.Model(
  num_classes=4, width=16, depth=3, mlp_dim=32, num_heads=2, patch_size=4
)


@functools.cache
def space(kind="macs", pool="mean", texts=FOUR):
  price = lambda little: space_lib.cost(kind, little, IMAGE)
  return Space(MODEL.clone(pool=pool), texts, price)


def budget(text):
  full = lambda kind: 10 if kind == "latency" else cost(kind)
  return space_lib.budget(text, full)


def cost(kind):
  return space_lib.cost(kind, MODEL, IMAGE)


# ------------------------------------------------------------------- budgets


def test_budgets():
  full = cost("macs")
  assert budget("0.5") == Budget("macs", full / 2, "0.5")
  assert budget("macs:1").limit == full
  assert budget("params:3e3").limit == 3000
  assert budget("params:.5").limit == cost("params") / 2
  assert budget("latency:0.6").limit == 6
  assert budget("latency:5ms").limit == 5
  assert budget("latency:.25ms").limit == 0.25
  assert budget("latency:250us").limit == pytest.approx(0.25)
  assert budget("latency:2s").limit == 2000


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("mac:0.5", "kind 'mac', did you mean 'macs'"),
    ("macs:", "write 0.6"),
    ("macs:0", "write 0.6"),
    ("macs:-1", "write 0.6"),
    ("macs:nan", "write 0.6"),
    ("macs:5ms", "write 0.6"),
    ("half", "write 0.6"),
    ("latency:ms", "write 0.6"),
    ("latency:0ms", "write 0.6"),
    ("latency:5", "a time has a unit, latency:5ms"),
  ],
)
def test_bad_budgets(text, says):
  with pytest.raises(UserError, match=says):
    budget(text)


def test_cost_of_a_family_without_a_formula(monkeypatch):
  by_hand = cost("macs")
  monkeypatch.delattr(vit, "flops_per_image")
  assert cost("macs") == by_hand


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("pool", ["mean", "map"])
def test_a_mix_costs_what_its_model_costs(kind, pool):
  made = space(kind, pool)
  for mix in made.shape("all")[::9]:
    little, _ = spec_lib.small(MODEL.clone(pool=pool), made.spec(mix))
    assert made.of(mix) == space_lib.cost(kind, little, IMAGE), mix
    assert made.mix(made.spec(mix)) == mix


def test_a_run_that_never_trained_the_whole_has_its_largest_as_an_end():
  made = space(texts=("ffn=1/4", "ffn=1/2"))
  low, high = made.ends()
  assert low < high < made.whole()
  made.check(Budget("macs", high, ""))
  with pytest.raises(UserError, match="above the largest"):
    made.check(Budget("macs", high + 1, ""))


# --------------------------------------------------------------------- fits


def test_fullest_leave_no_room_within_their_set():
  made, every = space(), space().shape("all")
  limit = 0.8 * made.whole()
  fit = made.fitting(every, limit)
  full = made.fullest(every, limit)
  assert 0 < len(full) < len(fit) < len(every)
  for mix in set(fit) - set(full):
    assert any(made.of(other) <= limit for other in made.raised(mix))
  # Of mixes that can only be raised out of their set, each is full.
  assert made.fullest([(0, 0, 0), (0, 0, 2)], limit) == [(0, 0, 0), (0, 0, 2)]
  assert made.fullest([(0, 0, 0), (0, 0, 1)], limit) == [(0, 0, 1)]


@pytest.mark.parametrize("kind", list(space_lib.KINDS))
def test_out_of_range_names_both_ends(kind):
  made = Space(MODEL, FOUR, lambda m: space_lib.cost("macs", m, IMAGE) / 7)
  low, high = made.ends()
  for limit, where in ((low / 2, "below the smallest"), (high * 2, "above")):
    with pytest.raises(UserError, match=where) as caught:
      made.check(Budget(kind, limit, "?"))
    assert f"{low:.4g}" in str(caught.value)
    assert f"{high:.4g}" in str(caught.value)


def test_what_does_not_mix():
  narrow = space(texts=("heads=1/2 embed=1/2 ffn=1/2", "full"))
  assert not narrow.levels
  with pytest.raises(UserError, match="router mixes levels of the FFN"):
    narrow.check_mixed("router")
