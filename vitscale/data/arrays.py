"""Images in NumPy files: `.npz`, or a folder of `.npy` that is mapped.

  digits.npz: images (n, h, w[, c]) uint8, labels (n,), class_names
  digits/images.npy, digits/labels.npy
  medical.npz: train_images, train_labels, val_images, val_labels, ...

With `train_`, `val_`, `test_` in front of the names, splits are of their own.
"""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import files, records
from vitscale.data import source as source_lib
from vitscale.data.source import Source

SAMPLE = 4096  # images at most that mean and deviation are taken of


def numpy(
  path: str,
  split: str = "train",
  *,
  val: float = 0.1,
  test: float = 0.0,
  class_names: Sequence[str] | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> Source:
  """Images of one shape, in their order.

  Args:
    path: see the top of this file; local or remote (see `files`), where
      remote ones are read whole into memory, as is .npz.
    split: "train", "val" or "test".
    val, test: shares of each class held out where there is no such split.
    class_names: else those in the file, else labels' numbers or strings.
    mean, std: per channel in 0..1; None takes them of the images of "train",
      at most 4096 of them, evenly spaced.

  Raises:
    UserError: no such files or arrays, other kinds or shapes than these,
      pickled objects.
  """
  root, entries = files.listing(path, (".npz", ".npy"), "numpy")
  found = _arrays(root, entries)
  parts = {
    name: _pair(root, found, prefix)
    for name, prefix in [("", "")] + [(s, f"{s}_") for s in source_lib.SPLITS]
    if f"{prefix}images" in found or f"{prefix}labels" in found
  }
  if not parts or ("" in parts and len(parts) > 1):
    raise UserError(
      f"numpy: {path} has {', '.join(sorted(found)) or 'nothing'}; expected"
      " images and labels, or train_images, train_labels, val_images, ..."
    )
  if class_names is None and "class_names" in found:
    class_names = [str(x) for x in found["class_names"]]
  chosen = records.choose(
    root, {k: label for k, (_, label) in parts.items()},
    dict.fromkeys(parts, str), split, val, test, class_names,
  )  # fmt: skip
  train = records.choose(
    root, {k: label for k, (_, label) in parts.items()},
    dict.fromkeys(parts, str), "train", val, test, class_names,
  )  # fmt: skip
  image = parts[chosen.part][0]
  every = train.rows[:: max(1, -(-len(train.rows) // SAMPLE))]
  mean, std = _statistics(parts[train.part][0], every, mean, std)
  return Source(
    images=functools.partial(_images, _where(image), chosen.rows),
    label=chosen.label,
    class_names=chosen.class_names,
    shape=(image.shape[1:] + (1,))[:3],
    mean=mean,
    std=std,
    fingerprint=source_lib.digest(
      [e[:2] for e in entries], chosen.part, chosen.rows, chosen.label,
      chosen.class_names,
    ),
  )  # fmt: skip


def _arrays(root: str, entries) -> dict[str, np.ndarray]:
  """Every array by its name, without a folder."""
  found: dict[str, np.ndarray] = {}
  for entry in entries:
    made = _load(f"{root}/{entry.name}")
    stem = Path(entry.name).stem
    for name, array in (
      made if isinstance(made, dict) else {stem: made}
    ).items():
      if name in found:
        raise UserError(f"numpy: {root} has two arrays called {name!r}")
      found[name] = array
  return found


def _load(path: str) -> Any:
  try:
    if files.is_remote(path):
      with files.opened(path) as file:
        data = np.load(io.BytesIO(file.read()), allow_pickle=False)
    else:
      data = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(data, np.ndarray):
      return data
    with data:
      return {name: data[name] for name in data.files}
  except UserError:
    raise
  except Exception as e:  # zip, numpy and drivers have their own
    raise UserError(f"numpy: cannot read {path}: {e}") from e


def _pair(root, found, prefix: str) -> tuple[np.ndarray, np.ndarray]:
  """Images and labels, checked."""
  for name in ("images", "labels"):
    if prefix + name not in found:
      raise UserError(f"numpy: {root} has no {prefix}{name}")
  image, label = found[f"{prefix}images"], found[f"{prefix}labels"]
  if image.dtype != np.uint8 or image.ndim not in (3, 4):
    raise UserError(
      f"numpy: {root}: {prefix}images are {image.dtype} {image.shape}; expected"
      " uint8 (n, h, w) or (n, h, w, c)"
    )
  if image.ndim == 4 and image.shape[3] not in (1, 3):
    raise UserError(
      f"numpy: {root}: {prefix}images {image.shape} have {image.shape[3]}"
      " channels; expected 1 or 3, last"
    )
  if label.ndim == 2 and label.shape[1] == 1:
    label = label[:, 0]
  if label.ndim != 1 or label.dtype.kind not in "iuU":
    raise UserError(
      f"numpy: {root}: {prefix}labels are {label.dtype} {label.shape}; expected"
      " integers or strings (n,)"
    )
  if len(label) != len(image):
    raise UserError(
      f"numpy: {root}: {len(image)} {prefix}images, {len(label)} labels"
    )
  return image, np.array(label)


def _statistics(image, rows, mean, std) -> tuple[tuple, tuple]:
  channels = (image.shape[1:] + (1,))[2]
  if mean is None or std is None:
    taken = np.asarray(image[rows]).reshape(-1, channels)
    own = source_lib.statistics(taken)
  else:
    own = (mean, std)
  given = (own[0] if mean is None else mean, own[1] if std is None else std)
  for name, value in zip(("mean", "std"), given, strict=True):
    if len(value) != channels:
      raise UserError(f"numpy: {name} needs {channels} values, got {value}")
  return tuple(map(float, given[0])), tuple(map(float, given[1]))


def _where(image: np.ndarray) -> str | np.ndarray:
  """What reaches a worker: the path of a mapped array, or all of it."""
  return str(image.filename) if isinstance(image, np.memmap) else image


@functools.lru_cache(8)
def _mapped(path: str) -> np.ndarray:
  return np.load(path, mmap_mode="r")


def _images(where, rows, indices) -> np.ndarray:
  image = _mapped(where) if isinstance(where, str) else where
  taken = np.array(image[rows[indices]])
  return taken if taken.ndim == 4 else taken[..., None]
