"""DiT: its published sizes, its modulation, its classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale import zoo
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import dit

TOY = {**dit.variant("mu/4"), "depth": 1, "channels": 1, "num_classes": 3}


def noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


@functools.cache
def made(moved=True, **options):
  """(model, variables, jitted apply) of a toy; `moved` off its zeros."""
  model = dit.Model(**{**TOY, **options})
  zeros = jnp.zeros((1, 8, 12, model.channels))
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), zeros))
  if moved:
    move = lambda x: x + 0.1 * noise(*x.shape, seed=1)
    variables = jax.tree.map(move, variables)
  return model, variables, jax.jit(model.apply)


# Tables 1 and 4 of 2212.09748, latents of 32 x 32 x 4: multiply-accumulates
# (printed as FLOPs) in thousands of millions, parameters in millions. The
# paper's counter takes a norm for one operation an element besides.
@pytest.mark.parametrize(
  "name, params, macs",
  [("S/2", 33, 6.06), ("B/2", 130, 23.01), ("L/2", 458, 80.71),
   ("XL/2", 675, 118.64)],
)  # fmt: skip
def test_published_sizes(name, params, macs):
  kwargs = {"channels": 4, "learn_sigma": True, "num_classes": 1000}
  kwargs |= dit.variant(name)
  image = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32)
  boxed = zoo.boxed(dit, dit.Model(**kwargs, scan=True), image)
  shapes = jax.tree.leaves(axes.unbox(boxed))
  assert round(sum(x.size for x in shapes) / 1e6) == params
  norms = 256 * kwargs["width"] * (2 * kwargs["depth"] + 1)
  counted = dit.flops_per_image(kwargs, (32, 32, 4)) + norms
  assert round(counted / 1e9, 2) == macs


def test_a_new_model_predicts_zero_and_its_blocks_change_nothing():
  _, variables, run = made(moved=False)
  x = noise(2, 8, 12, 1)
  y, out = run(variables, x, jnp.asarray([0.1, 0.9]), jnp.asarray([0, 3]))
  assert y.shape == x.shape and y.dtype == jnp.float32
  assert not np.any(y)
  assert not np.any(out["encoder"]["block_00"]["sa"])
  ((features, stride),) = out["features"]
  assert features.shape == (2, 2, 3, 32) and stride == (4, 4)
  assert np.any(features)


def test_examples_are_told_apart_by_time_and_class_alone():
  """One image four times: equal where time and class are, and only there."""
  _, variables, run = made()
  x = np.tile(noise(1, 8, 12, 1), (4, 1, 1, 1))
  time, label = jnp.asarray([0.2, 0.2, 0.7, 0.2]), jnp.asarray([1, 1, 1, 2])
  y, _ = run(variables, x, time, label)
  np.testing.assert_allclose(y[0], y[1], atol=1e-6)
  assert np.abs(y[0] - y[2]).max() > 1e-3
  assert np.abs(y[0] - y[3]).max() > 1e-3


def test_no_label_is_the_last_and_no_time_is_zero():
  model, variables, run = made()
  x = noise(2, 8, 12, 1)
  said = run(variables, x, jnp.zeros(2), jnp.full(2, model.num_classes))[0]
  np.testing.assert_array_equal(run(variables, x)[0], said)
  beyond = run(variables, x, jnp.zeros(2), jnp.asarray([0, 4]))[0]
  assert np.isfinite(beyond[0]).all() and np.isnan(beyond[1]).all()


@pytest.mark.parametrize("position, alike", [("none", True), ("rope2d", False)])
def test_positions(position, alike):
  """Halves of an image that swap places: their results do, without places."""
  _, variables, run = made(position=position)
  swap = lambda x: np.concatenate([x[:, 4:], x[:, :4]], 1)
  x = noise(1, 8, 12, 1)
  y, other = run(variables, x)[0], run(variables, swap(x))[0]
  assert np.allclose(swap(np.asarray(y)), other, atol=1e-5) == alike


def test_a_variance_lies_beside_the_prediction():
  _, variables, run = made(learn_sigma=True)
  y, out = run(variables, noise(2, 8, 12, 1))
  assert y.shape == out["variance"].shape == (2, 8, 12, 1)
  assert np.abs(y - out["variance"]).max() > 1e-3


@pytest.mark.parametrize(
  "options, text",
  [
    ({"channels": 2}, r"of 2 channels got 1: set model\.channels=1"),
    ({"num_classes": 0}, "without classes got labels"),
    ({"position": "sincos"}, "position 'sincos'"),
    ({"patch_size": 5}, "patch 5 does not divide"),
    ({"num_heads": 3}, "num_heads 3 does not divide width 32"),
    ({"remat": "most"}, "remat 'most'"),
  ],
)
def test_refuses(options, text):
  model = dit.Model(**{**TOY, **options})
  x, label = jnp.zeros((1, 8, 12, 1)), jnp.zeros(1, jnp.int32)
  init = functools.partial(model.init, jax.random.key(0))
  with pytest.raises(UserError, match=text) as error:
    jax.eval_shape(init, x, jnp.zeros(1), label)
  assert "\n" not in str(error.value)


def test_refuses_names():
  with pytest.raises(UserError, match="DiT size 'XXL' in 'XXL/2'"):
    dit.variant("XXL/2")
  with pytest.raises(UserError, match="patch '2x2'"):
    dit.variant("S/2x2")
