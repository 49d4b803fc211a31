"""Generated scenes with a class for every pixel.

A label map travels as the last channel of its image, so that whatever moves
pixels moves their classes with them: `image` is (b, h, w, 2) uint8, grey values
and class numbers (see vitscale/tasks/dense.py). Flips, shifts and crops keep
classes; anything that blends pixels doesn't.
"""

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import source
from vitscale.data.random import Rng

CLASSES = ("ground", "disc", "square", "stroke")
_BLOCK = 2048  # images drawn at a time


def scenes(
  split: str = "train",
  size: int = 16,
  n: int = 10_000,
  *,
  objects: int = 3,
  contrast: float = 90.0,
  noise: float = 20.0,
  seed: int = 0,
) -> source.Source:
  """Discs, squares and 1-px strokes, brighter or darker at random.

  Grey values don't tell the class: form does, at the scale of a pixel for edges
  and strokes, and over an object for what it is. Later objects lie on top.

  Args:
    split: "train", "val" or "test": different images.
    size: pixels a side.
    n: images.
    objects: in each image, at random places.
    contrast: grey levels between an object and the ground.
    noise: standard deviation of each pixel, grey levels.
    seed: of the whole set.

  Returns:
    A source whose `label` is the class of most pixels that are not ground.
  """
  source.check_split(split)
  if size < 8 or n < 1 or objects < 1:
    raise UserError(
      "scenes: need size >= 8, n >= 1 and objects >= 1, got"
      f" size={size}, n={n}, objects={objects}"
    )
  draw = lambda part, ids: _draw(
    Rng(seed, 0, ids).scope(f"scenes/{part}"), size, objects, contrast, noise
  )
  image = np.concatenate([
    draw(split, np.arange(i, min(i + _BLOCK, n))) for i in range(0, n, _BLOCK)
  ])  # fmt: skip
  counts = np.stack(
    [(image[..., 1] == c).sum((1, 2)) for c in range(1, len(CLASSES))], 1
  )
  label = 1 + counts.argmax(1)
  mean, std = source.statistics(draw("statistics", np.arange(512)))
  return source.in_memory(
    image, label, CLASSES, mean, std, source.digest(image)
  )


def _draw(rng, size, objects, contrast, noise) -> np.ndarray:
  """(b, size, size, 2) uint8."""
  b = len(rng)
  kind = 1 + rng.integers("kind", len(CLASSES) - 1, objects)
  centre = rng.uniform("centre", 2 * objects).reshape(b, objects, 2) * size
  radius = size * (0.12 + 0.1 * rng.uniform("radius", objects))
  angle = np.pi * rng.uniform("angle", objects)
  sign = np.where(rng.uniform("sign", objects) < 0.5, -contrast, contrast)
  rows, columns = np.mgrid[:size, :size] + 0.5
  grey = np.full((b, size, size), 128.0, np.float32)
  classes = np.zeros((b, size, size), np.uint8)
  for j in range(objects):
    pick = lambda x, j=j: x[:, j, None, None]
    y, x = rows - pick(centre[..., 0]), columns - pick(centre[..., 1])
    r, c, s = pick(radius), np.cos(pick(angle)), np.sin(pick(angle))
    forms = {
      1: y * y + x * x < r * r,
      2: np.maximum(abs(y), abs(x)) < 0.85 * r,
      3: (abs(c * y - s * x) < 0.5) & (abs(s * y + c * x) < 1.8 * r),
    }
    for number, inside in forms.items():
      here = inside & (pick(kind) == number)
      grey = np.where(here, 128 + pick(sign), grey)
      classes[here] = number
  grey = grey + noise * rng.normal("noise", size * size).reshape(grey.shape)
  grey = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
  return np.stack([grey, classes], -1)
