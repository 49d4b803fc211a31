"""Back ends of attention against the float32 reference."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import accounting, sharding
from vitscale.core.errors import UserError
from vitscale.nn import attention, kernels, tiled


def qkv(nq, n, heads=2, head_dim=8, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(2, m, heads, head_dim) for m in (nq, n, n, nq)]
  return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes)]


def results(backend, nq, n, **who):
  """Output and gradients of the valid rows."""
  q, k, v, weight = qkv(nq, n)
  if who.get("lengths") is not None and nq == n:
    valid = jnp.arange(n) < who["lengths"][:, None]
    weight = weight * valid[..., None, None]

  @jax.jit
  def run(q, k, v):
    def loss(q, k, v):
      y = attention.attend(q, k, v, backend=backend, **who)
      return (y * weight).sum(), y * (weight != 0)

    grads, y = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return y, *grads

  return run(q, k, v)


def ids(n):
  return jnp.stack([jnp.arange(n) // 3, jnp.arange(n) % 2])


WHO = {
  "all": lambda n: {},
  "lengths": lambda n: {"lengths": jnp.array([n, n // 2])},
  "segments": lambda n: {"segment_ids": ids(n)},
  "both": lambda n: {"segment_ids": ids(n), "lengths": jnp.array([n - 2, 4])},
}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("backend", ["xla", "chunked", "grouped"])
def test_equals_reference(backend, who, monkeypatch):
  monkeypatch.setattr(tiled, "BLOCK", 4)  # 7 keys: two blocks, padding
  # Two of the four heads at a time.
  monkeypatch.setattr(tiled, "GROUP", 2 * 7 * 7 / tiled._cores())
  for nq, n in [(7, 7)] if who in ("segments", "both") else [(7, 7), (1, 6)]:
    want = results("reference", nq, n, **WHO[who](n))
    got = results(backend, nq, n, **WHO[who](n))
    for a, b in zip(want, got):
      np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_reference_is_softmax_attention():
  q, k, v, _ = (np.asarray(x, np.float64) for x in qkv(5, 6))
  logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(8)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  want = np.einsum("bhqk,bkhd->bqhd", weights, v)
  got = attention.attend(*qkv(5, 6)[:3], backend="reference")
  np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "xla", "chunked", "grouped"])
def test_hidden_keys_change_nothing(backend):
  q, k, v, _ = qkv(6, 6)
  lengths = jnp.array([4, 6])
  a = attention.attend(q, k, v, lengths=lengths, backend=backend)
  k, v = k.at[0, 4:].set(1e3), v.at[0, 4:].set(-1e3)
  b = attention.attend(q, k, v, lengths=lengths, backend=backend)
  np.testing.assert_array_equal(a[0, :4], b[0, :4])


@pytest.mark.parametrize("backend", ["reference", "xla", "chunked", "grouped"])
def test_no_key_at_all_is_finite(backend):
  q, k, v, _ = qkv(4, 4)
  loss = lambda q: attention.attend(
    q, k, v, lengths=jnp.zeros(2, int), backend=backend
  ).sum()
  value, grad = jax.value_and_grad(loss)(q)
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_chunked_memory_is_linear():
  """No array of the gradient grows faster than the sequence."""

  def biggest(n):
    q, k, v, _ = (jax.ShapeDtypeStruct((1, n, 1, 8), jnp.float32),) * 4
    loss = lambda q, k, v: attention.attend(q, k, v, backend="chunked").sum()
    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v))
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    return max(np.prod([int(s) for s in shape.split(",")]) for shape in shapes)

  assert biggest(8192) == 2 * biggest(4096)


def choose(backend="auto", **kwargs):
  given = {"queries": 196, "keys": 196, "head_dim": 64, "dtype": "bfloat16"}
  return attention.choose(backend, **{**given, **kwargs})


def test_choose():
  assert choose(platform="gpu") == "cudnn"
  assert choose(platform="gpu", queries=197, keys=197) == "cudnn"
  assert choose(platform="gpu", dtype="float32") == "xla"
  assert choose(platform="gpu", head_dim=256) == "cudnn"
  assert choose(platform="gpu", head_dim=260) == "xla"
  assert choose(platform="gpu", segments=True, keys=10_000) == "chunked"
  assert choose(platform="tpu") == "xla"
  assert choose(platform="tpu", keys=50_176) == "splash"
  assert choose(platform="tpu", keys=50_176, segments=True) == "splash"
  assert choose("triton", platform="gpu", segments=True) == "triton"
  assert choose("reference", platform="gpu") == "reference"


def test_choose_refuses():
  with pytest.raises(UserError, match="did you mean 'chunked'"):
    choose("chunk")
  with pytest.raises(UserError, match="NVIDIA"):
    choose("cudnn", platform="cpu")
  with pytest.raises(UserError, match="float32"):
    choose("cudnn", platform="gpu", dtype="float32")
  with pytest.raises(UserError, match="segment_ids: use 'auto' or 'chunked'"):
    choose("cudnn", platform="gpu", segments=True)
  with pytest.raises(UserError, match="head_dim divisible by 8 and <= 256"):
    choose("cudnn", platform="gpu", head_dim=260)
  with pytest.raises(UserError, match="runs on TPUs, this is cpu"):
    choose("splash", platform="cpu")
  with pytest.raises(UserError, match="runs on GPUs, this is tpu"):
    choose("triton", platform="tpu")
  q, k, v, _ = qkv(2, 4)
  with pytest.raises(UserError, match="as many queries"):
    attention.attend(q, k, v, segment_ids=jnp.zeros((2, 4), int))


KERNELS = {"splash": "tpu", "triton": "gpu"}


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_equal_reference(kernel, who, monkeypatch):
  """Interpreted, off their device; 7 tokens are padded, 128 are not."""
  monkeypatch.setattr(sharding, "platform", lambda: KERNELS[kernel])
  run = functools.partial(getattr(kernels, kernel), interpret=True)
  monkeypatch.setitem(attention.KERNELS, kernel, run)
  for n in (7, 128):
    want = results("reference", n, n, **WHO[who](n))
    got = results(kernel, n, n, **WHO[who](n))
    for a, b in zip(want, got):
      np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_count_what_they_execute(kernel):
  """Two products forward, seven backward; the reference has two and four."""
  run = functools.partial(getattr(kernels, kernel), interpret=True)
  x = jax.ShapeDtypeStruct((2, 256, 3, 32), jnp.float32)
  loss = lambda q, k, v: run(q, k, v, None).sum()
  counted = accounting.count_flops(jax.grad(loss, (0, 1, 2)), x, x, x).matmul
  want = 9 / 2 * 2 * 2 * attention.macs(256, 256, 3, 32)
  assert want <= counted < 1.01 * want  # splash's row sums are a product


def test_one_query_of_several_sees_its_own_segment():
  q, k, v, _ = qkv(2, 6)
  of_q, of_k = jnp.array([[0, 1]] * 2), jnp.array([[0, 0, 0, 1, 1, 1]] * 2)
  got = attention.attend(q, k, v, segment_ids=(of_q, of_k))
  alone = attention.attend(q[:, 1:], k[:, 3:], v[:, 3:])
  np.testing.assert_allclose(got[:, 1:], alone, atol=1e-6)


def test_what_was_chosen_is_recorded():
  q, k, v, _ = qkv(7, 7)
  with sharding.use(None) as scope:
    attention.attend(q, k, v, backend="chunked")
  assert scope.chosen == {"attention": {"chunked": [7]}}


def test_cudnn_pads_odd_lengths(monkeypatch):
  """What reaches the kernel is even, with sequence lengths."""
  seen = []

  def kernel(q, k, v, **kwargs):
    seen.append((q.shape[1], k.shape[1], kwargs))
    return q

  monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
  q, k, v, _ = qkv(7, 7)
  assert attention._cudnn(q, k, v, None).shape == q.shape
  attention._cudnn(q[:, :6], k[:, :6], v[:, :6], None)
  odd, even = seen
  assert odd[:2] == (8, 8)
  assert odd[2]["key_value_seq_lengths"].tolist() == [7, 7]
  assert odd[2]["query_seq_lengths"].tolist() == [7, 7]
  assert even[:2] == (6, 6) and even[2]["key_value_seq_lengths"] is None


@pytest.mark.parametrize("backend", ["reference", "xla"])
def test_an_order_hides_what_comes_later(backend):
  groups = jnp.array([0, 1, 1, 2, 2, 2])
  q, k, v, _ = qkv(6, 6)
  see = functools.partial(attention.attend, backend=backend)
  y = see(q, k, v, order=groups)
  for end in (1, 3, 6):  # a group sees what ends with it, and all of that
    alone = see(q[:, :end], k[:, :end], v[:, :end], order=groups[:end])
    np.testing.assert_allclose(y[:, :end], alone, rtol=1e-5, atol=1e-6)
  last = see(q[:, 3:], k, v)
  np.testing.assert_allclose(y[:, 3:], last, rtol=1e-5, atol=1e-6)
  # Against a cache: queries of one group, and keys that don't exist yet.
  lengths = jnp.full(2, 3)
  pair = (groups[1:3], groups)
  both = see(q[:, 1:3], k, v, lengths=lengths, order=pair)
  np.testing.assert_allclose(both, y[:, 1:3], rtol=1e-5, atol=1e-6)


def test_an_order_wants_a_back_end_that_has_masks():
  q, k, v, _ = qkv(4, 4)
  with pytest.raises(UserError, match="'chunked' sees every token"):
    attention.attend(q, k, v, order=jnp.arange(4), backend="chunked")
