"""Vector quantisation: a token becomes the nearest entry of a learned codebook.

    z = e_k,  k = argmin_j |y - e_j|,  y = W x + b in R^c
    codebook = mean over tokens and floats of (sg[y] - e_k)^2
    commit   = mean over tokens and floats of (y - sg[e_k])^2

(VQ-VAE, 1711.00937, section 3.2; the paper sums over floats, c times this, and
weighs `commit` .25.) The gradient of z goes straight through to y, so entries
learn from `codebook` alone. `distance="cosine"` gives y and all entries the
length 1 before anything else (ViT-VQGAN, 2110.04627, section 3.2, which also
takes c as small as 32 to 4 so that more entries are used).

What it loses: all but log2(entries) bits of a token. What it needs: distances
to all entries, n x entries float32 of every image, and entries near tokens:
one that is never the nearest gets no gradient and stays unused. `perplexity`
says how many are used; nothing here revives the others.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError, nearest
from vitscale.nn.bottlenecks import MOST, straight_through
from vitscale.nn.hashing import unit
from vitscale.nn.linear import Linear

DISTANCES = ("euclidean", "cosine")


class Bottleneck(nn.Module):
  """The nearest entry.

  Attributes:
    entries: of the codebook.
    code: c, floats of an entry.
    distance: one of DISTANCES.
    dtype: compute type of the linear map; the rest is float32.
  """

  entries: int = 512
  code: int = 8
  distance: str = "euclidean"
  dtype: str = "float32"

  def setup(self):
    what = f"vq({self.entries}, {self.code}, {self.distance!r})"
    if self.distance not in DISTANCES:
      hint = nearest(self.distance, DISTANCES)
      raise UserError(f"{what}: no distance {self.distance!r}{hint}")
    if not 2 <= self.entries <= MOST:
      raise UserError(f"{what}: entries are 2 to {MOST}")
    least = 2 if self.distance == "cosine" else 1
    if self.code < least:
      raise UserError(f"{what}: code is {least} or more floats an entry")
    self.project = Linear(
      "embed -> code", (self.code,), init=axes.lecun, dtype=self.dtype
    )
    # As spread as what `project` makes of normalised tokens.
    self.codebook = axes.param(
      self, "codebook", "code@entries code", (self.entries, self.code),
      axes.normal(1.0),
    )  # fmt: skip

  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c), `indices` (b, n) int32, and `perplexity`.

    The penalties are `codebook` and `commit`. `perplexity`, a scalar, is exp of
    the entropy of the entries' shares in this batch: 1 where one has all, and
    never above the number of tokens.
    """
    del train
    y, entries = self._sized(self.project(x)), self._sized(self.codebook)
    indices = jnp.argmin(distances(y, entries), -1).astype(jnp.int32)
    chosen = entries[indices]
    far = lambda a, b: jnp.square(a - b).mean((1, 2))
    fixed = jax.lax.stop_gradient
    return straight_through(chosen, y), {
      "indices": indices,
      "perplexity": perplexity(indices, self.entries),
      "penalties": {
        "codebook": far(fixed(y), chosen), "commit": far(y, fixed(chosen)),
      },
    }  # fmt: skip

  def codes(self, indices: jax.Array) -> jax.Array:
    """Indices of any shape (...) -> z (..., c)."""
    return self._sized(self.codebook)[indices]

  def _sized(self, x: jax.Array) -> jax.Array:
    return unit(x) if self.distance == "cosine" else x.astype(jnp.float32)


def distances(y: jax.Array, entries: jax.Array) -> jax.Array:
  """|y - e|^2 - |y|^2 of every token and entry, (b, n, entries).

  In float32 without shortcuts: in bfloat16 or TF32 another entry would often
  be the nearest.
  """
  products = jnp.einsum(
    "bnc,kc->bnk", y, entries, precision=jax.lax.Precision.HIGHEST
  )
  return jnp.square(entries).sum(-1) - 2 * products


def perplexity(indices: jax.Array, entries: int) -> jax.Array:
  """How many entries, equally often used, are as unpredictable as these."""
  counts = jnp.bincount(indices.reshape(-1), length=entries)
  share = counts / indices.size
  return jnp.exp(jax.scipy.special.entr(share).sum())
