"""A map of tokens at several scales, read from coarse to fine.

    model.hierarchy = "scales(1, 2, 4)"    # 1 x 1, 2 x 2, 4 x 4, then the map

The map is down-sampled by area pooling, each token is told its scale, and a
few blocks read them all with scale-causal attention: a token sees those of its
own scale and of coarser ones. What goes on is the finest scale, the map itself,
so that nothing after it changes.

In the spirit of HieraTok (2509.23736), of which only this much is public: a
token map of several scales and scale-causal attention. Which scales, how they
are pooled, how many blocks and what passes on are this file's.

    scales(1, 2, blocks=3)          3 blocks, 2 without it
    scales(1, 2, mask="full")       every token sees every other
    scales()                        the map alone: as many blocks, one scale
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes, call
from vitscale.core.errors import UserError, nearest
from vitscale.nn import attention, position
from vitscale.nn.block import Stack

MASKS = ("causal", "full")
Grid = tuple[int, int]


class Scales(nn.Module):
  """Blocks over a map and its coarser copies.

  Attributes:
    block: makes one block of `width`, see `Stack`.
    width, head_dim: of a token and of a head.
    rope: tokens know their places by axial RoPE, a coarse one that of its
      cell's centre, counted in tokens of the map.
    scan: see `Stack`.
    sizes: cells a side of the coarser copies, rising.
    blocks: how many.
    mask: one of MASKS.
  """

  block: Callable[..., nn.Module]
  width: int
  head_dim: int
  rope: bool = True
  scan: bool = False
  sizes: tuple[int, ...] = ()
  blocks: int = 2
  mask: str = "causal"

  @nn.compact
  def __call__(
    self, x: jax.Array, grid: tuple[int, ...], *, train: bool = False
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The map (b, n, d) to the same shape.

    Args:
      x: tokens.
      grid: their frames, of which there is one, rows and columns.
      train: see `Stack`.

    Returns:
      The map, and the parts of every block over all scales, coarse first.

    Raises:
      UserError: several frames, or a copy that is not coarser than the map.
    """
    frames, *grid = grid
    if frames > 1:
      raise UserError("model.hierarchy: scales of images, these are videos")
    grids, (b, n, d) = scales(self.sizes, tuple(grid)), x.shape
    image = x.reshape(b, *grid, d)
    x = [pooled(image, size).reshape(b, -1, d) for size in grids[:-1]] + [x]
    level = np.repeat(np.arange(len(grids)), [math.prod(g) for g in grids])
    table = axes.param(
      self, "scale", "pos embed", (len(grids), d), axes.normal(0.02)
    )
    x = jnp.concatenate(x, 1) + table[level].astype(x[-1].dtype)
    who: dict[str, Any] = {}
    if self.rope:
      where = np.concatenate([centres(size, grid) for size in grids])
      who["rope"] = position.rope(where, self.head_dim)
    if self.mask == "causal":
      who["order"] = jnp.asarray(level)
    stack = Stack(self.block, self.blocks, self.scan, name="stack")
    x, out = stack(x, train=train, **who)
    return x[:, -n:], out


@functools.cache
def parse(text: str) -> Callable[..., Scales]:
  """The factory of `Scales` that "scales(1, 2, blocks=3)" says.

  Raises:
    UserError: another name or option; sizes that do not rise from 1 or more.
  """
  what = f"model.hierarchy {text!r}"
  name, sizes, kwargs = call.read(text, what)
  if name != "scales":
    raise UserError(f"{what}: write 'scales(1, 2, 4)', coarser copies of a map")
  known = {"blocks": int, "mask": str}
  given = call.options(known, (), kwargs, what=what)
  whole = all(type(size) is int and size > 0 for size in sizes)
  if not whole or sizes != sorted(set(sizes)):
    raise UserError(f"{what}: sizes should be whole numbers that rise")
  if given.get("blocks", 1) < 1:
    raise UserError(f"{what}: blocks should be 1 or more")
  mask = given.get("mask", MASKS[0])
  if mask not in MASKS:
    raise UserError(f"{what}: mask {mask!r}{nearest(mask, MASKS)}")
  return functools.partial(Scales, sizes=tuple(sizes), **given)


def scales(sizes: tuple[int, ...], grid: Grid) -> list[Grid]:
  """Grids of all scales, the map's own last.

  Raises:
    UserError: a copy that is not coarser than the map.
  """
  if sizes and sizes[-1] >= min(grid):
    raise UserError(
      f"model.hierarchy: {sizes[-1]} cells a side are no coarser than a map of"
      f" {grid[0]} x {grid[1]}, which comes last by itself"
    )
  return [*((size, size) for size in sizes), grid]


def pooled(image: jax.Array, grid: Grid) -> jax.Array:
  """(b, h, w, d) -> (b, *grid, d), means over equal areas."""
  rows, columns = (
    jnp.asarray(areas(old, new), jnp.float32)
    for old, new in zip(image.shape[1:3], grid)
  )
  x = image.astype(jnp.float32)
  x = jnp.einsum("yh,bhwd->bywd", rows, x, precision="highest")
  x = jnp.einsum("xw,bywd->byxd", columns, x, precision="highest")
  return x.astype(image.dtype)


def areas(old: int, new: int) -> np.ndarray:
  """(new, old): the share that each of `old` cells has in one of `new`."""
  edges, cells = np.arange(new + 1) * old / new, np.arange(old)
  left = np.maximum(edges[:-1, None], cells)
  right = np.minimum(edges[1:, None], cells + 1)
  return np.maximum(right - left, 0) * new / old


def centres(size: Grid, grid: Grid) -> np.ndarray:
  """(n, 2) row and column of each cell's centre, in tokens of `grid`."""
  scale = grid[0] / size[0], grid[1] / size[1]
  return position.coordinates(size, scale)


def macs(
  text: str, grid: tuple[int, ...], width: int, num_heads: int, each: int
) -> int:
  """Multiply-accumulates for one image, by hand, the mask saving nothing.

  Args:
    text: as of `parse`.
    grid: frames, rows and columns of the map.
    width, num_heads: of a block.
    each: multiply-accumulates of a block's products with weights, a token.
  """
  made = parse(text).keywords
  _, height, wide = grid
  grids = scales(made["sizes"], (height, wide))
  n = sum(math.prod(size) for size in grids)
  attend = attention.macs(n, n, num_heads, width // num_heads)
  pool = sum(y * wide * (height + x) * width for y, x in grids[:-1])
  return made.get("blocks", Scales.blocks) * (n * each + attend) + pool
