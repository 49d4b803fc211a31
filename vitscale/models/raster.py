"""Raster: a decoder-only transformer over the integers of an image, in order.

Pixels, or the codes of a tokenizer, are read row by row, the channels of a
pixel together, and each is predicted from those before it: the models whose
laws Henighan et al. (2010.14701) measured, and image GPT (Chen et al. 2020)
before them. A start token stands in front, the embedding of the class, so the
first integer is predicted too and nothing else is told to the model.

Shape of 2010.14701, section 2.1: a hidden layer as wide as the stream (m_mlp
1), attention a quarter of it (m_attn 1/4), width over depth about 10, so about
3 d^2 parameters a layer. Left open there and ours: heads of 16; positions, a
sum of a learned row, column and channel, which say where the integer lies that
is *predicted* (a place always has the same neighbour before it); pre-norm
blocks with GELU; a head of its own that starts at zero, so that the first loss
is the log of the vocabulary.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn import attention as attention_lib
from vitscale.nn import layers
from vitscale.nn.attention import Attention
from vitscale.nn.block import Block, Stack
from vitscale.nn.linear import Linear
from vitscale.nn.norm import LayerNorm
from vitscale.nn.position import Position

PAPER = "Henighan et al. 2020, arXiv:2010.14701"
FIDELITY = "interpretation"  # heads, positions and norms, see above


def shaped(width: int) -> dict[str, int]:
  """Sizes of a model of 2010.14701's shape, from its width."""
  inner = width // 4
  num_heads = max(inner // 16, 1)
  return {
    "width": width, "depth": max(round(width / 10), 1), "mlp_dim": width,
    "num_heads": num_heads, "head_dim": inner // num_heads,
  }  # fmt: skip


VARIANTS: dict[str, dict[str, int]] = {
  "mu": {**shaped(32), "depth": 2, "num_heads": 2, "head_dim": 4},  # a toy
  **{f"d{d}": shaped(d) for d in (32, 64, 128, 256, 512, 1024)},
}
# Colour images of so many pixels a side, three integers each.
PRESENTED: dict[str, dict[str, Any]] = {
  "mu@14": {"vocabulary": 16},
  "d64@8": {}, "d128@8": {}, "d256@16": {}, "d512@16": {}, "d1024@32": {},
}  # fmt: skip

Shape = tuple[int, int, int]


def variant(name: str) -> dict[str, Any]:
  """Keyword arguments of `Model` for a name: "d256", "mu".

  Raises:
    UserError: unknown size.
  """
  if name not in VARIANTS:
    raise UserError(f"raster size {name!r}{nearest(name, VARIANTS)}")
  return dict(VARIANTS[name])


# --------------------------------------------------------------------- parts


class Places(nn.Module):
  """Learned positions: a row, a column and, of several, a channel, summed.

  Rows and columns of another image than the first are resampled.
  """

  width: int

  @nn.compact
  def __call__(self, shape: Shape) -> jax.Array:
    """(h, w, c) -> (h w c, d), in raster order.

    Raises:
      UserError: another number of channels than the model has.
    """
    h, w, c = shape
    empty = jnp.zeros((1, h, w, self.width))
    table = Position("factorized", name="grid")(empty)[0, :, :, None]
    known = c
    if self.has_variable("params", "channels"):
      known = len(axes.unbox(self.get_variable("params", "channels")))
    elif not self.is_initializing():
      known = 1
    if c != known:
      raise UserError(f"raster model of {known} channels got {c}")
    if c > 1:
      size, init = (c, self.width), axes.normal(0.02)
      table = table + axes.param(self, "channels", "pos embed", size, init)
    return table.reshape(-1, self.width)


class Remembering(Attention):
  """Attention that keeps what it has seen, when it sees one token at a time.

  It does where `order` is a pair: of the one token, and of all there will be.
  Keys and values of that many lie in the collection "cache".
  """

  def attend(self, q, k, v, *, order=None, **who) -> jax.Array:
    """q, k, v (b, nq, h, hd) -> (b, nq, h, hd)."""
    if isinstance(order, tuple):
      at = order[0][0]
      k, v = self._keep("k", k, at), self._keep("v", v, at)
    return super().attend(q, k, v, order=order, **who)

  def _keep(self, name: str, x: jax.Array, at: jax.Array) -> jax.Array:
    old = self.get_variable("cache", name)
    kept = jax.lax.dynamic_update_slice(old, x.astype(old.dtype), (0, at, 0, 0))
    self.put_variable("cache", name, kept)
    return kept


# --------------------------------------------------------------------- model


class Model(nn.Module):
  """Raster autoregressive transformer.

  Attributes:
    num_classes: of labels; `num_classes` itself is the label of no class, for
      guidance. 0 for a model without classes.
    vocabulary: integers are 0 to vocabulary - 1.
    width, depth, mlp_dim, num_heads, head_dim: sizes, see `shaped`; head_dim
      None for width / num_heads.
    qk_norm, remat: see `vitscale.nn.block.Block`.
    dtype: compute type; parameters and logits are float32.
    scan: stack the layers and scan over them.
  """

  num_classes: int
  vocabulary: int = 256
  width: int = 128
  depth: int = 13
  mlp_dim: int = 128
  num_heads: int = 2
  head_dim: int | None = 16
  qk_norm: bool = False
  dtype: str = "float32"
  scan: bool = False
  remat: str | None = None

  def setup(self):
    d, init = self.width, axes.normal(0.02)
    self.start = axes.param(
      self, "start", "classes embed", (self.num_classes + 1, d), init
    )
    self.tokens = axes.param(
      self, "tokens", "classes embed", (self.vocabulary, d), init
    )
    self.places = Places(d)
    block = functools.partial(
      Block, d, self.num_heads, self._head_dim(), self.mlp_dim,
      qk_norm=self.qk_norm, remat=self.remat, mixer=Remembering,
      dtype=self.dtype,
    )  # fmt: skip
    self.encoder = Stack(block, self.depth, self.scan)
    self.norm = LayerNorm(dtype=self.dtype)
    self.head = Linear("embed -> classes", (self.vocabulary,), init=axes.zeros)

  def __call__(
    self,
    codes: jax.Array,
    label: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Logits of every integer from those before it.

    Args:
      codes: (b, h, w, c) integers, or (b, n) for one row of one channel; one
        outside the vocabulary gives NaN. A float image, about -1..1, is cut
        into as many equal levels.
      label: (b,) int in 0..num_classes; None for no class.
      train: changes nothing, there is no dropout.

    Returns:
      float32 (b, n, vocabulary), n = h w c, and every intermediate by name;
      `out["features"]` is [((b, h, w, d), (1, 1))], channels averaged: at a
      place they have seen what lies before it.

    Raises:
      UserError: labels for a model without classes, another number of channels
        than at first, or an unknown option.
    """
    if codes.ndim == 2:
      codes = codes[:, None, :, None]
    b, h, w, c = codes.shape
    codes = levels(codes, self.vocabulary).reshape(b, -1)
    n, out = codes.shape[1], {}
    before = jnp.concatenate(
      [self._first(b, label)[:, None], self._read(codes[:, :-1])], 1
    )
    x = self._placed(before, self.places((h, w, c)))
    out["stem"] = x
    x, out["encoder"] = self.encoder(x, train=train, order=jnp.arange(n))
    x = self.norm(x)
    seen = x.reshape(b, h, w, c, self.width).mean(3)
    out["features"] = [(seen, (1, 1))]
    return self.head(x.astype(jnp.float32)), out

  def step(
    self,
    code: jax.Array,
    at: jax.Array,
    label: jax.Array | None,
    shape: Shape,
  ) -> jax.Array:
    """Logits of one integer, those before the last in the cache.

    Args:
      code: (b,) int32, the integer before it; what it is does not matter for
        the first.
      at: scalar, the number in raster order of the integer to predict.
      label: as of `__call__`.
      shape: (h, w, c) of the image.

    Returns:
      float32 (b, vocabulary). The collection "cache", see `cache`, must be
      mutable; of a model with `scan`, see `looped`.
    """
    b, n = len(code), math.prod(shape)
    x = jnp.where(at == 0, self._first(b, label), self._read(code))
    x = self._placed(x[:, None], self.places(shape)[at])
    x, _ = self.encoder(x, order=(jnp.reshape(at, (1,)), jnp.arange(n)))
    return self.head(self.norm(x)[:, 0].astype(jnp.float32))

  def looped(self, variables: Any) -> tuple["Model", Any]:
    """The same model with layers of their own, as `step` wants them."""
    params = variables["params"]
    if self.scan:
      params = layers.unstack_layers(params)
    return self.clone(scan=False, remat=None), {"params": params}

  def cache(self, b: int, n: int) -> dict[str, Any]:
    """An empty "cache" of `step`: keys and values of n tokens, every layer."""
    shape = (b, n, self.num_heads, self._head_dim())
    empty = lambda: jnp.zeros(shape, self.dtype)
    names = map(layers.layer_name, range(self.depth))
    return {
      "encoder": {
        name: {"attention": {"k": empty(), "v": empty()}} for name in names
      }
    }

  def _first(self, b: int, label: jax.Array | None) -> jax.Array:
    """(b, d), what stands in front."""
    if label is None:
      label = jnp.full(b, self.num_classes)
    elif not self.num_classes:
      raise UserError(
        "raster model without classes got labels: set model.num_classes"
      )
    return self.start.at[label].get(mode="fill", fill_value=jnp.nan)

  def _read(self, codes: jax.Array) -> jax.Array:
    """(...) -> (..., d)."""
    # Below 0 an index would count from the end.
    codes = jnp.where(codes < 0, self.vocabulary, codes)
    return self.tokens.at[codes].get(mode="fill", fill_value=jnp.nan)

  def _placed(self, x: jax.Array, places: jax.Array) -> jax.Array:
    x = (x + places).astype(self.dtype)
    return sharding.constrain(x, "batch", "sequence", "embed")

  def _head_dim(self) -> int:
    return attention_lib.head_dim_of(self.width, self.num_heads, self.head_dim)


def levels(codes: jax.Array, vocabulary: int) -> jax.Array:
  """Integers as they are; floats of -1..1 as the number of their level."""
  if jnp.issubdtype(codes.dtype, jnp.integer):
    return codes
  level = jnp.floor((codes + 1) / 2 * vocabulary)
  return jnp.clip(level, 0, vocabulary - 1).astype(jnp.int32)


# ---------------------------------------------------------------- accounting


def example_inputs(image: jax.Array) -> dict[str, jax.Array]:
  """Labels of a call: keyword arguments beside the image."""
  return {"label": jnp.arange(len(image)) % 2}


def flops_per_image(
  kwargs: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> int:
  """Multiply-accumulates of one forward pass of one image, by hand.

  Matrix products only, attention as it is computed: of all places with all,
  those that may not be seen too.

  Args:
    kwargs: of `Model`.
    image_shape: (h, w, c).
  """
  model = Model(**{"num_classes": 0, **kwargs})
  n, d = math.prod(image_shape), model.width
  hd = attention_lib.head_dim_of(d, model.num_heads, model.head_dim)
  each = 4 * n * d * model.num_heads * hd + 2 * n * d * model.mlp_dim
  each += attention_lib.macs(n, n, model.num_heads, hd)
  return model.depth * each + n * d * model.vocabulary
