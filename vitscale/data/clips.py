"""Transforms of videos: which frames are taken, and images' operations.

Operations as in `transforms`, on uint8 (b, t, h, w, c) or a list of b arrays
(t, h, w, c). All others are made for images; `each_frame` has them see frames,
with one draw for all frames of a clip, so that a crop stays where it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data.random import Rng

Image = np.ndarray | list[np.ndarray]


def is_video(image: Image) -> bool:
  """Whether these are clips, not images."""
  if isinstance(image, list):
    return image[0].ndim == 4
  return image.ndim == 5


def random_frames(image: Image, rng: Rng, n: int) -> np.ndarray:
  """n frames in a row, from anywhere in the video: (b, n, h, w, c)."""
  u = rng.uniform("start")[:, 0]
  return _taken("random_frames", image, n, lambda i, room: int(u[i] * room))


def central_frames(image: Image, rng: Rng, n: int) -> np.ndarray:
  """The n frames in the middle."""
  return _taken("central_frames", image, n, lambda _, room: (room - 1) // 2)


OPERATIONS = (random_frames, central_frames)  # they see whole clips


def _taken(op: str, image: Image, n: int, start: Callable) -> Image:
  """n frames of every clip from `start(clip, number of starts)`."""
  if n < 1:
    raise UserError(f"{op}: n must be at least 1, got {n}")
  if not is_video(image):
    raise UserError(f"{op}: these are images; leave it out")
  found = []
  for i, clip in enumerate(image):
    if len(clip) < n:
      raise UserError(f"{op}({n}): a video has {len(clip)} frames")
    first = start(i, len(clip) - n + 1)
    found.append(clip[first : first + n])
  return found if isinstance(image, list) else np.stack(found)


def each_frame(
  op: Callable[..., Image], image: Image, rng: Rng, **arguments: Any
) -> Image:
  """`op` on every frame, all frames of a clip with the draws of that clip."""
  lengths = [len(clip) for clip in image]
  rng = rng.take(np.repeat(np.arange(len(image)), lengths))
  if not isinstance(image, list):
    made = op(image.reshape(-1, *image.shape[2:]), rng, **arguments)
    return made.reshape(*image.shape[:2], *made.shape[1:])
  made = op([frame for clip in image for frame in clip], rng, **arguments)
  ends = np.cumsum(lengths)
  return [np.stack(made[e - n : e]) for e, n in zip(ends, lengths)]
