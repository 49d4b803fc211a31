"""Blocks and stacks: scan, remat, layout and stochastic depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError
from vitscale.nn import block
from vitscale.nn import layers as layers_lib

TOY = functools.partial(block.Block, 16, 2, 8, 32)
X = jax.random.normal(jax.random.key(0), (3, 5, 16))


def stack(depth=2, scan=False, drop_path=0.0, **kwargs):
  return block.Stack(functools.partial(TOY, **kwargs), depth, scan, drop_path)


@functools.cache
def looped_variables():
  v = jax.jit(stack(layer_scale=0.5, qk_norm=True).init)(jax.random.key(1), X)
  noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape)
  return jax.tree.map(noise, axes.unbox(v))


def value_and_grad(module, variables, x=X):
  """Loss, gradients and intermediates."""

  @jax.jit
  def run(v, x):
    def loss(v, x):
      y, out = module.apply(v, x)
      return jnp.square(y).sum() / 100, out

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(v, x)

  (value, out), grads = run(variables, x)
  return value, grads, out


def close(a, b, atol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b
  )


@functools.cache
def looped():
  module = stack(layer_scale=0.5, qk_norm=True)
  return value_and_grad(module, looped_variables())


def test_scan_equals_loop():
  scanned = stack(scan=True, layer_scale=0.5, qk_norm=True)
  v = layers_lib.stack_layers(looped_variables())
  abstract = jax.eval_shape(scanned.init, jax.random.key(0), X)
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape),
    v,
    axes.unbox(abstract),
  )
  value, grads, out = value_and_grad(scanned, v)
  want_value, want_grads, want_out = looped()
  close(value, want_value)
  close((layers_lib.unstack_layers(grads[0]), grads[1]), want_grads)
  for i in range(2):
    close(block.parts_of(out, i), block.parts_of(want_out, i))


@pytest.mark.parametrize(
  "remat, scan",
  [("full", False), ("save_attention", False), ("save_attention", True)],
)
def test_remat_changes_no_number(remat, scan):
  module = stack(scan=scan, layer_scale=0.5, qk_norm=True, remat=remat)
  v = looped_variables()
  value, grads, _ = value_and_grad(
    module, layers_lib.stack_layers(v) if scan else v
  )
  if scan:
    grads = (layers_lib.unstack_layers(grads[0]), grads[1])
  close((value, grads), looped()[:2])


def test_remat_keeps_what_it_says():
  """Softmaxes and products with recomputation in the gradient's program."""

  def count(remat):
    module = stack(1, remat=remat, backend="reference")
    v = axes.unbox(jax.eval_shape(module.init, jax.random.key(0), X))
    loss = lambda v, x: jnp.square(module.apply(v, x)[0]).sum()
    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    program = run.lower(v, X).as_text()
    return program.count("exponential"), program.count("dot_general")

  assert count(None) == (1, 18)  # six products, each thrice
  assert count("save_attention") == (1, 18 + 2)  # out, up
  assert count("dots") == (2, 18 + 2)  # logits and their sum of values
  assert count("full") == (2, 18 + 5)  # all but the last


def test_flat_equals_unflat(monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(sharding, "ways", lambda name: 2)
    assert block.flatten(X) is X
  monkeypatch.setattr(block, "flatten", lambda x: x)
  module = stack(layer_scale=0.5, qk_norm=True)
  close(value_and_grad(module, looped_variables())[:2], looped()[:2])


def test_lengths_and_segments_reach_attention():
  module = stack(1)
  v = axes.unbox(module.init(jax.random.key(1), X))
  run = jax.jit(lambda x, **who: module.apply(v, x, **who)[0])
  lengths = jnp.array([3, 5, 5])
  y = run(X, lengths=lengths)
  other = run(X.at[0, 3:].set(9.0), lengths=lengths)
  np.testing.assert_array_equal(y[0, :3], other[0, :3])
  # Two images packed in one sequence.
  packed = jnp.concatenate([X[:1], X[1:2, :3]], 1)
  ids = jnp.array([[0] * 5 + [1] * 3])
  y = run(packed, segment_ids=ids)
  close(y[0, :5], run(X)[0])
  close(y[0, 5:], run(X, lengths=jnp.full(3, 3))[1, :3])


# ---------------------------------------------------------- stochastic depth


@pytest.mark.parametrize("shape", [(400, 3, 2), (1200, 2)])
def test_drop_path_is_per_image(shape):
  y = block.drop_path(jnp.ones(shape), 0.25, jax.random.key(0), 400)
  y = np.asarray(y).reshape(400, 3, 2)
  assert (y == y[:, :1, :1]).all()  # all of an image or nothing
  np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
  dropped = (y[:, 0, 0] == 0).mean()
  assert abs(dropped - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


@pytest.mark.parametrize("scan", [False, True])
def test_drop_path_rises_with_depth(scan):
  x = jnp.tile(X, (100, 1, 1))
  module = stack(3, scan=scan, drop_path=0.6)
  v = axes.unbox(jax.jit(module.init)(jax.random.key(1), X))

  @functools.partial(jax.jit, static_argnums=0)
  def apply(train):
    rngs = {"dropout": jax.random.key(3)}
    return module.apply(v, x, train=train, rngs=rngs)

  _, out = apply(True)
  parts = [block.parts_of(out, i) for i in range(3)]
  gone = [(np.asarray(p["sa"]) == 0).all((1, 2)) for p in parts]
  assert not gone[0].any()
  for i, rate in ((1, 0.3), (2, 0.6)):
    assert abs(gone[i].mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / 300)
  other = (np.asarray(parts[2]["mlp"]) == 0).all((1, 2))
  assert (gone[1] != gone[2]).any() and (gone[2] != other).any()
  assert all(np.asarray(p).all() for p in jax.tree.leaves(apply(False)))


# --------------------------------------------------------------- conversion


def test_conversion_of_boxes_names_and_shapes():
  loop, scan = stack(), stack(scan=True)
  a = jax.eval_shape(loop.init, jax.random.key(0), X)
  b = jax.eval_shape(scan.init, jax.random.key(0), X)
  assert axes.names_of(layers_lib.stack_layers(a)) == axes.names_of(b)
  assert axes.names_of(layers_lib.unstack_layers(b)) == axes.names_of(a)
  assert layers_lib.stack_layers(axes.names_of(a)) == axes.names_of(b)
  assert axes.unbox(layers_lib.stack_layers(a)) == axes.unbox(b)


def test_conversion_round_trip_and_refusal():
  v = looped_variables()
  back = layers_lib.unstack_layers(layers_lib.stack_layers(v))
  assert jax.tree.structure(back) == jax.tree.structure(v)
  jax.tree.map(np.testing.assert_array_equal, back, v)
  with pytest.raises(UserError, match="are not 0 to 1"):
    layers_lib.stack_layers(
      {k: p for k, p in v["params"].items() if k != "block_00"}
    )
  uneven = {"block_00": {"a": np.ones(2)}, "block_01": {"a": np.ones(3)}}
  with pytest.raises(UserError, match="layers differ"):
    layers_lib.stack_layers(uneven)


def test_unknown_options_name_the_nearest():
  with pytest.raises(UserError, match="did you mean 'save_attention'"):
    stack(remat="save_attn").init(jax.random.key(0), X)
  with pytest.raises(UserError, match="did you mean 'swiglu'"):
    stack(ffn="swiglue").init(jax.random.key(0), X)


@pytest.mark.parametrize("scan", [False, True])
def test_ffn_in_blocks_is_the_ffn(scan):
  v = looped_variables()
  v = layers_lib.stack_layers(v) if scan else v
  whole, parts = (
    stack(scan=scan, layer_scale=0.5, qk_norm=True, ffn_blocks=blocks)
    for blocks in (1, 5)
  )
  close(value_and_grad(whole, v)[:2], value_and_grad(parts, v)[:2])


def test_ffn_in_blocks_of_tokens_that_are_not_flat():
  """Where a mesh splits the sequence they keep their batch axis."""
  v = {"params": looped_variables()["params"]["block_00"]}
  options = {"layer_scale": 0.5, "qk_norm": True}
  want, _ = TOY(**options).apply(v, X, batch=3)
  got, _ = TOY(**options, ffn_blocks=5).apply(v, X, batch=3)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_ffn_blocks_must_divide():
  with pytest.raises(UserError, match="does not divide 15 tokens: use 5"):
    stack(ffn_blocks=6).init(jax.random.key(0), X)


def test_remat_draws_nothing_at_rate_zero():
  """No rng is asked for, and no dropping is compiled in."""
  module = stack(remat="full")
  v = axes.unbox(module.init(jax.random.key(0), X))
  module.apply(v, X, train=True)
