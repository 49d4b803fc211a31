"""core/optim: equal to plain optax where that exists; rules; muP; helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitscale.core import axes, optim
from vitscale.core.errors import UserError

NAMES = {
  "stem": {"kernel": axes.parse("patch -> embed")},
  "position": axes.parse("pos embed"),
  "block_0": {
    "up": axes.parse("embed -> mlp"),
    "bias": axes.parse("mlp"),
    "down": axes.parse("mlp -> embed"),
  },
  "head": {"kernel": axes.parse("embed -> classes")},
}


def make_params(d=4, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
    "stem": {"kernel": draw(3, d)},
    "position": draw(5, d),
    "block_0": {
      "up": draw(d, 2 * d),
      "bias": draw(2 * d),
      "down": draw(2 * d, d),
    },
    "head": {"kernel": draw(d, 3)},
  }


def make(total_steps=20, names=NAMES, params=None, **config):
  params = make_params() if params is None else params
  return optim.make(config, params, names, total_steps=total_steps)


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


def test_layer_decay_for_loop_and_scan():
  params = {
    "stem": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "block_0": {"up": jnp.ones((4, 8))},
    "block_1": {"up": jnp.ones((4, 8))},
    "head": jnp.ones((4, 2)),
  }
  up = axes.parse("embed -> mlp")
  stem, head = axes.parse("patch -> embed"), axes.parse("embed -> classes")
  names = {
    "stem": {"kernel": stem, "bias": axes.parse("embed")},
    "block_0": {"up": up},
    "block_1": {"up": up},
    "head": head,
  }
  info = make(params=params, names=names, layer_decay=0.5).info
  assert [i.scale for i in info.values()] == [0.25, 0.5, 1.0, 0.125, 0.125]
  params = {
    "stem": params["stem"]["kernel"],
    "blocks": {"up": jnp.ones((2, 4, 8))},
  }
  names = {"stem": stem, "blocks": {"up": axes.parse("layers embed -> mlp")}}
  optimizer = make(params=params, names=names, layer_decay=0.5)
  scale = optimizer.info["blocks/up"].scale
  assert scale.shape == (2, 1, 1) and scale.ravel().tolist() == [0.25, 0.5]
  updates, _ = optimizer.update(params, optimizer.init(params), params, 5, 1.0)
  np.testing.assert_allclose(
    2 * updates["blocks"]["up"][0], updates["blocks"]["up"][1], rtol=1e-6
  )
  assert "0.25..0.5" in optimizer.table()


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


# ----------------------------------------------------------------- schedules


def test_schedules_end_where_they_should():
  make = optim.schedule
  cosine = make({"kind": "cosine", "warmup_steps": 10, "end": 0.1}, 110)
  np.testing.assert_allclose(
    cosine([0, 9, 10, 60, 110]), [0.1, 1, 1, 0.55, 0.1]
  )
  linear = make({"kind": "linear", "warmup_percent": 10}, 100)
  np.testing.assert_allclose(linear([4, 10, 55, 100]), [0.5, 1, 0.5, 0])
  rsqrt = make({"kind": "rsqrt", "timescale": 5, "cooldown_steps": 20}, 100)
  np.testing.assert_allclose(
    rsqrt([0, 15, 80, 90, 100]),
    [1, 0.5, 17**-0.5, 0.5 * 19**-0.5, 0],
    atol=1e-6,
  )
  wsd = make({"kind": "wsd"}, 100)
  np.testing.assert_allclose(wsd([0, 80, 85, 100]), [1, 1, 0.5, 0])
  constant = make({"kind": "constant"}, 100)
  assert constant(0) == constant(99) == 1


@pytest.mark.parametrize(
  "kind", ["constant", "cosine", "linear", "rsqrt", "wsd"]
)
def test_schedules_trace_and_stay_in_range(kind):
  factor = optim.schedule({"kind": kind, "warmup_steps": 7}, 50)
  steps = np.arange(60)  # a resumed run may ask beyond the end
  host, device = factor(steps), jax.jit(factor)(steps)
  np.testing.assert_allclose(host, device, atol=2e-6)
  assert (host >= 0).all() and (host <= 1).all() and host[0] > 0


# ----------------------------------------------------------------------- muP

MLP = {
  "stem": axes.parse("patch -> embed"),
  "hidden": axes.parse("embed -> mlp"),
  "bias": axes.parse("mlp"),
  "head": axes.parse("mlp -> classes"),
}


def mlp(width):
  rng = np.random.default_rng(1)
  draw = lambda *s: jnp.asarray(rng.normal(size=s) * s[0] ** -0.5, jnp.float32)
  params = {
    "stem": draw(8, width),
    "hidden": draw(width, width),
    "bias": jnp.zeros(width),
    "head": jnp.zeros((width, 4)),
  }

  def forward(params, x):
    h = jax.nn.relu(x @ params["stem"]) @ params["hidden"] + params["bias"]
    return h, jax.nn.relu(h) @ params["head"]

  return params, forward


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_mup_keeps_the_size_of_updates(name):
  """Coordinate check: how far activations move in 4 steps, over widths."""
  rng = np.random.default_rng(2)
  x = jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)
  y = jnp.asarray(rng.integers(0, 4, 32))

  def moved(width, mup):
    params, forward = mlp(width)
    lr = {"adamw": 2e-3, "sgd": 0.05}[name]
    config = {"name": name, "schedule": {"kind": "constant"}, "mup": mup}
    config |= {"clip_norm": 0, "weight_decay": 0}
    optimizer = optim.make(config, params, MLP, total_steps=10)
    state, start = optimizer.init(params), forward(params, x)

    def loss(params):
      logits = forward(params, x)[1]
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state):
      updates, state = optimizer.update(
        jax.grad(loss)(params), state, params, 0, lr
      )
      return optax.apply_updates(params, updates), state

    for _ in range(4):
      params, state = step(params, state)
    end = forward(params, x)
    return [float(jnp.abs(a - b).mean()) for a, b in zip(end, start)]

  widths = (64, 1024)
  hidden, output = np.divide(*[moved(w, {"base_width": 64}) for w in widths])
  assert 0.5 < hidden < 2 and 0.5 < output < 2, (hidden, output)
  hidden, output = np.divide(*[moved(w, None) for w in widths])
  # Under SGD plain hidden updates vanish, entrywise methods blow up.
  if name == "sgd":
    assert output < 0.3, (hidden, output)
  else:
    assert hidden < 0.4 and output < 0.4, (hidden, output)


def test_mup_from_base_shapes_equals_from_base_width():
  shapes = jax.eval_shape(lambda: make_params(16))
  base = jax.eval_shape(lambda: make_params(4))
  a = make(params=shapes, mup={"base_width": 4}).info
  b = make(params=shapes, mup={"base": base}).info
  assert a == b
  assert {k: i.mup for k, i in a.items()} == {
    "block_0/bias": 1,
    "block_0/down": 0.25,
    "block_0/up": 0.25,
    "head/kernel": 0.25,
    "position": 1,
    "stem/kernel": 1,
  }
  assert [k for k, i in a.items() if i.init != 1] == ["head/kernel"]
  params = make_params(16)
  scaled = optim.mup_init(params, a)
  np.testing.assert_allclose(
    scaled["head"]["kernel"], params["head"]["kernel"] / 2
  )
  np.testing.assert_array_equal(scaled["position"], params["position"])


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
