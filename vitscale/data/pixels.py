"""Resizing and conversion of uint8 images, in arrays or through Pillow."""

import functools
from typing import Any

import numpy as np
from PIL import Image


@functools.lru_cache(64)
def resize_matrix(n: int, m: int) -> np.ndarray:
  """(m, n) float64 weights of a linear resize from n to m pixels.

  The triangle filter is stretched by n/m when shrinking (antialiased), pixel
  centres are at half integers, rows sum to one: the same filter as Pillow's
  BILINEAR and jax.image.resize's "linear". Weights are multiples of 2^-12,
  which makes every sum exact in float64 and the pixels the same on any
  machine, whatever order its matrix product adds in.
  """
  scale = max(n / m, 1.0)
  centre = (np.arange(m) + 0.5) * n / m
  distance = np.abs(np.arange(n) + 0.5 - centre[:, None]) / scale
  weight = np.maximum(0.0, 1.0 - distance)
  weight = np.rint(weight / weight.sum(1, keepdims=True) * 4096)
  rest = 4096 - weight.sum(1)  # goes to the largest weight
  weight[np.arange(m), weight.argmax(1)] += rest
  return weight / 4096


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Linear resize of uint8 (b, h, w, c) to (b, *size, c), antialiased."""
  if image.shape[1:3] == tuple(size):
    return image
  rows = resize_matrix(image.shape[1], size[0])
  columns = resize_matrix(image.shape[2], size[1])
  out = np.empty((len(image), *size, image.shape[3]), np.uint8)
  for i in range(0, len(image), 256):  # bounds the float copy
    x = np.moveaxis(image[i : i + 256].astype(np.float64), 3, 1)
    x = rows @ x @ columns.T  # (b, c, h, w)
    out[i : i + 256] = np.moveaxis(np.rint(x), 1, 3)
  return out


def to_pil(image: Any) -> Image.Image:
  """A grey or RGB Pillow image of uint8 (h, w, 1 or 3) or a an `ImageFile`."""
  if not isinstance(image, np.ndarray):
    return image.pil()
  return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def from_pil(image: Image.Image) -> np.ndarray:
  """uint8 (h, w, c) of a grey or RGB Pillow image."""
  array = np.asarray(image)
  return array[:, :, None] if array.ndim == 2 else array


def convert(image: Image.Image, channels: int) -> Image.Image:
  """Grey (1) or RGB (3), whatever the file holds.

  Transparent pixels come out white: below an alpha of zero files hold
  anything. 16-bit grey is scaled, not clipped.
  """
  if image.mode.startswith("I") or image.mode == "F":
    array = np.asarray(image, np.float64)
    if array.max(initial=0) > 255:
      array = array / 257
    image = Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))
  mode = "L" if channels == 1 else "RGB"
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image if image.mode == mode else image.convert(mode)
