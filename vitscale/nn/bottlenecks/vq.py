"""Vector quantisation: a token becomes the nearest entry of a learned codebook.

    z = e_k,  k = argmin_j |y - e_j|,  y = W x + b in R^c
    codebook = mean over tokens and floats of (sg[y] - e_k)^2
    commit   = mean over tokens and floats of (y - sg[e_k])^2

(VQ-VAE, 1711.00937, section 3.2; the paper sums over floats, c times this, and
weighs `commit` .25.) The gradient of z goes straight through to y, so entries
learn from `codebook` alone. `distance="cosine"` gives y and all entries the
length 1 before anything else (ViT-VQGAN, 2110.04627, section 3.2, which also
takes c as small as 32 to 4 so that more entries are used).

With `ema` above 0 no gradient moves the entries, and `codebook` is no penalty:
each is the mean of the tokens that chose it (appendix A.1), older ones counting
less, a share p_k of all tokens and their sum m_k being kept

    p_k <- ema p_k + (1 - ema) mean over tokens of [k chosen]
    m_k <- ema m_k + (1 - ema) mean over tokens of [k chosen] y
    e_k  = m_k / p_k

in the collection "codebook", in training and where that is mutable. Several
parts of a batch together give what the whole batch does.

What it loses: all but log2(entries) bits of a token. What it needs: distances
to all entries, n x entries float32 of every image, and entries near tokens:
one that is never the nearest gets no gradient and stays unused. `perplexity`
says how many are used. `revive` does something about it (with `ema` alone): an
entry whose p_k is below `revive` / entries becomes a token of this batch drawn
at random, its p_k that of an even use. Unused from then on it has ln revive /
ln ema steps until the next, 230 for .1 and .99. Where a batch is taken in parts
it becomes the mean of a token of each.
"""

import functools
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
BOOK = "codebook"  # the collection of an averaged one
LEAST = 1e-12  # shares stop to decay here: quotients of them stay exact


class Bottleneck(nn.Module):
  """The nearest entry.

  Attributes:
    entries: of the codebook.
    code: c, floats of an entry.
    distance: one of DISTANCES.
    ema: how much of the averages each step keeps; 0 for a codebook that is a
      parameter.
    revive: of an even share, below which an entry is dead; 0 for never.
    dtype: compute type of the linear map; the rest is float32.
  """

  entries: int = 512
  code: int = 8
  distance: str = "euclidean"
  ema: float = 0.0
  revive: float = 0.0
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
    for key in ("ema", "revive"):
      if not 0 <= getattr(self, key) < 1:
        raise UserError(f"{what}: {key}={getattr(self, key)} is in [0, 1)")
    if self.revive and not self.ema:
      raise UserError(f"{what}: revive goes with ema, such as ema=0.99")
    self.project = Linear(
      "embed -> code", (self.code,), init=axes.lecun, dtype=self.dtype
    )
    # As spread as what `project` makes of normalised tokens.
    shape, spread = (self.entries, self.code), axes.normal(1.0)
    spec, even = "code@entries code", 1 / self.entries
    if not self.ema:
      self.codebook = axes.param(self, "codebook", spec, shape, spread)
      return
    kept = functools.partial(axes.variable, self, BOOK)
    constant = jax.nn.initializers.constant(even)
    self.share = kept("share", "code@entries", shape[:1], constant)
    # `variable` has one key for everybody, the model's seed is wanted.
    seeded = lambda _, *rest: even * spread(self.make_rng("params"), *rest)
    self.sums = kept("sums", spec, shape, seeded)

  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c), `indices` (b, n) int32, and `perplexity`.

    The penalties are `commit` and, without `ema`, `codebook`. `perplexity`, a
    scalar, is exp of the entropy of the entries' shares in this batch: 1 where
    one has all, and never above the number of tokens. With `revive` training
    draws from the stream "latent".
    """
    y, entries = self._sized(self.project(x)), self._book()
    indices = jnp.argmin(distances(y, entries), -1).astype(jnp.int32)
    chosen = entries[indices]
    far = lambda a, b: jnp.square(a - b).mean((1, 2))
    fixed = jax.lax.stop_gradient
    penalties = {"commit": far(y, fixed(chosen))}
    if not self.ema:
      penalties["codebook"] = far(fixed(y), chosen)
    elif train and self.is_mutable_collection(BOOK):
      self._learn(fixed(y).reshape(-1, self.code), indices.reshape(-1))
    return straight_through(chosen, y), {
      "indices": indices,
      "perplexity": perplexity(indices, self.entries),
      "penalties": penalties,
    }

  def _learn(self, y: jax.Array, indices: jax.Array) -> None:
    """Moves the averages by tokens (n, c) that chose entries (n,)."""
    share, sums = self.share.value, self.sums.value
    keep = jnp.where(share > LEAST, self.ema, 1.0)
    picked = jax.nn.one_hot(indices, self.entries)  # (n, entries)
    found = jnp.einsum(
      "nk,nc->kc", picked, y, precision=jax.lax.Precision.HIGHEST
    )
    new = keep * share + (1 - self.ema) * picked.mean(0)
    total = keep[:, None] * sums + (1 - self.ema) * found / len(y)
    if self.revive:
      even = 1 / self.entries
      dead = share < self.revive * even
      key = self.make_rng("latent")
      drawn = y[jax.random.randint(key, (self.entries,), 0, len(y))]
      new = jnp.where(dead, even, new)
      total = jnp.where(dead[:, None], even * drawn, total)
    self.share.value, self.sums.value = new, total

  def _book(self) -> jax.Array:
    """The entries (entries, c)."""
    if not self.ema:
      return self._sized(self.codebook)
    return self._sized(self.sums.value / self.share.value[:, None])

  def codes(self, indices: jax.Array) -> jax.Array:
    """Indices of any shape (...) -> z (..., c)."""
    return self._book()[indices]

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
