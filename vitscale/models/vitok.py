"""ViTok: a visual tokenizer of two vision transformers.

Images or videos are cut into patches or tubelets (q frames of p x p pixels);
an encoder makes of each token c floats, a decoder makes pixels of them
(Hansen-Estruch et al., 2501.09755, section 2). What lies between is a
bottleneck (nn/bottlenecks), `kl(16)` as published. E = tokens x c floats stand
for an image, however it is cut; the study `vitok` asks whether they alone say
how well it is reconstructed.

    S-B/16      encoder S, decoder B, patches of 16 x 16
    S-B/4x16    tubelets of 4 frames x 16 x 16

Encoder and decoder have their own width, as in the paper; the release gives
the encoder the decoder's. Blocks are pre-norm with SwiGLU without biases, and
know places by axial RoPE over as many axes as the data have. Positions are
`rope1d` over the flat sequence in the release, for images.

The paper's table of parameters (43.3, 85.8, 383.7 M) and multiply-accumulates
(11.6, 23.1, 101.8 G of 256 tokens, printed as FLOPs) is met to the last digit
with a learned table of 256 positions in front of the encoder, `encoder_table`.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import accounting, axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn import attention as attention_lib
from vitscale.nn import bottlenecks, hierarchy
from vitscale.nn import patch as patch_lib
from vitscale.nn import position as position_lib
from vitscale.nn.block import Block, Stack
from vitscale.nn.grid import Grid
from vitscale.nn.linear import Linear
from vitscale.nn.norm import NORMS
from vitscale.nn.patch import Size
from vitscale.nn.position import Position

PAPER = "Hansen-Estruch et al. 2025, arXiv:2501.09755"
FIDELITY = "interpretation"  # positions and biases, see above

SIZES: dict[str, tuple[int, int, int, int]] = {
  # width, depth, hidden units (floor(2.67 width), of a gated ffn), heads
  "mu": (32, 2, 84, 2),  # toys
  "xs": (64, 2, 170, 2),
  "xm": (64, 4, 170, 2),
  "S": (768, 6, 2050, 12),
  "B": (768, 12, 2050, 12),
  "L": (1152, 24, 3075, 16),
}
_FIELDS = ("width", "depth", "mlp_dim", "num_heads")
VARIANTS: dict[str, dict[str, int]] = {
  ("mu" if names == ("mu", "mu") else "-".join(names)): {
    f"{half}_{field}": size
    for half, name in zip(("encoder", "decoder"), names)
    for field, size in zip(_FIELDS, SIZES[name])
  }
  for names in (
    ("mu", "mu"), ("xs", "xs"), ("xs", "xm"), ("xm", "xs"), ("xm", "xm"),
    *((a, b) for a in "SBL" for b in "SBL"),
  )
}  # fmt: skip
PRESENTED: dict[str, dict[str, Any]] = {
  "mu/4": {"bottleneck": "kl(4)", "channels": 1},
  "S-S/16@256": {},
  "S-B/16@256": {},
  "S-L/16@256": {},
}
POSITIONS = ("rope", "rope1d", "none")


def variant(name: str) -> dict[str, Any]:
  """Keyword arguments of `Model` for "S-B/16", "S-B/4x16" (frames x pixels).

  Raises:
    UserError: unknown sizes, or a patch that is no number.
  """
  sizes, slash, patch = name.partition("/")
  if sizes not in VARIANTS:
    raise UserError(f"ViTok {sizes!r} in {name!r}{nearest(sizes, VARIANTS)}")
  kwargs: dict[str, Any] = dict(VARIANTS[sizes])
  if slash:
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)", patch)
    if not found:
      raise UserError(f"patch {patch!r} in {name!r}: write 'S-B/16' or '/4x16'")
    kwargs["tubelet"] = int(found[1] or 1)
    kwargs["patch_size"] = int(found[2])
  return kwargs


class Model(nn.Module):
  """Encoder, bottleneck, decoder.

  Attributes:
    channels: of a pixel.
    bottleneck: what passes, see `vitscale.nn.bottlenecks.parse`.
    encoder_width, encoder_depth, encoder_mlp_dim, encoder_num_heads: of the
      encoder; the next four of the decoder; see `VARIANTS`. Hidden units of L
      are odd as published: a tensor-sharded one takes 3072.
    patch_size: pixels, a number or (rows, columns).
    tubelet: frames of a token.
    latent_tokens: 0 where latents lie on the grid of patches; else so many
      learned queries, whose outputs alone pass (1-D tokens).
    position: one of POSITIONS.
    encoder_table: a learned position of each token in front of the encoder.
    hierarchy: scales behind the encoder's blocks, see `vitscale.nn.hierarchy`
      (HieraTok, 2509.23736); "" for none.
    ffn, norm, norm_eps, qk_norm, bias, layer_scale, remat: see `Block`.
    dtype: compute type; parameters, latents and pixels are float32.
    scan: stack the layers and scan over them.
    attention: back end, see `vitscale.nn.attention.choose`.
  """

  channels: int = 3
  bottleneck: str = "kl(16)"
  encoder_width: int = 768
  encoder_depth: int = 6
  encoder_mlp_dim: int = 2050
  encoder_num_heads: int = 12
  decoder_width: int = 768
  decoder_depth: int = 12
  decoder_mlp_dim: int = 2050
  decoder_num_heads: int = 12
  patch_size: Size = 16
  tubelet: int = 1
  latent_tokens: int = 0
  position: str = "rope"
  encoder_table: bool = False
  hierarchy: str = ""
  ffn: str = "swiglu"
  norm: str = "layernorm"
  norm_eps: float = 1e-6
  qk_norm: bool = False
  bias: bool = False
  layer_scale: float | None = None
  dtype: str = "float32"
  scan: bool = False
  remat: str | None = None
  attention: str = "auto"

  def setup(self):
    if self.position not in POSITIONS:
      hint = nearest(self.position, POSITIONS)
      raise UserError(f"position {self.position!r}{hint}")
    linear = functools.partial(Linear, dtype=self.dtype)
    norm = functools.partial(NORMS[self.norm], self.norm_eps, dtype=self.dtype)
    wide, deep = self.encoder_width, self.decoder_width
    self.embed = linear("patch -> embed", (wide,), init=axes.lecun)
    if self.encoder_table:
      self.table = Position("learned")
    self.encoder, self.encoder_norm = self._stack("encoder"), norm()
    if self.hierarchy:
      if self.position == "rope1d" or self.latent_tokens:
        raise UserError("model.hierarchy: no rope1d and no latent_tokens")
      self.scales = hierarchy.parse(self.hierarchy)(
        self._block("encoder"), wide, wide // self.encoder_num_heads,
        self.position == "rope", self.scan,
      )  # fmt: skip
    self.neck = bottlenecks.parse(self.bottleneck)(dtype=self.dtype)
    self.into = linear("code -> embed", (deep,))
    self.decoder, self.decoder_norm = self._stack("decoder"), norm()
    pixels = self.tubelet * math.prod(patch_lib.pair(self.patch_size))
    self.pixels = Linear("embed -> patch", (pixels * self.channels,))
    if self.latent_tokens:
      learned = functools.partial(axes.param, self, init=axes.normal(0.02))
      shape = (self.latent_tokens, wide)
      self.queries = learned("queries", "registers embed", shape)
      # In the decoder a token for every patch, and a place for every latent.
      self.blank = learned("blank", "embed", (deep,))
      shape = (self.latent_tokens, deep)
      self.places = learned("places", "registers embed", shape)

  def __call__(
    self, image: jax.Array, *, train: bool = False, keep: int | None = None
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Encodes and decodes.

    Args:
      image: (b, h, w, c) or (b, t, h, w, c) float, normalised.
      train: what the bottleneck draws is drawn, rng stream "latent".
      keep: latent tokens that are decoded, the first ones; None for all.

    Returns:
      The reconstruction, float32 in the shape of `image`, and `out`: `latent`
      (b, n, c), `penalties` of the bottleneck name -> (b,), what else it
      knows, the parts of both stacks; `features` are the encoder's.

    Raises:
      UserError: patches or tubelets do not divide the image, or `keep` where
        latents lie on a grid.
    """
    z, out = self.encode(image, train=train)
    if keep is not None:
      if not 0 < keep <= self.latent_tokens:
        raise UserError(
          f"keep={keep}: 1 to latent_tokens={self.latent_tokens} can be kept"
          + ("" if self.latent_tokens else "; set model.latent_tokens")
        )
      z = z[:, :keep]
    y, out["decoder"] = self.decode(z, image.shape[1:], train=train)
    out["reconstruction"] = y
    return y, out

  def encode(
    self, image: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Images or videos -> (b, n, c) latents, and `out` without a decoder."""
    b, grid = len(image), self.grid(image.shape[1:])
    x = self.embed(patchify(image, self._tubelet()))  # (b, t, rows, cols, d)
    out: dict[str, Any] = {"stem": x}
    if self.encoder_table:
      if grid[0] > 1:
        raise UserError("encoder_table: a table of images, these are videos")
      x = self.table(x[:, 0])
    x = x.reshape(b, -1, x.shape[-1])
    k = self.latent_tokens
    if k:
      queries = jnp.tile(self.queries.astype(x.dtype), (b, 1, 1))
      x = jnp.concatenate([queries, x], 1)
    x, out["encoder"] = self._run("encoder", x, grid, k, train)
    if self.hierarchy:
      x, out["scales"] = self.scales(x, grid, train=train)
    x = out["tokens"] = self.encoder_norm(x)
    lead = grid if image.ndim == 5 else grid[1:]
    on_grid = x[:, k:].reshape(b, *lead, x.shape[-1])
    stride = self._tubelet()[-len(lead) :]
    z, more = self.neck(x[:, :k] if k else x, train=train)
    out |= {"features": [(on_grid, stride)], "latent": z, **more}
    return z, out

  def decode(
    self, z: jax.Array, shape: tuple[int, ...], *, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Latents (b, n, c) -> pixels (b, *shape), and the parts of the decoder.

    Args:
      z: as `encode` gave it, or the first of its 1-D tokens.
      shape: (h, w, c) of an image or (t, h, w, c) of a video.
      train: as of `__call__`.
    """
    b, grid, k = len(z), self.grid(shape), 0
    x = self.into(z)
    if self.latent_tokens:
      k = z.shape[1]
      x = x + self.places[:k].astype(x.dtype)
      blank = (b, math.prod(grid), self.decoder_width)
      blank = jnp.broadcast_to(self.blank.astype(x.dtype), blank)
      x = jnp.concatenate([x, blank], 1)
    x, out = self._run("decoder", x, grid, k, train)
    x = self.pixels(self.decoder_norm(x)[:, k:].astype(jnp.float32))
    x = x.reshape(b, *grid, x.shape[-1])
    return unpatchify(x, self._tubelet()).reshape(b, *shape), out

  def grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Tokens of frames, rows and columns of (h, w, c) or (t, h, w, c).

    Raises:
      UserError: patches or tubelets do not divide them.
    """
    frames = shape[0] if len(shape) == 4 else 1
    if frames % self.tubelet:
      fits = [q for q in range(1, frames + 1) if frames % q == 0]
      raise UserError(
        f"tubelet {self.tubelet} does not divide {frames} frames: use"
        f" {' or '.join(map(str, fits))}"
      )
    rows, columns = patch_lib.grid_of(shape[-3:-1], self.patch_size)
    return frames // self.tubelet, rows, columns

  def _tubelet(self) -> tuple[int, int, int]:
    return self.tubelet, *patch_lib.pair(self.patch_size)

  def _stack(self, half: str) -> Stack:
    return Stack(self._block(half), _sizes(self, half)[1], self.scan)

  def _block(self, half: str) -> functools.partial:
    width, _, hidden, heads = _sizes(self, half)
    return functools.partial(
      Block,
      width,
      heads,
      width // heads,
      hidden,
      ffn=self.ffn,
      norm=self.norm,
      norm_eps=self.norm_eps,
      qk_norm=self.qk_norm,
      bias=self.bias,
      layer_scale=self.layer_scale,
      remat=self.remat,
      backend=self.attention,
      dtype=self.dtype,
    )

  def _run(self, half, x, grid, prefix, train):
    """One stack over tokens of which the first `prefix` have no place."""
    x = sharding.constrain(x, "batch", "sequence", "embed")
    width, _, _, heads = _sizes(self, half)
    who = {"grid": Grid(grid[0] * grid[1], grid[2], prefix)}
    if self.position == "rope":
      axes_ = grid if grid[0] > 1 else grid[1:]
      where = np.indices(axes_).reshape(len(axes_), -1).T
      who["rope"] = position_lib.rope(where, width // heads, prefix=prefix)
    elif self.position == "rope1d":
      where = np.arange(math.prod(grid))[:, None]
      who["rope"] = position_lib.rope(
        where, width // heads, prefix=prefix, temperature=10_000.0
      )
    return getattr(self, half)(x, train=train, **who)


def _sizes(model: Any, half: str) -> tuple[int, int, int, int]:
  """Width, depth, hidden units and heads of one half of a model.

  Raises:
    UserError: the heads do not divide the width.
  """
  found = tuple(getattr(model, f"{half}_{field}") for field in _FIELDS)
  width, _, _, heads = found
  if width % heads:
    fits = [h for h in range(1, width + 1) if width % h == 0]
    near = min(fits, key=lambda h: abs(h - heads))
    raise UserError(
      f"{half}_num_heads {heads} does not divide {half}_width {width}: use"
      f" {near}"
    )
  return found


# ----------------------------------------------------------------- tubelets

_PIXELS = "b (t q) (gh ph) (gw pw) c"
_TOKENS = "b t gh gw (q ph pw c)"


def patchify(image: jax.Array, tubelet: tuple[int, int, int]) -> jax.Array:
  """(b, h, w, c) or (b, t, h, w, c) -> (b, t/q, h/p, w/p, q p p c)."""
  video = image if image.ndim == 5 else image[:, None]
  q, ph, pw = tubelet
  return einops.rearrange(video, f"{_PIXELS} -> {_TOKENS}", q=q, ph=ph, pw=pw)


def unpatchify(x: jax.Array, tubelet: tuple[int, int, int]) -> jax.Array:
  """(b, t/q, h/p, w/p, q p p c) -> (b, t, h, w, c)."""
  q, ph, pw = tubelet
  return einops.rearrange(x, f"{_TOKENS} -> {_PIXELS}", q=q, ph=ph, pw=pw)


# ------------------------------------------------------------------ by hand


def flops_per_image(
  kwargs: Mapping[str, Any], image_shape: tuple[int, ...]
) -> int:
  """Multiply-accumulates of encoding and decoding one image, by hand.

  Matrix products only; the bottleneck's own are counted on its jaxpr.

  Args:
    kwargs: of `Model`.
    image_shape: (h, w, c), or (t, h, w, c) of a video.
  """
  model = Model(**kwargs)
  n = math.prod(model.grid(image_shape))
  pixels = math.prod(image_shape)  # of a token, times tokens
  k = model.latent_tokens
  neck, code = _bottleneck(model, k or n)
  total = neck + pixels * (model.encoder_width + model.decoder_width)
  total += (k or n) * code * model.decoder_width
  for half in ("encoder", "decoder"):
    width, depth, hidden, heads = _sizes(model, half)
    each = (4 * width + (2 if model.ffn == "gelu" else 3) * hidden) * width
    attend = attention_lib.macs(n + k, n + k, heads, width // heads)
    total += depth * ((n + k) * each + attend)
    if model.hierarchy and half == "encoder":
      grid = model.grid(image_shape)
      total += hierarchy.macs(model.hierarchy, grid, width, heads, each)
  return total


def _bottleneck(model: Any, n: int) -> tuple[int, int]:
  """Multiply-accumulates of the bottleneck over n tokens; floats of one."""
  neck = bottlenecks.parse(model.bottleneck)()
  x = jax.ShapeDtypeStruct((1, n, model.encoder_width), jnp.float32)
  run = functools.partial(neck.apply, train=False)
  init = functools.partial(neck.init, train=False)
  variables = axes.unbox(jax.eval_shape(init, jax.random.key(0), x))
  z, _ = jax.eval_shape(run, variables, x)
  return accounting.count_flops(run, variables, x).matmul // 2, z.shape[-1]
