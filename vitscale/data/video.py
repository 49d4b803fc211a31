"""Your own videos: files, or folders of numbered frames.

  clips/train/walk/*.mp4  clips/train/run/a/001.png ...  clips/val/...
  clips/walk/*.mp4        clips/run/*.mp4
  clips/*.mp4             clips/a/001.png ...             (no classes)

A folder that holds images is one video, its frames in the order of the numbers
in their names; every other folder at the top is a class. Splits as in
`folder`: of their own, or a share held out by a hash of the names.

Reading files needs PyAV (`pip install 'vitscale[video]'`); frames do not.
"""

import functools
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vitscale.core.errors import UserError
from vitscale.data import folder, image_file, pixels, source

SUFFIXES = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
_RIGHT = (
  "expected PATH/train/CLASS/*.mp4 and PATH/val/..., PATH/CLASS/*.mp4 or"
  " PATH/*.mp4, or folders of frames in their place"
)


def video(
  path: str,
  split: str = "train",
  *,
  frames: int = 16,
  stride: int = 1,
  window: int = 0,
  size: int = 0,
  val: float = 0.1,
  test: float = 0.0,
  channels: int = 3,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> source.Source:
  """The beginning of every video, in alphabetical order.

  Args:
    path: see the top of this file.
    split: "train", "val" or "test".
    frames: that a video must have and, without a window, are read: its first.
    stride: 2 takes every second frame, and so on.
    window: frames that are read where there are as many, from which
      `random_frames` of a transform takes its clip; 0 reads `frames`.
    size: pixels a side: the shorter side becomes this, the square in the
      middle is kept; 0 leaves frames as they are.
    val, test, channels, mean, std: see `folder.folder`. The rotation that
      cameras note is not applied.

  Returns:
    a source whose `image` is a list of uint8 (t, h, w, channels), and whose
    classes are the folders, or "video" alone.

  Raises:
    UserError: as `folder.folder`; PyAV is missing; later, from `read`, a file
      that can't be decoded, too few frames, frames of unequal sizes.
  """
  window = window or frames
  for name, value, least in (
    ("frames", frames, 1), ("stride", stride, 1), ("size", size, 0),
    ("window", window, frames),
  ):  # fmt: skip
    if value < least:
      raise UserError(f"video: {name} must be at least {least}, got {value}")
  kind = folder.Kind("video", _RIGHT, _scan)
  root, names, files = folder.find(path, split, val, test, kind)
  mean, std = folder.statistics(channels, mean, std)
  if any(file.lower().endswith(SUFFIXES) for file, _, _ in files):
    _av()
  read = functools.partial(
    decode, frames=frames, window=window, stride=stride, size=size,
    channels=channels,
  )  # fmt: skip
  paths = tuple(str(root / file) for file, _, _ in files)
  return source.Source(
    images=functools.partial(_clips, paths, read),
    label=np.array([c for _, _, c in files], np.int32),
    class_names=tuple(names),
    shape=None,
    mean=mean,
    std=std,
    fingerprint=source.digest(
      "video", names, frames, stride, window, size, channels, files
    ),
  )


def _clips(paths, read, indices: np.ndarray) -> list[np.ndarray]:
  return [read(paths[i]) for i in indices]


# Finding ---------------------------------------------------------------------


def _scan(root: Path, top: str) -> tuple[list[str], list[folder.File]]:
  """Classes and videos below root/top, both sorted."""
  loose, classes = [], {}
  for entry in folder.entries(root / top):
    name = f"{top}/{entry.name}".lstrip("/")
    found = list(_walk(root, name, entry))
    if [file for file, _ in found] == [name]:
      loose += found
    elif found:
      classes[entry.name] = found
  if loose and classes:
    raise UserError(
      f"{root / top} holds {len(loose)} videos beside the class folder"
      f" {min(classes)}: move them into one; {_RIGHT}"
    )
  if not loose and not classes:
    kinds = " ".join(SUFFIXES)
    raise UserError(
      f"no videos below {root / top} (looked for {kinds} and folders of"
      f" frames); {_RIGHT}"
    )
  groups = {"video": loose} if loose else dict(sorted(classes.items()))
  files = [
    (file, size, c)
    for c, found in enumerate(groups.values())
    for file, size in sorted(found)
  ]
  return list(groups), files


def _walk(
  root: Path, name: str, entry: os.DirEntry
) -> Iterator[tuple[str, int]]:
  """(path below root with forward slashes, bytes) of the videos of an entry."""
  if entry.is_file():
    if entry.name.lower().endswith(SUFFIXES):
      yield name, entry.stat().st_size
    return
  inside = folder.entries(root / name)
  if frames := [e for e in inside if _is_frame(e)]:
    yield name, sum(e.stat().st_size for e in frames)
    return
  for e in inside:
    yield from _walk(root, f"{name}/{e.name}", e)


def _is_frame(entry: os.DirEntry) -> bool:
  moves = entry.name.lower().endswith(SUFFIXES)  # a GIF is a video here
  return folder.is_image(entry) and not moves


# Reading ---------------------------------------------------------------------


def decode(
  path: str | Path,
  *,
  frames: int,
  window: int,
  stride: int = 1,
  size: int = 0,
  channels: int = 3,
) -> np.ndarray:
  """uint8 (t, h, w, channels) of a video, `frames` <= t <= `window`.

  Raises:
    Unreadable: naming the file, whatever is wrong with it.
  """
  read = _of_folder if Path(path).is_dir() else _of_file
  taken: list[np.ndarray] = []
  shape, seen = None, 0
  span = (window - 1) * stride + 1
  for image in itertools.islice(read(path), span):
    seen += 1
    if shape is not None and image.size != shape:
      raise _refused(
        path, f"frame {seen} is {_px(image.size)}, the first is {_px(shape)}"
      )
    shape = image.size
    if (seen - 1) % stride:
      continue
    if size:
      image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    taken.append(pixels.from_pil(pixels.convert(image, channels)))
  if len(taken) < frames:
    every = f", data.stride={stride}" if stride > 1 else ""
    raise _refused(
      path, f"it has {seen} frames, data.frames={frames}{every} needs"
      f" {(frames - 1) * stride + 1}",
    )  # fmt: skip
  return np.stack(taken)


def _px(size: tuple[int, int]) -> str:
  return f"{size[1]}x{size[0]} px"


def _refused(path: str | Path, why: str) -> source.Unreadable:
  return source.Unreadable(
    f"cannot read video {path}: {why}; {image_file.REMEDY}"
  )


def _of_folder(path: str | Path) -> Iterator[Image.Image]:
  """The images of a folder, 2 before 10."""
  names = [e.name for e in folder.entries(path) if _is_frame(e)]
  parts = lambda name: [
    (int(x), "") if x.isdigit() else (-1, x)
    for x in re.split(r"([0-9]+)", name)
  ]
  for name in sorted(names, key=parts):
    yield pixels.to_pil(image_file.decode(Path(path) / name))


def _of_file(path: str | Path) -> Iterator[Image.Image]:
  """The frames of a file."""
  av = _av()
  try:
    with av.open(str(path)) as container:
      for frame in container.decode(video=0):
        yield frame.to_image()
  # What FFmpeg raises of damaged files depends on the format.
  except Exception as e:
    if isinstance(e, IndexError):
      raise _refused(path, "there is no video in it") from e
    reason = str(e).split("\n")[0].replace(f": {str(path)!r}", "")
    raise _refused(path, reason or type(e).__name__) from e


def _av() -> Any:
  try:
    import av
  except ImportError as e:
    raise UserError(
      "reading video files needs PyAV: pip install 'vitscale[video]', or give"
      " folders of frames"
    ) from e
  return av
