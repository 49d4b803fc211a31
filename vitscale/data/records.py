"""Encoded images in shards, whatever their format, as one source.

A format says how to read the bytes of record i and what its label is; which
records a split has, class numbers, decoding and errors are the same for all.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import folder
from vitscale.data import source as source_lib
from vitscale.data.image_file import ImageFile
from vitscale.data.source import NoSplit, Source

REMEDY = (
  "mend it, or set data.skip_corrupt=True to leave out all such images, and"
  " start a new workdir: the data are others then"
)


class Records(NamedTuple):
  """Encoded images of one part of the data.

  Attributes:
    read: int64 indices (b,) -> their bytes. Picklable, and so is `name`.
    name: index -> what to call it in errors, unique, without the root.
    label: (n,) int64, or n strings.
    key: what the fingerprint covers; changes when the images do.
  """

  read: Callable[[np.ndarray], list[bytes]]
  name: Callable[[int], str]
  label: np.ndarray
  key: Any


class Choice(NamedTuple):
  """Which samples make a split.

  Attributes:
    part: that they are of.
    rows: (n,) their numbers in it.
    label: (n,) int32.
    class_names: one per class.
  """

  part: str
  rows: np.ndarray
  label: np.ndarray
  class_names: tuple[str, ...]


def source(
  where: str,
  parts: Mapping[str, Records],
  split: str,
  *,
  val: float,
  test: float,
  channels: int,
  mean: Sequence[float] | None,
  std: Sequence[float] | None,
  class_names: Sequence[str] | None = None,
) -> Source:
  """The source of one split.

  Args:
    where: the data are, for errors.
    parts: records by split, or all of them as "".
    split: "train", "val" or "test".
    val, test, channels, mean, std: see `folder.folder`.
    class_names: if the data say so; else numbers as they are, or the sorted
      names that "train" has.

  Raises:
    UserError: see `choose`; later, from `read`, `source.Unreadable`.
  """
  mean, std = folder.statistics(channels, mean, std)
  labels = {name: part.label for name, part in parts.items()}
  naming = {name: part.name for name, part in parts.items()}
  chosen = choose(where, labels, naming, split, val, test, class_names)
  part = parts[chosen.part]
  read = functools.partial(_read, part.read, chosen.rows)
  name = functools.partial(_name, where, part.name, chosen.rows)
  files = functools.partial(_files, read, name, channels)
  return Source(
    images=functools.partial(_images, files),
    label=chosen.label,
    class_names=chosen.class_names,
    shape=None,
    mean=mean,
    std=std,
    fingerprint=source_lib.digest(
      chosen.class_names, channels, part.key, chosen.rows, chosen.label
    ),
    measure=functools.partial(_sizes, files, len(chosen.rows)),
    files=files,
  )


def _read(read, rows, indices) -> list[bytes]:
  return read(rows[indices])


def _name(where, name, rows, i: int) -> str:
  return f"{where}/{name(int(rows[i]))}"


def _files(read, name, channels, indices) -> list[ImageFile]:
  return [
    ImageFile(data, channels, name(i), REMEDY)
    for i, data in zip(indices, read(indices), strict=True)
  ]


def _images(files, indices) -> list[np.ndarray]:
  return [np.asarray(file) for i in indices for file in files(np.array([i]))]


def _sizes(files, n: int) -> np.ndarray:
  return np.array([files(np.array([i]))[0].shape[:2] for i in range(n)])


# -------------------------------------------------------------------- splits


def choose(
  where: str,
  labels: Mapping[str, np.ndarray],
  naming: Mapping[str, Callable[[int], str]],
  split: str,
  val: float,
  test: float,
  class_names: Sequence[str] | None = None,
) -> Choice:
  """The samples of a split: its own, or a share that is held out.

  Args:
    where: the data are, for errors.
    labels: (n,) integers or strings by split, or all of them as "".
    naming: number of a sample -> its name, whose hash decides what is held out.
    split, val, test, class_names: see `source`.

  Raises:
    NoSplit: there is no such split, and none is to be held out.
    UserError: unknown split, no training data, labels that don't fit.
  """
  source_lib.check_split(split)
  if min(val, test) < 0 or val + test >= 1:
    raise UserError(
      f"val and test are shares that leave something to train on, got {val}"
      f" and {test}"
    )
  first = "" if "" in labels else "train"
  if first not in labels:
    raise UserError(f"{where} has {' and '.join(labels)} but no train split")
  for name, label in labels.items():
    if not len(label):
      raise UserError(f"{where}: {name or 'it'} holds no images")
  names = _class_names(where, labels[first], class_names)
  if split != "train" and split in labels:
    label = _numbers(where, split, labels[split], names)
    return Choice(split, np.arange(len(label)), label, names)
  shares = {
    name: 0.0 if name in labels else share
    for name, share in (("val", val), ("test", test))
  }
  if split != "train" and not shares[split]:
    raise NoSplit(
      f"{where} has no {split} split; hold a share out by {split}=0.1"
    )
  return _carve(
    where, first, labels[first], naming[first], split, shares, names
  )


def _carve(where, first, label, name, split, shares, names) -> Choice:
  label = _numbers(where, first or "data", label, names)
  if not any(shares.values()):
    return Choice(first, np.arange(len(label)), label, names)
  samples = [name(i) for i in range(len(label))]
  rows = np.sort(folder.held_out(samples, label, split, shares)).astype(int)
  if not len(rows):
    raise NoSplit(f"{where}: too few images to hold any out for {split}")
  return Choice(first, rows, label[rows], names)


def _class_names(where, label, given) -> tuple[str, ...]:
  if given is not None:
    return tuple(str(name) for name in given)
  if label.dtype.kind in "iu":
    return tuple(str(c) for c in range(int(label.max()) + 1))
  return tuple(sorted({str(x) for x in label}))


def _numbers(where, part, label, names) -> np.ndarray:
  """Class numbers of labels, int32."""
  if label.dtype.kind in "iu":
    wrong = (label < 0) | (label >= len(names))
    if wrong.any():
      raise UserError(
        f"{where}: label {label[wrong][0]} of {int(wrong.sum())} {part} images"
        f" is none of the {len(names)} classes, 0 to {len(names) - 1}"
      )
    return label.astype(np.int32)
  index = {name: c for c, name in enumerate(names)}
  if unknown := sorted({str(x) for x in label} - set(index)):
    raise UserError(
      f"{where}: {part} has classes that train lacks: {', '.join(unknown[:5])}"
    )
  return np.array([index[str(x)] for x in label], np.int32)


def labels_of(texts: Sequence[str]) -> np.ndarray:
  """Labels that were written down: numbers if all of them are."""
  try:
    return np.array([int(x) for x in texts], np.int64)
  except ValueError:
    return np.array(texts, object)
