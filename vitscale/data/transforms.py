"""Image transforms, written as one string and parsed without `eval`.

  transform = parse("inception_crop(224)|flip_lr|randaug(2, 10)")
  batch = transform(batch, rng)

An operation is any function here, in `augment` or in `clips` whose first
parameters are `(image, rng)`; the rest are its arguments, literals only. It
takes and returns uint8 (b, h, w, c), or a list of b arrays (h, w, c) of any
shapes, and draws from `rng` under names of its own, so that what happens to a
sample depends on (seed, epoch, sample) and never on the rest of its batch.
Mixing samples (mixup, cutmix) is the task's business, on the device. Of videos,
(b, t, h, w, c), each frame is seen as an image, those of a clip with the same
draws.

  parse({"image": "flip_lr", "image@20": "flip_lr|resize(20)"})

makes several views of the same images, each with draws of its own.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitscale.core import call
from vitscale.core.errors import UserError, nearest
from vitscale.data import augment, clips, pixels
from vitscale.data.random import Rng

Image = np.ndarray | list[np.ndarray]


class Transform:
  """A chain of operations on `batch["image"]`."""

  def __init__(self, text: str, calls: list[tuple[str, Callable, dict]]):
    self._text, self._calls = text, calls

  @property
  def takes_files(self) -> bool:
    """Whether the first operation decodes images itself, one after another."""
    return bool(self._calls) and self._calls[0][1] in FROM_FILES

  def __call__(self, batch: dict[str, Any], rng: Rng) -> dict[str, Any]:
    image = batch["image"]
    for scope, op, arguments in self._calls:
      own = rng.scope(scope)
      if clips.is_video(image) and op not in clips.OPERATIONS:
        image = clips.each_frame(op, image, own, **arguments)
      else:
        image = op(image, own, **arguments)
    return batch | {"image": image}

  def __repr__(self) -> str:
    return f"parse({self._text!r})"


class Views:
  """Several transforms of the same images, each another key of the batch."""

  def __init__(self, parts: dict[str, Transform]):
    self._parts = parts

  def __call__(self, batch: dict[str, Any], rng: Rng) -> dict[str, Any]:
    made = {
      name: transform(batch, rng.scope(name))["image"]
      for name, transform in self._parts.items()
    }
    return batch | made

  def __repr__(self) -> str:
    return f"Views({self._parts!r})"


def operations() -> dict[str, Callable]:
  """Every operation by name: its first parameters are `(image, rng)`."""
  known = vars(augment) | vars(clips) | globals()
  return {
    name: value
    for name, value in known.items()
    if inspect.isfunction(value)
    and list(inspect.signature(value).parameters)[:2] == ["image", "rng"]
  }


def parse(text: str | Mapping[str, str]) -> Transform | Views:
  """The transform that `op|op(1)|op(x=2)` says; "" leaves images alone.

  Args:
    text: operations, or those of every view by its name: `image`, which there
      must be, and `image@ANYTHING`.

  Raises:
    UserError: unknown operation or argument, no literal value, or a view of
      another name.
  """
  if isinstance(text, Mapping):
    names = list(text)
    wrong = [n for n in names if n.partition("@")[0] != "image"]
    if wrong or "image" not in names:
      said = f"{wrong[0]!r} is none" if wrong else "'image' is missing"
      raise UserError(f"transform: {said}: name views 'image', 'image@20', ...")
    return Views({name: parse(text[name]) for name in names})
  calls, known, what = [], operations(), f"transform {text!r}"
  for part in text.split("|") if text.strip() else []:
    name, args, kwargs = call.read(part, what)
    if name not in known:
      hint = nearest(name, known)
      raise UserError(f"{what}: no operation {name!r}{hint}")
    arguments = call.bind(known[name], args, kwargs, what=what, skip=2)
    # The second flip of a chain must not repeat the draws of the first.
    earlier = sum(op is known[name] for _, op, _ in calls)
    calls.append((f"{name}.{earlier}", known[name], arguments))
  return Transform(text, calls)


# Operations: geometry --------------------------------------------------------


def flip_lr(image: Image, rng: Rng, p: float = 0.5) -> Image:
  """Mirrors left and right with probability p."""
  flip = rng.uniform("flip")[:, 0] < p
  if isinstance(image, list):
    return [x[:, ::-1] if f else x for x, f in zip(image, flip)]
  out = image.copy()
  # Whole pixels, not channels, which are slow to turn around.
  pixel = np.dtype((np.void, image.shape[3] * image.itemsize))
  whole = np.ascontiguousarray(image).view(pixel)
  for i in np.flatnonzero(flip):
    out.view(pixel)[i] = whole[i, :, ::-1]
  return out


def random_shift(
  image: Image, rng: Rng, px: int, *, fill: str = "edge"
) -> Image:
  """Moves by up to px pixels each way; `fill` is edge, reflect or zero."""
  _at_least("random_shift", "px", px, 0)
  by = rng.integers("shift", px + 1, 2, low=-px)
  if isinstance(image, list):
    return [
      _window(x[None], o[None], x.shape[:2], fill)[0] for x, o in zip(image, by)
    ]
  return _window(image, by, image.shape[1:3], fill)


def random_crop(
  image: Image, rng: Rng, size: int, *, pad: int = 0, fill: str = "zero"
) -> np.ndarray:
  """A size x size window anywhere in the image widened by pad pixels."""
  _at_least("random_crop", "size", size, 1)
  _at_least("random_crop", "pad", pad, 0)
  u = rng.uniform("crop", 2)

  def crop(x, u):  # (b, h, w, c), (b, 2)
    room = np.array(x.shape[1:3]) + 2 * pad - size
    _fits("random_crop", room, x, size)
    start = (u * (room + 1)).astype(np.int64) - pad
    return _window(x, start, (size, size), fill)

  return _stacked(crop, image, u)


def central_crop(image: Image, rng: Rng, size: int) -> np.ndarray:
  """The size x size window in the middle."""
  _at_least("central_crop", "size", size, 1)

  def crop(x):
    room = np.array(x.shape[1:3]) - size
    _fits("central_crop", room, x, size)
    top, left = room // 2
    return x[:, top : top + size, left : left + size]

  return _stacked(crop, image)


def resize(image: Image, rng: Rng, size: int) -> np.ndarray:
  """Linear, antialiased resize to size x size, whatever the aspect."""
  _at_least("resize", "size", size, 1)
  if isinstance(image, list):
    return np.stack([augment.scale(x, (size, size)) for x in image])
  return pixels.resize(image, (size, size))


def resize_small(image: Image, rng: Rng, size: int) -> Image:
  """Resize that keeps the aspect and makes the shorter side `size`."""
  _at_least("resize_small", "size", size, 1)

  def shape(h, w):
    k = size / min(h, w)
    return max(size, round(h * k)), max(size, round(w * k))

  if isinstance(image, list):
    return [augment.scale(x, shape(*x.shape[:2])) for x in image]
  return pixels.resize(image, shape(*image.shape[1:3]))


def flatten(image: Image, rng: Rng) -> Image:
  """All pixels in one row, top row first: a picture as a sequence."""
  if isinstance(image, list):
    return [x.reshape(1, -1, x.shape[-1]) for x in image]
  return image.reshape(len(image), 1, -1, image.shape[-1])


# They look at an image's shape, and take it from its file to its new size at
# once: the whole image never becomes an array.
FROM_FILES = (augment.inception_crop, resize, resize_small)


# Operations: values ----------------------------------------------------------


def brightness(image: Image, rng: Rng, amount: float) -> Image:
  """Scales all values by 1 - amount to 1 + amount."""
  k = 1 + amount * (2 * rng.uniform("brightness")[:, 0] - 1)
  return _each(lambda x, k: x * k, image, k)


def contrast(image: Image, rng: Rng, amount: float) -> Image:
  """Scales the distance to each image's mean by 1 - amount to 1 + amount."""
  k = 1 + amount * (2 * rng.uniform("contrast")[:, 0] - 1)

  def apply(x, k):
    mean = x.mean((1, 2, 3), keepdims=True)
    return mean + (x - mean) * k

  return _each(apply, image, k)


def noise(image: Image, rng: Rng, std: float) -> Image:
  """Adds normal noise of `std` grey levels to every value."""
  sizes = [x.size for x in image] if isinstance(image, list) else None
  n = max(sizes) if sizes else image[0].size
  draws = rng.normal("noise", n + n % 2)
  add = lambda x, z: x + std * z[:, : x[0].size].reshape(x.shape)
  return _each(add, image, draws, column=False)


def invert(image: Image, rng: Rng, p: float = 0.5) -> Image:
  """Turns black into white and back with probability p."""
  turn = rng.uniform("invert")[:, 0] < p
  return _each(lambda x, t: np.where(t, 255.0 - x, x), image, turn)


# Helpers ---------------------------------------------------------------------


def _at_least(op: str, name: str, value: int, low: int) -> None:
  if value < low:
    raise UserError(f"{op}: {name} must be at least {low}, got {value}")


def _fits(op: str, room: np.ndarray, x: np.ndarray, size: int) -> None:
  if min(room) < 0:
    raise UserError(
      f"{op}({size}): an image of {x.shape[1]}x{x.shape[2]} px is too small; "
      f"put resize_small({size}) before it"
    )


def _stacked(fn: Callable, image: Image, *draws: np.ndarray) -> np.ndarray:
  """`fn` on the whole batch, or image by image where shapes differ."""
  if not isinstance(image, list):
    return fn(image, *draws)
  rows = (tuple(d[i : i + 1] for d in draws) for i in range(len(image)))
  return np.concatenate([fn(x[None], *d) for x, d in zip(image, rows)])


def _each(fn: Callable, image: Image, draw: np.ndarray, *, column=True):
  """`fn` in float32 on the batch or each image, rounded back to uint8."""
  if isinstance(image, list):
    parts = (draw[i : i + 1] for i in range(len(image)))
    return [
      _each(fn, x[None], d, column=column)[0] for x, d in zip(image, parts)
    ]
  if column:
    draw = draw[:, None, None, None]
  value = fn(image.astype(np.float32), draw)
  return np.rint(np.clip(value, 0, 255)).astype(np.uint8)


def _window(
  image: np.ndarray, start: np.ndarray, size: tuple[int, int], fill: str
) -> np.ndarray:
  """(b, *size, c) from row and column `start` (b, 2), may lie outside."""
  b, h, w, c = image.shape
  rows, row_ok = _index(start[:, 0], size[0], h, fill)
  columns, column_ok = _index(start[:, 1], size[1], w, fill)
  rows += np.arange(b)[:, None] * h
  # One flat index: twice as fast as three that numpy broadcasts.
  at = rows[:, :, None] * w + columns[:, None, :]
  out = image.reshape(b * h * w, c).take(at, axis=0)
  if fill == "zero":
    out *= (row_ok[:, :, None] & column_ok[:, None, :])[..., None]
  return out


def _index(start, length: int, n: int, fill: str):
  """Source index of every target row, and whether it lies inside."""
  at = start[:, None] + np.arange(length)
  inside = (at >= 0) & (at < n)
  if fill == "reflect":
    period = max(2 * n - 2, 1)
    at = np.abs((at + n - 1) % period - (n - 1))
  elif fill not in ("edge", "zero"):
    raise UserError(f"fill {fill!r} must be edge, reflect or zero")
  return np.clip(at, 0, n - 1), inside
