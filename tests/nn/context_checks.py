"""Context parallelism on 8 fake devices; test_context.py runs this.

Prints one JSON object: name of the check -> "" or the traceback.
"""

import functools
import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.runs import print_results
from vitscale.core import sharding
from vitscale.core.axes import AxisError
from vitscale.core.mesh import CONTEXTS
from vitscale.models import vit
from vitscale.nn import attention, kernels, tiled

# 37 and 9 tokens leave devices with fewer of them, or none.
SPLITS = (
  ({"sequence": 8}, 64),
  ({"sequence": 8}, 37),
  ({"sequence": 8}, 9),
  ({"fsdp": 2, "tensor": 2, "sequence": 2}, 37),
)
CONTEXT = "batch", "sequence", "heads", "head_dim"


def rules(context):
  return sharding.RULES.override(context=context)


def inputs(n, b=4, h=8, hd=8, seed=0):
  draw = lambda i: jax.random.normal(
    jax.random.fold_in(jax.random.key(seed), i), (b, n, h, hd)
  )
  return draw(0), draw(1), draw(2), draw(3)


def who(kind, n, b=4):
  rng = np.random.default_rng(n)
  if kind == "lengths":
    return {"lengths": jnp.asarray(rng.integers(1, n + 1, b))}
  if kind == "segments":
    ids = np.sort(rng.integers(0, 3, (b, n)))
    return {"segment_ids": jnp.asarray(ids)}
  return {}


def gradients(q, k, v, weight, backend, **who):
  """Result, where it means something, and the gradients of q, k, v."""
  n = q.shape[1]
  real = jnp.arange(n) < who.get("lengths", jnp.full(len(q), n))[:, None]

  def loss(q, k, v):
    q, k, v = (sharding.constrain(x, *CONTEXT) for x in (q, k, v))
    y = attention.attend(q, k, v, backend=backend, **who)
    y = y * real[..., None, None]
    return (y * weight).sum(), y

  (_, y), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
  return y, *grads


def compare(context, backend):
  for (shape, n), kind in itertools.product(
    SPLITS, ("all", "lengths", "segments")
  ):
    x, given = inputs(n), who(kind, n)
    run = functools.partial(gradients, **given)
    want = jax.jit(run, static_argnums=4)(*x, "reference")
    with sharding.use(sharding.make_mesh(shape), rules(context)):
      got = jax.jit(run, static_argnums=4)(*x, backend)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want):
      np.testing.assert_allclose(
        a, b, atol=1e-5, err_msg=f"{context} {shape} {n} {kind} {name}"
      )


def gather_equals_the_reference():
  compare("gather", "reference")


def gather_in_blocks_equals_the_reference():
  tiled.BLOCK, block = 8, tiled.BLOCK  # more than one
  compare("gather", "chunked")
  tiled.BLOCK = block


def ring_equals_the_reference():
  compare("ring", "auto")


def ring_in_blocks_equals_the_reference():
  tiled.BLOCK, block = 3, tiled.BLOCK
  compare("ring", "chunked")
  tiled.BLOCK = block


def ulysses_equals_the_reference():
  compare("ulysses", "reference")


def half_precision():
  """bfloat16 keeps its rounding, not more, over eight hops."""
  x = inputs(64)
  half = [y.astype(jnp.bfloat16) for y in x]
  want = jax.jit(gradients, static_argnums=4)(*x, "reference")
  for context in CONTEXTS:
    with sharding.use(sharding.make_mesh({"sequence": 8}), rules(context)):
      got = jax.jit(gradients, static_argnums=4)(*half, "chunked")
    for a, b in zip(got, want):
      gap = np.abs(np.asarray(a, np.float32) - np.asarray(b)).max()
      assert gap < 0.03 * np.abs(b).max(), (context, gap)


def each_moves_what_it_says():
  moved = {}
  for context in CONTEXTS:
    with sharding.use(sharding.make_mesh({"sequence": 8}), rules(context)):
      f = lambda q, k, v: attention.attend(
        *(sharding.constrain(x, *CONTEXT) for x in (q, k, v))
      )
      text = jax.jit(f).lower(*inputs(64)[:3]).compile().as_text()
    moved[context] = set(
      re.findall(r" (all-gather|all-to-all|collective-permute)(?:-start)?\(",
                 text)
    )  # fmt: skip
  assert moved == {
    "gather": {"all-gather"},
    "ring": {"collective-permute"},
    "ulysses": {"all-to-all"},
  }, moved


def whole_models():
  """Loss and gradient of ViTs whose 16 patches get tokens of other kinds."""
  kinds = [
    {"pool": "cls", "registers": 2, "position": "rope2d"},
    {"pool": "map"},
    {"pool": "mean", "registers": 1, "remat": "save_attention"},
    {"pool": "cls", "scan": True, "attention": "chunked", "remat": "full"},
  ]
  image = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
  run = lambda loss, *args: jax.jit(jax.value_and_grad(loss))(*args)
  for kind in kinds:
    model = vit.Model(
      num_classes=5, width=32, depth=2, mlp_dim=64, num_heads=4, patch_size=8,
      **kind,
    )  # fmt: skip
    boxed = jax.jit(model.init)(jax.random.key(0), image[:1])
    variables = jax.tree.map(
      lambda x: x + 0.01 * jnp.arange(x.size).reshape(x.shape) / x.size,
      jax.tree.map(
        lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "value")
      ),
    )  # the head starts as zeros

    def loss(variables, image, model=model):
      logits, _ = model.apply(variables, image)
      return jax.nn.logsumexp(logits, -1).mean()

    grad = functools.partial(run, loss, variables, image)
    want = grad()
    for context in CONTEXTS:
      mesh = sharding.make_mesh({"fsdp": 2, "sequence": 4})
      with sharding.use(mesh, rules(context)):
        jax.clear_caches()
        got = grad()
      for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=f"{kind} {context}")


def kernels_run_on_their_own_heads():
  """A kernel can't be partitioned: each device runs its part of it."""
  x = inputs(128, h=4)
  want = jax.jit(gradients, static_argnums=4)(*x, "reference")
  sharding.platform, real = lambda: "tpu", sharding.platform
  splash = functools.partial(kernels.splash, interpret=True)
  attention.KERNELS["splash"] = splash
  mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})
  with sharding.use(mesh, rules("gather")):
    got = jax.jit(gradients, static_argnums=4)(*x, "splash")
  for name, a, b in zip(("out", "dq", "dk", "dv"), got, want):
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
  sharding.platform = real
  attention.KERNELS["splash"] = kernels.splash


def long_sequences():
  """1,024 tokens over eight devices, several blocks on each."""
  x = inputs(1024, b=1)
  tiled.BLOCK, block = 64, tiled.BLOCK
  want = jax.jit(gradients, static_argnums=4)(*x, "chunked")
  for context in CONTEXTS:
    with sharding.use(sharding.make_mesh({"sequence": 8}), rules(context)):
      got = jax.jit(gradients, static_argnums=4)(*x, "chunked")
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want):
      np.testing.assert_allclose(a, b, atol=1e-5, err_msg=f"{context} {name}")
  tiled.BLOCK = block


def too_few_heads_are_refused():
  x = inputs(16, h=6)[:3]
  with sharding.use(sharding.make_mesh({"sequence": 8}), rules("ulysses")):
    try:
      jax.eval_shape(lambda *x: attention.attend(*x), *x)
    except AxisError as error:
      assert "6 heads on a device" in str(error), error
      assert "sequence = 8" in str(error), error
    else:
      raise AssertionError("6 heads over 8 devices")


CHECKS = [
  gather_equals_the_reference,
  gather_in_blocks_equals_the_reference,
  ring_equals_the_reference,
  ring_in_blocks_equals_the_reference,
  ulysses_equals_the_reference,
  half_precision,
  each_moves_what_it_says,
  whole_models,
  kernels_run_on_their_own_heads,
  long_sequences,
  too_few_heads_are_refused,
]


if __name__ == "__main__":
  asked = sys.argv[1:]
  print_results([check for check in CHECKS if check.__name__ in asked])
