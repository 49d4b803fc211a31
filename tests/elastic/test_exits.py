"""All exits of one pass are the small models, and cost what is run."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests import toys
from tests.contract.families import gap
from vitscale.core import axes
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.elastic import exits, space
from vitscale.elastic import spec as spec_lib
from vitscale.models import pattention_vit, vit
from vitscale.tasks import nested

DEPTHS = ("depth=1/3", "depth=2", "full")
IMAGE = (8, 8, 1)
MODEL = vit.Model(
  num_classes=4, width=16, depth=3, mlp_dim=32, num_heads=2, patch_size=4
)
CLS = MODEL.clone(pool="cls", registers=1, scan=True, position="rope2d")
MAP = MODEL.clone(pool="map", norm_pooled=True, mlp_dim=(8, 16, 32), head_dim=8)
PATTENTION = pattention_vit.Model(
  num_classes=4, width=16, depth=3, num_heads=2, tokens=8, ffn_tokens=8,
  patch_size=4,
)  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, *IMAGE), dtype=np.uint8)


class Source:
  classes, mean, std = 4, (0.5,), (0.25,)


def task(granularities=DEPTHS):
  group = {"of": {"name": "classify"}, "granularities": granularities}
  return nested.make(Reader(group), Source)


@functools.cache
def variables(model=MODEL):
  """Nowhere zero, heads least of all."""
  batch = {"image": IMAGES[:1]}
  boxed = jax.eval_shape(lambda: task().init(model, jax.random.key(0), batch))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype("f4"), axes.unbox(boxed)
  )


@pytest.mark.parametrize("model", [MODEL, CLS, MAP, PATTENTION])
def test_every_exit_is_its_small_model(model):
  made = task()
  stages = exits.by_depth(made, model, DEPTHS)
  logits, pooled = exits.everything(stages, variables(model), IMAGES, size=3)
  assert logits.shape == (5, 3, 4) and pooled[0].shape == (5, 16)
  batch = {"image": IMAGES}
  spread = set()
  for k, text in enumerate(DEPTHS):
    little, own = made.part(model, variables(model), batch, text)
    want, _ = jax.jit(little.apply)(own, made.normalise(IMAGES))
    assert gap(logits[:, k], want) < 1e-6
    spread.add(round(float(np.abs(want).sum()), 3))
  assert len(spread) == 3


@pytest.mark.parametrize("model", [MODEL, CLS, MAP])
def test_exits_cost_what_real_models_cost(model):
  stages = exits.by_depth(task(), model, DEPTHS)
  found = exits.costs(stages, variables(model), IMAGE)
  smalls = [
    space.cost("macs", spec_lib.small(model, spec_lib.parse(text))[0], IMAGE)
    for text in DEPTHS
  ]
  np.testing.assert_array_equal(found.known(), smalls)
  np.testing.assert_array_equal(found.known(7), np.add(smalls, 7))
  # Whoever tries all pays one pass, and the heads before.
  heads = np.cumsum(found.head) - found.head
  np.testing.assert_array_equal(found.tried(), smalls + heads)
  assert found.head[0] >= 16 * 4
  if model is MODEL:
    assert found.head.tolist() == [16 * 4] * 3


def test_parts_begin_anew():
  parts = ("ffn=1/2", "full")
  made = task(parts)
  stages = exits.by_part(made, MODEL, parts)
  found = exits.costs(stages, variables(), IMAGE)
  smalls = [
    space.cost("macs", spec_lib.small(MODEL, spec_lib.parse(text))[0], IMAGE)
    for text in parts
  ]
  np.testing.assert_array_equal(found.tried(), np.cumsum(smalls))
  logits, pooled = exits.everything(stages, variables(), IMAGES, size=5)
  little, own = made.part(MODEL, variables(), {"image": IMAGES}, "ffn=1/2")
  want, _ = jax.jit(little.apply)(own, made.normalise(IMAGES))
  assert gap(logits[:, 0], want) < 1e-6 and not pooled


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("texts", "says"),
  [
    (("ffn=1/2", "full"), "exit 'ffn=1/2': an exit is a depth"),
    (("depth=2", "depth=2", "full"), "should get deeper"),
    (("full", "depth=2"), "should get deeper"),
  ],
)
def test_exits_are_depths_that_rise(texts, says):
  with pytest.raises(UserError, match=says):
    exits.by_depth(task(), MODEL, texts)


def test_a_family_without_layers_is_told():
  model = toys.Pair(num_classes=4)
  says = r"tests\.toys has no stack of blocks"
  with pytest.raises(UserError, match=says), exits.at_stack():
    model.init(jax.random.key(0), np.zeros((1, *IMAGE)))
  with pytest.raises(UserError, match="no 'depth' to cut"):
    exits.by_depth(task(), model, DEPTHS)


class Twice(nn.Module):
  """Two stacks, as a pyramid has."""

  @nn.compact
  def __call__(self, x):
    for name in "ab":
      x, _ = exits.Stack(None, 0, name=name)(x)
    return x, {}


def test_two_stacks_are_refused():
  says = "has several stacks of blocks"
  with pytest.raises(UserError, match=says), exits.at_stack():
    Twice().init(jax.random.key(0), np.zeros((1, 2, 4)))
