"""Candidates, what they cost, and which one a budget takes."""

import functools

import jax
import numpy as np
import pytest

from tests.contract.families import gap
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.elastic import select
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import nest
from vitscale.elastic.spec import parse
from vitscale.models import vit
from vitscale.nn import block

FOUR = spec_lib.preset("matvit")
IMAGE = (8, 8, 1)
MODEL = vit.Model(
  num_classes=4, width=16, depth=3, mlp_dim=32, num_heads=2, patch_size=4
)


@functools.cache
def space(kind="macs", pool="mean", texts=FOUR):
  price = lambda little: select.cost(kind, little, IMAGE)
  return select.Space(MODEL.clone(pool=pool), texts, price)


def budget(text, kind="macs"):
  return select.budget(text, lambda k: select.cost(k, MODEL, IMAGE))


# ------------------------------------------------------------------- budgets


def test_budgets():
  full = select.cost("macs", MODEL, IMAGE)
  assert budget("0.5") == select.Budget("macs", full / 2, "0.5")
  assert budget("macs:1").limit == full
  assert budget("params:3e3").limit == 3000
  params = select.cost("params", MODEL, IMAGE)
  assert budget("params:.5").limit == params / 2


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("mac:0.5", "kind 'mac', did you mean 'macs'"),
    ("macs:", "write 0.6"),
    ("macs:0", "write 0.6"),
    ("macs:-1", "write 0.6"),
    ("macs:nan", "write 0.6"),
    ("half", "write 0.6"),
  ],
)
def test_bad_budgets(text, says):
  with pytest.raises(UserError, match=says):
    budget(text)


def test_cost_of_a_family_without_a_formula(monkeypatch):
  by_hand = select.cost("macs", MODEL, IMAGE)
  monkeypatch.delattr(vit, "flops_per_image")
  assert select.cost("macs", MODEL, IMAGE) == by_hand


# ---------------------------------------------------------------- candidates


def test_least_slope_rises_by_one_level():
  found = [str(spec) for spec in space().least_slope()]
  assert len(found) == 3 * (3 - 1) + 4  # facts: 3 (L - 1) + 4
  assert "ffn=1/8,1/4x2" in found and "ffn=1/2x2,1" in found
  assert not {"ffn=1/4,1/8x2", "ffn=1/8,1/2x2"} & set(found)


def test_exhaustive_is_all():
  assert len(set(space().exhaustive())) == 4**3
  deep = select.Space(MODEL.clone(depth=7), FOUR, lambda little: 0)
  with pytest.raises(UserError, match=r"16384 models.*4096 at most"):
    deep.exhaustive()


def test_what_does_not_mix_is_its_granularities():
  texts = spec_lib.preset("hydravit:2")
  mixed = space(texts=texts)
  assert mixed.least_slope() == mixed.exhaustive()
  assert [str(s) for s in mixed.least_slope()] == list(texts)


@pytest.mark.parametrize("kind", list(select.KINDS))
@pytest.mark.parametrize("pool", ["mean", "map"])
def test_a_mix_costs_what_its_model_costs(kind, pool):
  made = space(kind, pool)
  for spec in made.exhaustive()[::9]:
    little, _ = spec_lib.small(MODEL.clone(pool=pool), spec)
    assert made.cost(spec) == select.cost(kind, little, IMAGE), str(spec)


# -------------------------------------------------------------------- choices


def test_least_slope_takes_the_costliest_that_fits():
  for text in ("0.75", "0.8", "macs:0.9", "1"):
    asked = budget(text)
    chosen = select.choose(space(), asked, "least_slope")
    fit = [s for s in space().least_slope() if space().cost(s) <= asked.limit]
    assert space().cost(chosen) == max(map(space().cost, fit))
  assert chosen == parse("full")


def test_exhaustive_takes_the_best_of_those_without_room():
  asked = budget("0.8")
  seen = []

  def score(spec):
    seen.append(spec)
    return -abs(spec.ffn[0] - 1) - abs(spec.ffn[2])  # early layers wide

  chosen = select.choose(space(), asked, "exhaustive", score)
  fit = {s for s in space().exhaustive() if space().cost(s) <= asked.limit}
  assert set(seen) < fit and chosen in fit
  best = max(fit & set(seen), key=lambda s: -abs(s.ffn[0] - 1) - abs(s.ffn[2]))
  assert chosen == best and chosen.ffn[0] == 1
  for spec in fit - set(seen):  # a neighbour above it fits as well
    above = [
      s
      for s in fit
      if all(a >= b for a, b in zip(s.ffn, spec.ffn)) and s != spec
    ]
    assert above


@pytest.mark.parametrize(
  ("text", "how", "says"),
  [
    ("0.1", "least_slope", r"below the smallest .*: smallest \d+ \(0\.\d+ of"),
    ("macs:1e9", "least_slope", r"above the largest .* largest \d+$"),
    ("0.8", "leastslope", "did you mean 'least_slope'"),
    ("0.8", "exhaustive", "scores on held-out data"),
  ],
)
def test_what_cannot_be_chosen(text, how, says):
  with pytest.raises(UserError, match=says):
    select.choose(space(), budget(text), how)


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("scan", [False, True])
def test_masked_scores_what_is_cut(scan):
  big = MODEL.clone(scan=scan, pool="map", ffn="swiglu")
  image = np.random.default_rng(0).normal(size=(2, *IMAGE)).astype("f4")
  boxed = lambda m: jax.eval_shape(m.init, jax.random.key(0), image)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda x: (0.1 * rng.normal(size=x.shape)).astype("f4"),
    axes.unbox(boxed(big)),
  )
  names = axes.names_of(boxed(big))
  little, layers = spec_lib.small(big, parse("ffn=1/4,1,1/2"))
  cut = nest(variables, names, axes.unbox(boxed(little)), layers)
  want, _ = jax.jit(little.apply)(cut, image)
  sizes = block.per_layer(little.mlp_dim, 3, "mlp_dim")
  params = select.masked(variables["params"], names["params"], sizes)
  got, _ = jax.jit(big.apply)({"params": params}, image)
  assert gap(got, want) < 1e-6


# --------------------------------------------------------------- sensitivity


def additive(seed):
  """Minus a loss that adds up over layers; lower levels lose more."""
  rng = np.random.default_rng(seed)
  drops = np.sort(rng.random((3, 4)), axis=1)[:, ::-1]
  drops[:, -1] = 0
  levels = space().levels

  def score(spec):
    parts = spec.ffn * (3 if len(spec.ffn) == 1 else 1)
    return -sum(drops[i, levels.index(p)] for i, p in enumerate(parts))

  return score


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", ["0.62", "0.7", "0.9", "1"])
def test_sensitivity_is_exact_for_losses_that_add_up(seed, share):
  score, asked = additive(seed), budget(share)
  chosen = select.choose(space(), asked, "sensitivity", score)
  assert space().cost(chosen) <= asked.limit
  fit = [s for s in space().exhaustive() if space().cost(s) <= asked.limit]
  assert score(chosen) == pytest.approx(max(map(score, fit)))


def test_sensitivity_measures_few():
  seen = []
  score = additive(0)
  select.choose(
    space(), budget("0.7"), "sensitivity",
    lambda spec: (seen.append(spec), score(spec))[1],
  )  # fmt: skip
  assert len(seen) == 3 * (4 - 1) + 1


def test_sensitivity_wants_levels():
  narrow = space(texts=("heads=1/2 embed=1/2 ffn=1/2", "full"))
  with pytest.raises(UserError, match="mixes levels of the FFN"):
    select.choose(narrow, budget("0.7"), "sensitivity", lambda spec: 0.0)
