"""Kernelised hashing: codes of a few bits that keep what is alike together.

    h_r(x) = sign(sum_j a_rj (kappa(x, x_j) - mu_j)),  x of length 1
    kappa(x, x_j) = exp(-|x - x_j|^2 / (2 s)),  s the mean of |x - x_j|^2

over m anchors x_j (Liu et al., CVPR 2012; for attention EcoFormer, 2209.09004,
section 3.2). The same function hashes queries and keys. `fit` learns it from
some, bit by bit; `codes` passes gradients straight through the sign.
"""

from typing import TypedDict

import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError
from vitscale.nn.mixers.linear import dot

STEPS, RATE, MOMENTUM = 100, 0.1, 0.9  # of the ascent after each bit's start
RIDGE = 1e-4  # added to second moments, relative to their mean


class Hash(TypedDict):
  """Parameters of the hash functions of h heads.

  anchors (m, h, hd), mean (h, m) the mu_j, projection (h, m, bits) the a_rj.
  """

  anchors: jax.Array
  mean: jax.Array
  projection: jax.Array


def kernel(x: jax.Array, anchors: jax.Array, real=1.0) -> jax.Array:
  """kappa of every token and anchor, float32.

  Args:
    x: (b, n, h, hd), of any length.
    anchors: (m, h, hd).
    real: (b, n, 1, 1), 1 for tokens that exist; s is the mean over those, for
      each example and head, and no gradient goes through it.

  Returns:
    (b, n, h, m) in 0..1.
  """
  x = unit(x)
  square = jnp.square(anchors).sum(-1).T  # (h, m)
  far = 1.0 + square - 2 * dot("bnhd,mhd->bnhm", x, anchors)
  count = jnp.broadcast_to(real, (*x.shape[:2], 1, 1)).sum(1, keepdims=True)
  s = (far * real).sum(1, keepdims=True) / jnp.maximum(count, 1.0)
  s = jnp.maximum(s.mean(-1, keepdims=True), 1e-6)
  return jnp.exp(-far / (2 * jax.lax.stop_gradient(s)))


def unit(x: jax.Array) -> jax.Array:
  """x / |x|, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


def codes(x: jax.Array, made: Hash, real=1.0) -> jax.Array:
  """(b, n, h, hd) -> (b, n, h, bits) of -1 and 1, float32.

  The gradient is that of the sum before the sign where it is in -1..1, and 0
  beyond (straight through).
  """
  near = kernel(x, made["anchors"], real) - made["mean"]
  raw = dot("bnhm,hmr->bnhr", near, made["projection"])
  soft = jnp.clip(raw, -1.0, 1.0)
  return soft + jax.lax.stop_gradient(_sign(raw) - soft)


def _sign(x):
  return jnp.where(x > 0, 1.0, -1.0)


def fit(
  q: jax.Array,
  k: jax.Array,
  key: jax.Array,
  *,
  bits: int = 16,
  anchors: int = 25,
  top: int | None = None,
) -> Hash:
  """Hash functions for which codes of like queries and keys are alike.

  The target Y is 1 for the `top` keys with the largest product with a query,
  -1 for the `top` smallest, 0 else, all vectors of length 1. Bits are found one
  after another, to explain what is left of bits * Y: each maximises
  h(q)^T R h(k), from the solution without signs (a generalised eigenvector),
  then by gradient ascent with a sigmoid for the sign, kept if the real signs
  agree better; then R loses h(q) h(k)^T.

  Args:
    q, k: (b, n, h, hd) of some examples.
    key: draws the anchors among them.
    bits, anchors: of the hash.
    top: default a tenth of the tokens.

  Raises:
    UserError: fewer tokens than anchors, or `top` beyond half of the tokens.
  """
  b, n = q.shape[:2]
  top = max(n // 10, 1) if top is None else top
  if 2 * b * n < anchors or not 1 <= top <= n / 2:
    raise UserError(
      f"{anchors} anchors and top={top} don't fit {b} examples of {n} tokens"
    )
  tokens = unit(jnp.concatenate([q, k], 1))
  pool = tokens.reshape(-1, *q.shape[2:])
  chosen = pool[jax.random.permutation(key, len(pool))[:anchors]]
  near = kernel(tokens, chosen)
  mean = near.mean((0, 1))
  of_q, of_k = jnp.split((near - mean).swapaxes(1, 2), 2, 2)  # (b, h, n, m)

  alike = dot("bqhd,bkhd->bhqk", unit(q), unit(k))
  rank = alike.argsort(-1).argsort(-1)
  left = bits * ((rank >= n - top) * 1.0 - (rank < top) * 1.0)
  per_head = jax.vmap(_next_bit, (1, 1, 1))
  projection = []
  for _ in range(bits):
    a, h_q, h_k = per_head(of_q, of_k, left)  # (h, m), (h, b, n)
    left = left - jnp.einsum("hbq,hbk->bhqk", h_q, h_k)
    projection.append(a)
  return Hash(anchors=chosen, mean=mean, projection=jnp.stack(projection, -1))


@jax.jit
def _next_bit(of_q, of_k, left):
  """One head's best a (m,) and its codes: (b, n, m) twice, (b, n, n)."""
  cross = jnp.einsum("bqm,bqk,bkl->ml", of_q, left, of_k)
  moments = sum(jnp.einsum("bnm,bnl->ml", x, x) for x in (of_q, of_k))
  size = jnp.trace(moments) / len(moments)
  lower = jnp.linalg.cholesky(moments + RIDGE * size * jnp.eye(len(moments)))
  solve = lambda x: jax.scipy.linalg.solve_triangular(lower, x, lower=True)
  white = solve(solve((cross + cross.T) / 2).T)
  a = jax.scipy.linalg.solve_triangular(
    lower.T, jnp.linalg.eigh(white)[1][:, -1], lower=False
  )
  # Sums of unit size on average, where a sigmoid is neither flat nor steep.
  a *= jnp.sqrt(2 * of_q.shape[0] * of_q.shape[1] / (a @ moments @ a))

  def agree(a, shape):
    h_q, h_k = shape(of_q @ a), shape(of_k @ a)
    return jnp.einsum("bq,bqk,bk->", h_q, left, h_k) / jnp.abs(left).sum()

  def ascend(_, carry):
    a, speed = carry
    slope = jax.grad(agree)(a, lambda x: jnp.tanh(x / 2))
    speed = MOMENTUM * speed + slope / (jnp.linalg.norm(slope) + 1e-12)
    return a + RATE * speed * jnp.linalg.norm(a) * (1 - MOMENTUM), speed

  better, _ = jax.lax.fori_loop(0, STEPS, ascend, (a, jnp.zeros_like(a)))
  a = jnp.where(agree(better, _sign) > agree(a, _sign), better, a)
  return a, _sign(of_q @ a), _sign(of_k @ a)
