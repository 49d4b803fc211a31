"""The pre-norm transformer block and stacks of equal blocks.

Tokens travel flat, (b * n, d), through norms and matrix products and get
their batch axis back only around attention (+11 % of a ViT-L/16 step on an
H100). A stack is either looped, one set of parameters per layer (`block_00`,
`block_01`, ...), fastest on GPUs, or scanned, all layers stacked under
`blocks`, which compiles once; nn/layers.py turns one tree of parameters into
the other.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.nn.attention import Attention
from vitscale.nn.ffn import FFNS
from vitscale.nn.grid import Grid
from vitscale.nn.layers import layer_name
from vitscale.nn.norm import NORMS
from vitscale.nn.position import Rope

# What a block recomputes in the backward pass.
REMAT: dict[str | None, str] = {
  None: "nothing",
  "full": "everything but the input of the block",
  "save_attention": "all but attention: its q, k, v, result and log-sum-exp"
  " are kept, the costliest part at long sequences",
  "dots": "all but the products with weights (element-wise work, logits)",
}

# ------------------------------------------------------------------- layout


def flatten(x: jax.Array) -> jax.Array:
  """(b, n, d) -> (b * n, d), unless the sequence axis is sharded.

  Merging a sharded sequence axis into the batch would gather it.
  """
  if sharding.ways("sequence") > 1:
    return x
  return x.reshape(-1, x.shape[-1])


def constrain(x: jax.Array, last: str = "embed") -> jax.Array:
  """`sharding.constrain` for tokens, flat or not."""
  lead = ("tokens",) if x.ndim == 2 else ("batch", "sequence")
  return sharding.constrain(x, *lead, last)


def drop_path(
  x: jax.Array, rate: float | jax.Array, key: jax.Array, batch: int
) -> jax.Array:
  """Stochastic depth (1603.09382): zero for whole images, else / (1 - rate).

  Images that are packed in one row share their fate.

  Args:
    x: (b, n, d) or (b * n, d).
    rate: probability of dropping, a number or a scalar array.
    key: random key.
    batch: b.
  """
  keep = 1.0 - jnp.asarray(rate, jnp.float32)
  kept = jax.random.bernoulli(key, keep, (batch, 1)) / keep
  n = x.size // (batch * x.shape[-1])
  kept = jnp.broadcast_to(kept, (batch, n)).reshape(*x.shape[:-1], 1)
  return x * kept.astype(x.dtype)


# -------------------------------------------------------------------- block


class Block(nn.Module):
  """x += attention(norm(x)); x += ffn(norm(x)).

  Attributes:
    width, num_heads, head_dim, mlp_dim: sizes.
    ffn: "gelu" | "swiglu".
    gelu: "tanh" | "erf".
    norm: "layernorm" | "rmsnorm".
    norm_eps: of every norm.
    qk_norm: normalises q and k.
    bias: biases in attention and ffn.
    layer_scale: initial value of the scale on each branch (2103.17239), or
      None for no such parameter.
    dropout: rate after attention, inside and after the ffn.
    remat: a key of REMAT.
    backend: of attention.
    mixer: makes the token mixer, see `vitscale.nn.mixers`.
    local: see `Attention`.
    ffn_blocks: the ffn goes over the tokens in so many blocks, one after
      another, so that its hidden units never lie in memory all at once.
    scanned: set by `Stack`.
    dtype: compute type.
  """

  width: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  ffn: str = "gelu"
  gelu: str = "tanh"
  norm: str = "layernorm"
  norm_eps: float = 1e-6
  qk_norm: bool = False
  bias: bool = True
  layer_scale: float | None = None
  dropout: float = 0.0
  remat: str | None = None
  backend: str = "auto"
  mixer: Callable[..., nn.Module] = Attention
  local: bool = False
  ffn_blocks: int = 1
  scanned: bool = False
  dtype: str = "float32"

  def setup(self):
    norm = _pick("norm", self.norm, NORMS)
    ffn = _pick("ffn", self.ffn, FFNS)
    _pick("remat", self.remat, REMAT)
    self.norm1 = norm(self.norm_eps, dtype=self.dtype)
    self.attention = self.mixer(
      self.width,
      self.num_heads,
      self.head_dim,
      qk_norm=self.qk_norm,
      bias=self.bias,
      norm_eps=self.norm_eps,
      backend=self.backend,
      local=self.local,
      dtype=self.dtype,
    )
    self.norm2 = norm(self.norm_eps, dtype=self.dtype)
    self.mlp = ffn(
      self.width,
      self.mlp_dim,
      gelu=self.gelu,
      bias=self.bias,
      dropout=self.dropout,
      dtype=self.dtype,
    )
    self.drop = nn.Dropout(self.dropout)
    if self.layer_scale is not None:
      init = jax.nn.initializers.constant(self.layer_scale)
      self.scale1 = axes.param(self, "scale1", "embed", (self.width,), init)
      self.scale2 = axes.param(self, "scale2", "embed", (self.width,), init)

  def __call__(
    self,
    x: jax.Array,
    rate: float | jax.Array = 0.0,
    *,
    batch: int,
    train: bool = False,
    rope: Rope | None = None,
    grid: Grid | None = None,
    lengths: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    order: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One block.

    Args:
      x: (b * n, d) or (b, n, d).
      rate: stochastic depth of this block.
      batch: b.
      train: dropout and stochastic depth act.
      grid: where the tokens lie; None where images are packed.
      rope, lengths, segment_ids, order: see `vitscale.nn.attention`.

    Returns:
      x of the same shape, and its parts: "sa" and "mlp", what each branch
      adds; "+sa" and "+mlp", the stream after it.
    """

    # Plain functions of (module, arrays), because remat is one of those.
    def before(m, x, rope):
      return m.attention.heads(m.norm1(x), batch=batch, rope=rope)

    # A rate that is known is no argument: remat would make it an array, and a
    # rate of 0 would then be drawn for.
    known = rate if isinstance(rate, float) else None

    def after(m, x, y, rate):
      rate = rate if known is None else known
      return m.mix(x, y, rate, batch, train)

    def whole(m, x, rate, rope, who):
      y = m.attention.attend(*before(m, x, rope), grid=grid, **who)
      return after(m, x, y, rate)

    if self.remat == "save_attention":
      before, after = self._remat(before), self._remat(after)
    elif self.remat is not None:
      keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      whole = self._remat(whole, keep if self.remat == "dots" else None)
    who = {"lengths": lengths, "segment_ids": segment_ids}
    if order is not None:  # mixers know none
      who["order"] = order
    return whole(self, x, rate, rope, who)

  def mix(self, x, y, rate, batch, train):
    """From the result of attention (b, n, h, hd) to the end of the block."""
    out = {}
    sa = self.attention.merge(y, flat=x.ndim == 2)
    out["sa"] = self._branch(sa, "scale1", rate, batch, train)
    x = out["+sa"] = constrain(x + out["sa"])
    mlp = self._channels(x, train)
    out["mlp"] = self._branch(mlp, "scale2", rate, batch, train)
    x = out["+mlp"] = constrain(x + out["mlp"])
    return x, out

  def _channels(self, x, train):
    """ffn(norm(x)), in blocks of tokens whose insides are recomputed."""
    if self.ffn_blocks == 1:
      return self.mlp(self.norm2(x), train)
    n = x.shape[-2]
    if n % self.ffn_blocks:
      fits = [i for i in range(1, n + 1) if n % i == 0]
      near = min(fits, key=lambda i: abs(i - self.ffn_blocks))
      raise UserError(
        f"ffn_blocks={self.ffn_blocks} does not divide {n} tokens: use {near}"
      )
    one = nn.remat(lambda m, x: m.mlp(m.norm2(x), train), prevent_cse=False)
    # Every `ffn_blocks`-th token is in one block, so that each device has its
    # share of all of them.
    lead = x.shape[:-2]
    parts = x.reshape(*lead, -1, self.ffn_blocks, x.shape[-1])
    each = nn.scan(
      lambda m, _, x: (None, one(m, x)),
      variable_broadcast="params",
      split_rngs={"params": False, "dropout": True},
      in_axes=len(lead) + 1,
      out_axes=len(lead) + 1,
    )
    return each(self, None, parts)[1].reshape(x.shape)

  def _branch(self, y, scale, rate, batch, train):
    y = self.drop(y, deterministic=not train)
    if self.layer_scale is not None:
      y = y * getattr(self, scale).astype(y.dtype)
    still = isinstance(rate, float) and rate == 0.0
    if not train or still:
      return y
    return drop_path(y, rate, self.make_rng("dropout"), batch)

  def _remat(self, fn, policy=None):
    # A scan body cannot be merged with its recomputation: no barrier needed.
    return nn.remat(fn, prevent_cse=not self.scanned, policy=policy)


def _pick(what: str, name: str | None, table: Mapping) -> Any:
  if name not in table:
    raise UserError(f"{what} {name!r}{nearest(name, table)}")
  return table[name]


# -------------------------------------------------------------------- stack


class Stack(nn.Module):
  """Blocks of one width, one after another.

  Attributes:
    block: makes one block, for example `functools.partial(Block, ...)`; its
      call takes and returns what `Block` does.
    depth: number of blocks.
    scan: stack the parameters and scan over them, blocks being equal.
    drop_path: stochastic depth of the last block; the first has 0, those
      between rise evenly.
    sizes: further options of `block`: one number, or one per block.
  """

  block: Callable[..., nn.Module]
  depth: int
  scan: bool = False
  drop_path: float = 0.0
  sizes: Mapping[str, int | tuple[int, ...]] = dataclasses.field(
    default_factory=dict
  )

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool = False, **who: Any
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> (b, n, d) and the parts of every block.

    Args:
      x: tokens.
      train: dropout and stochastic depth act.
      **who: rope, grid, lengths, segment_ids, order.

    Returns:
      x, and `out`: looped {"block_00": {"sa": (b, n, d), ...}, ...}, scanned
      {"blocks": {"sa": (depth, b, n, d), ...}}. `parts_of` reads both.
    """
    shape = x.shape
    x = constrain(flatten(x))
    rates = np.linspace(0.0, self.drop_path, self.depth)
    each = {k: per_layer(v, self.depth, k) for k, v in self.sizes.items()}
    if self.scan:
      for name, values in each.items():
        if len(set(values)) > 1:
          raise UserError(f"layers differ in {name}: set scan=False")
      equal = {name: values[0] for name, values in each.items()}
      block = self.block(**equal, scanned=True, name="blocks")
      # No rates at all when off, so that nothing is drawn for them.
      rates = jnp.asarray(rates, jnp.float32) if self.drop_path else None

      def body(block, x, rate):
        rate = 0.0 if rate is None else rate
        return block(x, rate, batch=shape[0], train=train, **who)

      scan = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=self.depth,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )
      x, parts = scan(block, x, rates)
      out = {"blocks": parts}
    else:
      out = {}
      for i, rate in enumerate(rates):
        own = {name: values[i] for name, values in each.items()}
        block = self.block(**own, name=layer_name(i))
        x, out[layer_name(i)] = block(
          x, float(rate), batch=shape[0], train=train, **who
        )
    last = lambda y: y.reshape(*y.shape[: y.ndim - x.ndim], *shape)
    return last(x), jax.tree.map(last, out)


def per_layer(
  size: int | Sequence[int], depth: int, what: str
) -> tuple[int, ...]:
  """A size of every layer, from one number or one per layer.

  Raises:
    UserError: another number of sizes than layers.
  """
  sizes = (size,) * depth if isinstance(size, int) else tuple(size)
  if len(sizes) != depth:
    raise UserError(f"{what} has {len(sizes)} sizes for {depth} layers")
  return sizes


def parts_of(out: Mapping[str, Any], i: int) -> dict[str, jax.Array]:
  """The parts of block i of a stack's `out`, looped or scanned."""
  if "blocks" in out:
    return {name: part[i] for name, part in out["blocks"].items()}
  return out[layer_name(i)]
