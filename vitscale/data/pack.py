"""Packing: rows of L tokens, each of several images of any size.

    config.pack = {"length": 256, "patch_size": 4, "segments": 8}

NaViT (Dehghani et al., 2307.06304) trains at native aspect ratios by putting
images one behind the other in a row of fixed length. Here the rows are planned
before the run: images of equally many tokens can stand for one another, so
their *counts* are packed once (best fit, decreasing), and an epoch only decides
which image takes which place of its kind, and the order of rows. So rows an
epoch are constant, padding is known beforehand, and batch k is a pure function
of (seed, k), as without packing.

A batch has, for b rows of L tokens and S segments,

    image        (b, L, p * p * c) uint8, patches, row-major in an image
    coordinates  (b, L, 2) int32, row and column of a patch in its image
    segment_ids  (b, L) int32, 1 to S in order, 0 is padding
    grids        (b, S, 2) int32, rows and columns of patches of an image
    label        (b, S) int32
    weight       (b, S) float32, 1 for an image, 0 for none

An image is resized to the nearest whole number of patches a side. One that
has more than `max_tokens` is scaled down, keeping its aspect, as NaFlex does
(2502.14786); without `max_tokens`, one that doesn't fit a row is refused.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.data import augment
from vitscale.data.random import Rng, permutation
from vitscale.data.source import Source

Batch = dict[str, np.ndarray]
KEYS = ("length", "patch_size", "segments", "max_tokens")


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What every epoch has in common.

  Attributes:
    length: L, tokens of a row.
    patch_size: p, pixels a side.
    sizes: (n, 2) height and width of each image, pixels.
    grids: (n, 2) rows and columns of its patches.
    slots: (rows, S) tokens of the image that goes there, 0 for none.
  """

  length: int
  patch_size: int
  sizes: np.ndarray
  grids: np.ndarray
  slots: np.ndarray

  @property
  def rows(self) -> int:
    """Rows of an epoch."""
    return len(self.slots)

  @property
  def padding(self) -> float:
    """Share of tokens that belong to no image."""
    return 1 - self.slots.sum() / (self.rows * self.length)


def plan(source: Source, settings: Mapping[str, Any]) -> Plan:
  """The plan of a source.

  Args:
    source: its sizes are read; see `Source.sizes`.
    settings: the config group `pack`: `length`, `patch_size`, `segments` and,
      optionally, `max_tokens`.

  Raises:
    UserError: a number that is none, or an image that fits no row.
  """
  for key in (*settings, *KEYS[:3]):
    if key not in KEYS or key not in settings:
      what = "is missing" if key in KEYS else f"is no key{nearest(key, KEYS)}"
      raise UserError(f"pack: {key!r} {what}")
  length, p, segments = (settings[key] for key in KEYS[:3])
  limit = settings.get("max_tokens")
  given = dict(zip(KEYS, (length, p, segments, limit)))
  for key, value in given.items():
    if key == "max_tokens" and value is None:
      continue
    if type(value) is not int or value < 1:
      raise UserError(f"pack.{key}={value!r}: should be 1 or more")
  if limit is not None and limit > length:
    raise UserError(f"pack.max_tokens={limit} is above pack.length={length}")
  sizes = source.sizes()
  grids = grids_of(sizes, p, limit)
  tokens = grids.prod(1)
  worst = int(tokens.argmax())
  if tokens[worst] > length:
    h, w = sizes[worst]
    raise UserError(
      f"pack: image {worst} ({h}x{w} px) has {tokens[worst]} tokens of {p} px,"
      f" a row {length}: pack.length={tokens[worst]}, or"
      f" pack.max_tokens={length} to scale down what is larger"
    )
  kinds, counts = np.unique(tokens, return_counts=True)
  patterns = best_fit(dict(zip(kinds.tolist(), counts.tolist())), length,
                      segments)  # fmt: skip
  wide = [pattern + (0,) * (segments - len(pattern)) for pattern, _ in patterns]
  slots = np.repeat(np.array(wide), [many for _, many in patterns], axis=0)
  return Plan(length, p, sizes, grids, slots)


def grids_of(sizes: np.ndarray, patch: int, limit: int | None) -> np.ndarray:
  """(n, 2) heights and widths in pixels -> (n, 2) rows and columns of patches.

  Args:
    sizes: of images.
    patch: pixels a side.
    limit: most tokens of an image; None for any number.
  """
  exact = np.asarray(sizes, np.float64) / patch
  grids = np.maximum(np.rint(exact), 1).astype(np.int64)
  large = grids.prod(1) > (limit or np.inf)
  if large.any():
    scaled = exact[large] * np.sqrt(limit / exact[large].prod(1))[:, None]
    down = np.clip(np.floor(scaled), 1, limit).astype(np.int64)
    # Of the four roundings the largest that fits; a thin image is cut short.
    down[:, 0] = np.minimum(down[:, 0], limit // down[:, 1])
    for up in ((0, 1), (1, 0), (1, 1)):
      more = np.floor(scaled).astype(np.int64) + up
      fits = (more.prod(1) <= limit) & (more.prod(1) > down.prod(1))
      down[fits] = more[fits]
    grids[large] = down
  return grids


def best_fit(
  counts: Mapping[int, int], length: int, segments: int
) -> list[tuple[tuple[int, ...], int]]:
  """Packs items into rows: best fit decreasing, equal rows counted together.

  Args:
    counts: size -> items of it, sizes at most `length`.
    length: of a row.
    segments: most items of a row.

  Returns:
    (sizes in a row, number of such rows), each item once. The time depends on
    the number of sizes, not of items.
  """
  # Rows that may take more: room -> {sizes in a row: number of such rows}.
  rows: dict[int, dict[tuple[int, ...], int]] = {}
  full: list[tuple[tuple[int, ...], int]] = []
  for size in sorted(counts, reverse=True):
    left = counts[size]
    while left:
      # In the least room that is enough: after one item it still is the least,
      # so a row takes as many of a size as it can.
      room = min((r for r in rows if r >= size), default=length)
      there = rows.get(room) or {(): left}
      pattern, many = there.popitem()
      fit = min(room // size, segments - len(pattern), left)
      now = min(many, left // fit)
      if pattern and many > now:
        there[pattern] = many - now
      if not there:
        rows.pop(room, None)
      left -= now * fit
      grown = pattern + (size,) * fit
      if len(grown) == segments:
        full.append((grown, now))
      else:
        same = rows.setdefault(room - fit * size, {})
        same[grown] = same.get(grown, 0) + now
  return full + [row for some in rows.values() for row in some.items()]


# --------------------------------------------------------------------- epochs


@functools.lru_cache(4)
def epoch(plan: Plan, seed: int, number: int | None) -> np.ndarray:
  """Which images lie in which row: (rows, S) int64, -1 for none.

  Args:
    plan: of the source.
    seed: of the run.
    number: of the epoch; None for images and rows in order.
  """
  tokens = plan.grids.prod(1)
  ids, order = np.arange(len(tokens)), np.arange(plan.rows)
  if number is not None:
    ids = permutation(seed, number, len(tokens))
    keys = Rng(seed, number, order).bits("rows")[:, 0]
    order = np.argsort(keys, kind="stable")
  flat = plan.slots.ravel()
  table = np.full(flat.shape, -1)
  places = np.argsort(flat, kind="stable")[np.count_nonzero(flat == 0) :]
  table[places] = ids[np.argsort(tokens[ids], kind="stable")]
  return table.reshape(plan.slots.shape)[order]


def train_rows(
  plan: Plan, seed: int, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the endless stream: (b, S) images and (b,) their epochs."""
  epochs, offset = np.divmod(numbers, plan.rows)
  table = np.empty((len(numbers), plan.slots.shape[1]), np.int64)
  for number in range(epochs[0], epochs[-1] + 1):
    here = epochs == number
    table[here] = epoch(plan, seed, number)[offset[here]]
  return table, epochs


# -------------------------------------------------------------------- batches


def load(
  source: Source,
  plan: Plan,
  transform: Any,
  seed: int,
  epochs: np.ndarray,
  table: np.ndarray,
) -> Batch:
  """The batch of the rows of `table` (b, S), of these `epochs` (b,).

  Raises:
    UserError: the transform changes the size of an image.
  """
  where = np.argwhere(table >= 0)  # (images, 2), row by row
  ids = table[table >= 0]
  read = source.read(ids)
  if transform is not None:
    read = transform(read, Rng(seed, epochs[where[:, 0]], ids))
  b, p, c = len(table), plan.patch_size, len(source.mean)
  made = {
    "image": np.zeros((b, plan.length, p * p * c), np.uint8),
    "coordinates": np.zeros((b, plan.length, 2), np.int32),
    "segment_ids": np.zeros((b, plan.length), np.int32),
    "grids": np.zeros((*table.shape, 2), np.int32),
    "label": np.zeros(table.shape, np.int32),
    "weight": (table >= 0).astype(np.float32),
  }
  made["label"][table >= 0] = read["label"]
  made["grids"][table >= 0] = plan.grids[ids]
  start = np.zeros(b, int)  # of what is free in a row
  for image, size, (row, segment), (gh, gw) in zip(
    read["image"], plan.sizes[ids], where, plan.grids[ids]
  ):
    if image.shape[:2] != tuple(size):
      raise UserError(
        f"transform: packing planned an image of {size[0]}x{size[1]} px,"
        f" it is {image.shape[0]}x{image.shape[1]} now; leave out what changes"
        " sizes"
      )
    here = slice(start[row], start[row] + gh * gw)
    start[row] += gh * gw
    made["image"][row, here] = _patches(image, (gh, gw), p)
    made["coordinates"][row, here] = np.indices((gh, gw)).reshape(2, -1).T
    made["segment_ids"][row, here] = segment + 1
  return made


def _patches(image: np.ndarray, grid: tuple[int, int], p: int) -> np.ndarray:
  """uint8 (h, w, c) -> (gh * gw, p * p * c), resized to whole patches."""
  (gh, gw), c = grid, image.shape[2]
  if image.shape[:2] != (gh * p, gw * p):
    image = augment.scale(image, (gh * p, gw * p))
  parts = image.reshape(gh, p, gw, p, c).swapaxes(1, 2)
  return parts.reshape(gh * gw, p * p * c)
