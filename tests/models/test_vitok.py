"""ViTok: its published sizes, its places, 1-D latents, videos."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale import zoo
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import vitok

TOY = {
  **vitok.variant("mu/4"), "channels": 1, "bottleneck": "kl(4)",
}  # fmt: skip


def made(shape=(8, 12, 1), **options):
  """(model, variables) of a toy whose images are `shape`."""
  model = vitok.Model(**{**TOY, "channels": shape[-1], **options})
  zeros = jnp.zeros((1, *shape))
  return model, axes.unbox(jax.jit(model.init)(jax.random.key(0), zeros))


def noise(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# Table 1 of 2501.09755, 256 tokens of 16 x 16 x 3 pixels: parameters in
# millions, multiply-accumulates (printed as FLOPs) in thousands of millions.
@pytest.mark.parametrize(
  "size, params, macs",
  [("S", 43.3, 11.6), ("B", 85.8, 23.1), ("L", 383.7, 101.8)],
)
def test_published_sizes(size, params, macs):
  kwargs = {**vitok.variant(f"{size}-S/16"), "encoder_table": True}
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  boxed = zoo.boxed(vitok, vitok.Model(**kwargs, scan=True), image)
  shapes = axes.unbox(boxed)["params"]
  own = ("embed", "table", "encoder", "encoder_norm")
  found = sum(x.size for k in own for x in jax.tree.leaves(shapes[k]))
  assert round(found / 1e6, 1) == params
  less = {**kwargs, "encoder_depth": 0}
  blocks = vitok.flops_per_image(kwargs, (256, 256, 3)) - vitok.flops_per_image(
    less, (256, 256, 3)
  )
  embed = 256 * 768 * kwargs["encoder_width"]
  assert round((blocks + embed) / 1e9, 1) == macs


# Table of final comparisons, both halves (the first is printed as 129).
@pytest.mark.parametrize(
  "name, params, macs", [("S-B/16", 128.9, 34.8), ("S-L/16", 426.8, 113.4)]
)
def test_published_pairs(name, params, macs):
  kwargs = {**vitok.variant(name), "encoder_table": True}
  image = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  boxed = zoo.boxed(vitok, vitok.Model(**kwargs, scan=True), image)
  shapes = axes.unbox(boxed)["params"]
  passes = ("neck", "into")  # the bottleneck is not in the table
  found = sum(
    x.size for k, v in shapes.items() if k not in passes
    for x in jax.tree.leaves(v)
  )  # fmt: skip
  assert round(found / 1e6, 1) == params
  counted = vitok.flops_per_image(kwargs, (256, 256, 3)) / 1e9
  assert round(counted, 1) == macs


def test_places_are_known_by_rotation_alone():
  """Tokens that swap places are coded as if they had: not without rope."""
  x = noise(1, 8, 8, 1)
  swapped = np.concatenate([x[:, 4:], x[:, :4]], 1)
  for position, alike in (("none", True), ("rope", False), ("rope1d", False)):
    model, variables = made((8, 8, 1), position=position)
    run = jax.jit(functools.partial(model.apply, method="encode"))
    z = run(variables, x)[0].reshape(2, 2, 4)
    other = run(variables, swapped)[0].reshape(2, 2, 4)
    assert np.allclose(z, other[::-1], atol=1e-5) == alike, position


def test_video_equals_its_frames_without_places():
  """One frame a token is the image's code; more frames change the patch."""
  video = noise(2, 4, 8, 8, 1)
  model, variables = made((4, 8, 8, 1), tubelet=2)
  y, out = jax.jit(model.apply)(variables, video)
  assert y.shape == video.shape and y.dtype == jnp.float32
  assert out["latent"].shape == (2, 2 * 2 * 2, 4)
  ((features, stride),) = out["features"]
  assert features.shape == (2, 2, 2, 2, 32) and stride == (2, 4, 4)
  single, image_variables = made((8, 8, 1))
  shapes = functools.partial(jax.tree.map, jnp.shape)
  one = vitok.Model(**{**TOY, "tubelet": 1})
  boxed = jax.eval_shape(one.init, jax.random.key(0), video[:, :1])
  assert shapes(axes.unbox(boxed)) == shapes(image_variables)
  y, _ = single.apply(image_variables, video[:, 0])
  framed, _ = one.apply(image_variables, video[:, :1])
  np.testing.assert_allclose(framed[:, 0], y, atol=1e-6)


def test_tubelets_are_cut_and_joined():
  video = noise(2, 4, 8, 12, 3)
  tokens = vitok.patchify(video, (2, 4, 6))
  assert tokens.shape == (2, 2, 2, 2, 2 * 4 * 6 * 3)
  first = video[0, :2, :4, :6].reshape(-1)
  np.testing.assert_array_equal(tokens[0, 0, 0, 0], first)
  np.testing.assert_array_equal(vitok.unpatchify(tokens, (2, 4, 6)), video)


def test_one_dimensional_latents():
  """So many tokens pass, whatever the image; fewer of them decode it too."""
  model, variables = made((8, 8, 1), latent_tokens=3)
  run = jax.jit(model.apply, static_argnames="keep")
  x = noise(2, 8, 8, 1)
  y, out = run(variables, x)
  assert out["latent"].shape == (2, 3, 4) and y.shape == x.shape
  some, _ = run(variables, x, keep=2)
  whole, _ = run(variables, x, keep=3)
  np.testing.assert_array_equal(whole, y)
  assert np.abs(some - y).max() > 1e-4
  # What the third token says does not matter where two are kept.
  z = np.array(out["latent"])
  decode = jax.jit(
    functools.partial(model.apply, method="decode"), static_argnums=2
  )
  z[:, 2] = 7.0
  kept, _ = decode(variables, z[:, :2], x.shape[1:])
  np.testing.assert_allclose(kept, some, atol=1e-5)


def test_encode_then_decode_is_the_call():
  model, variables = made()
  x = noise(2, 8, 12, 1)
  y, out = model.apply(variables, x)
  z, _ = model.apply(variables, x, method="encode")
  again, _ = model.apply(variables, z, x.shape[1:], method="decode")
  np.testing.assert_array_equal(z, out["latent"])
  np.testing.assert_allclose(again, y, atol=1e-6)


@pytest.mark.parametrize(
  "options, shape, text",
  [
    ({"patch_size": 5}, (8, 8, 1), "patch 5 does not divide image height 8"),
    ({"tubelet": 3}, (4, 8, 8, 1), "tubelet 3 does not divide 4 frames: use"),
    ({"tubelet": 2}, (8, 8, 1), "tubelet 2 does not divide 1 frames: use 1"),
    ({"position": "rope4"}, (8, 8, 1), "position 'rope4'"),
    ({"encoder_num_heads": 3}, (8, 8, 1), "encoder_num_heads 3 does not"),
    ({"encoder_table": True}, (2, 8, 8, 1), "encoder_table: a table of images"),
    ({"bottleneck": "kl(0)"}, (8, 8, 1), "code is 1 or more floats"),
  ],
)
def test_refuses(options, shape, text):
  with pytest.raises(UserError, match=text) as error:
    made(shape, **options)
  assert "\n" not in str(error.value)


def test_refuses_to_keep_what_is_not_there():
  model, variables = made((8, 8, 1), latent_tokens=3)
  for keep in (0, 4):
    with pytest.raises(UserError, match=f"keep={keep}: 1 to latent_tokens=3"):
      model.apply(variables, jnp.zeros((1, 8, 8, 1)), keep=keep)
  model, variables = made((8, 8, 1))
  with pytest.raises(UserError, match=r"set model\.latent_tokens"):
    model.apply(variables, jnp.zeros((1, 8, 8, 1)), keep=1)


def test_variants():
  assert vitok.variant("S-L/4x16")["tubelet"] == 4
  assert vitok.variant("S-L/4x16")["decoder_width"] == 1152
  with pytest.raises(UserError, match="write 'S-B/16' or '/4x16'"):
    vitok.variant("S-B/a")
