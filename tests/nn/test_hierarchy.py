"""Scales of a token map: areas, places, who sees whom, the same elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes, tree
from vitscale.core.accounting import count_flops
from vitscale.core.errors import UserError
from vitscale.models import vitok
from vitscale.nn import block, hierarchy, layers

SIZES = "scales(1, 2)"
TOY = {
  **vitok.variant("mu/4"), "channels": 1, "bottleneck": "plain(3)",
  "encoder_width": 16, "decoder_width": 16, "encoder_mlp_dim": 32,
  "decoder_mlp_dim": 32, "encoder_depth": 1, "decoder_depth": 1,
}  # fmt: skip
IMAGE = np.random.default_rng(0).normal(size=(2, 12, 20, 1)).astype("f4")


@functools.cache
def made(**options):
  """(model, variables) on a 3 x 5 map, every parameter a little moved."""
  model = vitok.Model(**{**TOY, "hierarchy": SIZES, **options})
  boxed = jax.jit(model.init)(jax.random.key(0), IMAGE)
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.05 * rng.normal(size=x.shape).astype("f4")
  return model, jax.tree.map(move, jax.device_get(axes.unbox(boxed)))


def outcome(model, variables):
  """(loss, gradient of the parameters)."""

  def loss(params):
    y, _ = model.apply({"params": params}, IMAGE)
    return jnp.square(y - IMAGE).mean()

  return jax.jit(jax.value_and_grad(loss))(variables["params"])


def gap(a, b):
  far = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
  return max(jax.tree.leaves(far))


# ----------------------------------------------------------------------- parts


@pytest.mark.parametrize("old, new", [(6, 3), (5, 2), (7, 3), (4, 4), (5, 1)])
def test_areas_are_means_over_equal_parts(old, new):
  found = hierarchy.areas(old, new)
  assert found.shape == (new, old)
  np.testing.assert_allclose(found.sum(1), 1)
  np.testing.assert_allclose(found.sum(0), new / old)  # nothing counts twice
  fine = np.repeat(np.arange(old, dtype=float) ** 2, new)  # of 1/new cells
  want = fine.reshape(new, old).mean(1)
  np.testing.assert_allclose(found @ np.arange(old) ** 2.0, want)


def test_pooling_is_that_of_both_sides():
  x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype("f4")
  want = x.reshape(2, 2, 2, 2, 3, 3).mean((2, 4))
  np.testing.assert_allclose(hierarchy.pooled(x, (2, 2)), want, rtol=1e-5)


def test_coarse_tokens_lie_in_the_middle_of_what_they_cover():
  fine = hierarchy.centres((4, 6), (4, 6))
  coarse = hierarchy.centres((2, 2), (4, 6))
  covered = fine.reshape(2, 2, 2, 3, 2).mean((1, 3)).reshape(4, 2)
  np.testing.assert_allclose(coarse, covered)


# ------------------------------------------------------------------ who sees


def parts(mask, image):
  model, variables = made(hierarchy=f'scales(1, 2, mask="{mask}")')
  run = jax.jit(functools.partial(model.apply, method="encode"))
  z, out = run(variables, image)
  stack = out["scales"]
  last = block.parts_of(stack, 1)["+mlp"]
  return np.asarray(z), np.asarray(last)


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_coarse_scales_do_not_see_finer_ones(mask):
  """A change with equal means in all areas reaches the finest scale alone.

  It is put into the tokens behind the encoder, as the module reads them.
  """
  grid, d = (1, 4, 4), 16
  attend = functools.partial(block.Block, d, 2, 8, 32)
  factory = hierarchy.parse(f'scales(1, 2, mask="{mask}")')
  module = factory(attend, d, 8)
  x = np.random.default_rng(0).normal(size=(1, 16, d)).astype("f4")
  variables = axes.unbox(module.init(jax.random.key(0), x, grid))
  # Of some channels: norms take out what all have in common.
  ripple = np.tile([[1.0, -1.0], [-1.0, 1.0]], (2, 2)).reshape(1, 16, 1)
  ripple = ripple * (np.arange(d) < 4)
  run = lambda x: block.parts_of(module.apply(variables, x, grid)[1], 1)["+mlp"]
  moved = np.abs(run(x + ripple.astype("f4")) - run(x)).max((0, 2))
  assert moved.shape == (1 + 4 + 16,)
  assert (moved[5:] > 1e-3).all()
  assert (moved[:5] < 1e-5).all() == (mask == "causal")
  # The coarsest is seen by all: a change of the mean moves everything.
  shifted = np.abs(run(x + np.eye(d, dtype="f4")[0]) - run(x)).max((0, 2))
  assert (shifted > 1e-3).all()


def test_the_mask_is_heard_by_the_latent():
  (z, last), (other, _) = parts("causal", IMAGE), parts("full", IMAGE)
  assert z.shape == other.shape == (2, 15, 3)  # E as without scales
  assert last.shape == (2, 1 + 4 + 15, 16)
  assert np.abs(z - other).max() > 1e-4


# ---------------------------------------------------------------- the contract


@pytest.mark.slow
def test_gradients_scan_remat_and_axes():
  model, variables = made()
  loss, grads = outcome(model, variables)
  flat = tree.flatten(grads)
  assert np.isfinite(loss) and any("scales/scale" in k for k in flat)
  for name, g in flat.items():
    assert np.isfinite(g).all() and np.any(g), name
  stacked = layers.stack_layers(variables)
  looped = outcome(vitok.Model(**{**TOY, "hierarchy": SIZES, "scan": True}),
                   stacked)  # fmt: skip
  assert abs(looped[0] - loss) < 1e-5
  assert gap(layers.unstack_layers(looped[1]), grads) < 1e-5
  for policy in ("full", "save_attention"):
    again = vitok.Model(**{**TOY, "hierarchy": SIZES, "remat": policy})
    found = outcome(again, variables)
    assert abs(found[0] - loss) < 1e-5 and gap(found[1], grads) < 1e-5
  boxed = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
  named = tree.flatten(axes.names_of(boxed)["params"])
  assert named["scales/scale"].names == ("pos", "embed")


def test_bfloat16_is_near():
  _, variables = made()
  low = vitok.Model(**{**TOY, "hierarchy": SIZES, "dtype": "bfloat16"})
  y, _ = jax.jit(low.apply)(variables, IMAGE)
  want, _ = jax.jit(made()[0].apply)(variables, IMAGE)
  assert 0 < np.abs(y - want).max() < 0.1 * np.abs(want).max()


@pytest.mark.parametrize("text", ["scales()", "scales(1, 2, blocks=3)"])
def test_flops_by_hand(text):
  options = {**TOY, "hierarchy": text}
  model = vitok.Model(**options)
  image = jax.ShapeDtypeStruct((1, *IMAGE.shape[1:]), jnp.float32)
  shapes = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  counted = count_flops(model.apply, shapes, image).matmul // 2
  assert counted == vitok.flops_per_image(options, IMAGE.shape[1:])


def test_one_scale_is_blocks_alone():
  """The control of `experiments/hieratok`: an encoder with more layers, but
  for the one embedding."""
  model, variables = made(hierarchy="scales(blocks=2)")
  params = variables["params"]
  names = {k for k in tree.flatten(params) if k.startswith("scales/")}
  assert {k.split("/")[1] for k in names} == {"scale", "stack"}
  deep = vitok.Model(**{**TOY, "encoder_depth": 3})
  own = {**params, "encoder": {**params["encoder"], **{
    f"block_0{i + 1}": params["scales"]["stack"][f"block_0{i}"]
    for i in range(2)
  }}}  # fmt: skip
  del own["scales"]
  still = {**params, "scales": {**params["scales"],
                                "scale": np.zeros((1, 16), "f4")}}  # fmt: skip
  y, _ = jax.jit(model.apply)({"params": still}, IMAGE)
  want, _ = jax.jit(deep.apply)({"params": own}, IMAGE)
  np.testing.assert_allclose(y, want, atol=1e-5)


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  "options, says",
  [
    ({"hierarchy": "scale(1)"}, r"write 'scales\(1, 2, 4\)'"),
    ({"hierarchy": "scales(2, 1)"}, "whole numbers that rise"),
    ({"hierarchy": "scales(0, 1)"}, "whole numbers that rise"),
    ({"hierarchy": "scales(1.0)"}, "whole numbers that rise"),
    ({"hierarchy": "scales(1, blocks=0)"}, "blocks should be 1 or more"),
    ({"hierarchy": "scales(1, block=2)"}, "no option 'block'.*blocks"),
    ({"hierarchy": "scales(1, mask='casual')"}, "mask 'casual'.*causal"),
    ({"hierarchy": "scales(1, 3)"}, "3 cells a side are no coarser .* 3 x 5"),
    ({"position": "rope1d"}, "no rope1d and no latent_tokens"),
    ({"latent_tokens": 3}, "no rope1d and no latent_tokens"),
  ],
)
def test_bad_options(options, says):
  model = vitok.Model(**{**TOY, "hierarchy": SIZES, **options})
  with pytest.raises(UserError, match=says) as e:
    jax.eval_shape(model.init, jax.random.key(0), IMAGE)
  assert "\n" not in str(e.value)


def test_videos_are_refused():
  model = vitok.Model(**{**TOY, "hierarchy": SIZES})
  with pytest.raises(UserError, match="scales of images, these are videos"):
    jax.eval_shape(model.init, jax.random.key(0), IMAGE[None])
