"""Dashed contours that keep apart: the geometry of Pathfinder's pictures.

A contour is a chain of links, each a straight paddle with a margin before and
behind it. Images are worked on together, and a paddle at a time; what is drawn
for an image depends on its own draws alone.
"""

import dataclasses

import numpy as np

from vitscale.data.random import Rng

_TURNS = 15  # directions from one paddle to the next
_PICKS = 6  # of them, or of a distractor's starts, that are tried
_STEPS = 60  # of both contours, those that were taken back included
_AGAIN = 5  # beginnings of a distractor


@dataclasses.dataclass(frozen=True)
class Geometry:
  """All lengths in pixels.

  Attributes:
    length, thickness: of a paddle.
    contrast: brightness of the middle of a paddle; a disc has 1.
    margins: half of the gap between paddles; one is drawn per image.
    radius: of a disc.
    apart: distance of the two starts.
    continuity: how straight contours are.
    border: what no paddle enters.
    budget: paddles of all distractors, which are a third of a contour long.
  """

  length: float
  thickness: float
  contrast: float
  margins: tuple[float, ...]
  radius: float
  apart: float
  continuity: float
  border: float
  budget: int


@dataclasses.dataclass
class Paddles:
  """Paddles of b images, as many of each.

  Attributes:
    tail: (b, ..., 2) row and column where a paddle begins.
    along: (b, ..., 2) unit vector from there to its head.
    there: (b, ...) false where there is none.
    margin: (b,) of an image, pixels.
    length: pixels.
  """

  tail: np.ndarray
  along: np.ndarray
  there: np.ndarray
  margin: np.ndarray
  length: float

  @property
  def head(self) -> np.ndarray:
    return self.tail + self.length * self.along

  def take(self, rows: np.ndarray) -> "Paddles":
    """Of those images."""
    parts = (x[rows] for x in (self.tail, self.along, self.there, self.margin))
    return Paddles(*parts, self.length)


def _none(shape: tuple[int, ...], margin, length: float) -> Paddles:
  tail, along = (np.zeros((*shape, 2), np.float32) for _ in range(2))
  return Paddles(tail, along, np.zeros(shape, bool), margin, length)


def contours(
  rng: Rng, *, size, geometry, paddles
) -> tuple[Paddles, np.ndarray]:
  """Two contours (b, 2, paddles) of each try, and which tries came to an end.

  Both grow a paddle at a time. A contour that is stuck takes back some paddles
  of both, one more each time until they are longer than ever before.
  """
  b = len(rng)
  margins = np.array(geometry.margins, np.float32)
  margin = margins[rng.integers("margin", len(margins))[:, 0]]
  made = _none((b, 2, paddles), margin, geometry.length)
  # The first start lies inside, the second beside it.
  inside = min(2 * geometry.apart, size / 2 - 2)
  start = inside + rng.uniform("start", 2) * (size - 2 * inside)
  aside = 2 * np.pi * rng.uniform("aside")[:, 0]
  made.tail[:, 0, 0] = start
  made.tail[:, 1, 0] = start + geometry.apart * _unit(aside)
  made.along[:, :, 0] = _unit(2 * np.pi * rng.uniform("angle", 2))
  at, place = np.arange(paddles), np.ones(b, np.int64)  # of the next paddle
  best, stuck = place.copy(), np.zeros(b, np.int64)
  for step in range(_STEPS):
    rows = np.flatnonzero(place < paddles)
    if not len(rows):
      break
    fits = np.ones(len(rows), bool)
    for c in (0, 1):
      t, others = place[rows], made.take(rows)
      last = np.arange(len(rows)), c, t - 1
      # The paddle before is a neighbour; the other contour's last one is not.
      others.there[:, c] = at < t[:, None] - 1
      others.there[:, 1 - c] = at < t[:, None] + c
      draws = rng.take(rows).scope(f"{c}/{step}")
      before = others.tail[last], others.along[last]
      good, tail, along = _extend(draws, before, others, size, geometry)
      fits &= good
      made.tail[rows, c, t], made.along[rows, c, t] = tail, along
    stuck[rows] += ~fits
    place[rows] = np.maximum(1, place[rows] + np.where(fits, 1, -stuck[rows]))
    further = rows[place[rows] > best[rows]]
    best[further], stuck[further] = place[further], 0
  made.there[:] = True
  return made, place == paddles


def _extend(draws, before, others: Paddles, size, geometry):
  """The paddle after `before`, a tail and a direction (b, 2): see _first_clear.

  Turns are drawn from a jittered grid by their density, but for those after
  which the border can't be avoided any more.
  """
  link = (others.length + 2 * others.margin)[:, None]  # from pivot to pivot
  tail, along = before
  pivot = tail + (link - others.margin[:, None]) * along
  most = np.pi / 2 / geometry.continuity
  jitter = draws.uniform("jitter")
  turn = most * (2 * (np.arange(_TURNS) + jitter) / _TURNS - 1)  # (b, turns)
  angles = np.arctan2(along[:, 0], along[:, 1])[:, None] + turn
  ways = _unit(angles)
  low, high = geometry.border, size - geometry.border
  at = pivot[:, None] + link[..., None] * ways
  inside = ((at >= low) & (at <= high)).all(-1)
  escapes = np.zeros_like(inside)
  for side in (-0.7 * most, 0.7 * most):
    ahead, good = at, inside
    for k in range(1, 1 + int(np.ceil(np.pi / 2 / abs(side)))):
      ahead = ahead + link[..., None] * _unit(angles + k * side)
      good = good & ((ahead >= low) & (ahead <= high)).all(-1)
    escapes |= good
  weight = np.cos(geometry.continuity * turn) ** 2 * escapes
  tails = pivot[:, None] + others.margin[:, None, None] * ways
  return _first_clear(draws, weight, tails, ways, others)


def _first_clear(draws, weight, tails, ways, others: Paddles):
  """Tries candidates, drawn by weight (b, t), until one is clear of `others`.

  Args:
    draws: Rng of the b images.
    weight: of candidates.
    tails, ways: (b, t, 2) where they begin and their direction.
    others: paddles to keep away from.

  Returns:
    which images found one, its tail and its direction (b, 2).
  """
  b = len(weight)
  weight, luck = weight.copy(), draws.uniform("pick", _PICKS)
  found = np.zeros(b, bool)
  tail, along = np.zeros((2, b, 2), np.float32)
  rows = np.flatnonzero(weight.sum(1) > 0)
  for k in range(_PICKS):
    if not len(rows):
      break
    total = weight[rows].cumsum(1)
    pick = (total <= luck[rows, k, None] * total[:, -1:]).sum(1)
    tail[rows], along[rows] = tails[rows, pick], ways[rows, pick]
    good = _clear(tail[rows], along[rows], others.take(rows))
    found[rows[good]] = True
    weight[rows, pick] = 0
    rows = rows[~good & (weight[rows].sum(1) > 0)]
  return found, tail, along


def _clear(tail, along, others: Paddles) -> np.ndarray:
  """(b,) whether paddles keep twice the margin from all others.

  Measured from points along a paddle, at most a pixel apart.
  """
  b, length = len(tail), others.length
  at = np.linspace(0, length, int(np.ceil(length)) + 1, dtype=np.float32)
  points = tail[:, None] + at[:, None] * along[:, None]  # (b, k, 2)
  begin, ahead = (x.reshape(b, 1, -1, 2) for x in (others.tail, others.along))
  y, x = (points[..., None, i] - begin[..., i] for i in (0, 1))
  far = np.clip(y * ahead[..., 0] + x * ahead[..., 1], 0, length)
  y, x = y - far * ahead[..., 0], x - far * ahead[..., 1]
  near = y * y + x * x < (2 * others.margin[:, None, None]) ** 2
  return ~(near & others.there.reshape(b, 1, -1)).any((1, 2))


def _unit(angle: np.ndarray) -> np.ndarray:
  """(...) -> (..., 2), steps of one pixel in rows and columns."""
  angle = angle.astype(np.float32)
  return np.stack([np.sin(angle), np.cos(angle)], -1)


def distract(rng, made, length: int, count: int, size, geometry) -> Paddles:
  """All paddles (b, p) of the images, short contours where they fit."""
  b, old = len(rng), made.there[0].size
  every = _none((b, old + count * length), made.margin, made.length)
  every.tail[:, :old] = made.tail.reshape(b, old, 2)
  every.along[:, :old] = made.along.reshape(b, old, 2)
  every.there[:, :old] = True
  for first in range(old, every.there.shape[1], length):
    left = np.arange(b)
    for again in range(_AGAIN):
      draws = rng.take(left).scope(f"distractor/{first}/{again}")
      good, tail, along = _begin(draws, every.take(left), size, geometry)
      for t in range(length):
        if t:
          every.there[left, first : first + t - 1] = True  # not its neighbour
          fits, tail, along = _extend(
            draws.scope(f"{t}"), (tail, along), every.take(left), size, geometry
          )
          good &= fits
        every.tail[left, first + t] = tail
        every.along[left, first + t] = along
      every.there[left, first : first + length] = good[:, None]
      left = left[~good]
      if not len(left):
        break
  return every


def _begin(draws, others: Paddles, size, geometry):
  """A first paddle anywhere: see _first_clear."""
  low, high = geometry.border, size - geometry.border
  spots = low + (high - low) * draws.uniform("start", 2 * _PICKS)
  spots = spots.reshape(len(draws), _PICKS, 2)
  ways = _unit(2 * np.pi * draws.uniform("angle", _PICKS))
  heads = spots + others.length * ways
  inside = ((heads >= low) & (heads <= high)).all(-1)
  return _first_clear(draws, inside.astype(float), spots, ways, others)
