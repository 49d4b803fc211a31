"""Channel mixers: the GELU MLP and SwiGLU (Shazeer, 2002.05202).

SwiGLU keeps gate and value as two parameters: fused into one axis a prefix
of it would be the gate alone, and the model could not be sliced.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import sharding
from vitscale.nn.linear import Linear


@jax.custom_vjp
def gelu_erf(x: jax.Array) -> jax.Array:
  """x * Phi(x), Phi the normal distribution function; float32 inside.

  The backward pass keeps x alone and computes Phi again, which costs less
  than to keep what autodiff would, and on CPUs half of `jax.nn.gelu`'s time.
  """
  return _gelu_erf(x)[0]


def _gelu_erf(x):
  x32 = x.astype(jnp.float32)
  return (x32 * _phi(x32)).astype(x.dtype), x


def _phi(x):
  return 0.5 + 0.5 * jax.lax.erf(x * 2**-0.5)


def _gelu_erf_backward(x, dy):
  x32 = x.astype(jnp.float32)
  slope = _phi(x32) + x32 * jnp.exp(-0.5 * x32 * x32) * (2 * jnp.pi) ** -0.5
  return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


gelu_erf.defvjp(_gelu_erf, _gelu_erf_backward)

# GELU by name: "erf" is the definition (timm), "tanh" the approximation of
# the original ViT code. They differ by up to 5e-4, so a run fixes one.
GELU = {"erf": gelu_erf, "tanh": jax.nn.gelu}


class Mlp(nn.Module):
  """Linear, GELU, dropout, linear.

  Attributes:
    width, mlp_dim: outer and hidden width.
    gelu: "erf" | "tanh".
    dropout: rate on the hidden units.
    dtype: compute type.
  """

  width: int
  mlp_dim: int
  gelu: str = "tanh"
  bias: bool = True
  dropout: float = 0.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """(..., d) -> (..., d)."""
    up = Linear(
      "embed -> mlp", (self.mlp_dim,), self.bias, dtype=self.dtype, name="up"
    )
    down = Linear(
      "mlp -> embed", (self.width,), self.bias, dtype=self.dtype, name="down"
    )
    h = GELU[self.gelu](up(x))
    return down(_hidden(self, h, train))


class SwiGLU(nn.Module):
  """(silu(x gate) * (x up)) down; the same attributes as `Mlp`."""

  width: int
  mlp_dim: int
  gelu: str = "tanh"  # unused: one constructor call serves both mixers
  bias: bool = True
  dropout: float = 0.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """(..., d) -> (..., d)."""
    linear = functools.partial(
      Linear, "embed -> mlp", (self.mlp_dim,), self.bias, dtype=self.dtype
    )
    h = jax.nn.silu(linear(name="gate")(x)) * linear(name="up")(x)
    down = Linear(
      "mlp -> embed", (self.width,), self.bias, dtype=self.dtype, name="down"
    )
    return down(_hidden(self, h, train))


def _hidden(module: Mlp | SwiGLU, h: jax.Array, train: bool) -> jax.Array:
  lead = ("tokens",) if h.ndim == 2 else ("batch", "sequence")
  h = sharding.constrain(h, *lead, "mlp")
  return nn.Dropout(module.dropout, deterministic=not train)(h)


FFNS = {"gelu": Mlp, "swiglu": SwiGLU}
