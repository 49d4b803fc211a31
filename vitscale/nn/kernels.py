"""Attention by the Pallas kernels that JAX ships: `splash` and `triton`.

    splash    TPUs; float32 or bfloat16, any head_dim, segment ids
    triton    NVIDIA GPUs; segment ids, which cuDNN's kernel has not

Both take blocks of 128 tokens, so that others are padded with tokens nobody
sees, and both keep the log-sum-exp for the backward pass. A kernel can't be
partitioned by the compiler: nn/context.py runs it on each device's own heads
and examples. Off their device they only run interpreted, for tests.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from vitscale.core.flops import Flops, register_cost
from vitscale.nn import tiled

TILE = 128  # tokens; both kernels want multiples of it
LARGEST = 1024  # tokens of a splash block


def splash(q, k, v, ids, *, interpret: bool = False) -> jax.Array:
  """TPU kernel; arguments as of `tiled.chunked`, but (b, n) ids or None."""
  from jax.experimental.pallas.ops.tpu import splash_attention as lib

  kernels = lib.splash_attention_kernel
  (q, k, v), ids, n = _padded(q, k, v, ids)
  block_q, block_k = _block(q.shape[1]), _block(k.shape[1])
  blocks = kernels.BlockSizes(
    block_q=block_q, block_kv=block_k, block_kv_compute=min(block_k, 512),
    block_q_dkv=block_q, block_kv_dkv=block_k,
    block_kv_dkv_compute=min(block_k, 512),
    block_q_dq=block_q, block_kv_dq=block_k,
  )  # fmt: skip
  everybody = lib.FullMask((q.shape[1], k.shape[1]))
  run = kernels.make_splash_mha_single_device(
    mask=lib.MultiHeadMask([everybody] * q.shape[2]),
    block_sizes=blocks,
    interpret=interpret,
  )
  heads_first = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
  if ids is None:
    out = jax.vmap(lambda q, k, v: run(q, k, v))(*heads_first)
  else:
    one = lambda q, k, v, of_q, of_k: run(
      q, k, v, segment_ids=kernels.SegmentIds(of_q, of_k)
    )
    out = jax.vmap(one)(*heads_first, *ids)
  return out.swapaxes(1, 2)[:, :n].astype(q.dtype)


def triton(q, k, v, ids, *, interpret: bool = False) -> jax.Array:
  """GPU kernel; one id for a token as query and as key."""
  from jax.experimental.pallas.ops.gpu import attention as lib

  (q, k, v), ids, n = _padded(q, k, v, ids)
  run = functools.partial(lib.mha, sm_scale=q.shape[-1] ** -0.5)
  return run(q, k, v, None if ids is None else ids[1], interpret=interpret)[
    :, :n
  ]


def _padded(q, k, v, ids):
  """q, k, v of whole tiles, ids if any is needed, and how many are real."""
  n, keys = q.shape[1], k.shape[1]
  if ids is None and (n % TILE or keys % TILE):
    zero = functools.partial(jnp.zeros, dtype=jnp.int32)
    ids = zero((len(q), n)), zero((len(q), keys))
  whole = lambda x, value=0: jnp.pad(
    x,
    [(0, 0), (0, -x.shape[1] % TILE)] + [(0, 0)] * (x.ndim - 2),
    constant_values=value,
  )
  if ids is not None:
    # Padding sees padding, so that no query is without a key.
    ids = tuple(whole(x, tiled.NOBODY) for x in ids)
  return (whole(q), whole(k), whole(v)), ids, n


def _block(n: int) -> int:
  """The largest block that divides n tokens, a multiple of TILE."""
  sizes = range(TILE, min(n, LARGEST) + 1, TILE)
  return max(size for size in sizes if n % size == 0)


# --------------------------------------------------------------------- cost


def _cost(products: int, at: int, eqn: Any) -> Flops:
  """`products` of (n, hd) x (hd, n) for every head; q is operand `at`."""
  q, k = (v.aval.shape for v in eqn.invars[at : at + 2])
  lead, (n, hd), keys = q[:-2], q[-2:], k[-2]
  return Flops(matmul=2 * products * math.prod(lead) * n * keys * hd)


def _token_major(products: int, eqn: Any) -> Flops:
  """The same for (b, n, h, hd)."""
  (b, n, h, hd), k = (v.aval.shape for v in eqn.invars[:2])
  return Flops(matmul=2 * products * b * h * n * k[1] * hd)


# Two products forward. Backward, both of splash's kernels compute the logits
# and the gradient of the weights, one of them two gradients more, the other
# one; triton's does the same in one call.
for _ids in ("", "_segmented"):
  for _name, _products in (
    (f"fwd{_ids}_residuals", 2), (f"fwd{_ids}_no_residuals", 2),
    (f"dkv{_ids}_no_residuals", 4), (f"dq{_ids}_no_residuals", 3),
  ):  # fmt: skip
    register_cost(
      f"pallas_call:splash_mha_{_name}",
      functools.partial(_cost, _products, 2),
    )
register_cost("pallas_call:mha_forward", functools.partial(_token_major, 2))
register_cost("pallas_call:mha_backward", functools.partial(_token_major, 7))
register_cost("pallas_call:mha_preprocess_backward", lambda eqn: Flops())
