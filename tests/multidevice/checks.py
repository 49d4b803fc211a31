"""Checks on 8 fake CPU devices; test_devices.py runs this in one process.

Prints one JSON object: name of the check -> "" or the traceback.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests import toys
from tests.runs import print_results
from vitscale.bench import build
from vitscale.core import accounting, axes, optim, placement, sharding
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError

D, M, HEADS, HEAD = 16, 32, 4, 4
NAMES = {
  "stem": axes.parse("patch -> embed"),
  "qkv": axes.parse("embed -> qkv heads head_dim"),
  "out": axes.parse("heads head_dim -> embed"),
  "up": axes.parse("embed -> mlp"),
  "bias": axes.parse("mlp"),
  "down": axes.parse("mlp -> embed"),
  "head": axes.parse("embed -> classes"),
}


def init(key):
  shapes = {
    "stem": (12, D),
    "qkv": (D, 3, HEADS, HEAD),
    "out": (HEADS, HEAD, D),
    "up": (D, M),
    "bias": (M,),
    "down": (M, D),
    "head": (D, 6),
  }
  keys = dict(zip(shapes, jax.random.split(key, len(shapes))))
  draw = lambda name: 0.2 * jax.random.normal(keys[name], shapes[name])
  return {name: draw(name) for name in shapes}


def forward(params, x, *, flat):
  """One transformer block; tokens travel flat unless the sequence is split."""
  b, n, _ = x.shape
  names = ("tokens",) if flat else ("batch", "sequence")
  lead = (b * n,) if flat else (b, n)
  x = sharding.constrain(x.reshape(*lead, -1) @ params["stem"], *names, "embed")
  qkv = jnp.einsum("...d,dkhe->k...he", x, params["qkv"])
  q, k, v = qkv.reshape(3, b, n, HEADS, HEAD)
  q = sharding.constrain(q, "batch", "sequence", "heads", "head_dim")
  y = jax.nn.dot_product_attention(q, k, v)
  y = jnp.einsum(
    "...he,hed->...d", y.reshape(*lead, HEADS, HEAD), params["out"]
  )
  x = sharding.constrain(x + y, *names, "embed")
  h = jax.nn.gelu(x @ params["up"] + params["bias"])
  h = sharding.constrain(h, *names, "mlp")
  x = sharding.constrain(x + h @ params["down"], *names, "embed")
  return x.reshape(b, n, -1).mean(1) @ params["head"]


def loss(params, batch, *, flat=True):
  logits = forward(params, batch["image"], flat=flat)
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch["label"]
  ).mean()


def make_batch(b=16, n=8):
  rng = np.random.default_rng(0)
  return {
    "image": rng.normal(size=(b, n, 12)).astype(np.float32),
    "label": rng.integers(0, 6, b).astype(np.int32),
  }


def train(mesh, *, flat=True, steps=3, k=1):
  """(losses, host parameters, scope, compiled text) of a few AdamW steps."""
  abstract = jax.eval_shape(init, jax.random.key(0))
  optimizer = optim.make(
    {"schedule": {"kind": "constant"}}, abstract, NAMES, total_steps=steps
  )
  grad = jax.value_and_grad(functools.partial(loss, flat=flat))

  def step(params, state, batch, i, lr):
    value, grads = optim.accumulate(grad, params, batch, k)
    updates, state = optimizer.update(grads, state, params, i, lr)
    return optax.apply_updates(params, updates), state, value

  if mesh is None:
    step, params = jax.jit(step), jax.jit(init)(jax.random.key(0))
    state = jax.jit(optimizer.init)(params)
    losses = []
    for i in range(steps):
      params, state, value = step(params, state, make_batch(), i, 1e-2)
      losses.append(float(value))
    return losses, jax.device_get(params), None, ""
  with sharding.use(mesh) as scope:
    placed = sharding.param_shardings(NAMES, abstract, mesh, small=64)
    abstract_state = jax.eval_shape(optimizer.init, abstract)
    follow = sharding.follow(abstract_state, placed, mesh)
    params = jax.jit(init, out_shardings=placed)(jax.random.key(0))
    state = jax.jit(optimizer.init, out_shardings=follow)(params)
    jitted = jax.jit(
      step, donate_argnums=(0, 1), out_shardings=(placed, follow, None)
    )
    batch = sharding.shard_batch(make_batch(), mesh)
    lowered = jitted.lower(params, state, batch, 0, 1e-2)
    losses = []
    for i in range(steps):
      params, state, value = jitted(params, state, batch, i, 1e-2)
      losses.append(float(value))
    jax.tree.map(lambda x, s: check_same_sharding(x, s), params, placed)
    mu = state.mu["up"]
    assert mu.sharding == placed["up"], mu.sharding
    return losses, jax.device_get(params), scope, lowered.as_text()


def check_same_sharding(x, want):
  assert x.sharding.is_equivalent_to(want, x.ndim), (x.sharding, want)


@functools.cache
def reference():
  return train(None)


def compare(mesh, **kw):
  losses, params, scope, text = train(mesh, **kw)
  want_losses, want, _, _ = reference()
  np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, want
  )
  return scope, text


# -------------------------------------------------------------------- checks


def fsdp_and_tensor_equal_one_device():
  mesh = sharding.make_mesh({"fsdp": -1, "tensor": 2})
  scope, text = compare(mesh)
  found = len(re.findall(r"sdy\.sharding_constraint|@Sharding", text))
  assert scope.constraints == 5, scope.constraints
  assert found >= 5, found  # the gradient transposes them too


def replicas_and_microbatches_equal_one_device():
  compare(sharding.make_mesh({"replica": 2, "fsdp": 2, "tensor": 2}), k=2)


def sequence_equals_one_device():
  mesh = sharding.make_mesh({"fsdp": 2, "sequence": 4})
  scope, _ = compare(mesh, flat=False)
  assert scope.constraints == 5


def microbatches_move_no_examples():
  mesh = sharding.make_mesh()
  with sharding.use(mesh):
    batch = sharding.shard_batch(make_batch(), mesh)
    mean = lambda p, b: b["image"] * 2.0

    def run(batch):
      return optim.accumulate(mean, {}, batch, 2)

    out = jax.NamedSharding(mesh, jax.P("fsdp"))
    text = jax.jit(run, out_shardings=out).lower(batch).compile().as_text()
  moved = re.findall(r"all-gather|all-to-all|collective-permute", text)
  assert not moved, moved


def parameters_are_split():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  abstract = jax.eval_shape(init, jax.random.key(0))
  placed = sharding.param_shardings(NAMES, abstract, mesh, small=64)
  params = jax.jit(init, out_shardings=placed)(jax.random.key(0))
  local = {k: x.addressable_shards[0].data.shape for k, x in params.items()}
  assert local["up"] == (D // 4, M // 2), local
  assert local["qkv"] == (D // 4, 3, HEADS // 2, HEAD), local
  assert local["bias"] == (M,), local
  table = placement.describe(NAMES, abstract, placed)
  assert re.search(r"^up +16 x 32 +embed -> mlp +fsdp tensor$", table, re.M)


def batches_are_split():
  mesh = sharding.make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
  batch = make_batch()
  placed = sharding.shard_batch(batch, mesh)
  np.testing.assert_array_equal(placed["image"], batch["image"])
  assert placed["image"].addressable_shards[0].data.shape == (4, 8, 12)
  assert sharding.data_block(mesh) == (0, 1)
  try:
    sharding.shard_batch(make_batch(6), mesh)
  except UserError as error:
    assert "6 rows" in str(error) and "nearest 4 or 8" in str(error), error
  else:
    raise AssertionError("6 rows over 4 shards")


def activations_that_do_not_divide_raise():
  with sharding.use(sharding.make_mesh({"fsdp": 2, "sequence": 4})):
    assert sharding.ways("sequence") == 4 and sharding.ways("batch") == 2
    x = jnp.ones((5, 197, 8))
    try:
      sharding.constrain(x, "batch", "sequence", "embed")
    except AxisError as error:
      assert "'batch' = 5" in str(error), error
      assert "nearest 4 or 6" in str(error), error
    else:
      raise AssertionError("5 examples over 2")
    one = sharding.constrain(x[:1], "batch", "sequence", "embed")
    assert one.shape == (1, 197, 8)  # init with one example; uneven tokens
    both = sharding.RULES.override(activations={"embed": "fsdp"})
  with sharding.use(sharding.make_mesh(), both):
    try:
      sharding.constrain(jnp.ones((8, 8)), "batch", "embed")
    except AxisError as error:
      assert "both ask for mesh axis 'fsdp'" in str(error), error
    else:
      raise AssertionError("fsdp used twice")


def constraints_live_with_shard_map():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})

  def island(x):
    return sharding.constrain(x * 2, "batch", "mlp")

  with sharding.use(mesh) as scope:
    spec = jax.P("fsdp", None)
    x = jnp.ones((8, 8))
    for manual in ({"fsdp"}, set(mesh.axis_names)):
      f = jax.shard_map(
        island, in_specs=spec, out_specs=spec, axis_names=manual
      )
      np.testing.assert_array_equal(jax.jit(f)(x), 2)
    assert scope.constraints == 1  # none is left where all axes are manual


def shard_map_flops():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  spec = jax.P("fsdp", None)
  with sharding.use(mesh):
    f = jax.shard_map(
      lambda x, w: x @ w, in_specs=(spec, jax.P()), out_specs=spec
    )
    plain = accounting.count_flops(
      jnp.matmul, jnp.ones((8, 4)), jnp.ones((4, 4))
    )
    mapped = accounting.count_flops(f, jnp.ones((8, 4)), jnp.ones((4, 4)))
  assert plain.matmul == mapped.matmul == 2 * 8 * 4 * 4


def flops_do_not_depend_on_the_mesh():
  abstract = jax.eval_shape(init, jax.random.key(0))
  batch = make_batch()
  plain = accounting.train_flops(loss, abstract, batch)
  with sharding.use(sharding.make_mesh({"fsdp": 4, "tensor": 2})):
    assert accounting.train_flops(loss, abstract, batch) == plain


def odd_tokens_start_on_any_mesh():
  """Init traces one example, whose 5 tokens need not divide over devices."""
  config = toys.config(evals={}, batch_size=16)
  config.model.pool, config.mesh = "cls", {"fsdp": 8}
  state = build(config).init(np.uint32(0))
  assert int(state["step"]) == 0


def codebooks_and_discriminators_equal_one_device():
  """Averages over all tokens, drawn ones, and the spread over all images."""
  config = toys.config(evals={}, batch_size=16, ema=0.0)
  config.data = {"source": "fields", "size": 8, "n": 64}
  config.train.transform = ""
  config.model = {
    "family": "vitok", "variant": "mu/4", "encoder_depth": 1,
    "decoder_depth": 1, "bottleneck": "vq(64, 4, ema=0.5, revive=0.4)",
  }  # fmt: skip
  config.task = {
    "name": "adversarial", "of": {"name": "reconstruct"}, "weight": 1.0,
    "r1": 1.0, "r1_every": 1, "discriminator": "residual(4, 8)",
  }  # fmt: skip
  # Plain descent: Adam would make a large step of a rounding error.
  plain = {"name": "sgd", "lr": 1e-2, "b1": 0.0}
  config.optim = config.optim_discriminator = plain
  found = []
  for devices in (jax.devices()[:1], jax.devices()):
    bench = build(config, devices=devices)
    state, lrs = (
      bench.init(np.uint32(0)),
      dict.fromkeys(("generator", "discriminator"), np.float32(1e-2)),
    )
    batches = bench.batches(0, 0)
    for _ in range(3):  # entries unused in the first two are dead
      batch = sharding.shard_batch(next(batches), bench.mesh, bench.rules)
      state = bench.step(state, batch, np.uint32(0), lrs)
    found.append(jax.device_get({k: state[k] for k in ("params", "mutable")}))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *found
  )
  share = found[0]["mutable"]["codebook"]["neck"]["share"]
  assert (share == np.float32(1 / 64)).sum() > 8  # some were revived


CHECKS = [
  fsdp_and_tensor_equal_one_device,
  replicas_and_microbatches_equal_one_device,
  sequence_equals_one_device,
  microbatches_move_no_examples,
  parameters_are_split,
  batches_are_split,
  activations_that_do_not_divide_raise,
  constraints_live_with_shard_map,
  shard_map_flops,
  flops_do_not_depend_on_the_mesh,
  odd_tokens_start_on_any_mesh,
  codebooks_and_discriminators_equal_one_device,
]


if __name__ == "__main__":
  print_results(CHECKS)
