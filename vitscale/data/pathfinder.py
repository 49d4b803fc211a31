"""Pathfinder: are two discs at the ends of one dashed contour, or of two?

Linsley et al. (1805.08315) as the Long Range Arena uses it (Tay et al.,
2011.04006, section 2.2.5): two contours of 14 paddles start near each other
and wander off among shorter ones; one disc marks the start of a contour, the
other the far end of the same (label 1) or of the other one (label 0). Both
labels are drawn into the same kind of picture.

The geometry is the published one for 32, 64, 128 and 256 px, see `SIZES`; the
rules are our own, of the same meaning:

* From one paddle to the next a contour turns by an angle whose density is
  cos^2(continuity * angle), at most to a right angle, and never so that it must
  run into the border.
* A paddle keeps twice the margin from all others but its neighbours.
* A contour that is stuck takes some paddles back and goes on; published, the
  image begins anew. A distractor that finds no place is left out.
* The start of one contour is a little farther from the other's end: by the
  distance of the discs alone 53 % of the labels could be told at 32 px, 59 % at
  16. Images are thinned so that both have the same distances (51 to 52 %).
* All paddles are equally bright; the released code scales the contrast of the
  two contours alone, which at 32 px makes distractors brighter.

Sample i of a split is a pure function of (seed, split, i).
"""

import functools

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import source
from vitscale.data.contours import Geometry, Paddles, contours, distract
from vitscale.data.random import Rng

SIZES = {
  32: Geometry(2, 0.5, 0.75, (1,), 1.5, 7, 1.0, 1, 20),
  64: Geometry(5, 1.0, 0.8, (1,), 2.5, 12, 1.8, 1, 22),
  128: Geometry(5, 1.5, 0.9, (2, 3), 3.0, 20, 1.8, 1, 35),
  256: Geometry(5, 2.0, 1.0, (3,), 5.0, 27, 1.8, 22, 30),
}

_RARE = 0.01  # share of tries that come to an end, less is refused
_BLOCK = 1024  # images at once
_PROBE = 2048  # images that distances are matched by
_STATISTICS = 256  # images that mean and deviation are of


def pathfinder(
  split: str = "train",
  size: int = 32,
  n: int = 20_000,
  *,
  paddles: int = 14,
  distractors: int | None = None,
  matched: bool = True,
  seed: int = 0,
) -> source.Source:
  """Generated Pathfinder images, half of each label.

  Args:
    split: "train", "val" or "test": different images.
    size: pixels a side; between the published ones the geometry of the next
      smaller one, below them that of 32.
    n: images (published: 160,000, 20,000 and 20,000).
    paddles: of each of the two contours.
    distractors: contours of `paddles // 3` paddles; None for the published
      number, 5, 5, 8 or 7 of 14 paddles.
    matched: equal distances of the discs for both labels.
    seed: of the whole set.

  Raises:
    UserError: unknown split, or two such contours don't fit into the image.
  """
  source.check_split(split)
  geometry = SIZES[max((s for s in SIZES if s <= size), default=min(SIZES))]
  if distractors is None:
    distractors = geometry.budget // max(1, paddles // 3)
  if size < 12 or n < 1 or paddles < 2 or distractors < 0:
    raise UserError(
      "pathfinder: need size >= 12, n >= 1, paddles >= 2, distractors >= 0,"
      f" got {size}, {n}, {paddles}, {distractors}"
    )
  options = size, geometry, paddles, distractors, matched
  draw, *statistics = _drawer(seed, *options)
  image, label = _images(draw, split, n)
  return source.in_memory(
    image, label, ("two contours", "one contour"), *statistics,
    source.digest(image, label),
  )  # fmt: skip


@functools.lru_cache(8)
def _drawer(seed, size, geometry, paddles, distractors, matched):
  """`(split, ids) -> images, labels`, and the statistics of all splits."""
  grow = functools.partial(
    contours, size=size, geometry=geometry, paddles=paddles
  )
  rng = Rng(seed, 0, np.arange(_PROBE)).scope("pathfinder/probe")
  made, good = grow(rng)
  if good.mean() < _RARE:
    raise UserError(
      f"pathfinder: two contours of {paddles} paddles hardly ever fit into"
      f" {size} px: want fewer paddles or larger images"
    )
  draw = functools.partial(
    _draw, seed, grow=grow, thin=_thinned(rng, made, good) if matched else _all,
    size=size, geometry=geometry, paddles=paddles, distractors=distractors,
  )  # fmt: skip
  return draw, *source.statistics(_images(draw, "statistics", _STATISTICS)[0])


def _images(draw, split: str, n: int):
  """Images (n, size, size, 1) and labels (n,)."""
  blocks = [
    draw(split, np.arange(i, min(i + _BLOCK, n))) for i in range(0, n, _BLOCK)
  ]
  return [np.concatenate(x) for x in zip(*blocks)]


def _draw(
  seed, split, ids, *, grow, thin, size, geometry, paddles, distractors
):
  """Images (b, size, size, 1) uint8 and labels (b,) of the samples `ids`."""
  image = np.zeros((len(ids), size, size), np.float32)
  # Of two neighbours one has each label.
  scope = f"pathfinder/{split}"
  coin = Rng(seed, 0, ids // 2).scope(scope).integers("label", 2)[:, 0]
  label = ((ids + coin) % 2).astype(np.int32)
  left, tried = np.arange(len(ids)), 0
  while len(left):
    # Many tries at once where few images are left.
    tries = max(1, _BLOCK // len(left))
    attempt = np.tile(np.arange(tried, tried + tries), len(left))
    rng = Rng(seed, attempt, np.repeat(ids[left], tries)).scope(scope)
    made, good = grow(rng)
    which = np.repeat(label[left], tries)
    discs, away = _discs(rng, made, which)
    good &= rng.uniform("thin")[:, 0] < thin(away, which)
    good = good.reshape(len(left), tries)
    first = good & (good.cumsum(1) == 1)  # the first try that does
    rows, found = np.flatnonzero(first), left[first.any(1)]
    left, tried = left[~first.any(1)], tried + tries
    if not len(rows):
      continue
    every = distract(
      rng.take(rows), made.take(rows), max(1, paddles // 3), distractors,
      size, geometry,
    )  # fmt: skip
    image[found] = _render(every, discs[rows], size, geometry)
  return np.rint(255 * image).astype(np.uint8)[..., None], label


# ---------------------------------------------------------------------- discs


def _discs(rng: Rng, made: Paddles, label) -> tuple[np.ndarray, np.ndarray]:
  """Centres (b, 2, 2) of both discs and their distance (b,)."""
  rows, first = np.arange(len(label)), rng.integers("first", 2)[:, 0]
  last = np.where(label == 1, first, 1 - first)
  begin, end = made.tail[rows, first, 0], made.head[rows, last, -1]
  return np.stack([begin, end], 1), np.linalg.norm(end - begin, axis=-1)


def _all(away, label) -> float:
  return 1.0


def _thinned(rng: Rng, made: Paddles, good):
  """(distance, label) -> share of images to keep, so that distances agree.

  Both densities are measured on contours of their own, in bins that hold as
  many of both labels together.
  """
  away = [_discs(rng, made, np.full(len(good), y))[1][good] for y in (0, 1)]
  edges = np.quantile(np.concatenate(away), np.linspace(0, 1, 17)[1:-1])
  count = lambda x: np.bincount(np.searchsorted(edges, x), minlength=16) + 1.0
  share = np.stack([count(x) for x in away])
  keep = share.min(0) / share  # (label, bin)
  return lambda away, label: keep[label, np.searchsorted(edges, away)]


# ------------------------------------------------------------------ rendering


def _render(made: Paddles, discs, size: int, geometry: Geometry) -> np.ndarray:
  """Images (b, size, size) in 0..1, antialiased."""
  b, thick = len(discs), geometry.thickness
  image = np.zeros((b, size, size), np.float32)
  which, _ = np.nonzero(made.there)
  tail, along = made.tail[made.there], made.along[made.there]  # (m, 2)
  middle = tail + made.length / 2 * along
  reach = int(np.ceil((made.length + thick) / 2)) + 1
  rows, columns, y, x = _around(middle, reach, size)
  s = y * along[:, 0, None, None] + x * along[:, 1, None, None]
  d = x * along[:, 0, None, None] - y * along[:, 1, None, None]
  value = _overlap(s, made.length) * _overlap(d, thick) / min(thick, 1.0)
  value *= geometry.contrast
  _lighten(image, which, rows, columns, value)
  for c in (0, 1):
    reach = int(np.ceil(geometry.radius)) + 1
    rows, columns, y, x = _around(discs[:, c], reach, size)
    value = np.clip(geometry.radius + 0.5 - np.hypot(y, x), 0, 1)
    _lighten(image, np.arange(b), rows, columns, value)
  return image


def _around(centre, reach: int, size: int):
  """Rows and columns (m, k) near points, and how far away (m, k, 1|k)."""
  near = np.floor(centre)[:, None] + np.arange(-reach, reach + 1)[:, None]
  away = near + 0.5 - centre[:, None]  # of the middle of a pixel
  near = near.astype(np.int64)
  return near[..., 0], near[..., 1], away[..., 0, None], away[:, None, :, 1]


def _overlap(at: np.ndarray, width: float) -> np.ndarray:
  """Share of a pixel around `at` within `width` around 0, one dimension."""
  half = width / 2
  return np.clip(np.minimum(at + 0.5, half) - np.maximum(at - 0.5, -half), 0, 1)


def _lighten(image, which, rows, columns, value) -> None:
  """image = max(image, value) at (m, k, k) pixels; those outside are lost."""
  size = image.shape[1]
  inside = ((rows >= 0) & (rows < size))[:, :, None]
  inside = inside & ((columns >= 0) & (columns < size))[:, None]
  at = (which[:, None, None] * size + rows[:, :, None]) * size
  at = at + columns[:, None]
  np.maximum.at(image.reshape(-1), at[inside], value[inside])
