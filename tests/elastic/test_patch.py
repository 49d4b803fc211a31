"""Patch size as a key of specs: the kernel resized, positions kept."""

import jax
import numpy as np
import optax
import pytest

from tests.contract.families import gap
from vitscale.core import axes, tree
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import nest
from vitscale.interop import timm
from vitscale.models import pattention_vit, vit
from vitscale.nn import position
from vitscale.tasks import nested

IMAGE = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype("f4")


def model(kind="learned", **changes):
  return vit.Model(
    num_classes=5, width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4,
    position=kind, **changes,
  )  # fmt: skip


def boxed(m):
  return jax.eval_shape(m.init, jax.random.key(0), IMAGE)


def variables(m):
  rng = np.random.default_rng(1)
  draw = lambda x: (0.3 * rng.normal(size=x.shape)).astype("f4")
  return jax.tree.map(draw, axes.unbox(boxed(m)))


def cut(m, text, whole=None):
  little, kept = spec_lib.small(m, spec_lib.parse(text))
  shapes = axes.unbox(boxed(little))
  return little, nest(
    whole or variables(m), axes.names_of(boxed(m)), shapes, kept
  )


@pytest.mark.parametrize("text", ["patch=2", "patch=2x4", "patch=1"])
@pytest.mark.parametrize("kind", position.KINDS)
def test_cut_at_another_patch_is_the_flexible_call(kind, text):
  m = model(kind, pool="cls", registers=1)
  little, own = cut(m, text)
  size = spec_lib.parse(text).patch
  want, _ = jax.jit(lambda v: m.apply(v, IMAGE, patch_size=size))(variables(m))
  got, out = jax.jit(little.apply)(own, IMAGE)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert out["features"][0][1] == size
  assert gap(want, jax.jit(m.apply)(variables(m), IMAGE)[0]) > 1e-3


def test_other_cuts_go_with_it_and_cuts_of_a_cut():
  m = model("rope2d")
  little, own = cut(m, "patch=2 ffn=1/2")
  assert (little.patch_size, little.position_patch) == ((2, 2), 4)
  assert little.mlp_dim == 16
  again, _ = spec_lib.small(little, spec_lib.parse("patch=1"))
  assert (again.patch_size, again.position_patch) == ((1, 1), 4)
  same, kept = spec_lib.small(little, spec_lib.parse("patch=2"))
  assert same == little and kept.patches is None
  tokens = pattention_vit.Model(
    num_classes=5, width=16, depth=1, num_heads=2, patch_size=4, tokens=8,
    ffn_tokens=16,
  )  # fmt: skip
  little, own = cut(tokens, "patch=2")
  want, _ = jax.jit(lambda v: tokens.apply(v, IMAGE, patch_size=2))(
    variables(tokens)
  )
  np.testing.assert_allclose(
    jax.jit(little.apply)(own, IMAGE)[0], want, atol=1e-5
  )


def test_patches_are_granularities_of_a_nested_task():
  class Source:
    classes, mean, std = 5, (0.5,) * 3, (0.25,) * 3

  group = {
    "of": {"name": "classify"}, "granularities": ("patch=4 ffn=1/2", "patch=2"),
  }  # fmt: skip
  task, m = nested.make(Reader(group), Source), model("sincos2d")
  batch = {
    "image": np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), "uint8"),
    "label": np.arange(2).astype("int32"),
  }
  key = jax.random.key(0)
  rngs = {"dropout": key, "mix": key}
  loss = lambda v, text: task.loss(m, v, batch, rngs, {"nest": (text,)})[0]
  plain = lambda v: task.task.loss(m, v, batch, rngs, {"patch_size": 2})[0]
  got, grads = jax.jit(
    jax.value_and_grad(lambda v: loss(v, task.granularities[1]))
  )(variables(m))
  want, expected = jax.jit(jax.value_and_grad(plain))(variables(m))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert gap(grads, expected) < 1e-5  # through the resize, to one kernel
  assert str(spec_lib.parse(task.granularities[0])) == "ffn=1/2 patch=4"


@pytest.mark.parametrize("kind", ["sincos2d", "factorized"])
def test_the_exported_table_has_the_positions_of_the_parent(kind):
  little, own = cut(model(kind), "patch=2")
  state, kwargs = timm.export(own["params"], little, (8, 12, 3))
  assert kwargs["patch_size"] == [2, 2] and kwargs["img_size"] == [8, 12]
  _, out = jax.jit(little.apply)(own, IMAGE)
  added = (out["with_position"] - out["stem"].reshape(2, 24, 16))[0]
  np.testing.assert_allclose(state["pos_embed"][0], added, atol=1e-5)


def test_moments_are_not_resized():
  m = model()
  params = variables(m)["params"]
  names = axes.names_of(boxed(m))["params"]
  little, kept = spec_lib.small(m, spec_lib.parse("patch=2"))
  want = axes.unbox(boxed(little))["params"]
  state = optax.adam(1e-3).init(params)
  with pytest.raises(UserError, match="moments can't be resized"):
    nest(state, names, jax.eval_shape(optax.adam(1e-3).init, want), kept)
  sliced = tree.flatten(nest(params, names, want, kept))
  assert sliced["embed/kernel"].shape == (12, 16)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("patch=0", "patch=0: write the pixels"),
    ("patch=1/2", "patch=1/2: write the pixels"),
    ("patch=2,4", "patch=2,4: write the pixels"),
    ("patch=3", "patch 3 does not divide image height 8"),
  ],
)
def test_bad_patches(text, says):
  with pytest.raises(UserError, match=says):
    cut(model(), text)


@pytest.mark.parametrize("text", ["patch=8", "patch=8x4", "patch=1"])
def test_text_and_back(text):
  assert str(spec_lib.parse(text)) == text
