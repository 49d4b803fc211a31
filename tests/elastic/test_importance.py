"""Importance is the slope of a mask; the order keeps the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes
from vitscale.core.axes import AxisError
from vitscale.elastic.importance import importance
from vitscale.models import vit
from vitscale.nn import layers

IMAGE = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype("f4")
MODEL = vit.Model(
  num_classes=4, width=16, depth=2, mlp_dim=12, num_heads=2, patch_size=4
)


def boxed(m):
  return jax.eval_shape(m.init, jax.random.key(0), IMAGE)


def loss(params, m=MODEL):
  return jnp.square(m.apply({"params": params}, IMAGE)[0] - 1).sum()


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: (0.2 * rng.normal(size=x.shape)).astype("f4"),
    axes.unbox(boxed(MODEL))["params"],
  )


WRITES = {"mlp": ("mlp", "down"), "heads": ("attention", "out")}


@pytest.mark.parametrize("axis", list(WRITES))
def test_is_the_slope_of_a_mask_by_differences(params, axis):
  grads = jax.jit(jax.grad(loss))(params)
  names = axes.names_of(boxed(MODEL))["params"]
  got = importance(params, grads, names, axis)
  module, last = WRITES[axis]
  run = jax.jit(loss)

  def at(layer, unit, m):
    copy = jax.tree.map(np.array, params)
    copy["encoder"][f"block_0{layer}"][module][last]["kernel"][unit] *= m
    return float(run(copy))

  for layer, unit in ((0, 0), (1, 1), (1, 0)):
    slope = (at(layer, unit, 1.02) - at(layer, unit, 0.98)) / 0.04
    assert got[layer, unit] == pytest.approx(abs(slope), rel=0.03, abs=2e-3)


def test_scanned_is_looped(params):
  scanned = MODEL.clone(scan=True)
  stacked = layers.stack_layers(params)
  grads = jax.jit(jax.grad(loss))(params)
  for axis in WRITES:
    want = importance(
      params, grads, axes.names_of(boxed(MODEL))["params"], axis
    )
    got = importance(
      stacked, layers.stack_layers(grads),
      axes.names_of(boxed(scanned))["params"], axis,
    )  # fmt: skip
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_an_axis_that_no_layer_reads(params):
  names = axes.names_of(boxed(MODEL))["params"]
  with pytest.raises(AxisError, match="'expert' has sizes"):
    importance(params, params, names, "expert")
