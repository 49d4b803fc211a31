"""Images side by side: a sheet of tiles, as one 8-bit image."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2  # pixels between tiles
PAPER = 255


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image of a page.

  Attributes:
    name: file name without ending, unique on a page.
    image: (h, w, c) uint8, c of 1 or 3; see `sheet`.
  """

  name: str
  title: str
  image: np.ndarray
  caption: str = ""


def sheet(image: np.ndarray, columns: int | None = None) -> np.ndarray:
  """(n, h, w, c) uint8 -> one (H, W, c) of all, row by row.

  Args:
    image: tiles of one size, c of 1 or 3.
    columns: of tiles; default about as many as rows.
  """
  n, h, w, c = image.shape
  columns = columns or math.ceil(math.sqrt(n * h / w))
  rows = -(-n // columns)
  blank = np.full((rows * columns - n, h, w, c), PAPER, np.uint8)
  tiles = np.concatenate([image, blank])
  framed = np.pad(
    tiles, ((0, 0), (GAP, 0), (GAP, 0), (0, 0)), constant_values=PAPER
  )
  grid = framed.reshape(rows, columns, h + GAP, w + GAP, c).swapaxes(1, 2)
  whole = grid.reshape(rows * (h + GAP), columns * (w + GAP), c)
  return np.pad(whole, ((0, GAP), (0, GAP), (0, 0)), constant_values=PAPER)


def save(path: Path, image: np.ndarray) -> None:
  """Writes one (h, w, c) uint8 image, c of 1 or 3, as PNG."""
  grey = image.shape[-1] == 1
  Image.fromarray(image[..., 0] if grey else image).save(path)
