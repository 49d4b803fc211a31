"""core/accounting and core/flops: against counts by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from vitscale.core import accounting, axes
from vitscale.core.accounting import Flops, count_flops, train_flops
from vitscale.core.errors import UserError


def spec(*shape, dtype="float32"):
  return jax.ShapeDtypeStruct(shape, dtype)


def test_dense_and_its_gradient():
  f = lambda w, x: jnp.sum(jnp.tanh(x @ w))
  args = spec(8, 16), spec(4, 8)
  forward = 2 * 4 * 8 * 16
  assert count_flops(f, *args) == Flops(forward, 4 * 16 + 4 * 16)
  # The input needs no gradient: one product back, not two.
  assert train_flops(f, *args).matmul == 2 * forward
  per = accounting.train_flops_per_example(f, *args, examples=4)
  assert per.matmul == 2 * forward // 4


def test_attention():
  b, n, h, d = 2, 6, 3, 4

  def attend(q, k, v):
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(scores), v)

  qkv = [spec(b, n, h, d)] * 3
  forward = 2 * 2 * b * h * n * n * d
  assert count_flops(attend, *qkv).matmul == forward
  assert count_flops(jax.nn.dot_product_attention, *qkv).matmul == forward
  loss = lambda qkv: attend(*qkv).sum()
  assert train_flops(loss, qkv).matmul == 3 * forward


@pytest.mark.parametrize("name", ["fwd_wrapper", "bwd_wrapper"])
def test_cudnn_attention_counts_what_it_executes(name):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  b, n, h, d = 2, 6, 3, 8
  x, empty = spec(b, n, h, d, dtype="bfloat16"), spec(0)
  primitive = getattr(cudnn, f"_dot_product_attention_{name[:3]}_p_wrapper")
  common = {"scale": 1.0, "seed": 0, "dropout_rate": 0.0, "mask_type": 0}
  common |= {"variadic_args": (False, False), "sliding_window_length": None}
  common |= {"layout": cudnn.AttentionLayout.BTNH.value}
  args = [x, x, x, *[empty] * 7]
  if name == "fwd_wrapper":
    common["is_training"] = True
  else:
    args += [spec(b, h, n), x, x]
  call = lambda *args: primitive.bind(*args, **common)
  products = 2 if name == "fwd_wrapper" else 5
  assert count_flops(call, *args).matmul == products * 2 * b * h * n * n * d


@pytest.mark.parametrize(
  ("groups", "stride", "padding", "dilation", "taps"),
  [
    (1, 1, "VALID", 1, 7 * 3),
    (4, 1, "VALID", 1, 7 * 3),
    (1, 2, "VALID", 1, 4 * 3),
    (1, 1, "VALID", 2, 5 * 3),
    (1, 1, "SAME", 1, 9 * 3 - 2),  # two taps fall on padding
    (2, 3, "VALID", 2, 2 * 3),
  ],
)
def test_convolution(groups, stride, padding, dilation, taps):
  def f(kernel, x):
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      padding,
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    ).sum()

  args = spec(3, 3, 8 // groups, 16), spec(2, 9, 9, 8)
  forward = 2 * 2 * 16 * (8 // groups) * taps**2
  assert count_flops(f, *args).matmul == forward
  both = count_flops(jax.value_and_grad(f, (0, 1)), *args)
  assert both.matmul == 3 * forward


def test_transposed_convolution_skips_the_holes():
  f = lambda x, k: lax.conv_transpose(x, k, (2, 2), "VALID")
  got = count_flops(f, spec(1, 5, 5, 3), spec(2, 2, 3, 4)).matmul
  assert got == 2 * 5 * 5 * 2 * 2 * 3 * 4


def layer(x, w):
  return x + jnp.tanh(x @ w)


def loop_loss(params, x, wrap=lambda f: f):
  stem, layers = params
  x = x @ stem
  for w in layers:
    x = wrap(layer)(x, w)
  return jnp.sum(x * x)


def scan_loss(params, x, wrap=lambda f: f):
  stem, layers = params
  body = lambda x, w: (wrap(layer)(x, w), None)
  x, _ = lax.scan(body, x @ stem, jnp.stack(layers))
  return jnp.sum(x * x)


STACK = (spec(3, 8), [spec(8, 8)] * 5), spec(4, 3)


def test_scan_loop_and_remat_have_one_number_of_model_flops():
  remat = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable
  )
  forward, stem = 5 * 2 * 4 * 8 * 8, 2 * 4 * 3 * 8
  want = 3 * forward + 2 * stem
  for loss in (loop_loss, scan_loss):
    assert count_flops(loss, *STACK).matmul == forward + stem
    assert train_flops(loss, *STACK).matmul == want
    wrapped = functools.partial(loss, wrap=remat)
    assert train_flops(wrapped, *STACK) == train_flops(loss, *STACK)
    executed = count_flops(jax.value_and_grad(wrapped), *STACK).matmul
    assert executed == want + forward  # recomputed once
  plain = count_flops(jax.value_and_grad(scan_loss), *STACK)
  assert plain.matmul == want


def test_linen_scan_with_remat_counts_like_the_loop():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return x + nn.relu(nn.Dense(8)(x)), None

  class Net(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x):
      x = nn.Dense(8)(x)
      block = nn.remat(Block, prevent_cse=False) if self.scan else Block
      if self.scan:
        block = nn.scan(
          block,
          variable_axes={"params": 0},
          split_rngs={"params": True},
          length=4,
        )
        return block()(x, None)[0]
      for _ in range(4):
        x, _ = block()(x, None)
      return x

  counts = []
  for scan in (True, False):
    net, x = Net(scan), spec(2, 3)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    loss = lambda p, x, net=net: net.apply(p, x).sum()
    counts.append(train_flops(loss, params, x).matmul)
  assert counts[0] == counts[1] == 3 * 4 * 2 * 2 * 64 + 2 * 2 * 2 * 3 * 8


def test_what_nobody_reads_is_not_counted():
  f = lambda x: (x @ x, x @ x @ x)[0]
  assert count_flops(f, spec(4, 4)).matmul == 128
  loss = lambda w, x: (jnp.sum(x @ w), {"unused": x @ x @ x})
  assert train_flops(loss, spec(4, 4), spec(4, 4)).matmul == 2 * 128


def test_control_flow_and_calls():
  square = lambda x: x @ x
  x = spec(4, 4)
  branch = lambda x: lax.cond(x.sum() > 0, square, lambda x: x, x)
  assert count_flops(branch, x).matmul == 128
  assert count_flops(jax.jit(square), x).matmul == 128
  fori = lambda x: lax.fori_loop(0, 7, lambda i, y: y @ y, x)
  assert count_flops(fori, x).matmul == 7 * 128
  step2 = lambda x: lax.while_loop(
    lambda c: c[0] < 7, lambda c: (c[0] + 2, c[1] @ c[1]), (0, x)
  )
  assert count_flops(step2, x).matmul == 4 * 128

  @jax.custom_vjp
  def custom(x):
    return x @ x

  custom.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x,))
  assert count_flops(custom, x).matmul == 128
  assert count_flops(jax.grad(lambda x: custom(x).sum()), x).matmul == 2 * 128

  search = lambda x: lax.while_loop(lambda y: y.sum() < 9, square, x)
  with pytest.raises(UserError, match="length is not known"):
    count_flops(search, x)


def test_custom_kernels_need_a_cost():
  from jax.experimental import pallas as pl

  def kernel(x, y):
    y[...] = x[...] @ x[...]

  def run(x):
    return pl.pallas_call(kernel, out_shape=x, name="square_kernel")(x)

  with pytest.raises(UserError, match="pallas_call:square_kernel"):
    count_flops(run, spec(8, 8))
  accounting.register_cost("pallas_call:square_kernel", lambda eqn: Flops(7))
  assert count_flops(run, spec(8, 8)).matmul == 7
  with pytest.raises(UserError, match="cholesky"):
    count_flops(jnp.linalg.cholesky, spec(4, 4))


def test_flops_are_python_integers():
  big = count_flops(lambda a: a @ a, spec(10**6, 10**6))
  assert big.matmul == 2 * 10**18 and type(big.matmul) is int


def test_params_by_role():
  names = {
    "stem": axes.parse("patch -> embed"),
    "position": axes.parse("pos embed"),
    "token": axes.parse("registers embed"),
    "up": axes.parse("layers embed -> mlp"),
    "down": axes.parse("mlp -> embed@inner"),
    "bias": axes.parse("layers mlp"),
    "head": axes.parse("embed -> classes"),
  }
  shapes = {
    "stem": spec(12, 4),
    "position": spec(9, 4),
    "token": spec(1, 4),
    "up": spec(2, 4, 8),
    "down": spec(8, 4, dtype="bfloat16"),
    "bias": spec(2, 8),
    "head": spec(4, 10),
  }
  got = accounting.params_by_role(shapes, names)
  assert got["embedding"] == 48 + 36 + 4 + 40
  assert got["non_embedding"] == 64 + 32 + 16
  assert got["total"] == 240 and got["bytes"] == 4 * 208 + 2 * 32
  assert got["roles"]["embed -> mlp"] == 64
  assert got["roles"]["mlp -> embed"] == 32
  assert got["roles"]["mlp"] == 16
  assert sum(got["roles"].values()) == got["total"]


@pytest.mark.parametrize(
  ("kind", "teraflops"),
  [
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H100 NVL", 835),
    ("NVIDIA H200", 989),
    ("NVIDIA A100-SXM4-40GB", 312),
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5p", 459),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("TPU7x", 1153.5),
    ("cpu", None),
  ],
)
def test_peaks(kind, teraflops):
  want = None if teraflops is None else teraflops * 1e12
  assert accounting.peak_flops(kind) == want


def test_mfu():
  class Device:
    device_kind = "TPU v4"

  assert accounting.mfu(275e12, 1.0, [Device()] * 4) == 0.25
  assert accounting.mfu(1e12, 1.0, jax.devices("cpu")) is None
