"""VAR: a transformer that says an image scale after scale, coarse to fine.

A tokenizer gives an image the codes of s x s maps of rising side s
(nn/bottlenecks/residual_vq.py). The model is shown, for the tokens of a scale,
what the coarser scales add up to in the size of this one, and says all of
their codes at once: a token sees its own scale and all before (Tian et al.,
2404.02905, section 3.2). The class is the first scale's token, and what every
block is modulated by (`adaLN`, nn/modulation.py).

Sizes are one number d: width 64 d, d heads, d blocks, 73,728 d^3 parameters in
the blocks (section 5.1), stochastic depth .1 d / 24.

Queries and keys have length 1 and each head a learned temperature, as in the
release. Where it differs: modulations, also of the head, and the head itself
start at zero, so that the first prediction is uniform; keys have a bias; the
first scale has one position, not two. In a map that is no square each scale is
in proportion, its positions resampled.

Sampling, with a cache of keys and values, is in sampling/scales.py.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn import attention as attention_lib
from vitscale.nn.attention import Attention, attend
from vitscale.nn.block import REMAT, Stack, constrain, drop_path
from vitscale.nn.bottlenecks import residual_vq
from vitscale.nn.ffn import Mlp
from vitscale.nn.hashing import unit
from vitscale.nn.linear import Linear
from vitscale.nn.modulation import Modulation, gated, modulate
from vitscale.nn.position import Position

PAPER = "Tian et al. 2024, arXiv:2404.02905"
FIDELITY = "interpretation"  # initialisation, a bias of keys, see above

VARIANTS: dict[str, dict[str, Any]] = {
  # Toys.
  "mu": {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2},
  "xs": {"width": 64, "depth": 4, "mlp_dim": 256, "num_heads": 2},
  **{
    f"d{d}": {
      "width": 64 * d, "depth": d, "mlp_dim": 256 * d, "num_heads": d,
      "drop_path": 0.1 * d / 24,
    }
    for d in (16, 20, 24, 30)
  },
}  # fmt: skip
_TOY = {"channels": 4, "vocabulary": 16, "scales": (1, 2, 4)}
PRESENTED: dict[str, dict[str, Any]] = {
  "mu@4": _TOY,
  **{f"d{d}@16": {"channels": 32} for d in (16, 20, 24, 30)},
}

Grid = tuple[int, int]


def variant(name: str) -> dict[str, Any]:
  """Keyword arguments of `Model` for a name: "d16", "mu".

  Raises:
    UserError: unknown size.
  """
  if name not in VARIANTS:
    raise UserError(f"VAR size {name!r}{nearest(name, VARIANTS)}")
  return dict(VARIANTS[name])


# -------------------------------------------------------------------- block


class Block(nn.Module):
  """x += gate attention(modulated x); x += gate mlp(modulated x).

  Attributes as of `vitscale.nn.block.Block`.
  """

  width: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  remat: str | None = None
  scanned: bool = False
  dtype: str = "float32"

  def setup(self):
    if self.remat not in REMAT:
      raise UserError(f"remat {self.remat!r}{nearest(self.remat, REMAT)}")
    self.modulation = Modulation(6, self.width, self.dtype)
    self.attention = Attention(
      self.width, self.num_heads, self.head_dim, dtype=self.dtype
    )
    self.sharpness = axes.param(
      self, "sharpness", "heads", (self.num_heads,),
      jax.nn.initializers.constant(math.log(4)),
    )  # fmt: skip
    self.mlp = Mlp(self.width, self.mlp_dim, dtype=self.dtype)

  def __call__(
    self,
    x: jax.Array,
    rate: float | jax.Array = 0.0,
    *,
    condition: jax.Array,
    order: np.ndarray,
    batch: int,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One block.

    Args:
      x: (b * n, d) or (b, n, d).
      rate: stochastic depth of this block.
      condition: (b, d).
      order: (n,) number of each token's scale.
      batch: b.
      train: stochastic depth acts.

    Returns:
      x of the same shape, and its parts "sa", "+sa", "mlp", "+mlp".
    """
    # A rate that is known is no argument, as in vitscale.nn.block.
    known = rate if isinstance(rate, float) else None

    # Plain functions of (module, arrays), because remat is one of those.
    def before(m, x, shift, scale):
      return m.heads(x, shift, scale, batch)

    def after(m, x, y, rate, *told):
      rate = rate if known is None else known
      return m.mix(x, y, told, rate=rate, batch=batch, train=train)

    def whole(m, x, rate, condition):
      shift, scale, *told = m.modulation(condition)
      y = attend(*before(m, x, shift, scale), order=order)
      return after(m, x, y, rate, *told)

    remat = functools.partial(nn.remat, prevent_cse=not self.scanned)
    if self.remat == "save_attention":
      before, after = remat(before), remat(after)
    elif self.remat is not None:
      keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      whole = remat(whole, policy=keep if self.remat == "dots" else None)
    return whole(self, x, rate, condition)

  def cached(
    self,
    x: jax.Array,
    condition: jax.Array,
    past: tuple[jax.Array, jax.Array] | None,
    keep: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Tokens of one scale (b, n, d), and what is kept of those before.

    Returns:
      (b, n, d), and keys and values (b, past + n, h, hd), these at the end; or
      what `keep` makes of the queries, those keys and values.
    """
    shift, scale, *told = self.modulation(condition)
    q, k, v = self.heads(x, shift, scale, len(x))
    if past is not None:
      k, v = (jnp.concatenate(pair, 1) for pair in zip(past, (k, v)))
    x, _ = self.mix(x, attend(q, k, v), told)
    return x, (k, v) if keep is None else keep(q, k, v)

  def heads(self, x, shift, scale, batch):
    """q, k, v, of which q and k have length 1 but for the temperature."""
    y = modulate(x, shift, scale)
    q, k, v = self.attention.heads(y, batch=batch)
    sharp = jnp.exp(jnp.minimum(self.sharpness, math.log(100)))
    # `attend` divides by the root of head_dim.
    sharp = sharp[:, None] * self.head_dim**0.5
    return (unit(q) * sharp).astype(q.dtype), unit(k).astype(k.dtype), v

  def mix(self, x, y, told, *, rate=0.0, batch=1, train=False):
    """From the result of attention (b, n, h, hd) to the end of the block."""
    still = not train or (isinstance(rate, float) and rate == 0.0)
    key = lambda: self.make_rng("dropout")
    drop = lambda y: y if still else drop_path(y, rate, key(), batch)
    out, (gate, shift, scale, last) = {}, told
    sa = self.attention.merge(y, flat=x.ndim == 2)
    out["sa"] = drop(gated(sa, gate))
    x = out["+sa"] = constrain(x + out["sa"])
    out["mlp"] = drop(gated(self.mlp(modulate(x, shift, scale), train), last))
    x = out["+mlp"] = constrain(x + out["mlp"])
    return x, out


# -------------------------------------------------------------------- model


class Model(nn.Module):
  """Transformer over scales.

  Attributes:
    num_classes: of labels; `num_classes` itself is the label of no class, for
      guidance. 0 for a model without classes.
    channels: floats of a code, those of the tokenizer.
    vocabulary: codes of the tokenizer.
    scales: sides of its maps.
    width, depth, mlp_dim, num_heads: sizes, see `VARIANTS`.
    head_dim: width of a head; None for width / num_heads.
    drop_path: stochastic depth of the last block, see `Stack`.
    dtype: compute type; parameters and logits are float32.
    scan: stack the layers and scan over them.
    remat: see `vitscale.nn.block.Block`.
  """

  num_classes: int
  channels: int = 32
  vocabulary: int = 4096
  scales: tuple[int, ...] = residual_vq.SCALES
  width: int = 1024
  depth: int = 16
  mlp_dim: int = 4096
  num_heads: int = 16
  head_dim: int | None = None
  drop_path: float = 0.0
  dtype: str = "float32"
  scan: bool = False
  remat: str | None = None

  def setup(self):
    residual_vq.check_scales(self.scales, "model.scales")
    small, d = axes.normal(0.02), self.width
    self.embed = Linear("code -> embed", (d,), dtype=self.dtype)
    classes = (self.num_classes + 1, d)
    self.classes = axes.param(self, "classes", "classes embed", classes, small)
    levels = (len(self.scales), d)
    self.levels = axes.param(self, "levels", "pos@level embed", levels, small)
    self.positions = [Position("learned") for _ in self.scales]
    self.encoder = Stack(self.block(), self.depth, self.scan, self.drop_path)
    self.last_modulation = Modulation(2, d, self.dtype)
    self.head = Linear(
      "embed -> code@entries", (self.vocabulary,), init=axes.zeros
    )

  def __call__(
    self,
    inputs: jax.Array,
    label: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Logits of the codes of all scales, each scale shown those before.

    Args:
      inputs: (b, N - first, c), of `residual_vq`'s `inputs`; or a map of
        latents (b, h, w, c), of which they are made as if codes lost nothing.
      label: (b,) int in 0..num_classes; None for no class.
      train: stochastic depth acts.

    Returns:
      (b, N, vocabulary) float32, scales coarse to fine, and every
      intermediate by name; `out["features"]` is [(array, stride)]: all tokens
      as one row (b, 1, N, d), or of a map the last scale's (b, h, w, d).

    Raises:
      UserError: inputs of other scales or width, or labels without classes.
    """
    b, c, is_map = len(inputs), inputs.shape[-1], inputs.ndim == 4
    if c != self.channels:
      raise UserError(
        f"VAR of {self.channels} channels got {c}: set model.channels={c}"
      )
    square = (self.scales[-1],) * 2
    grids = grids_of(self.scales, inputs.shape[1:3] if is_map else square)
    sizes = [math.prod(grid) for grid in grids]
    if is_map:
      inputs = coarser(inputs, grids)
    if inputs.shape[1] != sum(sizes[1:]):
      raise UserError(
        f"scales {self.scales} are shown {sum(sizes[1:])} tokens, these are"
        f" {inputs.shape[1]}"
      )
    condition = self.condition(label, b)
    shown = jnp.split(inputs, np.cumsum(sizes[1:-1]), 1)[: len(sizes) - 1]
    parts = [
      self.tokens(of_scale, condition, k, grids[k])
      for k, of_scale in enumerate([None, *shown])
    ]
    x = jnp.concatenate(parts, 1)
    out: dict[str, Any] = {"stem": x, "condition": condition}
    x = sharding.constrain(x, "batch", "sequence", "embed")
    order = np.repeat(np.arange(len(sizes)), sizes)
    x, out["encoder"] = self.encoder(
      x, train=train, condition=condition, order=order
    )
    last = x[:, -sizes[-1] :].reshape(b, *grids[-1], self.width)
    out["features"] = [(last if is_map else x[:, None], (1, 1))]
    return self.logits(x, condition), out

  def condition(self, label: jax.Array | None, b: int) -> jax.Array:
    """Embedded classes (b, d); one that does not exist gives NaN."""
    if label is not None and not self.num_classes:
      raise UserError("VAR without classes got labels: set model.num_classes")
    if label is None:
      label = jnp.full(b, self.num_classes)
    of_class = self.classes.at[label].get(mode="fill", fill_value=jnp.nan)
    return of_class.astype(self.dtype)

  def tokens(
    self, shown: jax.Array | None, condition: jax.Array, k: int, grid: Grid
  ) -> jax.Array:
    """Embedded tokens (b, n, d) of scale k, from (b, n, c) or the class."""
    b, d = condition.shape
    if shown is None:
      x = jnp.broadcast_to(condition[:, None], (b, math.prod(grid), d))
    else:
      x = self.embed(shown)
    x = x + self.levels[k].astype(x.dtype)
    return self.positions[k](x.reshape(b, *grid, d)).reshape(x.shape)

  def logits(self, x: jax.Array, condition: jax.Array) -> jax.Array:
    """Tokens (b, n, d) of the last block -> (b, n, vocabulary) float32."""
    x = modulate(x, *self.last_modulation(condition))
    return self.head(x.astype(jnp.float32))

  def block(self) -> Any:
    """Makes one block."""
    head_dim = attention_lib.head_dim_of(
      self.width, self.num_heads, self.head_dim
    )
    return functools.partial(
      Block, self.width, self.num_heads, head_dim, self.mlp_dim,
      remat=self.remat, dtype=self.dtype,
    )  # fmt: skip


# --------------------------------------------------------------------- maps


def grids_of(scales: tuple[int, ...], grid: Grid) -> list[Grid]:
  """(rows, columns) of every scale of a map, in proportion."""
  share = lambda side, scale: max(1, round(side * scale / scales[-1]))
  return [tuple(share(side, scale) for side in grid) for scale in scales]


def coarser(x: jax.Array, grids: list[Grid]) -> jax.Array:
  """What each scale but the first is shown of a map that codes keep exactly.

  (b, h, w, c) -> (b, N - first, c): the map made as small as a scale, up again,
  and as small as the next.
  """
  parts = [jnp.zeros((len(x), 0, x.shape[-1]), x.dtype)]
  for a, b in itertools.pairwise(grids):
    rows, columns = (
      residual_vq.area(n, after)
      @ residual_vq.bicubic(before, n)
      @ residual_vq.area(n, before)
      for n, before, after in zip(x.shape[1:3], a, b)
    )
    small = residual_vq.resized(x, rows, columns)
    parts.append(small.reshape(len(x), -1, x.shape[-1]))
  return jnp.concatenate(parts, 1)


def flops_per_image(
  kwargs: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> int:
  """Multiply-accumulates of all scales of one map of latents, by hand.

  Matrix products only, those of pairs that may not see each other too.

  Args:
    kwargs: of `Model`.
    image_shape: (h, w, c) of the map.
  """
  model = Model(**{"num_classes": 0, **kwargs})
  h, w, c = image_shape
  grids = grids_of(model.scales, (h, w))
  sizes = [math.prod(grid) for grid in grids]
  n, d, hd = sum(sizes), model.width, model.block()().head_dim
  shown = sum(r * h * w * c + r * s * w * c for r, s in grids[1:])
  inner = model.num_heads * hd
  each = 4 * n * d * inner + 2 * n * d * model.mlp_dim + 6 * d * d
  each += attention_lib.macs(n, n, model.num_heads, hd)
  total = shown + sum(sizes[1:]) * c * d + model.depth * each
  return total + 2 * d * d + n * d * model.vocabulary


def example_inputs(image: jax.Array) -> dict[str, jax.Array]:
  """Labels of a call: keyword arguments beside the map."""
  return {"label": jnp.arange(len(image)) % 2}
