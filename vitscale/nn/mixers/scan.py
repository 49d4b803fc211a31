"""Selective scan: a state space model whose step depends on the token.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t = C_t h_t + D u_t

with a state of N numbers per channel, delta, B and C linear in u, and u the
input after a causal convolution over 4 tokens and SiLU (Mamba, 2312.00752,
algorithm 2 and section 3.4); the result is gated by SiLU(z) of the input. It
stands for attention as a whole, with channels (heads, head_dim).

Both directions: Adventurer (2410.07599) flips the tokens every other layer,
which a scanned stack can't. Here each layer goes both ways, the first half of
every head's channels forward, the other half backward with parameters of its
own, at the cost of one direction over all channels; so there is no need for
the average token at the head of the sequence, nor for the class token at its
end. Prefix tokens stand in front: patches see them going forward, they see the
patches going backward.

Time and memory are linear: `jax.lax.associative_scan` within chunks of about
sqrt(n) tokens and a loop over chunks, which keeps one state per chunk for the
backward pass and recomputes the others, so that 2 sqrt(n) states are alive.
`lengths`: padding has delta = 0, which leaves the state as it is.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError
from vitscale.nn import mixers
from vitscale.nn.linear import Linear
from vitscale.nn.mixers.linear import exist

TAPS = 4  # of the convolution
FAST, SLOW = 1e-3, 1e-1  # delta at initialisation, log-uniform between


class Mixer(nn.Module):
  """A bidirectional Mamba layer in the place of `attention.Attention`.

  Attributes:
    state: N of the paper.
    rank: of the map from u to delta.
    width, num_heads, head_dim, bias, dtype: as of `Attention`; head_dim even.
    qk_norm, local: not here.
    norm_eps, backend: not used, there is nothing to choose.
  """

  width: int
  num_heads: int
  head_dim: int
  qk_norm: bool = False
  bias: bool = True
  norm_eps: float = 1e-6
  backend: str = "auto"
  dtype: str = "float32"
  local: bool = False
  state: int = 16
  rank: int = 4

  def setup(self):
    for name in ("qk_norm", "local"):
      if getattr(self, name):
        what = "qk_norm" if name == "qk_norm" else "position 'glpe'"
        raise UserError(f"mixer 'scan' has no q, k, v: no {what}")
    if self.head_dim % 2 or min(self.state, self.rank) < 1:
      raise UserError(
        "mixer 'scan' wants an even head_dim and state and rank of 1 or more,"
        f" got {self.head_dim}, {self.state} and {self.rank}"
      )
    into = functools.partial(
      Linear, "embed -> heads head_dim", (self.num_heads, self.head_dim),
      self.bias, dtype=self.dtype,
    )  # fmt: skip
    self.value, self.gate = into(), into()
    self.out = Linear(
      "heads head_dim -> embed", (self.width,), self.bias, dtype=self.dtype
    )
    self.forward = OneWay(self.state, self.rank, self.dtype)
    self.backward = OneWay(self.state, self.rank, self.dtype)

  def heads(self, x, *, batch: int, rope=None) -> tuple[jax.Array, jax.Array]:
    """(b * n, d) or (b, n, d) -> u and z, each (b, n, h, hd)."""
    if rope is not None:
      raise UserError("mixer 'scan' has nothing to turn: no position 'rope2d'")
    names = ("batch", "sequence", "heads", "head_dim")
    split = lambda y: y.reshape(batch, -1, *y.shape[-2:])
    parts = (split(self.value(x)), split(self.gate(x)))
    return tuple(sharding.constrain(y, *names) for y in parts)

  def attend(self, u, z, *, grid=None, lengths=None, segment_ids=None):
    """u, z -> (b, n, h, hd)."""
    del grid
    mixers.refuse("scan", segment_ids=segment_ids)
    real = exist(u.shape[1], lengths)
    ahead, back = jnp.split(u * jnp.asarray(real, u.dtype), 2, -1)
    flip = lambda x: x if isinstance(x, float) else x[:, ::-1]
    ahead = self.forward(ahead, real)
    back = flip(self.backward(flip(back), flip(real)))
    return jnp.concatenate([ahead, back], -1) * nn.silu(z)

  def merge(self, y: jax.Array, *, flat: bool) -> jax.Array:
    """(b, n, h, hd) -> (b * n, d) if `flat`, else (b, n, d)."""
    return self.out(y.reshape(-1, *y.shape[2:]) if flat else y)


class OneWay(nn.Module):
  """Convolution, delta, B, C and the recurrence, forward in time."""

  state: int
  rank: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, u: jax.Array, real: jax.Array | float) -> jax.Array:
    """u (b, n, h, c), `real` (b, n, 1, 1) 1 or 0 -> (b, n, h, c)."""
    _, n, h, c = u.shape
    linear = functools.partial(Linear, dtype=self.dtype)
    kernel = axes.param(
      self, "kernel", "kernel_w -> heads head_dim", (TAPS, h, c), axes.lecun
    )
    bias = axes.param(self, "bias", "heads head_dim", (h, c), axes.zeros)
    past = jnp.pad(u, ((0, 0), (TAPS - 1, 0), (0, 0), (0, 0)))
    kernel, bias = kernel.astype(u.dtype), bias.astype(u.dtype)
    u = nn.silu(bias + sum(kernel[i] * past[:, i : i + n] for i in range(TAPS)))

    of_u = "heads head_dim -> state"
    b = linear(of_u, (self.state,), False, name="b")(u)
    c_ = linear(of_u, (self.state,), False, name="c")(u)
    low = linear("heads head_dim -> rank", (self.rank,), False, name="low")(u)
    delta = linear("rank -> heads head_dim", (h, c), False, name="delta")(low)
    start = axes.param(self, "start", "heads head_dim", (h, c), _slowness)
    delta = nn.softplus(delta.astype(jnp.float32) + start) * real
    rate = axes.param(
      self, "rate", "heads head_dim state", (h, c, self.state), _rates
    )
    skip = axes.param(self, "skip", "heads head_dim", (h, c), axes.ones)
    y = selective_scan(u, delta, -jnp.exp(rate), b, c_)
    return (y + skip * u.astype(jnp.float32)).astype(u.dtype)


def selective_scan(u, delta, a, b, c) -> jax.Array:
  """y_t = C_t h_t of the recurrence above, everything float32 inside.

  Args:
    u, delta: (batch, n, h, c).
    a: (h, c, N), negative.
    b, c: (batch, n, N).

  Returns:
    (batch, n, h, c) float32.
  """
  n = u.shape[1]
  chunk = 2 ** math.ceil(math.log2(n) / 2)

  def chunks(x):  # (batch, n, ...) -> (chunks, chunk, batch, ...) float32
    x = x.astype(jnp.float32)
    x = jnp.pad(x, [(0, 0), (0, -n % chunk)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(len(x), -1, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 0, 2)

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def step(h, part):
    u, delta, b, c = part
    decay = jnp.exp(delta[..., None] * a)  # (chunk, batch, h, c, N)
    new = (delta * u)[..., None] * b[:, :, None, None]
    fade, own = jax.lax.associative_scan(_after, (decay, new))
    h = fade * h + own
    return h[-1], (h * c[:, :, None, None]).sum(-1)

  parts = tuple(map(chunks, (u, delta, b, c)))
  h = jnp.zeros((len(u), *a.shape), jnp.float32)
  _, y = jax.lax.scan(step, h, parts)
  return jnp.moveaxis(y, 2, 0).reshape(len(u), -1, *u.shape[2:])[:, :n]


def _after(first, then):
  """h -> (a h + b), and then another such map."""
  return first[0] * then[0], first[1] * then[0] + then[1]


def _rates(key, shape, dtype) -> jax.Array:
  """log(1 .. N) for every channel (S4D-Real)."""
  del key
  return jnp.broadcast_to(jnp.log(jnp.arange(1.0, shape[-1] + 1)), shape)


def _slowness(key, shape, dtype) -> jax.Array:
  """What softplus turns into delta."""
  span = jax.random.uniform(key, shape, dtype, jnp.log(FAST), jnp.log(SLOW))
  return jnp.log(jnp.expm1(jnp.exp(span)))
