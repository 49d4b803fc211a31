"""Crops of a few large photographs, split by photograph.

  data.source=crops data.path=photos data.size=64

Fifty photographs are fifty thousand crops of 64 px: enough to train a
tokenizer, not a classifier. Two crops of one photograph share its light, its
lens and its subject: what is held out are whole photographs.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from vitscale.core.errors import UserError
from vitscale.data import folder, image_file, pixels, source
from vitscale.data.random import Rng

MOST = 8 << 30  # bytes of crops of one split that are held in memory
THREADS = 4  # photographs that are decoded at a time; each may be 100 MB


def crops(
  path: str,
  split: str = "train",
  *,
  size: int,
  shorter: int | None = None,
  per_image: int | None = None,
  contrast: float = 0.02,
  val: float = 0.1,
  test: float = 0.0,
  channels: int = 3,
  flat: bool | None = None,
  skip_corrupt: bool = False,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> source.Source:
  """Disjoint squares of the images in a folder, held in memory.

  Args:
    path: images, in class folders or not (see `folder`).
    split: "train", "val" or "test".
    size: pixels a side of a crop. They tile the middle of an image.
    shorter: the shorter side of an image before it is cut; None leaves it as
      it is, and smaller images stay as they are.
    per_image: crops of one image at most, evenly spaced; None for all.
    contrast: standard deviation of grey, in 0..1, below which a crop is left
      out, as blurred ground and sky are; 0 keeps all.
    val, test: shares of images held out, at least one.
    channels: 3 or 1.
    flat: images have no classes; None asks the folder.
    skip_corrupt: leave unreadable images out, with a warning that names them.
    mean, std: per channel in 0..1; None is ImageNet's.

  Returns:
    A source of uint8 (size, size, channels), shuffled once and for all, so that
    the first ones (`limit`) are of many images.

  Raises:
    UserError: see `folder`; or images are too small, nothing has contrast, or
      crops don't fit into memory.
  """
  least = 1 if per_image is None else per_image
  if min(size, least) < 1 or not 0 <= contrast < 1:
    raise UserError(
      "crops: need size >= 1, contrast in [0, 1) and per_image >= 1, got"
      f" size={size}, contrast={contrast}, per_image={per_image}"
    )
  if shorter is not None and shorter < size:
    raise UserError(f"crops: shorter={shorter} is less than size={size}")
  if flat is None:
    root = Path(path).expanduser()
    tops = (root, *(root / name for name in folder.ALIASES["train"]))
    flat = any(folder.is_flat(top) for top in tops)
  mean, std = folder.statistics(channels, mean, std)
  root, names, files = folder.find(path, split, val, test, folder.images(flat))
  if skip_corrupt:
    files = _readable(root, files)
  paths = [root / file for file, _, _ in files]
  _check_sizes(paths, size, shorter, per_image, channels)

  def cut(file: Path) -> np.ndarray:
    found = tiles(reduced(image_file.decode(file, channels), shorter), size)
    found = found[grey(found).std((1, 2)) >= contrast * 255]
    if per_image is None or per_image >= len(found):
      return found
    return found[np.linspace(0, len(found) - 1, per_image).round().astype(int)]

  with ThreadPoolExecutor(THREADS) as pool:
    found = list(pool.map(cut, paths))
  counts = [len(x) for x in found]
  if not sum(counts):
    raise UserError(
      f"crops: no crop of {root} has a contrast of {contrast:g}: lower it"
    )
  label = np.repeat(np.array([c for _, _, c in files], np.int32), counts)
  if split == "train":
    there = np.bincount(label, minlength=len(names))
    if lost := [name for name, n in zip(names, there) if not n]:
      raise UserError(
        f"crops: nothing is left of {', '.join(lost[:5])} after leaving out"
        " what is unreadable, too small or flat"
      )
  order = Rng(0, 0, 0).choose("crops", len(label), len(label))[0]
  image = np.empty((len(label), size, size, channels), np.uint8)
  places = np.split(np.argsort(order), np.cumsum(counts)[:-1])
  for i, rows in enumerate(places):
    image[rows], found[i] = found[i], None  # no second copy of all
  return source.in_memory(
    image, label[order], names, mean, std,
    source.digest(names, files, size, shorter, per_image, contrast, channels),
  )  # fmt: skip


def _readable(root: Path, files: list[folder.File]) -> list[folder.File]:
  """The files that can be decoded; warns of the others."""

  def good(file: folder.File) -> bool:
    try:
      image_file.decode(root / file[0])
    except source.Unreadable:
      return False
    return True

  with ThreadPoolExecutor(THREADS) as pool:
    mask = list(pool.map(good, files))
  bad = [file for (file, _, _), ok in zip(files, mask) if not ok]
  if bad:
    text = f"{len(bad)} of {len(files)} images can't be read"
    more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
    some = f"{', '.join(bad[:10])}{more}"
    if len(bad) == len(files):
      raise UserError(f"crops: {text}: {some}; none is left")
    warnings.warn(f"{text} and are left out: {some}", stacklevel=3)
  return [file for file, ok in zip(files, mask) if ok]


def _check_sizes(
  paths: Sequence[Path],
  size: int,
  shorter: int | None,
  per_image: int | None,
  channels: int,
) -> None:
  """Names images without a crop; refuses what memory can't hold."""
  total, small = 0, []
  for path in paths:
    h, w = _shape(image_file.size_of(path), shorter)
    n = (h // size) * (w // size)
    total += min(n, per_image or n)
    small += [] if n else [path]
  if small:
    some = ", ".join(path.name for path in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    text = f"{len(small)} of {len(paths)} images are smaller than {size} px"
    if len(small) == len(paths):
      raise UserError(f"crops: {text}: {some}{more}")
    warnings.warn(f"{text} and left out: {some}{more}", stacklevel=3)
  if total * size**2 * channels > MOST:
    raise UserError(
      f"crops: {total} crops of {size} px take"
      f" {total * size**2 * channels / 2**30:.1f} GiB, more than"
      f" {MOST / 2**30:.0f}: set per_image, or shorter, or read the images"
      " themselves (data.source=folder)"
    )


def _shape(shape: tuple[int, int], shorter: int | None) -> tuple[int, int]:
  """Height and width after `reduced`."""
  h, w = shape
  if shorter is None or min(h, w) <= shorter:
    return h, w
  scale = shorter / min(h, w)
  return max(round(h * scale), shorter), max(round(w * scale), shorter)


def reduced(image: np.ndarray, shorter: int | None) -> np.ndarray:
  """(h, w, c) whose shorter side is at most `shorter`, antialiased."""
  shape = _shape(image.shape[:2], shorter)
  if shape == image.shape[:2]:
    return image
  small = pixels.to_pil(image).resize(shape[::-1], Image.Resampling.BILINEAR)
  return pixels.from_pil(small)


def tiles(image: np.ndarray, size: int) -> np.ndarray:
  """(n, size, size, c) of the middle of (h, w, c), row by row; n may be 0."""
  h, w, c = image.shape
  rows, columns = h // size, w // size
  top, left = (h - rows * size) // 2, (w - columns * size) // 2
  middle = image[top : top + rows * size, left : left + columns * size]
  middle = middle.reshape(rows, size, columns, size, c)
  return np.swapaxes(middle, 1, 2).reshape(-1, size, size, c)


def grey(image: np.ndarray) -> np.ndarray:
  """(n, h, w) float32 luminance (ITU-R BT.601) of uint8 (n, h, w, 1 or 3)."""
  if image.shape[-1] == 1:
    return image[..., 0].astype(np.float32)
  return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
