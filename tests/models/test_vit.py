"""The vision transformer: sizes, options, patch sizes at run time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.marks import mostly_slow
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import vit

IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))


def model(**kwargs):
  return vit.Model(**{"num_classes": 5, **vit.variant("mu/8"), **kwargs})


def init(m, image=IMAGE, noise=0.02):
  """Variables with every parameter moved off its initial value."""
  v = axes.unbox(jax.jit(m.init)(jax.random.key(1), image))
  leaves, treedef = jax.tree.flatten(v)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  moved = [
    p + noise * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves)
  ]
  return jax.tree.unflatten(treedef, moved)


# --------------------------------------------------------------------- sizes


def count(image, **kwargs):
  image = jax.ShapeDtypeStruct((1, image, image, 3), jnp.float32)
  v = jax.eval_shape(vit.Model(**kwargs).init, jax.random.key(0), image)
  return sum(p.size for p in jax.tree.leaves(axes.unbox(v)))


@pytest.mark.parametrize(
  "name, parameters",
  [
    ("Ti/16", 5_717_416),
    ("S/16", 22_050_664),
    ("B/16", 86_567_656),
    ("L/16", 304_326_632),
    ("g/14", 1_012_611_432),
    ("G/14", 1_844_440_680),
  ],
)
def test_parameters_as_in_timm(name, parameters):
  """timm 1.0.31, vit_*_patch*_224 with 1000 classes."""
  kwargs = {"num_classes": 1000, "pool": "cls", "prefix_position": True}
  assert count(224, **kwargs, **vit.variant(name)) == parameters


def test_parameters_of_so400m_as_in_timm():
  """vit_so400m_patch14_siglip_224, and the same with mean pooling."""
  kwargs = {"num_classes": 0, **vit.variant("So400m/14")}
  assert count(224, pool="map", scan=True, **kwargs) == 427_680_704
  assert count(224, pool="mean", scan=True, **kwargs) == 412_442_352


def test_macs_by_hand():
  """infrastructure facts: B/16 and L/16 with 197 tokens, GFLOPs forward."""
  kwargs = {"num_classes": 1000, "pool": "cls"}
  macs = lambda name: vit.flops_per_image(
    {**kwargs, **vit.variant(name)}, (224, 224, 3)
  )
  assert 2 * macs("B/16") / 1e9 == pytest.approx(35.1, abs=0.05)
  assert 2 * macs("L/16") / 1e9 == pytest.approx(123.1, abs=0.05)


OPTIONS = {
  "plain": {},
  "cls": {"pool": "cls", "registers": 2, "prefix_position": True},
  "map": {"pool": "map", "ffn": "swiglu", "position": "rope2d"},
  "scan": {"scan": True, "position": "sincos2d", "norm": "rmsnorm"},
  "wide heads": {"head_dim": 8, "num_heads": 3, "position": "factorized"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_macs_equal_the_products_of_the_jaxpr(name):
  m = model(**OPTIONS[name], attention="reference")
  image = jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)
  v = axes.unbox(jax.eval_shape(m.init, jax.random.key(0), image))
  program = jax.make_jaxpr(m.apply)(v, image)
  want = vit.flops_per_image(
    {**vit.variant("mu/8"), "num_classes": 5, **OPTIONS[name]}, (16, 24, 3)
  )
  probe = 32 * 32 if name == "map" else 0  # see flops_per_image
  assert _macs(program.jaxpr) == want + probe


def _macs(jaxpr, times=1):
  total = 0
  for e in jaxpr.eqns:
    if e.primitive.name == "dot_general":
      (contract, _), _ = e.params["dimension_numbers"]
      inner = np.prod([e.invars[0].aval.shape[i] for i in contract])
      total += times * int(inner * np.prod(e.outvars[0].aval.shape))
    trips = e.params.get("length", 1) if e.primitive.name == "scan" else 1
    for inside in jaxprs_in_params(e.params):
      total += _macs(inside, times * trips)
  return total


def test_variant():
  assert vit.variant("B/16") == {**vit.VARIANTS["B"], "patch_size": 16}
  assert vit.variant("Ti/8x4")["patch_size"] == (8, 4)
  assert vit.variant("mu") == vit.VARIANTS["mu"]
  with pytest.raises(UserError, match="did you mean 'So400m'"):
    vit.variant("So400/14")
  with pytest.raises(UserError, match="write 'B/16'"):
    vit.variant("B/p16")


# ------------------------------------------------------------------- options


@pytest.mark.parametrize("name", mostly_slow(OPTIONS, "plain", "scan", "cls"))
def test_every_parameter_learns(name):
  m = model(**OPTIONS[name], layer_scale=0.5, qk_norm=True, depth=1)
  axes.names_of(jax.eval_shape(m.init, jax.random.key(0), IMAGE))
  v = init(m)

  @jax.jit
  def run(v):
    def loss(v):
      y, out = m.apply(v, IMAGE, train=True)
      return jnp.square(y).sum(), (y, out["features"])

    return jax.grad(loss, has_aux=True)(v)

  grads, (y, features) = run(v)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(g).all(), path
    assert np.any(g), path
  assert y.shape == (2, 5) and y.dtype == jnp.float32
  ((grid, stride),) = features
  assert grid.shape == (2, 2, 3, 32) and tuple(stride) == (8, 8)


def test_head_starts_at_zero_and_none_gives_features():
  run = lambda m: jax.jit(m.init_with_output)(jax.random.key(0), IMAGE)[0]
  y, out = run(model())
  assert not np.any(y) and np.any(out["pre_logits"])
  y, out = run(model(num_classes=0))
  assert y.shape == (2, 32)
  np.testing.assert_array_equal(y, out["pre_logits"])
  assert set(out["encoder"]["block_01"]) == {"sa", "+sa", "mlp", "+mlp"}


def test_bfloat16_is_near_float32_and_logits_are_float32():
  v = init(model())
  want, _ = jax.jit(model().apply)(v, IMAGE)
  got, out = jax.jit(model(dtype="bfloat16").apply)(v, IMAGE)
  assert got.dtype == jnp.float32
  assert out["encoder"]["block_00"]["sa"].dtype == jnp.bfloat16
  np.testing.assert_allclose(got, want, atol=0.03)


def test_dropout_acts_in_training_only():
  m = model(dropout=0.5, drop_path=0.5, depth=1)
  v = init(m)

  @functools.partial(jax.jit, static_argnums=0)
  def run(train, seed):
    rngs = {"dropout": jax.random.key(seed)}
    return m.apply(v, IMAGE, train=train, rngs=rngs)[0]

  assert np.abs(run(True, 0) - run(True, 1)).max() > 1e-3
  np.testing.assert_array_equal(run(False, 0), run(False, 1))


@pytest.mark.parametrize("position", ["learned", "sincos2d", "rope2d"])
def test_patch_size_at_run_time(position):
  m = model(position=position, patch_size=4, depth=1)
  v = init(m)
  run = jax.jit(m.apply, static_argnames="patch_size")
  _, out = run(v, IMAGE, patch_size=8)
  assert out["features"][0][0].shape == (2, 2, 3, 32)
  # Upsampled twice, with twice the patch: the same tokens, so the same logits.
  want, _ = run(v, IMAGE)
  big = jax.image.resize(
    IMAGE.reshape(2, 4, 4, 6, 4, 3), (2, 4, 8, 6, 8, 3), "linear"
  ).reshape(2, 32, 48, 3)
  if position == "learned":  # the others measure in canonical patches
    got, _ = run(v, big, patch_size=8)
    np.testing.assert_allclose(got, want, atol=1e-4)
  with pytest.raises(UserError, match="does not divide"):
    m.apply(v, IMAGE, patch_size=5)


def test_other_image_sizes_and_errors():
  m = model(depth=1)
  v = init(m)
  y, out = jax.jit(m.apply)(v, jnp.ones((1, 40, 8, 3)))
  assert out["features"][0][0].shape == (1, 5, 1, 32)
  assert np.isfinite(y).all()
  with pytest.raises(UserError, match="use height 24 or 32, or patch"):
    m.apply(v, jnp.ones((1, 30, 8, 3)))
  with pytest.raises(UserError, match="did you mean 'mean'"):
    model(pool="men").init(jax.random.key(0), IMAGE)
  with pytest.raises(UserError, match="does not divide width"):
    model(num_heads=5).init(jax.random.key(0), IMAGE)


def test_examples_do_not_see_each_other():
  m = model(pool="map", registers=1)
  run = jax.jit(functools.partial(m.apply, init(m)))
  np.testing.assert_allclose(
    run(IMAGE)[0][1], run(IMAGE.at[0].set(9.0))[0][1], atol=1e-6
  )


# ------------------------------------------------------------- unequal layers


def test_layers_of_their_own_sizes():
  m = model(
    mlp_dim=(16, 48), num_heads=(1, 3), head_dim=8, out_dim=20, pool="map",
    attention="reference",
  )  # fmt: skip
  shapes = axes.unbox(jax.eval_shape(m.init, jax.random.key(0), IMAGE))
  first, last = (shapes["params"]["encoder"][f"block_0{i}"] for i in (0, 1))
  assert first["mlp"]["up"]["kernel"].shape == (32, 16)
  assert last["attention"]["out"]["kernel"].shape == (3, 8, 32)
  pool = shapes["params"]["map_head"]
  assert pool["mlp"]["up"]["kernel"].shape == (32, 48)
  assert shapes["params"]["head"]["kernel"].shape == (20, 5)
  y, out = jax.eval_shape(m.apply, shapes, IMAGE)
  assert y.shape == (2, 5) and out["pre_logits"].shape == (2, 20)
  image = jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)
  program = jax.make_jaxpr(m.apply)(shapes, image)
  options = {"mlp_dim": (16, 48), "num_heads": (1, 3), "head_dim": 8}
  want = vit.flops_per_image(
    {
      **vit.variant("mu/8"), **options, "out_dim": 20, "pool": "map",
      "num_classes": 5,
    },
    (16, 24, 3),
  )  # fmt: skip
  assert _macs(program.jaxpr) == want + 32 * 3 * 8  # the probe


def test_sizes_of_layers_that_do_not_fit():
  start = lambda **kwargs: jax.eval_shape(
    model(**kwargs).init, jax.random.key(0), IMAGE
  )
  with pytest.raises(UserError, match="mlp_dim has 3 sizes for 2 layers"):
    start(mlp_dim=(16, 16, 16))
  with pytest.raises(UserError, match="layers differ in mlp_dim: set scan"):
    start(mlp_dim=(16, 32), scan=True)
  with pytest.raises(UserError, match="does not divide width 32: set head_dim"):
    start(num_heads=(1, 2))
  same = start(mlp_dim=(64, 64), num_heads=(2, 2), head_dim=16, scan=True)
  assert jax.tree.structure(same) == jax.tree.structure(start(scan=True))


def step_memory(side: int, backend: str) -> int:
  """Bytes a training step on 1x1 patches of side x side pixels takes."""
  model = vit.Model(
    10, width=64, depth=2, mlp_dim=128, num_heads=1, patch_size=1,
    position="sincos2d", attention=backend,
  )  # fmt: skip
  image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  v = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))

  def step(v, image):
    loss = lambda v: jnp.square(model.apply(v, image, train=True)[0]).sum()
    return jax.tree.map(lambda p, g: p - 0.1 * g, v, jax.grad(loss)(v))

  compiled = jax.jit(step, donate_argnums=0).lower(v, image).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_of_pixels_grows_with_their_number():
  """1k, 4k, 16k tokens; the logits alone would grow sixteenfold each time."""
  small, middle, large = (step_memory(n, "chunked") for n in (32, 64, 128))
  assert middle < 4.4 * small and large < 4.4 * middle
  assert large < 0.1 * step_memory(128, "reference")
