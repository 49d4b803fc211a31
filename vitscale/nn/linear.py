"""One linear map for every family: named axes in, named axes out.

The kernel keeps one dimension per meaning (`embed -> qkv heads head_dim`), so
that slicing and sharding see them; on flat tokens XLA computes the product
as one plain 2-D matrix product all the same.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes


class Linear(nn.Module):
  """`y = x . kernel + bias` over the last axes of x.

  Attributes:
    spec: axis names of the kernel, `"in ... -> out ..."`.
    features: sizes of the output axes.
    bias: adds a bias over all the output axes.
    init: kernel initializer, or a `Fan` bound to `spec`.
    dtype: compute type; parameters stay float32.
  """

  spec: str
  features: tuple[int, ...]
  bias: bool = True
  init: Any = axes.xavier
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., *in) -> (..., *out)."""
    spec = axes.parse(self.spec)
    lead = x.ndim - spec.inputs
    shape = (*x.shape[lead:], *self.features)
    kernel = axes.param(self, "kernel", self.spec, shape, self.init)
    contract = tuple(range(lead, x.ndim)), tuple(range(spec.inputs))
    dtype = jnp.dtype(self.dtype)
    y = jax.lax.dot_general(
      x.astype(dtype), kernel.astype(dtype), (contract, ((), ()))
    )
    if not self.bias:
      return y
    names = " ".join(spec.fan_out)
    bias = axes.param(self, "bias", names, self.features, axes.zeros)
    return y + bias.astype(dtype)
