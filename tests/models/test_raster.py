"""Raster models: what a place may see, their shape, one token at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale import zoo
from vitscale.core import accounting, axes
from vitscale.core.errors import UserError
from vitscale.models import raster

TOY = {**raster.variant("mu"), "num_classes": 3, "vocabulary": 7}
SHAPE = (2, 3, 2)  # 12 integers


def codes(b=2, shape=SHAPE, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 7, (b, *shape)).astype(np.int32)


@functools.cache
def made(shape=SHAPE, **options):
  """(model, variables off zero, jitted apply) of a toy."""
  model = raster.Model(**{**TOY, **options})
  init = jax.jit(model.init)(jax.random.key(0), codes(shape=shape))
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
  return model, jax.tree.map(move, axes.unbox(init)), jax.jit(model.apply)


def test_a_new_model_knows_nothing():
  """Every integer is as likely: the loss is the log of the vocabulary."""
  model = raster.Model(**TOY)
  init = axes.unbox(jax.jit(model.init)(jax.random.key(0), codes()))
  logits, out = model.apply(init, codes())
  assert logits.shape == (2, 12, 7) and logits.dtype == jnp.float32
  assert not np.any(logits)
  ((features, stride),) = out["features"]
  assert features.shape == (2, 2, 3, 32) and stride == (1, 1)


def test_a_place_sees_what_lies_before_it_and_nothing_else():
  _, variables, run = made()
  x = codes(1)
  logits = np.asarray(run(variables, x)[0][0])
  flat = x.reshape(1, -1)
  for at in (0, 5, 10):
    other = flat.copy()
    other[0, at] = (other[0, at] + 1) % 7
    moved = np.abs(run(variables, other.reshape(x.shape))[0][0] - logits)
    moved = moved.max(-1)
    np.testing.assert_array_equal(moved[: at + 1], 0)
    assert (moved[at + 1 :] > 1e-6).all(), at


def test_a_row_is_an_image_of_one_row():
  _, variables, run = made((1, 6, 1))
  x = codes(shape=(1, 6, 1))
  flat = run(variables, x.reshape(2, 6))[0]
  np.testing.assert_array_equal(run(variables, x)[0], flat)


def test_classes_stand_in_front():
  _, variables, run = made()
  x = np.tile(codes(1), (4, 1, 1, 1))
  logits, _ = run(variables, x, jnp.asarray([0, 1, 1, 3]))
  np.testing.assert_allclose(logits[1], logits[2], atol=1e-6)
  assert np.abs(logits[0] - logits[1]).max(-1).min() > 1e-6  # at every place
  none = run(variables, x)[0]
  np.testing.assert_allclose(logits[3], none[0], atol=1e-6)


def test_what_does_not_exist_is_loud():
  _, variables, run = made()
  for wrong in (7, -1):
    x = codes()
    x[1, 1, 0, 0] = wrong
    logits = np.asarray(run(variables, x)[0])
    assert np.isfinite(logits[0]).all() and np.isnan(logits[1]).all()
  beyond = run(variables, codes(), jnp.asarray([0, 4]))[0]
  assert np.isfinite(beyond[0]).all() and np.isnan(beyond[1]).all()


def test_floats_are_levels():
  x = jnp.asarray([-1.0, -0.51, -0.49, 0.0, 0.99, 1.0, 3.0])
  np.testing.assert_array_equal(raster.levels(x, 4), [0, 0, 1, 2, 3, 3, 3])
  whole = jnp.asarray([0, 3], jnp.uint8)
  assert raster.levels(whole, 4) is whole


# ---------------------------------------------------------- one at a time


@pytest.mark.parametrize("options", [{}, {"scan": True, "qk_norm": True}])
def test_one_at_a_time_equals_all_at_once(options):
  """In a scan, from an empty cache: the logits of the parallel call."""
  model, variables, run = made(**options)
  x, label = codes(3), jnp.asarray([0, 2, 3])
  want, _ = run(variables, x, label)
  single, own = model.looped(variables)

  @jax.jit
  def decode(own, flat):
    def body(kept, at):
      before = flat[:, jnp.maximum(at - 1, 0)]
      logits, new = single.apply(
        {**own, "cache": kept}, before, at, label, SHAPE,
        method="step", mutable=["cache"],
      )  # fmt: skip
      return new["cache"], logits

    empty = single.cache(3, 12)
    kept, logits = jax.lax.scan(body, empty, jnp.arange(12))
    assert jax.tree.structure(kept) == jax.tree.structure(empty)
    return logits

  logits = decode(own, x.reshape(3, -1)).swapaxes(0, 1)
  np.testing.assert_allclose(logits, want, atol=2e-5)
  assert np.abs(want).max() > 0.1


# -------------------------------------------------------------------- shape


@pytest.mark.parametrize("name", [n for n in raster.VARIANTS if n != "mu"])
def test_the_shape_of_2010_14701(name):
  """m_mlp 1, m_attn 1/4, width / depth about 10, 3 d^2 weights a layer."""
  kwargs = raster.variant(name)
  d, depth = kwargs["width"], kwargs["depth"]
  assert name == f"d{d}" and kwargs["mlp_dim"] == d
  assert kwargs["num_heads"] * kwargs["head_dim"] == d // 4
  assert 9.5 < d / depth < 11
  model = raster.Model(num_classes=0, scan=True, **kwargs)
  image = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.int32)
  boxed = zoo.boxed(raster, model.clone(num_classes=2), image)
  shapes, names = axes.unbox(boxed)["params"], axes.names_of(boxed)["params"]
  counted = accounting.params_by_role(shapes, names)
  # Norms and biases besides: 2 norms, biases of q, k, v, out and the MLP.
  bias = 2 * 2 * d + 3 * d // 4 + d + 2 * d
  assert counted["non_embedding"] == depth * (3 * d * d + bias) + 2 * d
  assert counted["embedding"] == (3 + 2 * 256 + 4 + 4 + 3) * d + 256


def test_compute_is_two_macs_a_parameter_and_token():
  """C = 6 N D of 2010.14701 is three times that; attention comes on top."""
  kwargs, shape = raster.variant("d256"), (8, 8, 3)
  d, n = 256, math.prod(shape)
  macs = raster.flops_per_image(kwargs, shape)
  of_attention = 26 * 2 * n * n * d // 4
  assert macs - of_attention - n * d * 256 == n * 26 * 3 * d * d


@pytest.mark.parametrize(
  "options, shape, text",
  [
    ({"num_classes": 0}, SHAPE, "without classes got labels"),
    ({"num_heads": 3, "head_dim": None}, SHAPE, "num_heads 3 does not divide"),
    ({"remat": "most"}, SHAPE, "remat 'most'"),
  ],
)
def test_refuses(options, shape, text):
  model = raster.Model(**{**TOY, **options})
  init = functools.partial(model.init, jax.random.key(0))
  with pytest.raises(UserError, match=text) as error:
    jax.eval_shape(init, codes(1, shape), jnp.zeros(1, jnp.int32))
  assert "\n" not in str(error.value)


def test_refuses_other_channels_and_names():
  model, variables, _ = made()
  for shape in ((2, 3, 1), (2, 3, 3)):
    with pytest.raises(UserError, match=f"of 2 channels got {shape[2]}"):
      jax.eval_shape(model.apply, variables, codes(1, shape))
  model, variables, _ = made((2, 3, 1))
  with pytest.raises(UserError, match="of 1 channels got 2"):
    jax.eval_shape(model.apply, variables, codes())
  with pytest.raises(UserError, match=r"raster size 'd257'.*'d256'"):
    raster.variant("d257")
