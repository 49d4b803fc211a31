"""Growth: the large model computes what the small one did, and can learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitscale.core import axes, tree
from vitscale.core.axes import AxisError
from vitscale.elastic import grow
from vitscale.models import pattention_vit, vit

IMAGE = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
LABEL = np.arange(4) % 3


def made(model, seed=0):
  """(parameters, names)"""
  boxed = model.init(jax.random.key(seed), IMAGE[:1])
  return axes.unbox(boxed)["params"], axes.names_of(boxed)["params"]


def logits(model, params):
  return jax.jit(model.apply)({"params": params}, IMAGE)[0]


def trained(model, params, steps=5):
  """After some steps of Adam: nothing is zero or symmetric any more."""
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, state):
    def loss(params):
      y = model.apply({"params": params}, IMAGE)[0]
      return optax.softmax_cross_entropy_with_integer_labels(y, LABEL).mean()

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value, grads

  state = optimizer.init(params)
  for _ in range(steps):
    params, state, value, grads = step(params, state)
  return params, float(value), grads


def relative(a, b):
  return float(np.abs(a - b).max() / np.abs(b).max())


token_vit = functools.partial(
  pattention_vit.Model, num_classes=3, width=32, depth=2, num_heads=2,
  patch_size=4, scale_tokens=24, ffn_scale_tokens=96,
)  # fmt: skip
plain = functools.partial(
  vit.Model, num_classes=3, depth=2, patch_size=4, head_dim=8
)
SIZES = [(24, 96), (40, 160), (64, 164), (128, 512)]


@pytest.mark.slow
def test_pattention_grows_exactly_stage_after_stage():
  """Three growths, training between them (the claim: 1e-6 in float32)."""
  small, params = None, None
  for i, (tokens, ffn_tokens) in enumerate(SIZES):
    model = token_vit(tokens=tokens, ffn_tokens=ffn_tokens)
    fresh, names = made(model, seed=i)
    if small is not None:
      before = logits(small, params)
      params = grow.append(params, names, fresh)
      assert relative(logits(model, params), before) < 1e-6
    params, value, _ = trained(model, params or fresh)
    assert np.isfinite(value)
    small = model


@pytest.mark.slow
def test_new_pairs_learn_at_once():
  small, model = token_vit(tokens=24), token_vit(tokens=40)
  params, _, _ = trained(small, made(small)[0])
  fresh, names = made(model, seed=1)
  big = grow.append(params, names, fresh)
  _, _, grads = trained(model, big, steps=1)
  for path, g in tree.flatten(grads).items():
    if "query/keys" in path:
      assert np.abs(np.asarray(g)[..., 24:]).min(axis=0).max() > 0, path
      assert not np.any(tree.flatten(big)[path][..., 24:]), path


def test_pairs_of_zero_keys_and_values_would_never_learn():
  """Why only the keys are zero: nothing reaches either through the other."""
  small, model = token_vit(tokens=24), token_vit(tokens=40)
  params, _, _ = trained(small, made(small)[0])
  fresh, names = made(model, seed=1)
  nothing = jax.tree.map(jnp.zeros_like, fresh)
  for start, learns in ((fresh, True), (nothing, False)):
    grown = grow.append(params, names, start)
    moved = tree.flatten(trained(model, grown)[0])
    key, value = (
      np.asarray(moved[f"encoder/block_00/query/{part}/kernel"])
      for part in ("keys", "values")
    )
    assert np.any(key[..., 24:]) == np.any(value[24:]) == learns


def test_the_released_rescaling_is_not_exact():
  """sqrt of the current n: what `scale_tokens` is there for."""
  small = token_vit(tokens=24, scale_tokens=None)
  model = token_vit(tokens=40, scale_tokens=None)
  params, _, _ = trained(small, made(small)[0])
  fresh, names = made(model, seed=1)
  grown = grow.append(params, names, fresh)
  assert relative(logits(model, grown), logits(small, params)) > 1e-2


@pytest.mark.parametrize(
  ("theta", "exact"), [("l2_gelu", True), ("gelu_l2", True), ("exp_l1", False)]
)
def test_which_thetas_grow_exactly(theta, exact):
  small, model = token_vit(theta=theta), token_vit(theta=theta, tokens=200)
  params, _, _ = trained(small, made(small)[0])
  fresh, names = made(model, seed=1)
  gap = relative(
    logits(model, grow.append(params, names, fresh)), logits(small, params)
  )
  assert (gap < 1e-6) == exact, gap


@pytest.mark.parametrize("ffn", ["gelu", "swiglu"])
def test_hidden_units_and_heads_can_be_appended(ffn):
  small = plain(width=32, num_heads=2, mlp_dim=40, ffn=ffn)
  model = small.clone(mlp_dim=96, num_heads=3)
  params, _, _ = trained(small, made(small)[0])
  fresh, names = made(model, seed=1)
  grown = grow.append(params, names, fresh)
  assert relative(logits(model, grown), logits(small, params)) < 1e-6


def test_net2net_copies_hidden_units_and_heads():
  small = plain(width=32, num_heads=2, mlp_dim=40)
  model = small.clone(num_heads=5, mlp_dim=96)
  params, _, _ = trained(small, made(small)[0])
  index = {
    "mlp": grow.copies(40, 96, jax.random.key(0)),
    "heads": grow.copies(2, 5),
  }
  grown = grow.copy(params, made(small)[1], index)
  assert jax.tree.map(jnp.shape, grown) == jax.tree.map(
    jnp.shape, made(model)[0]
  )
  assert relative(logits(model, grown), logits(small, params)) < 2e-6


def test_hypercloning_doubles_every_width():
  small = plain(width=16, num_heads=2, mlp_dim=40, qk_norm=True)
  model = small.clone(width=32, num_heads=4, mlp_dim=80)
  params, _, _ = trained(small, made(small)[0])
  index = {
    role: grow.copies(n, 2 * n)
    for role, n in {"embed": 16, "heads": 2, "mlp": 40}.items()
  }
  grown = grow.copy(params, made(small)[1], index)
  assert relative(logits(model, grown), logits(small, params)) < 2e-6


@pytest.mark.parametrize(
  ("action", "message"),
  [
    (
      lambda p, n, b: grow.append(p, n, made(plain(width=40, num_heads=2))[0]),
      "axis 'embed' is seen by norms",
    ),
    (lambda p, n, b: grow.append(b, n, p), "shrinks from 96 to 40"),
    (
      lambda p, n, b: grow.copy(p, n, {"embed": grow.copies(32, 40)}),
      "copy all its entries equally often",
    ),
    (lambda p, n, b: grow.copy(p, n, {"mlp": [0, 2]}), "entry 1 is dropped"),
    (lambda p, n, b: grow.copy(p, n, {"state": [0]}), "no parameter has"),
    (lambda p, n, b: grow.copies(4, 3), "3 units can't hold copies of 4"),
  ],
)
def test_bad_growth(action, message):
  small = plain(width=32, num_heads=2, mlp_dim=40)
  params, names = made(small)
  big = made(small.clone(mlp_dim=96))[0]
  with pytest.raises(AxisError, match=message):
    action(params, names, big)
