"""EcoFormer: linear attention over binary codes (2209.09004).

    y_i = sum_j (c + h(q_i) h(k_j)) v_j / sum_j (c + h(q_i) h(k_j)),  c = b + 1

h(x) in {-1, 1}^b are the codes of nn/hashing.py, so a weight is between 1 and
2 b + 1 and falls with the Hamming distance (equations 7 to 9; the released
code's c). As sums over j come first it is linear in n, and with codes of +-1
the products with them are additions: that, not time, is what it saves. On a
CPU, GPU or TPU here they are ordinary products.

Anchors, means and the projection are parameters: `nn.hashing.fit` gives them
from the queries and keys of a trained model, which is how the paper starts its
fine-tuning (30 epochs at a rate of 5e-5), and gradients pass straight through
the codes. Unlike there q and k have projections of their own, and the hash goes
on learning.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import hashing, mixers
from vitscale.nn.mixers import linear

# pJ of a float32 operation at 45 nm (Horowitz, ISSCC 2014), the paper's table.
MULTIPLY, ADD = 3.7, 0.9


class Core(nn.Module):
  """Linear attention over codes.

  Attributes:
    bits: b.
    anchors: of the kernel.
  """

  bits: int = 16
  anchors: int = 25

  @nn.compact
  def __call__(
    self, q, k, v, *, grid=None, lengths=None, segment_ids=None
  ) -> jax.Array:
    """q, k, v -> (b, n, h, hd)."""
    del grid
    mixers.refuse("ecoformer", segment_ids=segment_ids)
    if self.bits < 1 or self.anchors < 1:
      raise UserError(
        f"ecoformer({self.bits}, {self.anchors}): bits and anchors are 1 or"
        " more"
      )
    made = self._hash(*q.shape[2:])
    real = linear.exist(q.shape[1], lengths)
    if lengths is not None:  # for q and k, which stand side by side
      real = jnp.concatenate([real, real], 1)
    both = hashing.codes(jnp.concatenate([q, k], 1), made, real)
    always = jnp.full((*both.shape[:-1], 1), (self.bits + 1.0) ** 0.5)
    of_q, of_k = jnp.split(jnp.concatenate([both, always], -1), 2, 1)
    return linear.mix(of_q, of_k, v, lengths)

  def _hash(self, h: int, hd: int) -> hashing.Hash:
    m = self.anchors
    on_sphere = lambda *args: hashing.unit(jax.random.normal(*args))
    # Vectors in any direction are 2 apart in the square, which is also s.
    usual = jax.nn.initializers.constant(jnp.exp(-0.5))
    anchors = axes.param(
      self, "anchors", "code@anchors heads head_dim", (m, h, hd), on_sphere
    )
    mean = axes.param(self, "mean", "heads code@anchors", (h, m), usual)
    projection = axes.param(
      self, "projection", "heads code@anchors code@bits", (h, m, self.bits),
      axes.normal(1.0),
    )  # fmt: skip
    return hashing.Hash(anchors=anchors, mean=mean, projection=projection)


@dataclasses.dataclass(frozen=True)
class Energy:
  """Float operations of one attention, between projections."""

  multiplications: int
  additions: int

  @property
  def picojoules(self) -> float:
    """At 45 nm; memory and exponentials not counted."""
    return MULTIPLY * self.multiplications + ADD * self.additions


def energy(
  n: int, num_heads: int, head_dim: int, bits: int = 16, anchors: int = 25
) -> Energy:
  """Of `Core` for one example of n tokens.

  Distances to anchors count their products (the released counter leaves these
  out); sums with codes are additions.
  """
  hash_of_both = 2 * n * anchors * (head_dim + 2 + bits)
  state = n * (bits + 1) * (head_dim + 1)  # sums of v and of 1 by bit
  read = n * (bits + 1) * (head_dim + 1)
  scale = n * head_dim  # the constant bit's share and the quotient
  return Energy(
    num_heads * (hash_of_both + 2 * scale),
    num_heads * (hash_of_both + state + read),
  )


def softmax_energy(n: int, num_heads: int, head_dim: int) -> Energy:
  """Of softmax attention: two products over all pairs, and the scale."""
  products = 2 * n * n * head_dim * num_heads
  return Energy(products + n * n * num_heads, products)
