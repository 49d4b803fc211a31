"""Attention pooling (multi-head attention pooling, 2106.04560 section 3.3)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.nn import attention as attention_lib
from vitscale.nn.ffn import Mlp
from vitscale.nn.linear import Linear
from vitscale.nn.norm import LayerNorm


class MapHead(nn.Module):
  """Attention pooling: one learned query reads the tokens, then an MLP.

  Query and keys have separate kernels, as in big_vision and SigLIP.
  """

  width: int
  mlp_dim: int
  num_heads: int
  head_dim: int
  gelu: str = "tanh"
  bias: bool = True
  norm_eps: float = 1e-6
  attention: str = "auto"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """(b, n, d), of which `lengths` (b,) exist -> (b, d)."""
    heads = (self.num_heads, self.head_dim)
    linear = functools.partial(Linear, bias=self.bias, dtype=self.dtype)
    probe = axes.param(
      self, "probe", "registers embed", (1, self.width), axes.normal(0.02)
    )
    q = linear("embed -> heads head_dim", heads, name="q")(probe)
    q = jnp.broadcast_to(q, (len(x), *q.shape))
    init = attention_lib.square_init
    kv = linear(
      "embed -> qkv heads head_dim", (2, *heads), init=init, name="kv"
    )(x)
    y = attention_lib.attend(
      q, kv[:, :, 0], kv[:, :, 1], lengths=lengths, backend=self.attention
    )
    y = linear("heads head_dim -> embed", (self.width,), name="out")(y)
    y = y[:, 0]
    norm = LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")
    mlp = Mlp(
      self.width,
      self.mlp_dim,
      gelu=self.gelu,
      bias=self.bias,
      dtype=self.dtype,
      name="mlp",
    )
    return y + mlp(norm(y))
