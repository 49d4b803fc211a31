"""core/optim: equal to plain optax where that exists; rules; helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.core.small_optim import make, make_params
from vitscale.core import optim
from vitscale.core.errors import UserError


def gradient(params, step):
  return jax.tree.map(lambda p: jnp.cos(p * (step + 1)) * 3, params)


def trajectory(optimizer, lr, steps=8, params=None):
  params = make_params() if params is None else params
  state = optimizer.init(params)
  run = jax.jit(optimizer.update)
  for step in range(steps):
    updates, state = run(gradient(params, step), state, params, step, lr)
    params = optax.apply_updates(params, updates)
  return params


MATRIX = {
  "stem": {"kernel": True},
  "position": False,
  "block_0": {"up": True, "bias": False, "down": True},
  "head": {"kernel": True},
}


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
def test_equals_plain_optax(name):
  schedule = {"kind": "cosine", "warmup_steps": 3}
  ours = make(
    name=name,
    schedule=schedule,
    clip_norm=0.5,
    weight_decay=0.1,
    b1=0.8,
    b2=0.9,
  )
  rate = lambda step: 0.01 * ours.schedule(step)
  if name == "adamw":
    plain = optax.adamw(rate, 0.8, 0.9, weight_decay=0.1, mask=MATRIX)
  elif name == "lion":
    plain = optax.lion(rate, 0.8, 0.9, weight_decay=0.1, mask=MATRIX)
  else:
    plain = optax.chain(
      optax.trace(0.8),
      optax.add_decayed_weights(0.1, MATRIX),
      optax.scale_by_learning_rate(rate),
    )
  plain = optax.chain(optax.clip_by_global_norm(0.5), plain)
  params = make_params()
  state = plain.init(params)
  update = jax.jit(plain.update)
  for step in range(8):
    updates, state = update(gradient(params, step), state, params)
    params = optax.apply_updates(params, updates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    trajectory(ours, 0.01),
    params,
  )


def test_learning_rate_and_step_do_not_recompile():
  optimizer = make()
  traces = []

  @jax.jit
  def run(params, state, step, lr):
    traces.append(1)
    return optimizer.update(gradient(params, 0), state, params, step, lr)[0]

  params = make_params()
  state = optimizer.init(params)
  small = run(params, state, 5, 1e-3)
  large = run(params, state, 5, 3e-3)
  run(params, state, 6, 1e-2)
  assert len(traces) == 1
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(3 * a, b, rtol=1e-5), small, large
  )


def test_who_decays_by_default_and_by_rule():
  info = make().info
  assert [k for k, i in info.items() if i.decay] == [
    "block_0/down",
    "block_0/up",
    "head/kernel",
    "stem/kernel",
  ]
  info = make(decay=[("head/.*", 0.5), ("position", 1.0)]).info
  assert info["head/kernel"].decay == 0.5
  assert info["position"].decay == info["stem/kernel"].decay == 1
  assert info["block_0/bias"].decay == 0


def test_multipliers_and_freezing():
  lr_mult, freeze = [("head/.*", 10.0)], ["stem/.*", "position"]
  optimizer = make(lr_mult=lr_mult, freeze=freeze, clip_norm=0, weight_decay=0)
  params = make_params()
  grads = gradient(params, 0)
  state = optimizer.init(params)
  sizes = {x.shape for x in jax.tree.leaves(state)}
  assert (5, 4) not in sizes and (3, 4) not in sizes  # no state when frozen
  updates, _ = optimizer.update(grads, state, params, 10, 1.0)
  plain, _ = make(clip_norm=0, weight_decay=0).update(
    grads, make().init(params), params, 10, 1.0
  )
  assert not updates["position"].any() and not updates["stem"]["kernel"].any()
  np.testing.assert_allclose(
    updates["head"]["kernel"], 10 * plain["head"]["kernel"], rtol=1e-6
  )
  np.testing.assert_array_equal(
    updates["block_0"]["up"], plain["block_0"]["up"]
  )
  text = optimizer.table()
  assert "frozen" in text and len(text.splitlines()) == 7


def test_frozen_gradients_do_not_enter_the_norm():
  optimizer = make(freeze=["position"], name="sgd", b1=0.0, weight_decay=0)
  params = make_params()
  grads = jax.tree.map(jnp.zeros_like, params)
  grads["position"] = grads["position"] + jnp.nan
  grads["head"]["kernel"] = grads["head"]["kernel"] + 0.01
  updates, _ = optimizer.update(grads, optimizer.init(params), params, 5, 1.0)
  assert np.isfinite(updates["head"]["kernel"]).all()
  assert not updates["position"].any()


@pytest.mark.parametrize(
  ("config", "says"),
  [
    ({"learning_rate": 1}, "optim.learning_rate unknown"),
    ({"name": "adam"}, "did you mean 'adamw'"),
    ({"freeze": ["haed/.*"]}, "optim.freeze: 'haed/.*' fits no"),
    ({"lr_mult": [("x", 2.0)]}, "optim.lr_mult: 'x' fits no"),
    ({"freeze": [".*"]}, "leaves no parameter"),
    ({"schedule": {"kind": "cosin"}}, "did you mean 'cosine'"),
    ({"schedule": {"kind": "cosine", "cooldown_steps": 1}}, "cooldown_steps"),
    ({"schedule": {"kind": "wsd", "warmup_steps": 19}}, "exceed the 20"),
    ({"schedule": {"warmup_steps": 1, "warmup_percent": 1}}, "not both"),
    ({"schedule": {"warmup_percent": 101}}, "want 0..100"),
    ({"mup": {"width": 3}}, "base_width or base"),
    ({"mup": {"base_width": 2}, "name": "adafactor"}, "no known rule"),
  ],
)
def test_errors(config, says):
  with pytest.raises(UserError, match=says):
    make(**config)


# ------------------------------------------------------------------- helpers


def test_ema_warms_up_and_then_follows():
  params, ema = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
  first = optim.ema_update(ema, params, 0.99, 0)
  np.testing.assert_allclose(first["w"], 0.9)
  late = optim.ema_update(ema, params, 0.99, 10**6)
  np.testing.assert_allclose(late["w"], 0.01, rtol=1e-5)


def test_accumulated_gradient_is_that_of_the_full_batch():
  rng = np.random.default_rng(0)
  params = {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
  batch = {
    "x": jnp.asarray(rng.normal(size=(12, 5)), jnp.float32),
    "y": jnp.asarray(rng.integers(0, 3, 12)),
  }

  def loss(params, batch):
    logits = batch["x"] @ params["w"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    right = jnp.sum(logits.argmax(-1) == batch["y"])
    return losses.mean(), {
      "right": right,
      "half": losses.mean().astype("bfloat16"),
    }

  call = jax.value_and_grad(loss, has_aux=True)
  want = call(params, batch)
  for k in (1, 3, 12):
    got = jax.jit(lambda p, b, k=k: optim.accumulate(call, p, b, k))(
      params, batch
    )
    (value, aux), grads = got
    np.testing.assert_allclose(value, want[0][0], rtol=1e-6)
    np.testing.assert_allclose(grads["w"], want[1]["w"], atol=1e-6)
    assert aux["right"] == want[0][1]["right"]
    assert aux["half"].dtype == jnp.bfloat16
  with pytest.raises(UserError, match="5 microbatches do not divide"):
    optim.accumulate(call, params, batch, 5)


def test_microbatches_get_their_own_randomness():
  def draw(params, batch, key):
    return jax.random.normal(key["dropout"], (64,))

  keys = {"dropout": jax.random.key(0)}
  batch = {"x": jnp.zeros((4, 1))}
  mean = optim.accumulate(draw, {}, batch, 4, rngs=keys)
  assert 0.3 < float(mean.std()) < 0.7  # 1 if all four had drawn the same


def test_adafactor_trains():
  optimizer = make(name="adafactor", total_steps=100)
  params = make_params()
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, i):
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state, params, i, 0.05)
    return optax.apply_updates(params, updates), state, value

  losses = []
  for i in range(60):
    params, state, value = step(params, state, i)
    losses.append(float(value))
  assert losses[-1] < 0.2 * losses[0]
