"""VAR: its published sizes, who sees whom, its classes, its two inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale import zoo
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import var
from vitscale.nn.bottlenecks import residual_vq

TOY = {
  **var.variant("mu"), "channels": 3, "vocabulary": 11, "num_classes": 3,
  "scales": (1, 2, 3),
}  # fmt: skip
N = 14


def noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


@functools.cache
def made(moved=True, **options):
  """(model, variables, jitted apply) of a toy; `moved` off its zeros."""
  model = var.Model(**{**TOY, **options})
  shown = jnp.zeros((1, N - model.scales[0] ** 2, model.channels))
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), shown))
  if moved:
    move = lambda x: x + 0.1 * noise(*x.shape, seed=1)
    variables = jax.tree.map(move, variables)
  return model, variables, jax.jit(model.apply)


# Section 5.1 and the released models, in millions: 1000 classes, 4096 codes.
@pytest.mark.parametrize(
  "name, million", [("d16", 310), ("d20", 600), ("d24", 1000), ("d30", 2000)]
)
def test_published_sizes(name, million):
  d = int(name[1:])
  kwargs = {**var.variant(name), "num_classes": 1000}
  model, image = var.Model(**kwargs, scan=True), (1, 16, 16, 32)
  boxed = zoo.boxed(var, model, jax.ShapeDtypeStruct(image, jnp.float32))
  params = axes.unbox(boxed)["params"]
  kernels = [
    x.size for path, x in jax.tree_util.tree_leaves_with_path(params["encoder"])
    if "kernel" in jax.tree_util.keystr(path)
  ]  # fmt: skip
  assert sum(kernels) == 73728 * d**3
  total = sum(x.size for x in jax.tree.leaves(params))
  assert abs(total / million / 1e6 - 1) < 0.05
  assert model.width == 64 * d and model.depth == model.num_heads == d
  assert abs(model.drop_path - d / 240) < 1e-9


def test_published_tokens():
  kwargs = {**var.variant("d16"), "num_classes": 1000}
  model = var.Model(**kwargs, scan=True)
  shown = jax.ShapeDtypeStruct((2, 679, 32), jnp.float32)
  run = lambda key, x: model.init_with_output(key, x)[0]
  y, out = jax.eval_shape(run, jax.random.key(0), shown)
  assert y.shape == (2, 680, 4096)
  assert out["features"][0][0].shape == (2, 1, 680, 1024)


def test_a_new_model_says_every_code_alike():
  _, variables, run = made(moved=False)
  y, out = run(variables, noise(2, N - 1, 3), jnp.asarray([0, 2]))
  assert y.shape == (2, N, 11) and y.dtype == jnp.float32
  assert not np.any(y)
  assert not np.any(out["encoder"]["block_00"]["sa"])


def test_a_scale_sees_itself_and_those_before():
  """Which logits move with the input of a token, one after another."""
  _, variables, run = made()
  shown, label = noise(1, N - 1, 3), jnp.asarray([1])
  scale = np.repeat([0, 1, 2], [1, 4, 9])
  plain = np.asarray(run(variables, shown, label)[0])
  for i in range(N - 1):
    other = shown.copy()
    other[0, i] += 1
    y = np.asarray(run(variables, other, label)[0])
    moved = np.abs(y - plain).max(-1)[0] > 1e-5
    np.testing.assert_array_equal(moved, scale >= scale[i + 1], err_msg=str(i))


def test_the_class_is_the_first_token_and_modulates():
  model, variables, run = made()
  shown = np.tile(noise(1, N - 1, 3), (3, 1, 1))
  y, _ = run(variables, shown, jnp.asarray([1, 1, 2]))
  np.testing.assert_allclose(y[0], y[1], atol=1e-6)
  assert np.abs(y[0] - y[2]).max(-1).min() > 1e-4  # every token
  none = run(variables, shown, jnp.full(3, model.num_classes))[0]
  np.testing.assert_array_equal(run(variables, shown)[0], none)
  beyond = run(variables, shown, jnp.asarray([0, 1, 4]))[0]
  assert np.isfinite(beyond[:2]).all() and np.isnan(beyond[2]).all()


def test_queries_and_keys_have_length_one():
  """Ten times the kernels of q and k change nothing, the temperature does."""
  _, variables, run = made()
  shown, label = noise(2, N - 1, 3), jnp.asarray([0, 1])
  plain = run(variables, shown, label)[0]

  def changed(name, f):
    flat = lambda path, x: f(x) if name in jax.tree_util.keystr(path) else x
    return jax.tree_util.tree_map_with_path(flat, variables)

  ten = lambda x: x.at[..., :2, :, :].multiply(10.0)
  qkv = changed("qkv", lambda x: ten(jnp.asarray(x)))
  np.testing.assert_allclose(run(qkv, shown, label)[0], plain, atol=1e-4)
  sharp = changed("sharpness", lambda x: x + 1)
  assert np.abs(run(sharp, shown, label)[0] - plain).max() > 1e-3
  # Beyond 100 nothing changes any more.
  most, more = (changed("sharpness", lambda x, to=to: x * 0 + to)
                for to in (np.log(100), 9.0))  # fmt: skip
  np.testing.assert_allclose(
    run(most, shown, label)[0], run(more, shown, label)[0], atol=1e-6
  )


def test_a_map_is_shown_as_codes_that_lose_nothing():
  """What a scale is shown of a map: it made small, large, and small again."""
  model, variables, run = made()
  x = jnp.asarray(noise(2, 3, 3, 3))
  shown = []
  for a, b in ((1, 2), (2, 3)):
    coarse = residual_vq.up(residual_vq.down(x, (a, a)), (3, 3))
    shown.append(residual_vq.down(coarse, (b, b)).reshape(2, b * b, 3))
  label = jnp.asarray([0, 1])
  want, _ = run(variables, jnp.concatenate(shown, 1), label)
  y, out = run(variables, x, label)
  np.testing.assert_allclose(y, want, atol=1e-5)
  assert out["features"][0][0].shape == (2, 3, 3, model.width)


def test_a_map_that_is_no_square():
  _, variables, run = made()
  y, out = run(variables, noise(2, 4, 2, 3))
  assert var.grids_of((1, 2, 3), (4, 2)) == [(1, 1), (3, 1), (4, 2)]
  assert y.shape == (2, 12, 11) and np.isfinite(y).all()
  assert out["features"][0][0].shape == (2, 4, 2, 32)


def test_stochastic_depth_drops_images():
  """Blocks alone: an image whose branches are all dropped keeps its tokens."""
  model, variables, _ = made(drop_path=0.9)
  shown = np.tile(noise(1, N - 1, 3), (64, 1, 1))
  run = jax.jit(functools.partial(model.apply, train=True))
  _, out = run(variables, shown, rngs={"dropout": jax.random.key(0)})
  last = out["encoder"]["block_01"]
  for part in ("sa", "mlp"):
    kept = np.asarray(jnp.any(last[part] != 0, (1, 2)))
    assert 0 < kept.mean() < 0.4
  first = out["encoder"]["block_00"]["sa"]
  assert np.all(np.any(first != 0, (1, 2)))


@pytest.mark.parametrize(
  "options, shape, text",
  [
    ({"channels": 2}, (N - 1, 3), r"of 2 channels got 3: set model\.chann"),
    ({"num_classes": 0}, (N - 1, 3), "without classes got labels"),
    ({}, (N, 3), r"are shown 13 tokens, these are 14"),
    ({"scales": (3, 2)}, (N - 1, 3), r"model\.scales: scales \(3, 2\) do not"),
    ({"num_heads": 3}, (N - 1, 3), "num_heads 3 does not divide width 32"),
    ({"remat": "most"}, (N - 1, 3), "remat 'most'"),
  ],
)  # fmt: skip
def test_refuses(options, shape, text):
  model = var.Model(**{**TOY, **options})
  label = jnp.zeros(1, jnp.int32)
  init = functools.partial(model.init, jax.random.key(0))
  with pytest.raises(UserError, match=text) as error:
    jax.eval_shape(init, jnp.zeros((1, *shape)), label)
  assert "\n" not in str(error.value)


def test_refuses_names():
  with pytest.raises(UserError, match="VAR size 'd17'"):
    var.variant("d17")
