"""DiT: a diffusion transformer, told the time and the class by modulation.

A noised image or latent map is cut into patches; blocks without norm
parameters read shift, scale and gate of both branches off one vector, the sum
of an embedded time and an embedded class (Peebles & Xie, 2212.09748, section
3.2, adaLN-Zero); a last modulated norm and a linear map give patches back.
The modulations start at zero, so that every block starts as the identity, and
so does the last map: the first prediction is 0.

What is predicted, noise or velocity, is the task's choice (tasks/diffuse.py),
as is what a time means: here it is a number in 0..1, no noise to noise alone.

Where the release leaves the paper open: positions are this package's 2-D
sines (MoCo v3's frequencies, not MAE's) and no stored table, of 294,912
numbers in XL/2; q, k and v are each initialised as a matrix of its own.
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
from vitscale.nn.attention import Attention
from vitscale.nn.block import REMAT, Stack, constrain
from vitscale.nn.ffn import Mlp
from vitscale.nn.grid import Grid
from vitscale.nn.linear import Linear
from vitscale.nn.modulation import (
  EPS,
  SINES,
  Condition,
  Modulation,
  gated,
  modulate,
)
from vitscale.nn.patch import Size
from vitscale.nn.position import Position, Rope

PAPER = "Peebles & Xie 2022, arXiv:2212.09748"
FIDELITY = "interpretation"  # positions and q, k, v, see above

_SIZES = ("width", "depth", "mlp_dim", "num_heads")
VARIANTS: dict[str, dict[str, int]] = {
  name: dict(zip(_SIZES, sizes))
  for name, sizes in {
    "mu": (32, 2, 64, 2),  # toys
    "xs": (128, 6, 512, 4),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "XL": (1152, 28, 4608, 16),
  }.items()
}
# As published: latents of 256 pixels a side, and a learned variance.
_LATENT = {"channels": 4, "learn_sigma": True}
PRESENTED: dict[str, dict[str, Any]] = {
  "mu/4": {"channels": 1},
  **{f"{size}/2@32": _LATENT for size in ("S", "B", "L", "XL")},
}
POSITIONS = ("sincos2d", "learned", "rope2d", "none")


def variant(name: str) -> dict[str, Any]:
  """Keyword arguments of `Model` for a name: "XL/2", "mu".

  Raises:
    UserError: unknown size, or a patch that is no number.
  """
  size, slash, patch = name.partition("/")
  if size not in VARIANTS:
    raise UserError(f"DiT size {size!r} in {name!r}{nearest(size, VARIANTS)}")
  kwargs: dict[str, Any] = dict(VARIANTS[size])
  if slash:
    if not re.fullmatch(r"\d+", patch):
      raise UserError(f"patch {patch!r} in {name!r}: write 'XL/2'")
    kwargs["patch_size"] = int(patch)
  return kwargs


# -------------------------------------------------------------------- block


class Block(nn.Module):
  """x += gate attention(modulated x); x += gate mlp(modulated x).

  Attributes as of `vitscale.nn.block.Block`.
  """

  width: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  qk_norm: bool = False
  remat: str | None = None
  backend: str = "auto"
  scanned: bool = False
  dtype: str = "float32"

  def setup(self):
    if self.remat not in REMAT:
      raise UserError(f"remat {self.remat!r}{nearest(self.remat, REMAT)}")
    self.modulation = Modulation(6, self.width, self.dtype)
    self.attention = Attention(
      self.width,
      self.num_heads,
      self.head_dim,
      qk_norm=self.qk_norm,
      norm_eps=EPS,
      backend=self.backend,
      dtype=self.dtype,
    )
    self.mlp = Mlp(self.width, self.mlp_dim, dtype=self.dtype)

  def __call__(
    self,
    x: jax.Array,
    rate: float = 0.0,
    *,
    condition: jax.Array,
    batch: int,
    train: bool = False,
    rope: Rope | None = None,
    grid: Grid | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One block; nothing in it is drawn.

    Args:
      x: (b * n, d) or (b, n, d).
      rate: of stochastic depth, 0: there is none.
      condition: (b, d).
      batch, train, rope, grid: as of `vitscale.nn.block.Block`.

    Returns:
      x of the same shape, and its parts "sa", "+sa", "mlp", "+mlp".
    """
    del rate

    # Plain functions of (module, arrays), because remat is one of those.
    def before(m, x, shift, scale, rope):
      y = modulate(x, shift, scale)
      return m.attention.heads(y, batch=batch, rope=rope)

    def after(m, x, y, gate, *more):
      out = {}
      sa = m.attention.merge(y, flat=x.ndim == 2)
      out["sa"] = gated(sa, gate)
      x = out["+sa"] = constrain(x + out["sa"])
      shift, scale, gate = more
      out["mlp"] = gated(m.mlp(modulate(x, shift, scale), train), gate)
      x = out["+mlp"] = constrain(x + out["mlp"])
      return x, out

    def whole(m, x, condition, rope):
      shift, scale, *rest = m.modulation(condition)
      qkv = before(m, x, shift, scale, rope)
      return after(m, x, m.attention.attend(*qkv, grid=grid), *rest)

    # As in vitscale.nn.block: a scan body needs no barrier.
    remat = functools.partial(nn.remat, prevent_cse=not self.scanned)
    if self.remat == "save_attention":
      before, after = remat(before), remat(after)
    elif self.remat is not None:
      keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      whole = remat(whole, policy=keep if self.remat == "dots" else None)
    return whole(self, x, condition, rope)


# -------------------------------------------------------------------- model


class Model(nn.Module):
  """Diffusion transformer.

  Attributes:
    num_classes: of labels; `num_classes` itself is the label of no class, for
      guidance. 0 for a model without classes.
    channels: of the images or latents.
    width, depth, mlp_dim, num_heads: sizes, see `VARIANTS`.
    head_dim: width of a head; None for width / num_heads.
    patch_size: a number or (rows, columns).
    position: one of POSITIONS.
    learn_sigma: as many channels more, `out["variance"]`, which the published
      models interpolate the variance of a step with (2102.09672, section 3.1).
    qk_norm, remat: see `vitscale.nn.block.Block`.
    dtype: compute type; parameters and results are float32.
    scan: stack the layers and scan over them.
    attention: back end, see `vitscale.nn.attention.choose`.
  """

  num_classes: int
  channels: int = 3
  width: int = 384
  depth: int = 12
  mlp_dim: int = 1536
  num_heads: int = 6
  head_dim: int | None = None
  patch_size: Size = 2
  position: str = "sincos2d"
  learn_sigma: bool = False
  qk_norm: bool = False
  dtype: str = "float32"
  scan: bool = False
  remat: str | None = None
  attention: str = "auto"

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    time: jax.Array | None = None,
    label: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Predicts what the task trains it to, of noised images or latents.

    Args:
      image: (b, h, w, c) float, noised.
      time: (b,) in 0..1; None for 0, images without noise.
      label: (b,) int in 0..num_classes; None for no class.
      train: changes nothing, there is no dropout.

    Returns:
      float32 in the shape of `image`, and every intermediate by name;
      `out["features"]` is [((b, gh, gw, d), (row, column) stride)].

    Raises:
      UserError: the patch does not divide the image, another number of
        channels, labels for a model without classes, or an unknown option.
    """
    self._check(image, label)
    b, c = len(image), image.shape[-1]
    patch = patch_lib.pair(self.patch_size)
    out: dict[str, Any] = {}

    # Patches with positions, and what they are told.
    patches = patch_lib.patchify(image, patch)
    embed = Linear(
      "patch -> embed", (self.width,), dtype=self.dtype, name="embed"
    )
    x = out["stem"] = embed(patches)
    grid = x.shape[1:3]
    x = Position(self.position, name="positions")(x).reshape(b, -1, self.width)
    x = sharding.constrain(x, "batch", "sequence", "embed")
    if time is None:
      time = jnp.zeros(b)
    condition = out["condition"] = Condition(
      self.width, self.num_classes, self.dtype, name="condition"
    )(time, label)

    # Transformer.
    who = {"grid": Grid(*grid, 0), "condition": condition}
    head_dim = attention_lib.head_dim_of(
      self.width, self.num_heads, self.head_dim
    )
    if self.position == "rope2d":
      where = position_lib.coordinates(grid)
      who["rope"] = position_lib.rope2d(where, head_dim)
    block = functools.partial(
      Block,
      self.width,
      self.num_heads,
      head_dim,
      self.mlp_dim,
      qk_norm=self.qk_norm,
      remat=self.remat,
      backend=self.attention,
      dtype=self.dtype,
    )
    encoder = Stack(block, self.depth, self.scan, name="encoder")
    x, out["encoder"] = encoder(x, train=train, **who)
    out["features"] = [(x.reshape(b, *grid, self.width), patch)]

    # Patches again.
    last = Modulation(2, self.width, self.dtype, name="last_modulation")
    x = modulate(x, *last(condition)).astype(jnp.float32)
    many = (2 if self.learn_sigma else 1) * c
    pixels = (math.prod(patch) * many,)
    x = Linear("embed -> patch", pixels, init=axes.zeros, name="pixels")(x)
    y = patch_lib.unpatchify(x.reshape(b, *grid, -1), patch)
    if self.learn_sigma:
      y, out["variance"] = jnp.split(y, 2, -1)
    return y, out

  def _check(self, image: jax.Array, label: jax.Array | None) -> None:
    if self.position not in POSITIONS:
      hint = nearest(self.position, POSITIONS)
      raise UserError(f"position {self.position!r}{hint}")
    if image.shape[-1] != self.channels:
      raise UserError(
        f"DiT of {self.channels} channels got {image.shape[-1]}: set"
        f" model.channels={image.shape[-1]}"
      )
    if label is not None and not self.num_classes:
      raise UserError("DiT without classes got labels: set model.num_classes")


def example_inputs(image: jax.Array) -> dict[str, jax.Array]:
  """Times and labels of a call: keyword arguments beside the image."""
  b = len(image)
  return {"time": (jnp.arange(b) + 0.5) / b, "label": jnp.arange(b) % 2}


def flops_per_image(
  kwargs: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> int:
  """Multiply-accumulates of one forward pass of one image, by hand.

  Matrix products only; the paper prints these as FLOPs.

  Args:
    kwargs: of `Model`.
    image_shape: (h, w, c).
  """
  model = Model(**{"num_classes": 0, **kwargs})
  h, w, c = image_shape
  d, patch = model.width, patch_lib.pair(model.patch_size)
  n = math.prod(patch_lib.grid_of((h, w), patch))
  hd = attention_lib.head_dim_of(d, model.num_heads, model.head_dim)
  inner = model.num_heads * hd
  each = 4 * n * d * inner + 2 * n * d * model.mlp_dim + 6 * d * d
  each += attention_lib.macs(n, n, model.num_heads, hd)
  pixels = h * w * c * d * (2 if model.learn_sigma else 1)
  # Patches in, time, blocks, last modulation, patches out.
  total = h * w * c * d + (SINES + d) * d + model.depth * each
  return total + 2 * d * d + pixels
