"""Augmentations of photographs, image by image through Pillow.

`inception_crop`: Szegedy et al., arXiv 1409.4842. `randaug`: Cubuk et al.,
arXiv 1909.13719. `three_augment`: Touvron et al. (DeiT III), arXiv
2204.07118. `random_erasing`: Zhong et al., arXiv 1708.04896. Operations as
in `transforms`; they work on grey and RGB.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vitscale.core.errors import UserError
from vitscale.data.pixels import from_pil, to_pil
from vitscale.data.random import Rng

_GREY = 128  # what rotating and shifting leave open


def scale(
  image, size: tuple[int, int], box=None, *, draft: bool = False
) -> np.ndarray:
  """Linear, antialiased resize of (h, w, c) to (*size, c).

  Args:
    image: an array, or a `image_file.ImageFile`.
    box: (left, top, right, bottom), the part of the image to take.
    draft: a JPEG file is decoded smaller, where the part stays as large as
      `size`.
  """
  h, w = image.shape[:2]
  left, top, right, bottom = box or (0, 0, w, h)
  if draft and not isinstance(image, np.ndarray):
    least = size[0] * h / (bottom - top), size[1] * w / (right - left)
    decoded = image.pil(least)
    kx, ky = decoded.width / w, decoded.height / h
    box = (left * kx, top * ky, right * kx, bottom * ky)
  else:
    decoded = to_pil(image)
  return from_pil(
    decoded.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
  )


def inception_crop(
  image,
  rng: Rng,
  size: int,
  area_min: float = 0.05,
  area_max: float = 1.0,
  *,
  ratio: float = 4 / 3,
  draft: bool = False,
) -> np.ndarray:
  """A part of random area and aspect, resized to size x size.

  Args:
    area_min, area_max: of the part, as a share of the image.
    ratio: width over height lies in [1/ratio, ratio], log-uniform.
    draft: parts of JPEG files that are twice `size` or more, and the first
      thing that is done to them, are decoded at 1/2, 1/4 or 1/8, in the
      frequency domain: quicker, and other pixels by a grey level or so.
  """
  if not 0 < area_min <= area_max <= 1 or ratio < 1 or size < 1:
    raise UserError(
      f"inception_crop needs 0 < area_min <= area_max <= 1, ratio >= 1 and "
      f"size >= 1, got {area_min}, {area_max}, {ratio}, {size}"
    )
  tries = 10
  area = area_min + (area_max - area_min) * rng.uniform("area", tries)
  aspect = ratio ** (2 * rng.uniform("aspect", tries) - 1)
  place = rng.uniform("place", 2)
  out = []
  for x, a, r, (down, right) in zip(image, area, aspect, place):
    h, w = x.shape[:2]
    wide, high = np.sqrt(a * h * w * r), np.sqrt(a * h * w / r)
    fits = np.nonzero((wide <= w) & (high <= h))[0]
    if len(fits):
      wide, high = wide[fits[0]], high[fits[0]]
    else:  # very long images: the largest middle part of allowed aspect
      wide, high = min(w, h * ratio), min(h, w * ratio)
      down = right = 0.5
    wide, high = max(1, round(wide)), max(1, round(high))
    top, left = int(down * (h - high + 1)), int(right * (w - wide + 1))
    box = (left, top, left + wide, top + high)
    out.append(scale(x, (size, size), box, draft=draft))
  return np.stack(out)


def randaug(image, rng: Rng, n: int = 2, m: float = 10):
  """n operations of RandAugment's fourteen, each at strength m of 10.

  Ranges at m = 10, as in the paper: rotation 30 degrees, shear 0.3, shift
  0.45 of the side (the paper: 150 of 331 px), colour, contrast, brightness
  and sharpness by a factor of 1 +- 0.9, posterise to 4 bits, solarise all.
  Every operation that has a strength gets stronger with m.
  """
  if n < 0 or not 0 <= m <= 10:
    raise UserError(f"randaug needs n >= 0 and 0 <= m <= 10, got {n}, {m}")
  which = rng.integers("op", len(_RANDAUG), n)
  sign = np.where(rng.uniform("sign", n) < 0.5, -1.0, 1.0)

  def apply(x, which, sign):
    for k, s in zip(which, sign):
      x = _RANDAUG[k](x, m / 10, s)
    return x

  return _map(apply, image, which, sign)


def three_augment(image, rng: Rng, jitter: float = 0.3):
  """One of grey, solarise, blur; then colour jitter. Crop and flip apart."""
  which = rng.integers("op", 3)[:, 0]
  sigma = 0.1 + 1.9 * rng.uniform("sigma")[:, 0]
  factors = 1 + jitter * (2 * rng.uniform("jitter", 3) - 1)

  def apply(x, which, sigma, factors):
    if which == 0 and x.mode == "RGB":
      x = x.convert("L").convert("RGB")
    elif which == 1:
      x = ImageOps.solarize(x, 128)
    elif which == 2:
      x = x.filter(ImageFilter.GaussianBlur(float(sigma)))
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind, factor in zip(kinds, factors):
      x = kind(x).enhance(factor)
    return x

  return _map(apply, image, which, sigma, factors)


def random_erasing(
  image,
  rng: Rng,
  p: float = 0.25,
  area_min: float = 0.02,
  area_max: float = 1 / 3,
):
  """Overwrites a rectangle with noise, with probability p."""
  if not 0 <= area_min <= area_max <= 1:
    raise UserError("random_erasing needs 0 <= area_min <= area_max <= 1")
  hit = rng.uniform("erase")[:, 0] < p
  share = area_min + (area_max - area_min) * rng.uniform("area")[:, 0]
  aspect = 0.3 ** (2 * rng.uniform("aspect")[:, 0] - 1)
  place = rng.uniform("place", 2)
  keys = rng.bits("noise")[:, 0]
  out = []
  for i, x in enumerate(image):
    if hit[i]:
      h, w, c = x.shape
      high = min(h, max(1, round((share[i] * h * w * aspect[i]) ** 0.5)))
      wide = min(w, max(1, round((share[i] * h * w / aspect[i]) ** 0.5)))
      top, left = (place[i] * (h - high + 1, w - wide + 1)).astype(int)
      values = Rng(0, 0, keys[i].astype(np.int64)).bits("x", high * wide * c)
      x = x.copy()
      x[top : top + high, left : left + wide] = (
        (values >> np.uint64(56)).astype(np.uint8).reshape(high, wide, c)
      )
    out.append(x)
  return out if isinstance(image, list) else np.stack(out)


def _map(fn, image, *draws):
  """`fn(pillow image, *draws of that image)`, in the container given."""
  out = [from_pil(fn(to_pil(x), *d)) for x, *d in zip(image, *draws)]
  return out if isinstance(image, list) else np.stack(out)


def _affine(x, matrix):
  """Maps target (column, row, 1), counted from the centre, to the source."""
  a, b, c, d, e, f = matrix
  cx, cy = x.width / 2, x.height / 2
  matrix = (a, b, c + cx - a * cx - b * cy, d, e, f + cy - d * cx - e * cy)
  fill = (_GREY,) * len(x.getbands()) if x.mode == "RGB" else _GREY
  return x.transform(
    x.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR,
    fillcolor=fill,
  )  # fmt: skip


def _rotate(x, s, sign):
  angle = np.deg2rad(30 * s * sign)
  cos, sin = np.cos(angle), np.sin(angle)
  return _affine(x, (cos, sin, 0, -sin, cos, 0))


# Each takes (image, strength 0..1, sign). Sign only where there are two ways.
_RANDAUG = (
  lambda x, s, sign: x,
  lambda x, s, sign: ImageOps.autocontrast(x),
  lambda x, s, sign: ImageOps.equalize(x),
  _rotate,
  lambda x, s, sign: ImageOps.solarize(x, round(256 * (1 - s))),
  lambda x, s, sign: ImageEnhance.Color(x).enhance(1 + 0.9 * s * sign),
  lambda x, s, sign: ImageOps.posterize(x, 8 - round(4 * s)),
  lambda x, s, sign: ImageEnhance.Contrast(x).enhance(1 + 0.9 * s * sign),
  lambda x, s, sign: ImageEnhance.Brightness(x).enhance(1 + 0.9 * s * sign),
  lambda x, s, sign: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * s * sign),
  lambda x, s, sign: _affine(x, (1, 0.3 * s * sign, 0, 0, 1, 0)),
  lambda x, s, sign: _affine(x, (1, 0, 0, 0.3 * s * sign, 1, 0)),
  lambda x, s, sign: _affine(x, (1, 0, 0.45 * s * sign * x.width, 0, 1, 0)),
  lambda x, s, sign: _affine(x, (1, 0, 0, 0, 1, 0.45 * s * sign * x.height)),
)
