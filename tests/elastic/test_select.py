"""Which model a selector takes for a budget, and what it scored for that."""

import itertools

import numpy as np
import pytest

from tests.elastic.test_space import MODEL, budget, space
from vitscale.cli import cut as cli_cut
from vitscale.core.errors import UserError
from vitscale.elastic import evolve, select
from vitscale.elastic.presets import preset
from vitscale.elastic.score import Judge
from vitscale.elastic.space import Space

SHAPES = (
  "increasing", "decreasing", "increasing_decreasing",
  "decreasing_increasing",
)  # fmt: skip


def additive(seed=0):
  """A loss that adds up over layers; lower levels lose more."""
  drops = np.sort(np.random.default_rng(seed).random((3, 4)))[:, ::-1]
  return lambda mixes: [
    sum(drops[i, level] for i, level in enumerate(mix)) for mix in mixes
  ]


def early(mixes):
  """A loss of narrow early layers: rising shapes are the worst."""
  return [-sum(level * 10.0**-i for i, level in enumerate(m)) for m in mixes]


def chosen(how, text, losses=early, seed=0):
  found = select.choose(space(), budget(text), how, Judge(losses), seed)
  return space().mix(found.spec), found


def limit(text):
  return budget(text).limit


# ------------------------------------------------------------------- choices


def test_names_on_the_command_line():
  assert tuple(select.SELECTORS) == cli_cut.SELECTORS


@pytest.mark.parametrize("how", [n for n in select.SELECTORS if n != "router"])
@pytest.mark.parametrize("text", ["0.62", "0.8", "1"])
def test_every_choice_fits(how, text):
  mix, found = chosen(how, text)
  assert space().of(mix) <= limit(text)
  assert (found.scored > 0) == (how != "least_slope")


def test_least_slope_takes_the_costliest_that_fits():
  for text in ("0.75", "0.8", "macs:0.9", "1"):
    mix, _ = chosen("least_slope", text)
    fit = space().fitting(space().shape("least_slope"), limit(text))
    assert space().of(mix) == max(map(space().of, fit))
  assert mix == (3, 3, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_takes_its_best(shape):
  seen = []
  losses = lambda mixes: (seen.extend(mixes), early(mixes))[1]
  mix, found = chosen(shape, "0.8", losses)
  members = set(space().shape(shape))
  assert set(seen) <= members and found.scored == len(set(seen))
  fit = space().fullest(members, limit("0.8"))
  assert early([mix])[0] == min(early(fit))


def test_shapes_differ_where_early_layers_count():
  best = chosen("exhaustive", "0.8")[0]
  assert chosen("decreasing", "0.8")[0] == best
  assert chosen("increasing", "0.8")[0] != best


def test_exhaustive_takes_the_best_of_those_without_room():
  seen = []
  losses = lambda mixes: (seen.extend(mixes), early(mixes))[1]
  mix, found = chosen("exhaustive", "0.8", losses)
  fit = space().fitting(itertools.product(range(4), repeat=3), limit("0.8"))
  assert set(seen) < set(fit) and found.scored == len(seen)
  assert early([mix])[0] == min(early(fit))


# --------------------------------------------------------------- sensitivity


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("text", ["0.62", "0.7", "0.9", "1"])
def test_sensitivity_is_exact_for_losses_that_add_up(seed, text):
  losses = additive(seed)
  mix, found = chosen("sensitivity", text, losses)
  fit = space().fitting(space().shape("all"), limit(text))
  assert losses([mix])[0] == pytest.approx(min(losses(fit)))
  assert found.scored == 3 * (4 - 1) + 1


# --------------------------------------------------------------- evolutionary


@pytest.mark.parametrize("seed", range(3))
def test_evolution_finds_the_best_of_few(seed):
  losses = additive(seed)
  mix, found = chosen("evolutionary", "0.8", losses, seed)
  fit = space().fitting(space().shape("all"), limit("0.8"))
  assert losses([mix])[0] == pytest.approx(min(losses(fit)))
  assert found.scored <= len(fit)


def test_evolution_beats_as_many_random_mixes():
  deep = Space(MODEL.clone(depth=12), preset("matvit"), lambda m: sum(
    (m.mlp_dim,) * 12 if isinstance(m.mlp_dim, int) else m.mlp_dim
  ))  # fmt: skip
  rng = np.random.default_rng(0)
  worth = rng.random(12)
  losses = lambda mixes: [
    -float(worth @ np.sqrt(1 + np.array(m))) for m in mixes
  ]
  limit = sum(deep.ends()) / 2
  judge = Judge(losses)
  best = evolve.best(deep, limit, judge, 1)
  assert judge.scored <= evolve.POPULATION * evolve.GENERATIONS
  some = [tuple(rng.integers(4, size=12)) for _ in range(judge.scored)]
  some = [evolve.fitted(deep, tuple(map(int, m)), limit, rng) for m in some]
  assert losses([best])[0] < min(losses(some))
  assert deep.of(best) <= limit
  assert evolve.best(deep, limit, judge, 1) == best
  assert evolve.best(deep, limit, Judge(losses), 2) != ()


# ---------------------------------------------------------------------- judge


def test_a_judge_scores_nothing_twice():
  asked = []
  judge = Judge(lambda mixes: (asked.extend(mixes), additive()(mixes))[1])
  once = judge([(0, 0, 0), (1, 0, 0), (0, 0, 0)])
  assert judge([(1, 0, 0)]) == once[1:2] and once[0] == once[2]
  assert asked == [(0, 0, 0), (1, 0, 0)] and judge.scored == 2


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("text", "how", "says"),
  [
    ("0.1", "least_slope", r"below the smallest .*: smallest \d+ \(0\.\d+ of"),
    ("macs:1e9", "least_slope", r"above the largest .* largest \d+$"),
    ("0.8", "leastslope", "did you mean 'least_slope'"),
    ("0.8", "exhaustive", "scores on held-out images: there are none"),
  ],
)
def test_what_cannot_be_chosen(text, how, says):
  with pytest.raises(UserError, match=says):
    select.choose(space(), budget(text), how)


def test_what_does_not_mix_is_its_granularities():
  narrow = space(texts=("heads=1/2 embed=1/2 ffn=1/2", "full"))
  judge = Judge(lambda specs: [-len(spec.touched()) for spec in specs])
  small = select.choose(narrow, budget("0.7"), "least_slope")
  assert small.spec == narrow.specs[0]
  both = select.choose(narrow, budget("1"), "exhaustive", judge)
  assert both.spec == narrow.specs[0] and both.scored == 2
  for how in set(select.SELECTORS) - {"least_slope", "exhaustive"}:
    with pytest.raises(UserError, match="mixes levels of the FFN"):
      select.choose(narrow, budget("0.7"), how, judge)


def test_too_many_to_score():
  deep = Space(MODEL.clone(depth=7), preset("matvit"), lambda m: sum(
    (m.mlp_dim,) * 7 if isinstance(m.mlp_dim, int) else m.mlp_dim
  ))  # fmt: skip
  with pytest.raises(UserError, match=r"16384 models.*4096 at most"):
    select.exhaustive(deep, 1e9, Judge(early), 0)


def test_a_router_wants_the_model():
  with pytest.raises(UserError, match="trains on the model"):
    chosen("router", "0.8")
