"""Weights by name: tables of their names and ours, and how values turn.

A layout says which of their arrays hold which of ours. Every row of a table
is read the same way: their arrays are turned so that inputs come first, put
side by side, cut at our sizes and shaped as ours. That covers q, k and v as one
matrix or three, gate and value of SwiGLU in one, and positions of class token
and patches in one table; backwards it is the same row. Nothing is rounded on
the way, so there and back again is the same bits.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import manifest, tree
from vitscale.core.errors import UserError
from vitscale.models.vit import VARIANTS, Model
from vitscale.nn import patch as patch_lib
from vitscale.nn.layers import layer_name, stack_layers, unstack_layers

Shapes = Mapping[str, Any]  # name -> anything with a `shape`
Read = Callable[[str], np.ndarray]
Names = str | tuple[str, ...]

# Heads of the published widths, where neither arrays nor a config say.
HEADS = {v["width"]: v["num_heads"] for k, v in VARIANTS.items() if k != "mu"}
HEADS |= {1536: 24}  # DINOv2's g
GELU = {
  "gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh",
  "gelu_tanh": "tanh",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
  """Some of their arrays, and the same numbers as ours.

  Attributes:
    theirs, ours: names, in the order in which they lie side by side.
    kind: "linear" (torch's, out x in) | "conv" (torch's patch kernel) | "flax"
      (in ... x out ...) | "vector" | "flax vector" (out ...) | "tokens" (side
      by side means below each other).
    sizes: of theirs, tokens each; equal parts by default.
    gap: rows of zeros after the first token that ours have and theirs lack.
    flat: their tokens are (n, d), not (1, n, d).
  """

  theirs: tuple[str, ...]
  ours: tuple[str, ...]
  kind: str
  sizes: tuple[int, ...] = ()
  gap: int = 0
  flat: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """Names of modules and leaves, ours -> theirs.

  Attributes:
    block: of layer `{}`, in front of the names in `layer`.
    layer, top: modules. A name of theirs with a `{}` gets the leaf there,
      others after a dot (torch) or a slash (flax).
    leaves: of a layer or the top: parameters that are no module.
    flax: leaves are named and laid out as ours.
  """

  block: str
  layer: Mapping[Names, Names]
  top: Mapping[Names, Names]
  leaves: Mapping[str, str] = dataclasses.field(default_factory=dict)
  flax: bool = False


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """What images go through before the model sees them.

  Attributes:
    mean, std: per channel, of pixels in 0..1.
    share: of the shorter side that the central crop keeps; None squeezes the
      whole image to a square.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  share: float | None

  def transform(self, size: int) -> str:
    """As configs write it; `size` in pixels."""
    if self.share is None:
      return f"resize({size})"
    small = max(size, math.floor(size / self.share + 1e-6))
    return f"resize_small({small})|central_crop({size})"


def share_of(transform: str) -> float | None:
  """`Preprocess.share` of a config's transform; 1 where it says neither."""
  crop = re.search(r"resize_small\((\d+)\)\|central_crop\((\d+)\)", transform)
  if crop:
    return int(crop[2]) / int(crop[1])
  return None if re.search(r"\bresize\(", transform) else 1.0


IMAGENET = Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.875)
HALF = Preprocess((0.5,) * 3, (0.5,) * 3, None)


@dataclasses.dataclass(frozen=True)
class Found:
  """What the arrays of a checkpoint tell.

  Attributes:
    kwargs: of `vit.Model`.
    side: rows and columns of its patches; None where no table says.
    channels: of its images.
    rows: `(model, paths) -> rows`, `paths` those of the looped parameters.
  """

  kwargs: dict[str, Any]
  side: int | None
  channels: int
  rows: Callable[[Model, Iterable[str]], list[Row]]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Somebody's way to name a vision transformer's weights.

  Attributes:
    name: "timm", "hf_vit", ...; `what` for people.
    marks: regexes, each of which fits a name (as stored) or it isn't this one.
    strip: regex of what stands in front of all names.
    left: regex of names (stripped) that have no part in the encoder and head.
    read: `(shapes, config) -> Found`, of stripped names that aren't left.
    preprocess: where the files do not say.
    rename: `(pattern, replacement)` of stripped names.
    unstack: what names start with whose arrays hold all layers, first axis;
      and what those of layer `{}` start with.
  """

  name: str
  what: str
  marks: tuple[str, ...]
  read: Callable[[Shapes, Mapping[str, Any]], Found]
  preprocess: Preprocess = IMAGENET
  strip: str = ""
  left: str = ""
  rename: tuple[tuple[str, str], ...] = ()
  unstack: tuple[str, str] | None = None

  def own(self, name: str) -> str | None:
    """A stored name as the tables have it; None for what is left behind."""
    short = re.sub(f"^(?:{self.strip})", "", name) if self.strip else name
    if self.left and re.fullmatch(self.left, short):
      return None
    for pattern, new in self.rename:
      short = re.sub(pattern, new, short)
    return short


# ---------------------------------------------------------------------- rows


def rows(table: Table, model: Model, paths: Iterable[str]) -> list[Row]:
  """The rows of a table for the parameters that a model has."""
  paths, found = set(paths), []

  def add(ours: Names, theirs: Names, start: str, front: str) -> None:
    for leaf in ("kernel", "bias", "scale"):
      mine = tuple(f"{start}{name}/{leaf}" for name in _tuple(ours))
      if mine[0] in paths:
        parts = [_leaf(front + t, leaf, table.flax) for t in _tuple(theirs)]
        found.append(Row(tuple(parts), mine, _kind(mine[0], table.flax)))

  for i in range(model.depth):
    start, front = f"encoder/{layer_name(i)}/", table.block.format(i)
    for ours, theirs in table.layer.items():
      add(ours, theirs, start, front)
    for ours, theirs in table.leaves.items():
      if start + ours in paths:
        found.append(Row((front + theirs,), (start + ours,), "vector"))
  for ours, theirs in table.top.items():
    add(ours, theirs, "", "")
  return found


def tokens(theirs: Names, ours: Names, **options: Any) -> Row:
  """A row of tokens or positions, those of patches last."""
  return Row(_tuple(theirs), _tuple(ours), "tokens", **options)


def positions(theirs: str, model: Model, **options: Any) -> Row:
  """Their table of positions, with those of tokens in front if we have them."""
  ours = ("positions/table",)
  if model.prefix_position and (model.registers or model.pool == "cls"):
    ours = ("prefix_positions", *ours)
  return tokens(theirs, ours, **options)


def _tuple(names: Names) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else names


def _leaf(name: str, leaf: str, flax: bool) -> str:
  leaf = leaf if flax or leaf == "bias" else "weight"
  if "{}" in name:
    return name.format(leaf)
  return f"{name}{'/' if flax else '.'}{leaf}"


def _kind(path: str, flax: bool) -> str:
  kernel = path.endswith("kernel")
  if flax:
    return "flax" if kernel else "flax vector"
  if not kernel:
    return "vector"
  return "conv" if path == "embed/kernel" else "linear"


def _inputs(path: str) -> int:
  """Input axes of our kernel."""
  return 2 if path.endswith("out/kernel") else 1


# ------------------------------------------------------------ there and back


def ours_of(
  row: Row, parts: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
  """Our arrays of `shapes` from their `parts`, float32."""
  axis = 0 if row.kind == "tokens" else -1
  turned = [_turn(row, np.asarray(x, np.float32)) for x in parts]
  if row.gap:
    zeros = np.zeros((row.gap, turned[0].shape[-1]), np.float32)
    turned = [np.concatenate([turned[0][:1], zeros, turned[0][1:]])]
  whole = np.concatenate(turned, axis) if len(turned) > 1 else turned[0]
  other = whole.size // whole.shape[axis]
  cuts = np.cumsum([math.prod(shape) // other for shape in shapes])[:-1]
  pieces = np.split(whole, cuts, axis) if len(shapes) > 1 else [whole]
  return [piece.reshape(shape) for piece, shape in zip(pieces, shapes)]


def _turn(row: Row, x: np.ndarray) -> np.ndarray:
  """One of their arrays as inputs x outputs, a vector, or tokens x d."""
  if row.kind == "linear":
    return x.T
  if row.kind == "conv":
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
  if row.kind.endswith("vector"):
    return x.reshape(-1)
  if row.kind == "flax":
    inputs = (
      x.ndim - 1 if row.ours[0] == "embed/kernel" else _inputs(row.ours[0])
    )
    return x.reshape(math.prod(x.shape[:inputs]), -1)
  return x.reshape(-1, x.shape[-1])


def theirs_of(
  row: Row, parts: Sequence[Any], patch: tuple[int, int], xp: Any = np
) -> list[Any]:
  """Their arrays from our `parts`; `xp` is numpy, or jax's for shapes."""
  axis = 0 if row.kind == "tokens" else -1
  turned = []
  for name, x in zip(row.ours, parts):
    if row.kind.endswith("vector"):
      turned.append(x.reshape(-1))
    elif row.kind == "tokens":
      turned.append(x.reshape(-1, x.shape[-1]))
    else:
      turned.append(x.reshape(math.prod(x.shape[: _inputs(name)]), -1))
  whole = xp.concatenate(turned, axis) if len(turned) > 1 else turned[0]
  if row.gap:
    whole = xp.concatenate([whole[:1], whole[1 + row.gap :]])
  n = whole.shape[axis]
  sizes = row.sizes or (n // len(row.theirs),) * len(row.theirs)
  cuts = np.cumsum(sizes)[:-1].tolist()
  pieces = xp.split(whole, cuts, axis) if cuts else [whole]
  return [_back(row, piece, parts[0].shape, patch) for piece in pieces]


def _back(row: Row, x: Any, shape: tuple[int, ...], patch: tuple) -> Any:
  """Undoes `_turn`; `shape` is of our first array."""
  if row.kind == "linear":
    return x.T
  if row.kind == "conv":
    return x.reshape(*patch, -1, x.shape[-1]).transpose(3, 2, 0, 1)
  if row.kind == "tokens":
    return x if row.flat else x[None]
  if row.kind == "flax" and row.ours[0] == "embed/kernel":
    return x.reshape(*patch, -1, x.shape[-1])
  if row.kind.startswith("flax"):
    parted = (*shape[:-3], *shape[-2:])  # without the axis of q, k and v
    return x.reshape(shape if len(row.theirs) == 1 else parted)
  return x


def to_theirs(
  rows: Sequence[Row], params: Any, model: Model, xp: Any = np
) -> dict[str, Any]:
  """All of their arrays by name.

  Raises:
    UserError: a parameter that no row has a place for.
  """
  flat = tree.flatten(unstack_layers(params))
  placed = {name for row in rows for name in row.ours}
  if homeless := sorted(set(flat) - placed):
    raise UserError(f"no place for {homeless[0]} in this layout")
  patch, out = patch_lib.pair(model.patch_size), {}
  for row in rows:
    parts = [flat[name] for name in row.ours]
    if xp is np:
      parts = [np.asarray(x, np.float32) for x in parts]
    out |= dict(zip(row.theirs, theirs_of(row, parts, patch, xp)))
  if xp is np:
    return {name: np.ascontiguousarray(x) for name, x in out.items()}
  return out


def to_ours(
  rows: Sequence[Row], shapes: Shapes, read: Read, model: Model,
  abstract: Any, where: str,
) -> dict[str, Any]:  # fmt: skip
  """Parameters of `model` from their arrays, one row in memory at a time.

  Args:
    rows: of the layout.
    shapes: of their arrays; read: one of them by its name.
    model: as large as theirs.
    abstract: its unboxed parameter shapes at their grid.
    where: for messages.

  Returns:
    Nested dict of float32 numpy arrays, scanned if `abstract` is.

  Raises:
    UserError: names or shapes differ (listed).
  """
  flat = tree.flatten(unstack_layers(abstract))
  back = lambda params: to_theirs(rows, params, model, jnp)
  wanted = jax.eval_shape(back, tree.unflatten(flat))
  # Any type is read, so no difference is one of types.
  stored = {k: [list(x.shape), "float32"] for k, x in shapes.items()}
  manifest.check_fits(where, stored, wanted)
  out = {}
  for row in rows:
    sizes = [tuple(flat[name].shape) for name in row.ours]
    parts = [read(name) for name in row.theirs]
    out |= dict(zip(row.ours, ours_of(row, parts, sizes)))
  params = tree.unflatten(out)
  return stack_layers(params) if "blocks" in abstract["encoder"] else params


# ------------------------------------------------------------ facts of arrays


def side_of(count: int, prefix: int, what: str) -> int:
  """Rows of the square of patches behind `prefix` tokens.

  Raises:
    UserError: they form no square.
  """
  side = math.isqrt(max(count - prefix, 0))
  if side * side != count - prefix or not side:
    raise UserError(
      f"{what} has {count} entries, {prefix} of them for tokens in front: the"
      " rest are no square of patches"
    )
  return side


def heads_of(width: int, config: Mapping[str, Any]) -> dict[str, int]:
  """`num_heads` as a config says or the width tells; {} where neither."""
  heads = config.get("num_attention_heads") or HEADS.get(width)
  return {"num_heads": heads} if heads else {}


def gelu_of(name: str) -> str:
  """Ours for the name of an activation.

  Raises:
    UserError: it isn't a GELU.
  """
  if name not in GELU:
    raise UserError(f"activation {name!r}: the vit family has GELU alone")
  return GELU[name]


def depth_of(shapes: Shapes, pattern: str) -> int:
  """Layers, by a regex whose group is the number."""
  found = (re.match(pattern, name) for name in shapes)
  return 1 + max((int(m[1]) for m in found if m), default=-1)
