"""Discriminators: shapes, who is scored with whom, and that they can tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import accounting, axes
from vitscale.core.errors import UserError
from vitscale.nn import discriminator

TEXTS = {"residual": "residual(4, 8)", "patch": "patch(4, 2)"}


def drawn(*shape, seed=0):
  draw = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(draw, jnp.float32)


def made(text, image):
  module = discriminator.parse(text)()
  variables = axes.unbox(jax.jit(module.init)(jax.random.key(0), image))
  return module, variables, jax.jit(module.apply)


def shape_of(text, *shape):
  module = discriminator.parse(text)()
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  run = lambda key, x: module.init_with_output(key, x)
  return jax.eval_shape(run, jax.random.key(0), image)


@pytest.mark.parametrize(
  ("text", "image", "scores"),
  [
    ("residual(4, 8)", (3, 16, 16, 3), (3,)),
    ("residual(4, 8)", (3, 4, 4, 1), (3,)),
    ("residual(4, 8)", (3, 24, 40, 1), (3,)),  # ends at 6 x 10
    ("residual(4, 8)", (2, 5, 16, 16, 3), (10,)),
    ("patch(4, 2)", (3, 16, 16, 3), (3, 2, 2)),
    ("patch(4, 2)", (2, 5, 16, 24, 3), (10, 2, 4)),
    ("patch", (1, 256, 256, 3), (1, 30, 30)),  # as published
  ],
)
def test_shapes(text, image, scores):
  found, boxed = shape_of(text, *image)
  assert found.shape == scores and found.dtype == jnp.float32
  shapes, named = axes.unbox(boxed["params"]), axes.names_of(boxed["params"])
  jax.tree.map(lambda a, x: len(a.names) == x.ndim or 1 / 0, named, shapes)


def test_it_halves_down_to_4_and_doubles_up_to_most():
  _, boxed = shape_of("residual(4, 12)", 1, 64, 64, 3)
  params = axes.unbox(boxed["params"])
  widths = [params[f"second{i}"]["kernel"].shape[2:] for i in range(4)]
  assert widths == [(4, 8), (8, 12), (12, 12), (12, 12)]
  assert "second4" not in params
  assert params["hidden"]["kernel"].shape == (4 * 4 * 12, 12)
  assert params["last"]["kernel"].shape[2] == 13  # and the spread


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_image_alone_decides_but_for_the_spread(text):
  """Another image in the batch changes `residual` through one channel."""
  x = drawn(3, 16, 16, 1)
  _, variables, run = made(text, x)
  whole = run(variables, x)
  other = run(variables, x.at[2].set(3 * x[2]))
  if text == TEXTS["patch"]:
    np.testing.assert_allclose(whole[:2], other[:2], rtol=1e-4, atol=1e-5)
  else:
    assert np.abs(whole[:2] - other[:2]).max() > 1e-4
    kernel = variables["params"]["last"]["kernel"]
    variables["params"]["last"]["kernel"] = kernel.at[:, :, -1].set(0)
    whole, other = run(variables, x), run(variables, x.at[2].set(3 * x[2]))
    np.testing.assert_allclose(whole[:2], other[:2], rtol=1e-4, atol=1e-5)
  assert np.abs(whole[2] - other[2]).max() > 1e-3


def test_frames_of_videos_are_scored_as_images():
  video = drawn(2, 3, 16, 16, 1)
  _, variables, run = made(TEXTS["residual"], video)
  flat = video.reshape(6, 16, 16, 1)
  np.testing.assert_allclose(
    run(variables, video), run(variables, flat), rtol=1e-5, atol=1e-6
  )


def test_spread_is_a_standard_deviation():
  x = drawn(5, 2, 3, 4)
  want = np.asarray(x).std(0).mean()
  np.testing.assert_allclose(discriminator.spread(x), want, rtol=1e-5)
  same = jnp.broadcast_to(x[:1], x.shape)
  assert discriminator.spread(same).shape == (5, 2, 3, 1)
  assert np.abs(discriminator.spread(same)).max() < 1e-3


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_it_learns_to_tell_smooth_from_rough(text):
  """Equal means and variances; of held-out images nearly all."""

  def batch(seed):
    rough = drawn(16, 16, 16, 1, seed=seed)
    smooth = drawn(16, 4, 4, 1, seed=seed + 1)
    return jnp.concatenate([rough, smooth.repeat(4, 1).repeat(4, 2)])

  sign = jnp.repeat(jnp.array([1.0, -1.0]), 16)
  module = discriminator.parse(text)()
  score = lambda v, x: module.apply(v, x).reshape(len(x), -1).mean(1)

  @jax.jit
  def step(variables, x):
    hinge = lambda v: jax.nn.relu(1 - sign * score(v, x)).mean()
    grads = jax.grad(hinge)(variables)
    return jax.tree.map(lambda p, g: p - 0.1 * g, variables, grads)

  variables = made(text, batch(0))[1]
  for seed in range(60):
    variables = step(variables, batch(10 * seed))
  told = sign * jax.jit(score)(variables, batch(5555)) > 0
  assert told.mean() > 0.9


def test_convolutions_are_counted():
  """So that a step's FLOPs have the discriminator's: 1 x 1 and 3 x 3."""
  module = discriminator.parse("residual(4, 8)")()
  x = jnp.zeros((1, 8, 8, 3))
  variables = axes.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
  counted = accounting.count_flops(module.apply, variables, x).matmul // 2
  # Of a 3 x 3 kernel what lies inside the image, (3 n - 2)^2 products.
  want = 8**2 * 3 * 4 + 22**2 * (4 * 4 + 4 * 8) + 4**2 * 4 * 8
  want += 10**2 * 9 * 8 + 128 * 8 + 8
  assert counted == want


@pytest.mark.parametrize(
  ("text", "size", "said"),
  [
    ("residual(4, 8)", (3, 16), "need 4 pixels a side, got"),
    ("residual(4, 8)", (18, 18), "18x18 pixels can't be halved 2 times; want"
     " multiples of 4"),
    ("residual(8, 4)", (16, 16), "want 1 <= width <= most"),
    ("patch(4, 3)", (16, 16), "need 24 pixels a side"),
    ("patch(4, 0)", (16, 16), "width and depth are 1 or more"),
    ("residul", (16, 16), "no such discriminator, did you mean 'residual'"),
    ("patch(4.0)", (16, 16), "width should be int"),
    ("patch(depht=1)", (16, 16), "no option 'depht', did you mean 'depth'"),
  ],
)  # fmt: skip
def test_refuses(text, size, said):
  with pytest.raises(UserError, match=said) as error:
    shape_of(text, 1, *size, 1)
  assert "\n" not in str(error.value)
