"""Generated images whose labels need fine detail, or do not.

`strokes` can only be read at the scale of single pixels, `blobs` can be read
from averages over a quarter of the image: together they ask whether a
smaller patch helps because of detail. Each image is a pure function of
(seed, split, number), made once, held in memory.
"""

import functools

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import source
from vitscale.data.random import Rng

# Row and column step of a stroke, degrees counted against the clock.
ORIENTATIONS = {0: (0, 1), 45: (-1, 1), 90: (1, 0), 135: (1, 1)}


def strokes(
  split: str = "train",
  size: int = 12,
  n: int = 20_000,
  *,
  classes: int = 4,
  strokes: int = 6,
  majority: int = 3,
  length: int = 3,
  contrast: float = 90.0,
  noise: float = 20.0,
  seed: int = 0,
) -> source.Source:
  """Short 1-px strokes; the label is the orientation most of them have.

  Args:
    split: "train", "val" or "test": different images.
    size: pixels a side.
    n: images.
    classes: 4 (0, 45, 90, 135 degrees) or 2 (0, 90).
    strokes: in each image, at random places, brighter or darker at random.
    majority: how many surely have the label's orientation; the others have
      any, so that a few images are ambiguous by nature.
    length: of a stroke, pixels.
    contrast: grey levels between stroke and ground.
    noise: standard deviation of each pixel, grey levels.
    seed: of the whole set.
  """
  _check(split, size, n)
  if classes not in (2, 4):
    raise UserError(f"strokes: classes must be 2 or 4, got {classes}")
  if not 1 <= length <= size:
    raise UserError(f"strokes: length {length} must be 1 to size {size}")
  if not 1 <= majority <= strokes:
    raise UserError(f"strokes: majority {majority} must be 1 to {strokes}")
  draw = functools.partial(
    _strokes, size=size, steps=list(ORIENTATIONS.values())[:: 4 // classes],
    strokes=strokes, majority=majority, length=length, contrast=contrast,
    noise=noise,
  )  # fmt: skip
  names = [f"{angle} degrees" for angle in ORIENTATIONS][:: 4 // classes]
  return _make("strokes", draw, split, n, seed, names)


def _strokes(rng, *, size, steps, strokes, majority, length, contrast, noise):
  n, k, steps = len(rng), len(steps), np.array(steps)
  label = rng.integers("label", k)[:, 0]
  kind = rng.integers("kind", k, strokes)  # (n, strokes)
  kind[:, :majority] = label[:, None]
  step = steps[kind]  # (n, strokes, 2)
  reach = step * (length - 1)  # from first to last pixel
  room = size - np.abs(reach)
  place = rng.uniform("place", 2 * strokes).reshape(n, strokes, 2)
  first = (place * room).astype(np.int64) + np.maximum(0, -reach)
  sign = np.where(rng.uniform("sign", strokes) < 0.5, -contrast, contrast)
  image = np.zeros((n, size, size), np.float32)
  for j in range(strokes):
    for t in range(length):
      row, column = (first[:, j] + t * step[:, j]).T
      image[np.arange(n), row, column] = sign[:, j]
  return image, label, noise


def blobs(
  split: str = "train",
  size: int = 12,
  n: int = 20_000,
  *,
  contrast: float = 10.0,
  noise: float = 20.0,
  seed: int = 0,
) -> source.Source:
  """One faint, smooth spot; the label is the quadrant it lies in.

  The spot is about as wide as a quadrant, so that no smaller patch is
  needed: as they stand, a linear map of the four quadrant means gets 75 %
  right, of all pixels 78 %. Noise, not detail, makes it hard.

  Args:
    split, size, n, noise, seed: as for `strokes`.
    contrast: height of the spot, grey levels.
  """
  _check(split, size, n)
  draw = functools.partial(_blobs, size=size, contrast=contrast, noise=noise)
  names = ("top left", "top right", "bottom left", "bottom right")
  return _make("blobs", draw, split, n, seed, names)


def _blobs(rng, *, size, contrast, noise):
  label = rng.integers("label", 4)[:, 0]
  centre = np.stack([label // 2, label % 2], 1) * 0.5 + 0.25
  centre = (centre + (rng.uniform("place", 2) - 0.5) / 8) * size  # (n, 2)
  distance = np.arange(size) + 0.5 - centre[:, :, None]  # (n, 2, size)
  bump = np.exp(-0.5 * (distance / (size / 5)) ** 2).astype(np.float32)
  return contrast * bump[:, 0, :, None] * bump[:, 1, None, :], label, noise


def noise(
  split: str = "train",
  size: int = 224,
  n: int = 256,
  *,
  channels: int = 3,
  classes: int = 1000,
  seed: int = 0,
) -> source.Source:
  """Pixels and labels at random: nothing to learn, shapes to time a step on."""
  _check(split, size, n)
  rng = Rng(seed, 0, np.arange(n)).scope(f"noise/{split}")
  pixels = rng.integers("pixels", 256, size * size * channels)
  image = pixels.astype(np.uint8).reshape(n, size, size, channels)
  label = rng.integers("label", classes)[:, 0]
  mean, std = (0.5,) * channels, (12**-0.5,) * channels
  names = [str(i) for i in range(classes)]
  return source.in_memory(
    image, label, names, mean, std, source.digest(image, label)
  )


def _check(split: str, size: int, n: int) -> None:
  source.check_split(split)
  if size < 2 or n < 1:
    raise UserError(f"need size >= 2 and n >= 1, got size={size}, n={n}")


def _render(draw, rng) -> tuple[np.ndarray, np.ndarray]:
  """uint8 (b, size, size, 1) and labels, on mid grey with pixel noise."""
  image, label, noise = draw(rng)
  if noise:
    image += noise * rng.normal("noise", image[0].size).reshape(image.shape)
  image = np.rint(np.clip(image + 128, 0, 255)).astype(np.uint8)
  return image[..., None], label


def _make(name, draw, split, n, seed, names) -> source.Source:
  scope = lambda part, ids: Rng(seed, 0, ids).scope(f"{name}/{part}")
  blocks = [
    _render(draw, scope(split, np.arange(i, min(i + 4096, n))))
    for i in range(0, n, 4096)
  ]
  image, label = (np.concatenate(part) for part in zip(*blocks))
  # All splits share the statistics of a set of their own.
  probe, _ = _render(draw, scope("statistics", np.arange(2048)))
  return source.in_memory(
    image, label, names, *source.statistics(probe),
    source.digest(image, label),
  )  # fmt: skip
