"""What every token mixer has to do, in blocks of the one template."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import mostly_slow
from tests.nn.mixers import util
from vitscale.core import accounting, axes
from vitscale.core.errors import UserError
from vitscale.elastic import slice as slice_lib
from vitscale.models import vit
from vitscale.nn import block, mixers
from vitscale.nn import layers as layers_lib
from vitscale.nn.grid import Grid

LINEAR = {
  "linear": "linear",
  "performer": "performer(8)",
  "window": "window(3)",
  "linformer": "linformer(4)",
  "ecoformer": "ecoformer(8, 5)",
  "maelre": "maelre(8)",
  "scan": "scan(4, rank=2)",
}
ALL = {"softmax": "softmax", **LINEAR}
GRID = Grid(5, 4, prefix=1)
X = jax.random.normal(jax.random.key(0), (2, GRID.tokens, 16))
LENGTHS = jnp.array([14, GRID.tokens])


def test_every_mixer_is_here():
  assert set(mixers.names()) == set(ALL)


def stack(name, *, heads=2, dtype="float32", **options):
  one = functools.partial(
    block.Block, 16, heads, 8, 32, mixer=mixers.parse(ALL[name]), dtype=dtype,
    remat=options.pop("remat", None),
  )  # fmt: skip
  return block.Stack(one, 2, **options)


def loss(module, variables, x, lengths=None):
  """A number, and tokens that exist."""
  y, _ = module.apply(variables, x, grid=GRID, lengths=lengths)
  real = jnp.arange(GRID.tokens) < (LENGTHS if lengths is None else lengths)[
    :, None
  ]  # fmt: skip
  y = jnp.where(real[..., None], y.astype(jnp.float32), 0)
  return jnp.square(y).mean(), y


@functools.cache
def variables(name):
  init = functools.partial(stack(name).init, grid=GRID)
  made = axes.unbox(jax.jit(init)(jax.random.key(1), X))
  noise = lambda p: p + 0.05 * jax.random.normal(jax.random.key(2), p.shape)
  return jax.tree.map(noise, made)


@pytest.mark.parametrize("name", mostly_slow(ALL, "softmax", "performer"))
def test_in_a_stack(name):
  """Scanned and rematerialised = looped; gradients; padding; bfloat16."""
  looped = variables(name)
  scanned = layers_lib.stack_layers(looped)
  junk = X.at[0, 14:].set(5.0)

  @jax.jit
  def run(looped, scanned):
    grad = lambda module, v: jax.value_and_grad(
      lambda v: loss(module, v, X, LENGTHS), has_aux=True
    )(v)
    plain = grad(stack(name), looped)
    kept = "save_attention"
    remat = grad(stack(name, scan=True, remat=kept), scanned)
    half = stack(name, dtype="bfloat16")
    rounded = loss(half, looped, X.astype(jnp.bfloat16), LENGTHS)
    return plain, remat, rounded, loss(stack(name), looped, junk, LENGTHS)

  ((a, y), g), ((b, _), h), (c, z), (_, with_junk) = run(looped, scanned)
  util.close(a, b)
  h = layers_lib.unstack_layers(h)
  jax.tree.map(lambda x, y: util.close(x, y, atol=1e-5, rtol=1e-3), g, h)
  util.close(with_junk, y)
  for path, one in jax.tree_util.tree_flatten_with_path(g)[0]:
    assert np.isfinite(one).all() and jnp.abs(one).max() > 0, path
  assert z.dtype == jnp.float32 and abs(float(a - c)) < 0.05 * float(a)
  off = jnp.abs(z - y)
  # A code that flips moves a token by more than rounding does.
  assert jnp.median(off) < 0.03 and (name == "ecoformer" or off.max() < 0.3)


@pytest.mark.parametrize("name", ALL)
def test_the_first_heads_are_a_model_of_their_own(name):
  """Sliced to one head = the other one's inputs and outputs zero."""
  big = variables(name)
  attention = big["block_00"]["attention"] if "block_00" in big else (
    big["params"]["block_00"]["attention"]
  )  # fmt: skip

  def silent(path, x):
    keys = [k.key for k in path]
    if keys[0] == "qkv":
      return x.at[..., 1, :].set(0)
    if keys[0] in ("value", "gate") or keys[-2:] == ["backward", "bias"] or (
      keys[-2:] == ["forward", "bias"]
    ):  # fmt: skip
      return x.at[..., 1, :].set(0)
    return x.at[1].set(0) if keys == ["out", "kernel"] else x

  masked = jax.tree_util.tree_map_with_path(silent, attention)
  make = lambda heads: mixers.parse(ALL[name])(16, heads, 8)
  call = lambda m, x: m.merge(
    m.attend(*m.heads(x, batch=2), grid=GRID), flat=False
  )
  shapes = jax.eval_shape(
    lambda x: make(1).init(jax.random.key(0), x, method=call), X
  )
  whole = jax.eval_shape(
    lambda x: make(2).init(jax.random.key(0), x, method=call), X
  )
  names = axes.names_of(whole)["params"]
  small = slice_lib.nest(masked, names, axes.unbox(shapes)["params"])
  run = jax.jit(
    lambda p, heads: make(heads).apply({"params": p}, X, method=call),
    static_argnums=1,
  )
  util.close(run(small, 1), run(masked, 2))


@pytest.mark.parametrize("name", [n for n in ALL if n != "scan"])
def test_order_matters_only_where_it_should(name):
  q, k, v = util.qkv(21)
  order = np.random.default_rng(0).permutation(21)
  run = lambda *x: util.run(ALL[name], *x, grid=Grid(1, 21))
  if name == "softmax":
    run = util.softmax
  back = run(*(x[:, order] for x in (q, k, v)))
  same = util.apart(back, run(q, k, v)[:, order]) < 1e-4
  assert same == (name in ("softmax", "linear", "performer", "ecoformer"))


def flops(name, side):
  one = functools.partial(
    block.Block, 16, 2, 8, 32, mixer=mixers.parse(ALL[name])
  )()  # fmt: skip
  grid, n = Grid(side, side), side * side
  x = jax.ShapeDtypeStruct((n, 16), jnp.float32)
  apply = lambda v, x: one.apply(v, x, batch=1, grid=grid)[0].sum()
  made = axes.unbox(
    jax.eval_shape(
      lambda x: one.init(jax.random.key(0), x, batch=1, grid=grid), x
    )
  )
  return accounting.train_flops(apply, made, x)


@pytest.mark.parametrize("name", ALL)
def test_flops_of_a_block_grow_with_the_exponent_they_should(name):
  near, far = flops(name, 32), flops(name, 64)  # 1,024 and 4,096 tokens
  of = lambda key: np.log(getattr(far, key) / getattr(near, key)) / np.log(4)
  want = 2.0 if name == "softmax" else 1.0
  for key in ("matmul", "total"):
    assert abs(of(key) - want) < (0.06 if name == "softmax" else 0.03), key
  # The scan is counted: element-wise, beyond what the block has anyway.
  if name == "scan":
    states = 1024 * 2 * 8 * 4  # tokens x channels x N
    assert near.elementwise > 10 * states


def test_a_model_takes_a_mixer_by_name_and_another_patch():
  for name in LINEAR:
    model = vit.Model(
      3, width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=2,
      position="sincos2d", pool="cls", mixer=ALL[name],
    )  # fmt: skip
    image = jnp.zeros((1, 8, 12, 1))

    def both(key, model=model, image=image):
      made = model.init(key, image)
      return model.apply(made, image, patch_size=4), axes.names_of(made)

    (logits, _), _ = jax.eval_shape(
      lambda key: (both(key)[0][0], 0), jax.random.key(0)
    ), None  # fmt: skip
    assert logits.shape == (1, 3)


@pytest.mark.parametrize("name", LINEAR)
def test_refuses_segments_in_one_line(name):
  made = mixers.parse(ALL[name])(16, 2, 8)
  call = lambda m, x: m.attend(
    *m.heads(x, batch=2), grid=None, segment_ids=jnp.zeros((2, GRID.tokens))
  )
  with pytest.raises(UserError, match=f"mixer '{name}' can't") as error:
    made.init(jax.random.key(0), X, method=call)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text, said",
  [
    ("performr", "did you mean 'performer'"),
    ("performer(feature=3)", "did you mean 'features'"),
    ("performer('many')", "features should be int, got 'many'"),
    ("performer(True)", "features should be int, got True"),
    ("performer(4, features=4)", "given twice"),
    ("performer(1, 2, 3)", "takes features, seed, got 3 values"),
    ("linear(4)", "takes no options, got 1 values"),
    ("softmax(4)", "takes no options"),
    ("window(1 + 1)", "cannot read"),
    ("scan(width=4)", "no option 'width'"),
    ("scan(4, 2, 1)", "takes state, rank, got 3 values"),
    ("linear.Core", "cannot read"),
  ],
)
def test_text_that_says_nothing(text, said):
  with pytest.raises(UserError, match=said) as error:
    mixers.parse(text)
  assert "\n" not in str(error.value)
