"""Periodic Gaussian random fields: images whose best codes are known.

A field is white noise filtered to the power `max(|k|, 1)^-power`, k in cycles
a side and the constant term as if |k| = 1. It is stationary, so its principal
components are the Fourier modes and its spectrum tells what any linear code
must lose (`vitscale.metrics.oracle`). Each field is a pure function of (seed,
split, number). `fields` gives 8-bit images, `values` the fields themselves,
`moving_fields` videos of them.
"""

import numpy as np
from scipy.special import ndtr

from vitscale.core.errors import UserError
from vitscale.data import source
from vitscale.data.random import Rng

MEAN = 128.0  # grey level of the value 0
BLOCK = 2048  # fields made at once


def fields(
  split: str = "train",
  size: int = 32,
  n: int = 20_000,
  *,
  power: float = 3.0,
  channels: int = 1,
  grey: float = 32.0,
  seed: int = 0,
) -> source.Source:
  """Gaussian fields as 8-bit images, all of one class.

  A value v becomes the integer next to `128 + grey v`, cut to 0..255. At the
  default of 32 grey levels a standard deviation .007 % of the pixels are cut
  (`clipped_share`), and rounding adds 1/12 of a grey level squared, 8e-5 of
  the variance: no code's residual can be told apart below that.

  Args:
    split: "train", "val" or "test": different fields.
    size: pixels a side.
    n: images.
    power: exponent of the power spectrum; 0 is white, 3 and 4 are smooth.
    channels: independent of each other, of the same spectrum.
    grey: grey levels a standard deviation.
    seed: of the whole set.
  """
  if not grey > 0:
    raise UserError(f"fields: grey must be above 0, got {grey}")
  if n < 1:
    raise UserError(f"fields: n must be at least 1, got {n}")
  kwargs = {"power": power, "channels": channels, "seed": seed}
  blocks = (np.arange(i, min(i + BLOCK, n)) for i in range(0, n, BLOCK))
  image = np.concatenate(
    [to_uint8(values(ids, split, size, **kwargs), grey) for ids in blocks]
  )
  mean, std = statistics(grey)
  return source.in_memory(
    image, np.zeros(n, np.int32), ("field",),
    (mean,) * channels, (std,) * channels, source.digest("fields", image),
  )  # fmt: skip


def moving_fields(
  split: str = "train",
  size: int = 32,
  n: int = 1_000,
  *,
  frames: int = 16,
  speed: float = 2.0,
  power: float = 3.0,
  channels: int = 1,
  grey: float = 32.0,
  seed: int = 0,
) -> source.Source:
  """Videos of fields that move past, each at one velocity of its own.

  The first frame is that of `fields`; the edge that leaves comes in again
  opposite. A video holds a field and two more numbers, whatever its length.

  Args:
    split, size, n, power, channels, grey, seed: see `fields`.
    frames: of a video.
    speed: pixels a frame, along both axes uniform from -speed to speed.

  Returns:
    a source whose `image` is uint8 (b, frames, size, size, channels).
  """
  if frames < 1 or n < 1 or not grey > 0:
    raise UserError(
      f"moving_fields: frames and n must be at least 1 and grey above 0, got"
      f" {frames}, {n}, {grey}"
    )
  kwargs = {"power": power, "channels": channels, "seed": seed}
  block = max(BLOCK // frames, 1)
  parts = []
  for i in range(0, n, block):
    ids = np.arange(i, min(i + block, n))
    still = values(ids, split, size, **kwargs)
    turn = Rng(seed, 0, ids).scope(f"moving_fields/{split}").uniform("turn", 2)
    parts.append(to_uint8(moved(still, speed * (2 * turn - 1), frames), grey))
  image = np.concatenate(parts)
  mean, std = statistics(grey)
  return source.in_memory(
    image, np.zeros(n, np.int32), ("field",), (mean,) * channels,
    (std,) * channels, source.digest("moving_fields", image),
  )  # fmt: skip


def moved(field: np.ndarray, velocity: np.ndarray, frames: int) -> np.ndarray:
  """Fields (b, h, w, c) on their way: (b, frames, h, w, c).

  Args:
    field: the first frame.
    velocity: (b, 2) rows and columns a frame, fractions too: between pixels
      the field is what its Fourier series says.
    frames: 1 or more.
  """
  h, w = field.shape[1:3]
  turns = velocity[:, 0, None, None] * np.fft.fftfreq(h)[:, None] + velocity[
    :, 1, None, None
  ] * np.fft.fftfreq(w)  # (b, h, w), of a frame
  wave = np.fft.fft2(field, axes=(1, 2))
  step = np.exp(-2j * np.pi * turns)[..., None]
  at = lambda t: np.fft.ifft2(wave * step**t, axes=(1, 2)).real
  return np.stack([at(t) for t in range(frames)], 1)


def values(
  ids: np.ndarray,
  split: str = "train",
  size: int = 32,
  *,
  power: float = 3.0,
  channels: int = 1,
  seed: int = 0,
) -> np.ndarray:
  """The fields of numbers `ids` (b,): float64 (b, size, size, channels).

  Mean 0 and variance 1, over fields, at each pixel. The mean of one field is
  not 0: its variance is the constant term's share of the power.
  """
  source.check_split(split)
  if channels < 1:
    raise UserError(f"fields: channels must be at least 1, got {channels}")
  gain = np.sqrt(spectrum(size, power))
  rng = Rng(seed, 0, ids).scope(f"fields/{split}")
  white = [
    rng.normal(f"white{c}", size**2).reshape(-1, size, size)
    for c in range(channels)
  ]
  return np.stack([np.fft.ifft2(np.fft.fft2(w) * gain).real for w in white], -1)


def spectrum(size: int, power: float) -> np.ndarray:
  """Variance of each Fourier mode: (size, size), in the order of `fft2`.

  Mean 1, so that a pixel has variance 1. The modes of the real transform have
  these variances too: they are the eigenvalues of the field's covariance.
  """
  if size < 2:
    raise UserError(f"fields: size must be at least 2, got {size}")
  if not 0 <= power < 20:
    raise UserError(f"fields: power must be from 0 to below 20, got {power}")
  k = np.fft.fftfreq(size, 1 / size)
  p = np.maximum(np.hypot(k[:, None], k), 1) ** -float(power)
  return p / p.mean()


def to_uint8(field: np.ndarray, grey: float = 32.0) -> np.ndarray:
  """Fields in standard deviations as 8-bit images of the same shape."""
  return np.rint(np.clip(MEAN + grey * field, 0, 255)).astype(np.uint8)


def clipped_share(grey: float = 32.0) -> float:
  """Expected share of pixels that fall outside 0..255 and are cut."""
  return float(ndtr(-MEAN / grey) + ndtr(-(255 - MEAN) / grey))


def statistics(grey: float = 32.0) -> tuple[float, float]:
  """Exact mean and standard deviation of an 8-bit pixel, in units of 0..1."""
  below = ndtr((np.arange(255) + 0.5 - MEAN) / grey)
  share = np.diff(below, prepend=0.0, append=1.0)  # of each of 256 levels
  level = np.arange(256) / 255
  mean = share @ level
  return float(mean), float((share @ (level - mean) ** 2) ** 0.5)
