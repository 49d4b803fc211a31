"""Performer: softmax attention by random features (2009.14794).

    exp(q k) = E_w[exp(w q - |q|^2 / 2) exp(w k - |k|^2 / 2)],  w ~ N(0, I)

(lemma 1; q and k scaled by hd^-1/4), so m drawn w make softmax attention a
linear one (nn/mixers/linear.py), exact as m grows. Features are positive,
which keeps the denominator away from 0, and in groups of head_dim the w are
orthogonal with lengths of Gaussian vectors (FAVOR+, sections 2.3 and 2.4).

The w are constants of (seed, head), the same in all layers and never redrawn;
the first heads of a model have those of a model with fewer heads.

Numerically: any c_f per feature and s_i per query cancel in the quotient, so
exponents are taken relative to the largest of their feature (keys) and of
their query; every sum then has a term of 1 and no epsilon is needed (the
reference implementation adds 1e-4 to each feature, which blurs attention).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.nn import mixers, tiled
from vitscale.nn.mixers import linear


class Core(nn.Module):
  """FAVOR+ with `features` random features per head; no parameters.

  Attributes:
    features: m; the paper takes about hd log(hd).
    seed: of the draw.
  """

  features: int = 64
  seed: int = 0

  @nn.compact
  def __call__(
    self, q, k, v, *, grid=None, lengths=None, segment_ids=None
  ) -> jax.Array:
    """q, k, v -> (b, n, h, hd)."""
    del grid
    mixers.refuse("performer", segment_ids=segment_ids)
    if self.features < 1:
      raise UserError(f"performer({self.features}): features is 1 or more")
    w = draw(q.shape[2], self.features, q.shape[3], self.seed)
    of_q, of_k = exponents(q, w), exponents(k, w)
    if lengths is not None:
      real = linear.exist(k.shape[1], lengths) > 0
      of_k = jnp.where(real, of_k, tiled.MASKED)
    still = jax.lax.stop_gradient
    largest = still(of_k.max(1, keepdims=True))  # (b, 1, h, m)
    of_q = of_q + largest
    phi_q = jnp.exp(of_q - still(of_q.max(-1, keepdims=True)))
    return linear.mix(phi_q, jnp.exp(of_k - largest), v, lengths)


def exponents(x: jax.Array, w: np.ndarray) -> jax.Array:
  """w x - |x|^2 / 2 for x / hd^1/4: (b, n, h, hd) -> (b, n, h, m) float32."""
  x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
  return linear.dot("bnhd,hmd->bnhm", x, w) - (x * x).sum(-1, keepdims=True) / 2


@functools.cache
def draw(heads: int, features: int, head_dim: int, seed: int) -> np.ndarray:
  """(h, m, hd) float32 vectors, orthogonal in groups of head_dim."""
  one = functools.partial(_of_head, features, head_dim, seed)
  return np.stack([one(head) for head in range(heads)]).astype(np.float32)


def _of_head(features, head_dim, seed, head):
  rng = np.random.default_rng((seed, head))
  rows = []
  for _ in range(-(-features // head_dim)):
    q, r = np.linalg.qr(rng.standard_normal((head_dim, head_dim)))
    q = q * np.sign(np.diag(r))  # uniform among rotations
    lengths = np.linalg.norm(rng.standard_normal((head_dim, head_dim)), axis=1)
    rows.append(q.T * lengths[:, None])
  return np.concatenate(rows)[:features]
