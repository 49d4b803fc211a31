"""The nested forward pass is the cut model's; its gradient scatters back."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.contract.families import Family, gap
from tests.multidevice.test_devices import environment
from vitscale import zoo
from vitscale.core import axes, optim, tree
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import nest, rewire
from vitscale.models import vit
from vitscale.nn import layers as layers_lib

IMAGE = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype("f4")
SPECS = (
  "ffn=1/4",
  "ffn=1/4,1/2,1,1/2",
  "heads=1/2 ffn=1/2",
  "embed=1/2 heads=1/2 ffn=1/2",
  "depth=1/2",
  "layers=1,3 ffn=1/2,1",
  "out=8",
  "ffn=1/2 heads=1/2x2,1x2 embed=1/2 out=4",
)


def model(**changes):
  return vit.Model(
    **{
      "num_classes": 5, "width": 32, "depth": 4, "mlp_dim": 64, "num_heads": 4,
      "patch_size": 4, "pool": "cls", "registers": 1, "layer_scale": 0.5,
      "qk_norm": True, **changes,
    }
  )  # fmt: skip


def boxed(m):
  return jax.eval_shape(m.init, jax.random.key(0), IMAGE)


def shapes(m):
  return axes.unbox(boxed(m))


@functools.cache
def variables():
  """All parameters of the looped model, moved off their initial values."""
  rng = np.random.default_rng(1)
  draw = lambda x: (0.1 * rng.normal(size=x.shape)).astype("f4")
  return jax.tree.map(draw, shapes(model()))


def names(m=None):
  return axes.names_of(boxed(m or model()))


def small(text, m=None):
  return spec_lib.small(m or model(), spec_lib.parse(text))


# ------------------------------------------------------------- what is sliced


@pytest.mark.parametrize("text", SPECS)
def test_sliced_is_the_corner_of_the_kept_layers(text):
  """By hand, without axis names: leading entries of the layers that stay."""
  little, layers = small(text)
  want = shapes(little)
  sliced = nest(variables(), names(), want, layers)
  assert jax.tree.map(jnp.shape, sliced) == jax.tree.map(jnp.shape, want)
  flat = tree.flatten(variables())
  for path, x in tree.flatten(sliced).items():
    for new, old in enumerate(layers):
      if f"/{layers_lib.layer_name(new)}/" in path:
        path = path.replace(
          layers_lib.layer_name(new), layers_lib.layer_name(old)
        )
        break
    corner = tuple(slice(n) for n in x.shape)
    np.testing.assert_array_equal(x, flat[path][corner], err_msg=path)


@pytest.mark.parametrize("text", SPECS)
def test_scanned_gives_what_looped_gives(text):
  """A scanned big model; the small one scanned, or looped if layers differ."""
  scanned = model(scan=True)
  stacked = layers_lib.stack_layers(variables())
  little, layers = small(text, scanned)
  sliced = nest(stacked, names(scanned), shapes(little), layers)
  loop, _ = small(text)
  want = nest(variables(), names(), shapes(loop), layers)
  if little.scan:
    want = layers_lib.stack_layers(want)
  jax.tree.map(np.testing.assert_array_equal, sliced, want)


def test_abstract_arrays_and_bad_trees():
  little, _ = small("ffn=1/2")
  want = shapes(little)
  got = nest(shapes(model()), names(), want)
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
  with pytest.raises(AxisError, match="axis 'mlp' grows from 32 to 64"):
    nest(shapes(little), names(little), shapes(model()))
  with pytest.raises(AxisError, match="'patch' goes from 48 to 12"):
    nest(variables(), names(), shapes(model(patch_size=2)))
  with pytest.raises(AxisError, match="the big model has no params/encoder/"):
    nest(variables(), names(), shapes(model(depth=5)))


# -------------------------------------------------------------- forward pass


@pytest.mark.parametrize("text", SPECS)
def test_program_is_that_of_the_plain_family(text):
  """One HLO: the small model is a plain one of that shape."""
  little, _ = small(text)
  plain = vit.Model(**spec_lib.options_of(little))
  lower = lambda m: jax.jit(m.apply).lower(shapes(m), IMAGE).as_text()
  assert lower(little) == lower(plain)
  assert lower(little) != lower(model())


@pytest.mark.parametrize("name", zoo.names())
def test_sliced_equals_cut_and_masked(name):
  """Every family, half of the hidden units and heads: inside one program
  equal to the cut model, and to the masked big one to 1e-6."""
  family = Family(name)
  needs = {"ffn": ("mlp_dim",), "heads": ("num_heads", "head_dim")}
  keys = [
    f"{key}=1/2" for key, options in needs.items() if family.has(*options)
  ]
  if not keys:
    pytest.skip("neither mlp_dim, nor num_heads and head_dim")
  little, layers = small(" ".join(keys), family.base)
  named = axes.names_of(family.boxed())
  want = family.shapes(little)
  cut = jax.device_get(nest(family.variables(), named, want, layers))

  @jax.jit
  def nested(variables, image):
    return family.call(little, nest(variables, named, want, layers), image)[0]

  image = family.image()
  y = nested(family.variables(), image)
  alone = jax.jit(functools.partial(family.call, little))(cut, image)[0]
  np.testing.assert_array_equal(y, alone)
  params = family.masked(
    family.variables()["params"], named["params"], want["params"]
  )
  run = jax.jit(functools.partial(family.call, family.base))
  masked, _ = run({**family.variables(), "params": params}, image)
  assert gap(masked, y) < 1e-6
  assert gap(run(family.variables(), image)[0], y) > 1e-3


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize("text", ["ffn=1/4,1/2,1,1/2", "layers=1,3 embed=1/2"])
@pytest.mark.parametrize("scan", [False, True])
def test_gradient_is_the_small_ones_and_zero_elsewhere(text, scan):
  big = model(scan=scan)
  little, layers = small(text, big)
  want, named = shapes(little), names(big)
  whole = layers_lib.stack_layers(variables()) if scan else variables()
  loss = lambda v: jnp.square(little.apply(v, IMAGE)[0] - 1).sum()
  grads = jax.jit(jax.grad(lambda v: loss(nest(v, named, want, layers))))(whole)
  cut = nest(whole, named, want, layers)
  own = jax.jit(jax.grad(loss))(cut)
  got = nest(grads, named, want, layers)
  assert gap(got, own) < 1e-6
  # Nothing outside of the slices: their squares are all there is.
  total = lambda t: sum(np.square(np.asarray(x, "f8")).sum() for x in
                        jax.tree.leaves(t))  # fmt: skip
  assert total(grads) == pytest.approx(total(got), rel=1e-6)
  untouched = jax.tree.map(lambda g, x: g.size - x.size, grads, whole)
  assert not any(jax.tree.leaves(untouched))
  count = sum(int((np.asarray(g) == 0).sum()) for g in jax.tree.leaves(grads))
  missing = sum(x.size for x in jax.tree.leaves(whole)) - sum(
    x.size for x in jax.tree.leaves(cut)
  )
  assert count >= missing > 0


# ----------------------------------------------------------- optimizer states


def optimizer(m, **config):
  boxes = boxed(m)
  return optim.make(
    config, axes.unbox(boxes)["params"], axes.names_of(boxes)["params"],
    total_steps=10,
  )  # fmt: skip


@pytest.mark.parametrize("scan", [False, True])
def test_moments_are_sliced_like_their_parameters(scan):
  big = model(scan=scan)
  whole = layers_lib.stack_layers(variables()) if scan else variables()
  params = whole["params"]
  little, layers = small("layers=1,3 ffn=1/2", big)
  state = optimizer(big).init(params)
  grads = jax.tree.map(lambda x: x + 1, params)
  _, state = optimizer(big).update(grads, state, params, 0, 1e-3)
  want = jax.eval_shape(optimizer(little).init, shapes(little)["params"])
  cut = nest(state, names(big)["params"], want, layers)
  assert jax.tree.map(jnp.shape, cut) == jax.tree.map(jnp.shape, want)
  adam = optax.tree.get(cut, "mu")
  got = nest(
    optax.tree.get(state, "mu"), names(big)["params"],
    shapes(little)["params"], layers,
  )  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, adam, got)
  assert optax.tree.get(cut, "count") == 1


def test_factored_moments_are_refused():
  wide = {"width": 256, "mlp_dim": 512, "depth": 1}
  big, little = model(**wide), model(**{**wide, "mlp_dim": 256})
  start = lambda m: jax.eval_shape(
    optimizer(m, name="adafactor").init, shapes(m)["params"]
  )
  with pytest.raises(UserError, match="factored moments cannot be sliced"):
    nest(start(big), names(big)["params"], start(little))


# ------------------------------------------------------------------- rewiring


@pytest.mark.parametrize("scan", [False, True])
def test_rewiring_changes_nothing_but_what_a_prefix_is(scan):
  big = model(scan=scan)
  whole = layers_lib.stack_layers(variables()) if scan else variables()
  rng = np.random.default_rng(2)
  order = {
    "mlp": np.stack([rng.permutation(64) for _ in range(4)]),
    "heads": np.stack([rng.permutation(4) for _ in range(4)]),
    "embed": rng.permutation(32),
  }
  params = rewire(whole["params"], names(big)["params"], order)
  run = jax.jit(big.apply)
  want, _ = run(whole, IMAGE)
  got, _ = run({"params": params}, IMAGE)
  np.testing.assert_allclose(got, want, atol=1e-5)
  looped = layers_lib.unstack_layers(params) if scan else params
  up = looped["encoder"]["block_02"]["mlp"]["up"]["kernel"]
  old = variables()["params"]["encoder"]["block_02"]["mlp"]["up"]["kernel"]
  np.testing.assert_array_equal(up, old[order["embed"]][:, order["mlp"][2]])


@pytest.mark.parametrize(
  ("order", "says"),
  [
    ({"mlp": np.zeros(64, int)}, "wants a permutation of 64"),
    ({"mlp": np.arange(63)}, "wants a permutation of 64"),
    ({"qkv": np.arange(3)}, "'qkv' cannot be put in another order"),
    ({"expert": np.arange(3)}, "no parameter has axis 'expert'"),
    ({"embed": np.stack([np.arange(32)] * 4)}, "one order for all layers"),
  ],
)
def test_bad_orders(order, says):
  with pytest.raises(AxisError, match=says):
    rewire(variables()["params"], names()["params"], order)


# -------------------------------------------------------------- eight devices


@functools.cache
def on_eight_devices():
  run = subprocess.run(
    [sys.executable, Path(__file__).with_name("devices.py")],
    env=environment(8), capture_output=True, text=True, timeout=300,
    check=False,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  "case", ["ffn fsdp", "embed fsdp", "ffn tensor", "training"]
)
def test_eight_devices_equal_one(case):
  saw = on_eight_devices()[case]
  assert saw["gap"] < 1e-5


def test_an_axis_that_is_not_split_is_cut_where_it_lies():
  """FSDP splits `embed`: a prefix of `mlp` moves no more than the small
  model does."""
  saw = on_eight_devices()["ffn fsdp"]
  assert set(saw["nested"]) == set(saw["alone"])
  for kind, bytes_ in saw["nested"].items():
    assert bytes_ <= 1.01 * saw["alone"][kind], kind


@pytest.mark.parametrize("case", ["embed fsdp", "ffn tensor"])
def test_a_split_axis_is_gathered_before_it_is_cut(case):
  """Each cut parameter comes once; only gradients of a tensor-split axis are
  shuffled between devices, which is why to nest along others."""
  saw = on_eight_devices()[case]
  nested, moved = saw["nested"], set(saw["nested"]) - set(saw["alone"])
  assert nested["all-gather"] <= saw["cut_bytes"] * 1.05, saw
  assert nested["all-reduce"] <= saw["alone"]["all-reduce"] * 1.01, saw
  if case == "embed fsdp":
    assert not moved, saw
  else:
    assert moved <= {"collective-permute"}, saw
    assert nested.get("collective-permute", 0) < saw["cut_bytes"] / 4, saw
