"""core/multipliers: layer decay, and muP from axis names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.core.small_optim import make, make_params
from vitscale.core import axes, optim


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
