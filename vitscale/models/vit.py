"""The vision transformer, plain and scalable.

An image is cut into patches (Dosovitskiy et al., 2010.11929); tokens pass
through pre-norm blocks; a pooled token gives the logits. Options of later
work that changes nothing else: registers (2309.16588), attention pooling
(2106.04560), QK-norm (2302.05442), LayerScale (2103.17239), stochastic depth
(1603.09382), SwiGLU (2002.05202), 2-D RoPE (2403.13298), any patch size at run
time with one canonical kernel (FlexiViT, 2212.08013), another token mixer
(nn/mixers), and a table of token values instead of a kernel (2406.09415).

Initialisation: matrices of blocks Xavier uniform (q, k, v each as its own),
patch kernel LeCun normal, tables, class token and registers normal 0.02,
biases and head zero.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn import attention as attention_lib
from vitscale.nn import mixers, tokens
from vitscale.nn import packed as packed_lib
from vitscale.nn import patch as patch_lib
from vitscale.nn import position as position_lib
from vitscale.nn.block import Block, Stack, per_layer
from vitscale.nn.grid import Grid
from vitscale.nn.linear import Linear
from vitscale.nn.norm import NORMS
from vitscale.nn.packed import Packed
from vitscale.nn.patch import PatchEmbed, Size
from vitscale.nn.pool import MapHead
from vitscale.nn.position import Position

_SIZES = ("width", "depth", "mlp_dim", "num_heads")
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(zip(_SIZES, sizes))
  for name, sizes in {
    "mu": (32, 2, 64, 2),  # a toy, for tests and first runs
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),  # shape-optimised, 2305.13035
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),  # 2106.04560, as are G and e's shape table
    "G": (1664, 48, 8192, 16),
    "e": (1792, 56, 15360, 16),  # 2209.06794
  }.items()
}

# What the zoo shows (see vitscale/zoo.py).
PAPER = "Dosovitskiy et al. 2020, arXiv:2010.11929"
FIDELITY = "exact"
# As published: a class token with a position of its own, or, in So400m (which
# is SigLIP's image tower, 2303.15343), attention pooling and no classifier.
_CLS = {"pool": "cls", "prefix_position": True}
PRESENTED: dict[str, dict[str, Any]] = {
  "mu/4": {},
  **{f"{size}/16": _CLS for size in ("Ti", "S", "B", "L")},
  "B/32": _CLS,
  "So400m/14": {"pool": "map", "num_classes": 0},
  **{f"{size}/14": _CLS for size in ("H", "g", "G")},
}

POOLS = ("mean", "cls", "map")
PACKS = True  # takes rows of several images, nn/packed.py


def variant(name: str) -> dict[str, Any]:
  """Keyword arguments of `Model` for a name: "B/16", "Ti/8x4", "mu".

  Raises:
    UserError: unknown size, or a patch that is no number.
  """
  size, slash, patch = name.partition("/")
  if size not in VARIANTS:
    raise UserError(f"ViT size {size!r} in {name!r}{nearest(size, VARIANTS)}")
  kwargs: dict[str, Any] = dict(VARIANTS[size])
  if slash:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", patch)
    if not found:
      raise UserError(f"patch {patch!r} in {name!r}: write 'B/16' or 'B/8x4'")
    h, w = found[1], found[2]
    kwargs["patch_size"] = (int(h), int(w)) if w else int(h)
  return kwargs


class Model(nn.Module):
  """Vision transformer.

  Attributes:
    num_classes: logits; 0 returns the pooled features.
    width, depth, mlp_dim, num_heads: sizes, see `VARIANTS`. The last two may
      be tuples, one number per layer (not scanned, `head_dim` given); an
      attention pool is sized as the last layer.
    head_dim: width of a head; None for width / num_heads.
    out_dim: how many of the pooled features are returned and give the logits,
      the first ones (Matryoshka, 2205.13147); None for all.
    patch_size: canonical patch, a number or (rows, columns).
    position_patch: patch in which sincos2d and rope2d count rows and columns,
      the canonical one by default; a model cut at another patch keeps it.
    pool: "mean" over patches | "cls" | "map" (attention).
    registers: extra learned tokens that are not pooled.
    position: one of `vitscale.nn.position.KINDS`.
    position_grid: rows and columns at which learned tables are stored, so that
      they are as large at every patch; None for the first grid that is seen.
    prefix_position: a learned position for class token and registers too.
      Redundant (it adds to the token), but what timm counts.
    norm_pooled: the last norm acts on the pooled token, not on all tokens
      (timm's `fc_norm`).
    ffn, gelu, norm, norm_eps, qk_norm, bias, layer_scale: see `Block`.
    dropout, drop_path: rates in training; rng stream "dropout".
    dtype: compute type; parameters and logits are float32.
    scan: stack the layers and scan over them.
    remat: what the backward pass recomputes, see `vitscale.nn.block.REMAT`.
    attention: back end, see `vitscale.nn.attention.choose`.
    mixer: token mixer and its options, see `vitscale.nn.mixers.parse`.
    ffn_blocks: see `Block`.
    vocabulary: the image holds integers below it, one token each (patch 1),
      looked up in a table; a sequence is an image of one row. None for pixels.
    pad_token: such tokens at the end are padding: nobody attends to them and
      they are not pooled. None for none.
  """

  num_classes: int
  width: int = 192
  depth: int = 12
  mlp_dim: int | tuple[int, ...] = 768
  num_heads: int | tuple[int, ...] = 3
  head_dim: int | None = None
  out_dim: int | None = None
  patch_size: Size = 16
  position_patch: Size | None = None
  pool: str = "mean"
  registers: int = 0
  position: str = "learned"
  position_grid: Size | None = None
  prefix_position: bool = False
  norm_pooled: bool = False
  ffn: str = "gelu"
  gelu: str = "tanh"
  norm: str = "layernorm"
  norm_eps: float = 1e-6
  qk_norm: bool = False
  bias: bool = True
  layer_scale: float | None = None
  dropout: float = 0.0
  drop_path: float = 0.0
  dtype: str = "float32"
  scan: bool = False
  remat: str | None = None
  attention: str = "auto"
  mixer: str = "softmax"
  ffn_blocks: int = 1
  vocabulary: int | None = None
  pad_token: int | None = None

  @nn.compact
  def __call__(
    self,
    image: jax.Array | Packed,
    *,
    train: bool = False,
    patch_size: Size | None = None,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Classifies images.

    Args:
      image: (b, h, w, c) float, normalised; or rows of images, which say the
        patch they are cut at.
      train: dropout and stochastic depth act.
      patch_size: another patch for this call (PI-resize from the canonical
        kernel, positions resampled).

    Returns:
      (b, num_classes) float32 logits, (b, S, num_classes) of rows, and every
      intermediate by name; `out["features"]` is
      [((b, gh, gw, d), (row, column) stride)], a row being (L, 1).

    Raises:
      UserError: the patch does not divide the image, or an unknown option.
    """
    if self.pool not in POOLS:
      raise UserError(f"pool {self.pool!r}{nearest(self.pool, POOLS)}")
    mixer = mixers.parse(self.mixer)
    softmax = mixer is attention_lib.Attention
    if not softmax and self.attention not in ("auto", "reference"):
      raise UserError(
        f"attention {self.attention!r}: back ends are of softmax, the mixer is"
        f" {self.mixer!r}: use 'auto'"
      )
    head_dim = attention_lib.head_dim_of(
      self.width, self.num_heads, self.head_dim
    )
    canonical = patch_lib.pair(self.patch_size)
    packed = image if isinstance(image, Packed) else None
    if packed is not None:
      packed_lib.check(self.pool, self.registers, self.vocabulary, patch_size)
      image, patch_size = packed.column(), packed.patch_size
    patch = patch_lib.pair(patch_size or canonical)
    unit = patch_lib.pair(self.position_patch or canonical)
    scale = patch[0] / unit[0], patch[1] / unit[1]
    out: dict[str, Any] = {}

    # Patches, with positions.
    lengths = None
    if self.vocabulary is None:
      embed = PatchEmbed(self.width, canonical, self.dtype, name="embed")
      x = embed(image, patch)
    else:
      embed = tokens.TokenEmbed(
        self.width, self.vocabulary, self.dtype, name="embed"
      )
      x = embed(image, patch)
      if self.pad_token is not None:
        lengths = tokens.lengths_of(image, self.pad_token)
    out["stem"] = x
    b, *grid, d = x.shape
    stored = self.position_grid and patch_lib.pair(self.position_grid)
    positions = Position(self.position, grid=stored, name="positions")
    if packed is None:
      x = positions(x, scale).reshape(b, -1, d)
    else:
      x = positions(x.reshape(b, -1, d), scale, packed)
    out["with_position"] = x

    # Class token and registers in front.
    prefix = self._prefix()
    x = jnp.concatenate([jnp.tile(p, (b, 1, 1)) for p in prefix] + [x], 1)
    first = x.shape[1] - grid[0] * grid[1]
    who = {"grid": Grid(*grid, first)}
    if packed is not None:
      who = {"segment_ids": packed.segment_ids}
    if lengths is not None:
      who["lengths"] = lengths + first
    x = sharding.constrain(x, "batch", "sequence", "embed")

    # Transformer.
    if self.position == "rope2d":
      where = position_lib.coordinates(tuple(grid), scale)
      if packed is not None:
        where = packed.where(scale)
      who["rope"] = position_lib.rope2d(where, head_dim, prefix=first)
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    block = functools.partial(
      Block,
      self.width,
      head_dim=head_dim,
      ffn=self.ffn,
      gelu=self.gelu,
      norm=self.norm,
      norm_eps=self.norm_eps,
      qk_norm=self.qk_norm,
      bias=self.bias,
      layer_scale=self.layer_scale,
      dropout=self.dropout,
      remat=self.remat,
      backend=self.attention,
      mixer=mixer,
      local=self.position == "glpe",
      ffn_blocks=self.ffn_blocks,
      dtype=self.dtype,
    )
    sizes = {"num_heads": self.num_heads, "mlp_dim": self.mlp_dim}
    encoder = Stack(
      block, self.depth, self.scan, self.drop_path, sizes, name="encoder"
    )
    x, out["encoder"] = encoder(x, train=train, **who)
    norm = NORMS[self.norm](self.norm_eps, dtype=self.dtype, name="final_norm")
    if not self.norm_pooled:
      x = norm(x)
    out["tokens"] = x
    out["features"] = [(x[:, first:].reshape(b, *grid, d), patch)]

    # Pool and classify.
    if packed is not None:
      x = packed.mean(x)
    elif self.pool == "mean":
      x = x[:, first:]
      real = None if lengths is None else tokens.real(lengths, x.shape[1])
      x = x.mean(1, dtype=jnp.float32, where=real)
    elif self.pool == "cls":
      x = x[:, 0]
    else:
      x = MapHead(
        self.width,
        per_layer(self.mlp_dim, self.depth, "mlp_dim")[-1],
        per_layer(self.num_heads, self.depth, "num_heads")[-1],
        head_dim,
        gelu=self.gelu,
        bias=self.bias,
        norm_eps=self.norm_eps,
        attention=self.attention,
        dtype=self.dtype,
        name="map_head",
      )(x, who.get("lengths"))
    if self.norm_pooled:
      x = norm(x)
    x = out["pre_logits"] = x.astype(jnp.float32)[..., : self.out_dim]
    if self.num_classes:
      head = Linear(
        "embed -> classes", (self.num_classes,), init=axes.zeros, name="head"
      )
      x = out["logits"] = head(x)
    return x, out

  def _prefix(self) -> list[jax.Array]:
    """Class token and registers, (count, d) each, those that exist."""
    count = {
      "cls_token": int(self.pool == "cls"),
      "register_tokens": self.registers,
    }
    table = lambda name, n: axes.param(
      self, name, "registers embed", (n, self.width), axes.normal(0.02)
    ).astype(self.dtype)
    made = [table(name, n) for name, n in count.items() if n]
    if self.prefix_position and made:
      both = jnp.concatenate(made)
      return [both + table("prefix_positions", len(both))]
    return made


def flops_per_image(
  kwargs: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> int:
  """Multiply-accumulates of one forward pass of one image, by hand.

  Matrix products only, softmax over all pairs of tokens, canonical patch;
  twice this is the forward FLOPs, six times it those of a training step.
  The contract tests hold the count on the jaxpr against it.

  Args:
    kwargs: of `Model`.
    image_shape: (h, w, c).
  """
  model = Model(**{"num_classes": 0, **kwargs})
  h, w, c = image_shape
  d = model.width
  ph, pw = patch_lib.pair(model.patch_size)
  gh, gw = patch_lib.grid_of((h, w), (ph, pw))
  n = gh * gw + (model.pool == "cls") + model.registers
  hd = attention_lib.head_dim_of(d, model.num_heads, model.head_dim)
  heads = per_layer(model.num_heads, model.depth, "num_heads")
  hidden = per_layer(model.mlp_dim, model.depth, "mlp_dim")
  attend = functools.partial(attention_lib.macs, head_dim=hd)
  total = 0 if model.vocabulary else gh * gw * ph * pw * c * d
  for k, m in zip(heads, hidden):
    total += 4 * n * d * k * hd + attend(n, n, k)
    total += (3 if model.ffn == "swiglu" else 2) * n * d * m
  if model.pool == "map":
    # The query is the same for every image: its product is not counted.
    k, m = heads[-1], hidden[-1]
    total += (2 * n + 1) * d * k * hd + attend(1, n, k) + 2 * d * m
  return total + min(model.out_dim or d, d) * model.num_classes
