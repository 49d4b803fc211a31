"""TokenFormer as a vision transformer: every linear map attends to parameters.

Wang et al., "TokenFormer: rethinking transformer scaling with tokenized model
parameters", 2410.23168. A Pattention layer looks its input up in `n` pairs of
key and value tokens, so a model grows by pairs and keeps its width; what it has
learned stays, if new keys are zero (see `vitscale.elastic.grow`).

Theta here is the paper's: scores divided by their L2 norm, times sqrt(n), then
GELU (eq. 4). The released code takes the root of the current n, so that growing
rescales every output and zero keys change the function; here the number under
the root is an option, `scale_tokens`, and growing keeps it. Norms in blocks
have no parameters (section 3.2), the last one has. A prefix of the pairs is a
smaller model of the same family: growing and shrinking are one axis.

No vision code was released: patches, positions and pooling are those of the
plain ViT, and the sizes those of the paper's language models. Its counts for
ImageNet, 109M (B/16) and 407M (L/16), are those of 729 and 1030 pairs with four
times as many in the channel mixer; as nobody would choose these, no size here
claims to be theirs. Keys are Xavier uniform, values normal with standard
deviation 2 / (depth sqrt(width)).
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn import attention as attention_lib
from vitscale.nn import patch as patch_lib
from vitscale.nn import position as position_lib
from vitscale.nn.block import Stack, constrain, drop_path
from vitscale.nn.linear import Linear
from vitscale.nn.norm import LayerNorm, layer_norm
from vitscale.nn.patch import PatchEmbed, Size
from vitscale.nn.position import Position

_SIZES = ("width", "depth", "num_heads", "tokens", "ffn_tokens")
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(zip(_SIZES, sizes))
  for name, sizes in {
    "mu": (32, 2, 2, 24, 96),  # a toy, for tests and first runs
    "Ti": (192, 12, 3, 144, 576),
    "S": (384, 12, 6, 288, 1152),
    # Table 6: one width, four counts of pairs.
    "B-576": (768, 12, 12, 576, 2304),
    "B-2140": (768, 12, 12, 2140, 8560),
    "B-4850": (768, 12, 12, 4850, 19400),
    "B-8620": (768, 12, 12, 8620, 34480),
  }.items()
}

PAPER = "Wang et al. 2024, arXiv:2410.23168"
FIDELITY = "interpretation"
PRESENTED: dict[str, dict[str, Any]] = {
  "mu/4": {},
  **{f"{name}/16": {"pool": "cls"} for name in VARIANTS if name != "mu"},
}

POOLS = ("mean", "cls")
EPS = 1e-5  # under the root of the scores' norm: all-zero scores stay zero


def variant(name: str) -> dict[str, Any]:
  """Keyword arguments of `Model` for a name: "S/16", "B-576/8", "mu".

  Raises:
    UserError: unknown size, or a patch that is no number.
  """
  size, slash, patch = name.partition("/")
  if size not in VARIANTS:
    raise UserError(f"size {size!r} in {name!r}{nearest(size, VARIANTS)}")
  if slash and not re.fullmatch(r"\d+", patch):
    raise UserError(f"patch {patch!r} in {name!r}: write 'S/16'")
  return {**VARIANTS[size], **({"patch_size": int(patch)} if slash else {})}


# Theta(scores (..., n), count under the root) -> weights, float32.


def l2_gelu(scores: jax.Array, count: int) -> jax.Array:
  """GELU of the scores at length sqrt(count): the default."""
  return jax.nn.gelu(_at_length(scores, math.sqrt(count)))


def gelu_l2(scores: jax.Array, count: int) -> jax.Array:
  """The same in the other order."""
  return _at_length(jax.nn.gelu(scores), math.sqrt(count))


def exp_l1(scores: jax.Array, count: int) -> jax.Array:
  """Softmax times count. A zero score takes its share: growing isn't exact."""
  return jax.nn.softmax(scores, -1) * count


THETAS = {"l2_gelu": l2_gelu, "gelu_l2": gelu_l2, "exp_l1": exp_l1}


def _at_length(x: jax.Array, length: float) -> jax.Array:
  square = jnp.square(x).sum(-1, keepdims=True)
  return x * (length * jax.lax.rsqrt(square + EPS))


class Pattention(nn.Module):
  """theta(x . keys) . values, over the last axes of x.

  Attributes:
    names: "in ... -> out ..." of the map it stands for.
    features: sizes of the output axes.
    tokens: pairs of key and value, n.
    axis: their axis name.
    scale_tokens: number under the root; None for `tokens`.
    theta: a key of THETAS.
    std: of the values at initialisation.
    dtype: compute type; scores are normalised in float32.
  """

  names: str
  features: tuple[int, ...]
  tokens: int
  axis: str
  scale_tokens: int | None = None
  theta: str = "l2_gelu"
  std: float = 0.02
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., *in) -> (..., *out)."""
    into, _, out = self.names.partition("->")
    scores = Linear(
      f"{into} -> {self.axis}", (self.tokens,), False, dtype=self.dtype,
      name="keys",
    )(x)  # fmt: skip
    lead = ("tokens",) if scores.ndim == 2 else ("batch", "sequence")
    scores = sharding.constrain(scores, *lead, self.axis)
    theta = THETAS[self.theta]
    weights = theta(
      scores.astype(jnp.float32), self.scale_tokens or self.tokens
    )
    return Linear(
      f"{self.axis} -> {out}", self.features, False, axes.normal(self.std),
      self.dtype, name="values",
    )(weights.astype(self.dtype))  # fmt: skip


class Block(nn.Module):
  """x += attention(norm(x)); x += pattention(norm(x)).

  The norms have no parameters. Attributes: those of `Model`, of the same names;
  `std` of values.
  """

  width: int
  num_heads: int
  tokens: int
  ffn_tokens: int
  scale_tokens: int | None
  ffn_scale_tokens: int | None
  theta: str
  std: float
  norm_eps: float = 1e-6
  dropout: float = 0.0
  backend: str = "auto"
  scanned: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    rate: float | jax.Array = 0.0,
    *,
    batch: int,
    train: bool = False,
    rope: position_lib.Rope | None = None,
    lengths: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(b * n, d) or (b, n, d) to the same; parts as of `nn.block.Block`."""
    heads = (self.num_heads, self.width // self.num_heads)
    one = functools.partial(
      Pattention, theta=self.theta, std=self.std, dtype=self.dtype
    )
    part = functools.partial(
      one, tokens=self.tokens, scale_tokens=self.scale_tokens
    )
    out = {}

    def add(x, y, name):
      y = nn.Dropout(self.dropout)(y, deterministic=not train)
      if train and not (isinstance(rate, float) and rate == 0.0):
        y = drop_path(y, rate, self.make_rng("dropout"), batch)
      x = constrain(x + y)
      out.update({name: y, f"+{name}": x})
      return x

    # Tokens attend to tokens. These pairs are no "mlp": a mesh splits heads.
    normed = self._norm(x)
    names = ("batch", "sequence", "heads", "head_dim")
    qkv = []
    for name in ("query", "key", "value"):
      y = part(
        "embed -> heads head_dim", heads, axis=f"code@{name}", name=name
      )(normed)
      y = y.reshape(batch, -1, *heads)
      if rope is not None and name != "value":
        y = position_lib.rotate(y, rope)
      qkv.append(sharding.constrain(y, *names))
    y = attention_lib.attend(
      *qkv, lengths=lengths, segment_ids=segment_ids, backend=self.backend
    )
    y = y.reshape(*x.shape[:-1], *heads)
    y = part(
      "heads head_dim -> embed", (self.width,), axis="code@out", name="out"
    )(y)
    x = add(x, y, "sa")

    # Each token looks up parameters.
    ffn = one(
      "embed -> embed", (self.width,), self.ffn_tokens, "mlp",
      self.ffn_scale_tokens, name="mlp",
    )  # fmt: skip
    return add(x, ffn(self._norm(x)), "mlp"), out

  def _norm(self, x: jax.Array) -> jax.Array:
    d = x.shape[-1]
    return layer_norm(
      x.astype(self.dtype), jnp.ones(d), jnp.zeros(d), self.norm_eps
    )


class Model(nn.Module):
  """Vision transformer made of Pattention.

  Attributes:
    num_classes: logits; 0 returns the pooled features.
    width, depth, num_heads: sizes, see `VARIANTS`.
    tokens: pairs of each of query, key, value and output projection.
    ffn_tokens: pairs of the channel mixer.
    scale_tokens, ffn_scale_tokens: numbers under theta's root; None for the
      numbers of pairs. A grown model keeps those it was born with.
    theta: a key of THETAS.
    patch_size: canonical patch, a number or (rows, columns).
    position_patch: patch in which sincos2d and rope2d count rows and columns,
      the canonical one by default; a model cut at another patch keeps it.
    pool: "mean" over patches | "cls".
    position: see `vitscale.nn.position`.
    norm_eps: of every norm.
    dropout, drop_path: rates in training; rng stream "dropout".
    dtype: compute type; parameters and logits are float32.
    scan: stack the layers and scan over them.
    attention: back end, see `vitscale.nn.attention.choose`.
  """

  num_classes: int
  width: int = 192
  depth: int = 12
  num_heads: int = 3
  tokens: int = 144
  ffn_tokens: int = 576
  scale_tokens: int | None = None
  ffn_scale_tokens: int | None = None
  theta: str = "l2_gelu"
  patch_size: Size = 16
  position_patch: Size | None = None
  pool: str = "mean"
  position: str = "learned"
  norm_eps: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  dtype: str = "float32"
  scan: bool = False
  attention: str = "auto"

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    *,
    train: bool = False,
    patch_size: Size | None = None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images; arguments and results as those of `vit.Model`."""
    for what, name, known in (
      ("pool", self.pool, POOLS), ("theta", self.theta, THETAS),
    ):  # fmt: skip
      if name not in known:
        raise UserError(f"{what} {name!r}{nearest(name, known)}")
    if self.width % self.num_heads:
      raise UserError(
        f"num_heads {self.num_heads} does not divide width {self.width}"
      )
    canonical = patch_lib.pair(self.patch_size)
    patch = patch_lib.pair(patch_size or canonical)
    unit = patch_lib.pair(self.position_patch or canonical)
    scale = patch[0] / unit[0], patch[1] / unit[1]
    out: dict[str, Any] = {}

    # Patches, with positions; a class token in front.
    embed = PatchEmbed(self.width, canonical, self.dtype, name="embed")
    x = out["stem"] = embed(image, patch)
    b, *grid, d = x.shape
    x = Position(self.position, name="positions")(x, scale)
    x = out["with_position"] = x.reshape(b, -1, d)
    first = int(self.pool == "cls")
    if first:
      cls = axes.param(
        self, "cls_token", "registers embed", (1, d), axes.normal(0.02)
      ).astype(self.dtype)
      x = jnp.concatenate([jnp.tile(cls, (b, 1, 1)), x], 1)
    x = sharding.constrain(x, "batch", "sequence", "embed")

    # Transformer.
    rope = None
    if self.position == "rope2d":
      where = position_lib.coordinates(tuple(grid), scale)
      rope = position_lib.rope2d(where, d // self.num_heads, prefix=first)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    block = functools.partial(
      Block,
      self.width,
      self.num_heads,
      self.tokens,
      self.ffn_tokens,
      self.scale_tokens,
      self.ffn_scale_tokens,
      self.theta,
      std=2 / (self.depth * math.sqrt(d)),
      norm_eps=self.norm_eps,
      dropout=self.dropout,
      backend=self.attention,
      dtype=self.dtype,
    )
    encoder = Stack(
      block, self.depth, self.scan, self.drop_path, name="encoder"
    )
    x, out["encoder"] = encoder(x, train=train, rope=rope)
    x = LayerNorm(self.norm_eps, dtype=self.dtype, name="final_norm")(x)
    out["tokens"] = x
    out["features"] = [(x[:, first:].reshape(b, *grid, d), patch)]

    # Pool and classify.
    x = x[:, 0] if first else x.mean(1, dtype=jnp.float32)
    x = out["pre_logits"] = x.astype(jnp.float32)
    if self.num_classes:
      head = Linear(
        "embed -> classes", (self.num_classes,), init=axes.zeros, name="head"
      )
      x = out["logits"] = head(x)
    return x, out


def flops_per_image(
  kwargs: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> int:
  """Multiply-accumulates of one forward pass of one image, by hand.

  Args:
    kwargs: of `Model`.
    image_shape: (h, w, c).
  """
  model = Model(**{"num_classes": 0, **kwargs})
  h, w, c = image_shape
  d, (ph, pw) = model.width, patch_lib.pair(model.patch_size)
  gh, gw = patch_lib.grid_of((h, w), (ph, pw))
  n = gh * gw + (model.pool == "cls")
  pairs = 4 * model.tokens + model.ffn_tokens
  attend = attention_lib.macs(n, n, model.num_heads, d // model.num_heads)
  return (
    gh * gw * ph * pw * c * d
    + model.depth * (2 * n * d * pairs + attend)
    + d * model.num_classes
  )
