"""One image file: its size from the header, its pixels when they are needed."""

import dataclasses
import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitscale.data import pixels, source

REMEDY = (
  "remove it, or set data.skip_corrupt=True to leave out all such files, and"
  " start a new workdir: the data are others then"
)


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image that is decoded when it is needed, (h, w, channels) then.

  Attributes:
    data: what the file holds.
    channels: 3 or 1.
    name, remedy: for errors.
  """

  data: bytes
  channels: int
  name: str
  remedy: str = REMEDY
  ndim = 3

  @functools.cached_property
  def shape(self) -> tuple[int, int, int]:
    """From the header alone."""
    return *size_of(self.data, self.name, self.remedy), self.channels

  def pil(self, least: tuple[float, float] = (0, 0)) -> Image.Image:
    """Upright; with `least`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size
    while that is as high and wide (Pillow's `draft`)."""
    return _upright(self.data, self.channels, self.name, self.remedy, least)

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    return pixels.from_pil(self.pil()).astype(dtype or np.uint8, copy=False)


def decode(path: str | Path, channels: int = 3) -> np.ndarray:
  """uint8 (h, w, channels) of an image file, upright.

  Raises:
    Unreadable: naming the file, whatever is wrong with it.
  """
  return pixels.from_pil(_upright(path, channels, path, REMEDY))


def _upright(
  file: str | Path | bytes,
  channels: int,
  name: str | Path,
  remedy: str,
  least: tuple[float, float] = (0, 0),
) -> Image.Image:
  try:
    with Image.open(_opens(file)) as image:
      if any(least) and image.format == "JPEG":
        h, w = least[::-1] if _turned(image) else least
        image.draft(image.mode, (math.ceil(w), math.ceil(h)))
      ImageOps.exif_transpose(image, in_place=True)
      image.load()
      return pixels.convert(image, channels)
  # Damaged files make Pillow's readers raise nearly anything.
  except Exception as e:
    raise unreadable(name, e, remedy) from e


def size_of(
  file: str | Path | bytes, name: str | Path = "", remedy: str = REMEDY
) -> tuple[int, int]:
  """Height and width of an image, upright, from its header alone.

  Args:
    file: a path, or what such a file holds.
    name, remedy: for errors; a path is its own name.

  Raises:
    Unreadable: naming the file, as `decode`.
  """
  try:
    with Image.open(_opens(file)) as image:
      w, h = image.size
      turned = _turned(image)
  except Exception as e:
    raise unreadable(name or file, e, remedy) from e
  return (w, h) if turned else (h, w)


def _turned(image: Image.Image) -> bool:
  """Whether upright its sides change places."""
  return image.getexif().get(ExifTags.Base.Orientation, 1) > 4


def _opens(file: str | Path | bytes) -> Any:
  return io.BytesIO(file) if isinstance(file, bytes) else file


def unreadable(
  path: str | Path, e: Exception, remedy: str = REMEDY
) -> source.Unreadable:
  """What is wrong with a file, in a line."""
  reason = str(e).split("\n")[0].replace(f" {str(path)!r}", "")
  if "BytesIO" in reason:  # an address, which says nothing
    reason = "cannot identify image file"
  return source.Unreadable(
    f"cannot read image {path}: {reason or type(e).__name__}; {remedy}"
  )
