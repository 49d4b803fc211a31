"""Linear attention (Katharopoulos et al., 2006.16236, section 3.2).

    y_i = phi(q_i)^T S / phi(q_i)^T z,  S = sum_j phi(k_j) v_j^T,
    z = sum_j phi(k_j),                 phi(x) = elu(x) + 1

(equations 4 to 7; everybody sees everybody, so S and z are sums over all
tokens). O(n hd^2) time and O(n hd) memory for n tokens. q and k are not
scaled, as there. `lengths` zero the keys that don't exist.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.nn import mixers

TINY = 1e-15  # least sum of features; its square is no denormal


class Core(nn.Module):
  """phi(x) = elu(x) + 1; no parameters."""

  @nn.compact
  def __call__(
    self, q, k, v, *, grid=None, lengths=None, segment_ids=None
  ) -> jax.Array:
    """q, k, v -> (b, n, h, hd)."""
    del grid
    mixers.refuse("linear", segment_ids=segment_ids)
    phi = lambda x: nn.elu(x.astype(jnp.float32)) + 1
    return mix(phi(q), phi(k), v, lengths)


def mix(
  phi_q: jax.Array,
  phi_k: jax.Array,
  v: jax.Array,
  lengths: jax.Array | None = None,
) -> jax.Array:
  """phi(q) (phi(k)^T v), each row divided by phi(q) (phi(k)^T 1).

  Args:
    phi_q, phi_k: (b, n, h, m) float32 features, not negative.
    v: (b, n, h, hd); its type is that of the products, sums are float32.
    lengths: (b,) keys of each example that exist.

  Returns:
    (b, n, h, hd) in the type of v.
  """
  phi_k = phi_k * exist(phi_k.shape[1], lengths)
  state = dot("bnhm,bnhd->bhmd", phi_k.astype(v.dtype), v)
  total = dot("bnhm,bhm->bnh", phi_q, phi_k.sum(1))
  # Few terms; and CPUs lack this product of bfloat16 with a float32 result.
  phi_q, state = phi_q.astype(v.dtype), state.astype(v.dtype)
  y = jnp.einsum("bnhm,bhmd->bnhd", phi_q, state)
  return (y / jnp.maximum(total, TINY)[..., None]).astype(v.dtype)


def dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """An einsum summed in float32."""
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def exist(n: int, lengths: jax.Array | None) -> jax.Array | float:
  """(b, n, 1, 1) float32: 1 for tokens that exist, 0 for padding."""
  if lengths is None:
    return 1.0
  real = jnp.arange(n) < lengths[:, None]
  return real[..., None, None].astype(jnp.float32)
