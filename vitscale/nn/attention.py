"""Attention: one function, several back ends, one module.

    reference  logits and softmax in float32, written out; the truth in tests
    grouped    a few heads at a time: their logits stay in a CPU's cache
    xla        jax.nn.dot_product_attention; short sequences, any device
    chunked    scan over blocks of keys, memory linear in the length
    splash     Pallas kernel of TPUs, long sequences
    cudnn      fused kernel, NVIDIA GPUs from Ampere on, half precision
    triton     Pallas kernel of NVIDIA GPUs, on demand: it knows segments

Which tokens may see each other is said by `lengths` or `segment_ids`: a mask
of 50,000 x 50,000 would be larger than the model. Short sequences get one made
of them by the back ends that store the logits anyway. So does `order`, for
models that read causally, token by token or group by group.
Where a mesh splits the sequence, nn/context.py brings the tokens together.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn import context, kernels, position, tiled
from vitscale.nn.depthwise import Depthwise
from vitscale.nn.grid import Grid
from vitscale.nn.linear import Linear
from vitscale.nn.norm import LayerNorm

BACKENDS = (
  "auto", "reference", "grouped", "xla", "chunked", "splash", "cudnn", "triton",
)  # fmt: skip
KERNELS = {"splash": kernels.splash, "triton": kernels.triton}
LONG = 2048  # keys from which the (n, n) logits are no longer stored
GROUPED = 2**14  # logits of a head from which CPUs take the grouped back end


def choose(
  backend: str = "auto",
  *,
  queries: int,
  keys: int,
  head_dim: int,
  dtype: str,
  segments: bool = False,
  ordered: bool = False,
  platform: str | None = None,
) -> str:
  """The back end that `attend` will take, by name, for the run's record.

  Args:
    backend: a name of BACKENDS; anything but "auto" is checked and returned.
    queries, keys: sequence lengths.
    head_dim: width of a head.
    dtype: compute type of q, k, v.
    segments: whether segment ids are given.
    ordered: whether an order is given.
    platform: "cpu" | "gpu" | "tpu"; default that of the mesh in force, or
      else the one JAX runs on.

  Raises:
    UserError: unknown name, or a back end that cannot do this.
  """
  if backend not in BACKENDS:
    raise UserError(f"attention {backend!r}{nearest(backend, BACKENDS)}")
  platform = platform or sharding.platform()
  if ordered:
    if backend not in ("auto", "reference", "xla"):
      raise UserError(
        f"attention {backend!r} sees every token, the model reads in an order:"
        " use 'auto', 'reference' or 'xla'"
      )
    plain = "reference" if platform == "cpu" else "xla"
    return plain if backend == "auto" else backend
  capability = _capability(platform)
  widest = 256 if capability >= 9 else 128
  why_not = {
    f"runs on NVIDIA GPUs, this is {platform}": platform != "gpu",
    f"computes in bfloat16 or float16, not {dtype}": (
      jnp.dtype(dtype).itemsize != 2
    ),
    f"needs head_dim divisible by 8 and <= {widest}, got {head_dim}": (
      head_dim % 8 or head_dim > widest
    ),
    "takes lengths, not segment_ids": segments,
    f"needs compute capability 8 or more, this is {capability}": (
      capability < 8
    ),
  }
  failed = [reason for reason, failed in why_not.items() if failed]
  if backend == "cudnn" and failed:
    raise UserError(f"attention 'cudnn' {failed[0]}: use 'auto' or 'chunked'")
  home = {"splash": "tpu", "triton": "gpu"}.get(backend, platform)
  if home != platform:
    raise UserError(
      f"attention {backend!r} runs on {home.upper()}s, this is {platform}: use"
      " 'auto' or 'chunked'"
    )
  if backend != "auto":
    return backend
  if not failed and min(queries, keys) > 1:
    return "cudnn"
  if platform == "cpu" and keys < LONG:
    alone = sharding.ways("batch") * sharding.ways("heads") == 1
    return "grouped" if alone and queries * keys >= GROUPED else "reference"
  if keys < LONG:
    return "xla"
  return "splash" if platform == "tpu" else "chunked"


def _capability(platform: str) -> float:
  """CUDA compute capability; of a GPU that is not here, a Hopper's."""
  if platform != "gpu" or jax.default_backend() != "gpu":
    return 9.0
  return float(getattr(jax.devices()[0], "compute_capability", 9.0))


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  lengths: jax.Array | None = None,
  segment_ids: jax.Array | None = None,
  order: jax.Array | tuple[jax.Array, jax.Array] | None = None,
  backend: str = "auto",
) -> jax.Array:
  """softmax(q k^T / sqrt(hd)) v, of all keys where nothing says otherwise.

  Args:
    q: (b, nq, h, hd).
    k, v: (b, n, h, hd).
    lengths: (b,) int, keys of each example that exist; the results of
      queries past it are finite and mean nothing.
    segment_ids: (b, n) int, a token sees tokens of its own id (packing);
      needs nq == n, or a pair, ids of queries (b, nq) and of keys (b, n).
    order: (n,) int, a query sees keys whose number is not above its own
      (0, 1, 2, ... is causal, one number a group is causal by groups); or a
      pair, of queries (nq,) and of keys (n,). The logits are stored.
    backend: see `choose`.

  Returns:
    (b, nq, h, hd) in the type of q, named "attention_out" for remat.

  Raises:
    UserError: see `choose`; one segment_ids with nq != n; an order on a mesh
      that splits the sequence.
  """
  alike = not isinstance(segment_ids, tuple)
  if segment_ids is not None and alike and q.shape[1] != k.shape[1]:
    raise UserError(
      f"segment_ids need as many queries as keys, got {q.shape[1]} and"
      f" {k.shape[1]}: use lengths"
    )
  name = choose(
    backend,
    queries=q.shape[1],
    keys=k.shape[1],
    head_dim=q.shape[-1],
    dtype=q.dtype,
    segments=segment_ids is not None,
    ordered=order is not None,
  )
  if order is not None and sharding.ways("sequence") > 1:
    raise UserError("models that read in an order: mesh.sequence must be 1")
  ids = _ids(q.shape[1], k.shape[1], lengths, segment_ids)
  run = functools.partial(_run, name, order=order)
  if sharding.ways("sequence") > 1:
    # A few queries (a pooling head) are whole: their logits may be split.
    several = q.shape[1] == k.shape[1]
    run = functools.partial(context.attend, run) if several else _reference
    name = context.said(name) if several else "reference"
  elif name in KERNELS and sharding.splits():
    run = functools.partial(context.attend, run)
  sharding.record("attention", name, k.shape[1])
  return checkpoint_name(run(q, k, v, ids, lengths), tiled.OUT)


def _run(name: str, q, k, v, ids, lengths, order=None) -> jax.Array:
  """One back end on what is here; `lengths` are in `ids` too."""
  if name == "reference":
    return _reference(q, k, v, ids, order=order)
  if name == "grouped":
    return tiled.grouped(q, k, v, ids)
  if name == "xla":
    mask = _mask(ids, order)
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask, implementation="xla"
    )
  if name == "chunked":
    return tiled.chunked(q, k, v, ids)
  if name in KERNELS:
    return KERNELS[name](q, k, v, ids)
  return _cudnn(q, k, v, lengths)


Ids = tuple[jax.Array, jax.Array]


def _ids(nq, n, lengths, segment_ids) -> Ids | None:
  """Lengths and segments as one rule: query and key must have equal ids."""
  if lengths is None and segment_ids is None:
    return None
  if segment_ids is None:
    b = len(lengths)
    of_q, of_k = jnp.zeros((b, nq), jnp.int32), jnp.zeros((b, n), jnp.int32)
  else:
    pair = isinstance(segment_ids, tuple)
    of_q, of_k = segment_ids if pair else (segment_ids, segment_ids)
    of_q, of_k = of_q.astype(jnp.int32), of_k.astype(jnp.int32)
  if lengths is not None:
    of_k = jnp.where(jnp.arange(n) < lengths[:, None], of_k, tiled.NOBODY)
  return of_q, of_k


def _mask(ids: Ids | None, order) -> jax.Array | None:
  """Who may see whom: (b or 1, 1, nq, n) bool, or None for all of all."""
  mask = None if ids is None else tiled.mask(*ids)
  if order is None:
    return mask
  of_q, of_k = order if isinstance(order, tuple) else (order, order)
  before = (of_k <= of_q[:, None])[None, None]
  return before if mask is None else mask & before


def _reference(q, k, v, ids, lengths=None, order=None):
  logits = jnp.einsum(
    "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
  )
  logits *= q.shape[-1] ** -0.5
  mask = _mask(ids, order)
  if mask is not None:
    logits = jnp.where(mask, logits, tiled.MASKED)
  weights = jax.nn.softmax(logits, -1).astype(v.dtype)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def _cudnn(q, k, v, lengths):
  """The fused kernel, odd lengths padded to even.

  Its backward pass refuses odd lengths (cuDNN 9, H100: "Unsupported sequence
  length"), and a ViT with a class token has 197; one more token with
  sequence lengths is accepted.
  """
  nq, n = q.shape[1], k.shape[1]
  odd = nq % 2 or n % 2
  even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
  of_q = of_k = None
  if odd or lengths is not None:
    of_q = jnp.full((len(q),), nq, jnp.int32)
    of_k = jnp.full((len(q),), n, jnp.int32)
    if lengths is not None:
      of_k = lengths.astype(jnp.int32)
  out = jax.nn.dot_product_attention(
    even(q),
    even(k),
    even(v),
    query_seq_lengths=of_q,
    key_value_seq_lengths=of_k,
    implementation="cudnn",
  )
  return out[:, :nq]


# ------------------------------------------------------------------- module

# q, k and v are three square maps, so each has fans (d, h * hd): the axis
# "qkv" is a batch of kernels, not an output.
square_init = jax.nn.initializers.variance_scaling(
  1.0, "fan_avg", "uniform", in_axis=0, out_axis=(2, 3), batch_axis=(1,)
)


class Attention(nn.Module):
  """Multi-head self-attention with its own parameters.

  The call is `merge(attend(*heads(x)))`; a block calls the three parts apart,
  to recompute the first and the last and keep the middle.

  Attributes:
    width: d.
    num_heads, head_dim: h and hd; h * hd need not be d.
    qk_norm: LayerNorm over head_dim on q and k (2302.05442).
    bias: biases on qkv and out.
    backend: see `choose`.
    dtype: compute type.
    core: makes the module that mixes q, k, v instead of softmax, see
      `vitscale.nn.mixers`.
    local: adds a depthwise 3 x 3 convolution of v, one for all heads and zero
      at first (the local part of GLPE, 2212.00776 section 3.3).
  """

  width: int
  num_heads: int
  head_dim: int
  qk_norm: bool = False
  bias: bool = True
  norm_eps: float = 1e-6
  backend: str = "auto"
  dtype: str = "float32"
  core: Callable[..., nn.Module] | None = None
  local: bool = False

  def setup(self):
    shape = (3, self.num_heads, self.head_dim)
    self.qkv = Linear(
      "embed -> qkv heads head_dim", shape, self.bias, square_init, self.dtype
    )
    self.out = Linear(
      "heads head_dim -> embed", (self.width,), self.bias, dtype=self.dtype
    )
    if self.qk_norm:
      self.q_norm = LayerNorm(self.norm_eps, "head_dim", self.dtype)
      self.k_norm = LayerNorm(self.norm_eps, "head_dim", self.dtype)
    if self.core is not None:
      self.mix = self.core()
    if self.local:
      self.near = Depthwise("head_dim", self.head_dim, axes.zeros, self.dtype)

  def heads(
    self, x: jax.Array, *, batch: int, rope: position.Rope | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(b * n, d) or (b, n, d) -> q, k, v, each (b, n, h, hd)."""
    y = self.qkv(x)
    y = y.reshape(batch, -1, *y.shape[-3:])
    q, k, v = (y[:, :, i] for i in range(3))
    if self.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    if rope is not None:
      q, k = position.rotate(q, rope), position.rotate(k, rope)
    names = ("batch", "sequence", "heads", "head_dim")
    return tuple(sharding.constrain(t, *names) for t in (q, k, v))

  def attend(self, q, k, v, *, grid: Grid | None = None, **who) -> jax.Array:
    """q, k, v -> (b, n, h, hd); `who`: lengths, segment_ids, order."""
    if self.core is None:
      y = attend(q, k, v, backend=self.backend, **who)
    else:
      y = self.mix(q, k, v, grid=grid, **who)
    if self.local:
      if grid is None:
        raise UserError("position 'glpe' needs whole images, not packed ones")
      prefix, image = grid.split(v)
      y = y + grid.join(jnp.zeros_like(prefix), self.near(image))
    return y

  def merge(self, x: jax.Array, *, flat: bool) -> jax.Array:
    """(b, n, h, hd) -> (b * n, d) if `flat`, else (b, n, d)."""
    if flat:
      x = x.reshape(-1, *x.shape[2:])
    return self.out(x)

  def __call__(
    self,
    x: jax.Array,
    *,
    batch: int | None = None,
    rope: position.Rope | None = None,
    **who,
  ) -> jax.Array:
    """(b, n, d), or (b * n, d) with `batch`, to the same shape."""
    batch = len(x) if batch is None else batch
    y = self.attend(*self.heads(x, batch=batch, rope=rope), **who)
    return self.merge(y, flat=x.ndim == 2)


def head_dim_of(
  width: int, num_heads: int | tuple[int, ...], head_dim: int | None
) -> int:
  """`head_dim`, or width / num_heads.

  Raises:
    UserError: the heads do not divide the width, or differ between layers.
  """
  if head_dim is not None:
    return head_dim
  if not isinstance(num_heads, int) or width % num_heads:
    raise UserError(
      f"num_heads {num_heads} does not divide width {width}: set head_dim"
    )
  return width // num_heads


def macs(nq: int, n: int, num_heads: int, head_dim: int) -> int:
  """Multiply-accumulates of `attend` for one example, both products."""
  return 2 * math.prod((nq, n, num_heads, head_dim))
