"""Attention in tiles: two back ends whose backward pass is written by hand.

Both keep the log-sum-exp of each query, so that the backward pass gets the
weights back with one exponential (Rabe & Staats, 2112.05682; Dao et al.,
2205.14135). `chunked` goes over blocks of keys and never holds (n, n);
`grouped` goes over heads and holds them for a few at a time.
"""

import functools
import os

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vitscale.launch import machine

BLOCK = 512  # keys per step of `chunked`
GROUP = 5 * 2**18  # float32 logits per core that `grouped` holds: 5 MB
MASKED = -1e30  # finite, so that a row without any key stays finite
NOBODY = -(2**31)  # the segment of keys nobody may see

# What a remat policy can keep by name.
OUT, LSE = "attention_out", "attention_lse"


def mask(of_q: jax.Array, of_k: jax.Array) -> jax.Array:
  """(b, nq), (b, n) ids -> (b, 1, nq, n) bool: who may see whom."""
  return (of_q[:, :, None] == of_k[:, None, :])[:, None]


# ------------------------------------------------------------------ grouped


def grouped(q, k, v, ids):
  """Attention for a few heads at a time; arguments as in `chunked`.

  A group takes heads of all examples, so a mesh that splits examples or heads
  would have to gather. One group is one plain product without a loop.
  """
  b, nq, h, hd = q.shape
  n = k.shape[1]
  most = max(int(GROUP * _cores()) // (nq * n), 1)
  size = max(i for i in range(1, min(most, b * h) + 1) if b * h % i == 0)

  def split(x):  # (b, n, h, hd) -> (groups, size, n, hd)
    return x.swapaxes(1, 2).reshape(-1, size, *x.shape[1::2])

  if ids is not None:
    each = lambda x: jnp.repeat(x, h, 0).reshape(-1, size, x.shape[1])
    ids = tuple(each(x) for x in ids)
  scaled = q * jnp.asarray(hd**-0.5, q.dtype)
  out = _grouped(split(scaled), split(k), split(v), ids)
  return out.reshape(b, h, nq, hd).swapaxes(1, 2)


def _cores() -> int:
  """Cores this process computes on: NPROC sizes XLA's pool of threads."""
  if os.environ.get("NPROC", "").isdigit():
    return int(os.environ["NPROC"])
  return len(machine.cores())


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _each(fn, parts):
  """`fn` of each group, one after another."""
  if len(jax.tree.leaves(parts)[0]) > 1:
    return jax.lax.map(fn, parts)
  out = fn(jax.tree.map(lambda x: x[0], parts))
  return jax.tree.map(lambda x: x[None], out)


def _scores(q, k, ids):
  """(g, nq, hd), (g, n, hd) -> (g, nq, n) float32; q is scaled already."""
  s = _dot("gqd,gkd->gqk", q, k)
  return s if ids is None else jnp.where(mask(*ids)[:, 0], s, MASKED)


@jax.custom_vjp
def _grouped(q, k, v, ids):
  """(groups, g, nq, hd), twice (groups, g, n, hd) -> (groups, g, nq, hd)."""
  return _grouped_forward(q, k, v, ids)[0]


def _grouped_forward(q, k, v, ids):
  def one(part):
    q, k, v, ids = part
    s = _scores(q, k, ids)
    top = s.max(-1, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(-1, keepdims=True)
    out = _dot("gqk,gkd->gqd", p.astype(v.dtype), v) / total
    return out.astype(q.dtype), top + jnp.log(total)

  out, lse = _each(one, (q, k, v, ids))
  out, lse = checkpoint_name(out, OUT), checkpoint_name(lse, LSE)
  return out, (q, k, v, ids, out, lse)


def _grouped_backward(residuals, dout):
  q, k, v, ids, out, lse = residuals

  def one(part):
    q, k, v, ids, out, lse, dout = part
    p = jnp.exp(_scores(q, k, ids) - lse)
    delta = (dout * out).astype(jnp.float32).sum(-1, keepdims=True)
    ds = (p * (_dot("gqd,gkd->gqk", dout, v) - delta)).astype(q.dtype)
    dq = _dot("gqk,gkd->gqd", ds, k)
    dk = _dot("gqk,gqd->gkd", ds, q)
    dv = _dot("gqk,gqd->gkd", p.astype(q.dtype), dout)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

  return *_each(one, (q, k, v, ids, out, lse, dout)), None


_grouped.defvjp(_grouped_forward, _grouped_backward)


# ------------------------------------------------------------------ chunked
# Online log-sum-exp (Milakov & Gimelshein, 1805.02867; Rabe & Staats,
# 2112.05682). The backward pass is written by hand: differentiating the scan
# would keep its carry of (n, hd) once per block, quadratic again.


def chunked(q, k, v, ids):
  """Attention in blocks of keys; memory grows with n, not n^2.

  Args:
    q: (b, nq, h, hd).
    k, v: (b, n, h, hd).
    ids: None, or (b, nq) and (b, n) int32: equal ids see each other.
  """
  b, nq, _, _ = q.shape
  n = k.shape[1]
  if ids is None:
    ids = jnp.zeros((b, nq), jnp.int32), jnp.zeros((b, n), jnp.int32)
  k, v, of_k, block = in_blocks(k, v, ids[1])
  return _chunked(q, k, v, ids[0], of_k, block)


def in_blocks(k, v, of_k):
  """k, v, ids padded to whole blocks with keys nobody sees; the block."""
  block = min(BLOCK, k.shape[1])
  pad = -k.shape[1] % block
  of_k = jnp.pad(of_k, ((0, 0), (0, pad)), constant_values=NOBODY)
  k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (k, v))
  return k, v, of_k, block


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _chunked(q, k, v, of_q, of_k, block):
  return _chunked_forward(q, k, v, of_q, of_k, block)[0]


def _chunked_forward(q, k, v, of_q, of_k, block):
  out, lse = finish(absorb(start(q), q, k, v, of_q, of_k, block), q.dtype)
  return out, (q, k, v, of_q, of_k, out, lse)


def _chunked_backward(block, residuals, dout):
  q, k, v, of_q, of_k, out, lse = residuals
  dq = jnp.zeros(q.shape, jnp.float32)
  dq, dk, dv = pull(dq, q, k, v, of_q, of_k, lse, delta(dout, out), dout, block)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)

# The parts, which nn/context.py puts together in a ring of devices: a running
# softmax that absorbs some keys and then more, and its gradient by keys.

Carry = tuple[jax.Array, jax.Array, jax.Array]


def start(q: jax.Array) -> Carry:
  """Nothing seen yet: (b, h, nq) maximum and sum, (b, h, nq, hd) result."""
  b, nq, h, hd = q.shape
  return (
    jnp.full((b, h, nq), MASKED),
    jnp.zeros((b, h, nq)),
    jnp.zeros((b, h, nq, hd)),
  )


def absorb(carry: Carry, q, k, v, of_q, of_k, block: int) -> Carry:
  """The carry after these keys; n is a multiple of `block`."""

  def step(carry, part):
    top, total, out = carry
    k, v, of_k = part
    s, seen = _logits(q, k, of_q, of_k)
    s = jnp.where(seen, s, MASKED)
    new = jnp.maximum(top, s.max(-1))
    p, fade = jnp.exp(s - new[..., None]), jnp.exp(top - new)
    total = total * fade + p.sum(-1)
    more = _dot("bhqk,bkhd->bhqd", p.astype(v.dtype), v)
    return (new, total, out * fade[..., None] + more), None

  parts = tuple(_blocks(x, block) for x in (k, v, of_k))
  return jax.lax.scan(step, carry, parts)[0]


def finish(carry: Carry, dtype) -> tuple[jax.Array, jax.Array]:
  """(b, nq, h, hd) result and (b, h, nq) log-sum-exp, named for remat."""
  top, total, out = carry
  out = (out / total[..., None]).astype(dtype).swapaxes(1, 2)
  # Named here too: these are the residuals that a remat policy must see.
  return checkpoint_name(out, OUT), checkpoint_name(top + jnp.log(total), LSE)


def delta(dout, out) -> jax.Array:
  """(b, h, nq, 1): what the softmax's gradient subtracts."""
  return _dot("bqhd,bqhd->bhq", dout, out)[..., None]


def pull(dq, q, k, v, of_q, of_k, lse, delta, dout, block: int):
  """Gradients by these keys: `dq` (float32) with theirs added, dk, dv."""
  scale = q.shape[-1] ** -0.5

  def step(dq, part):
    k, v, of_k = part
    s, seen = _logits(q, k, of_q, of_k)
    p = jnp.where(seen, jnp.exp(s - lse[..., None]), 0.0)
    dv = _dot("bhqk,bqhd->bkhd", p.astype(q.dtype), dout)
    ds = p * (_dot("bqhd,bkhd->bhqk", dout, v) - delta) * scale
    ds = ds.astype(q.dtype)
    dk = _dot("bhqk,bqhd->bkhd", ds, q)
    dq = dq + _dot("bhqk,bkhd->bqhd", ds, k)
    return dq, (dk, dv)

  parts = tuple(_blocks(x, block) for x in (k, v, of_k))
  dq, (dk, dv) = jax.lax.scan(step, dq, parts)
  whole = lambda x, like: jnp.moveaxis(x, 0, 1).reshape(like.shape)
  return dq, whole(dk, k), whole(dv, v)


def _blocks(x: jax.Array, block: int) -> jax.Array:
  """(b, n, ...) -> (n / block, b, block, ...)."""
  x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)


def _logits(q, k, of_q, of_k):
  """(b, h, nq, block) float32 and which of them count."""
  s = _dot("bqhd,bkhd->bhqk", q, k)
  return s * q.shape[-1] ** -0.5, mask(of_q, of_k)
