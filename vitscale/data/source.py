"""A source of labelled images: one small record, and wrappers for any of them.

A source is indexed, not iterated: which sample comes when is the pipeline's
business. `limited`, `permuted`, `upsampled` and `tiled` make another source of
one; the last three are the controls of the patch studies.
"""

import dataclasses
import functools
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.data.random import Rng

SPLITS = ("train", "val", "test")


class NoSplit(UserError):
  """The data have no such split, and none is to be made."""


class Unreadable(UserError):
  """One sample can't be decoded; others may."""


@dataclasses.dataclass(frozen=True)
class Origin:
  """The tokenizer that made latents.

  Attributes:
    path: of the checkpoint, a step folder of a run.
    fingerprint: of its weights.
    shape: (h, w, c) of the images it saw.
  """

  path: str
  fingerprint: str
  shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """Labelled images that can be read at any index.

  Attributes:
    images: int64 indices (b,) -> uint8 (b, h, w, c), or a list of b arrays
      (h, w, c) where shapes may differ. Picklable, no hidden state.
    label: (n,) int32.
    class_names: one per class.
    shape: (h, w, c), of videos (t, h, w, c); None where they differ.
    mean, std: per channel in units of 0..1, the same for every split.
    fingerprint: changes when the data do.
    measure: gives (n, 2) heights and widths in pixels where shapes differ; may
      take long, and is asked only for packing.
    tokenizer: where "images" are a tokenizer's latents, float32, or codes,
      int32 (h, w, 1): which one (data/latents.py). `mean` and `std` are then
      of their values / 255.
    vocabulary: codes are below it; None where there are none.
    files: as `images`, but not decoded yet (`image_file.ImageFile`); None where
      images are no files, or are changed after decoding.
  """

  images: Callable[[np.ndarray], np.ndarray | list[np.ndarray]]
  label: np.ndarray
  class_names: tuple[str, ...]
  shape: tuple[int, ...] | None
  mean: tuple[float, ...]
  std: tuple[float, ...]
  fingerprint: str
  measure: Callable[[], np.ndarray] | None = None
  tokenizer: "Origin | None" = None
  vocabulary: int | None = None
  files: Callable[[np.ndarray], list[Any]] | None = None

  def __len__(self) -> int:
    return len(self.label)

  @property
  def classes(self) -> int:
    return len(self.class_names)

  @property
  def counts(self) -> np.ndarray:
    """(classes,) samples of each class."""
    return np.bincount(self.label, minlength=self.classes)

  def sizes(self) -> np.ndarray:
    """(n, 2) heights and widths in pixels."""
    if self.shape is not None and len(self.shape) == 3:
      return np.broadcast_to(np.array(self.shape[:2]), (len(self), 2))
    if self.measure is None:
      raise UserError("sizes are not known: videos, or images that differ")
    return self.measure()

  def read(self, indices: np.ndarray, *, files: bool = False) -> dict[str, Any]:
    """`image` as `images` gives it and `label` int32 (b,).

    With `files`, images as `files` gives them, where it does.
    """
    images = self.files if files and self.files is not None else self.images
    return {"image": images(indices), "label": self.label[indices]}


def digest(*parts: Any) -> str:
  """A short fingerprint of strings, numbers and arrays."""
  sha = hashlib.sha256()
  for part in parts:
    if isinstance(part, np.ndarray):
      sha.update(f"{part.dtype}{part.shape}".encode())
      sha.update(np.ascontiguousarray(part).data)
    else:
      sha.update(repr(part).encode())
    sha.update(b"|")
  return sha.hexdigest()[:32]


def statistics(image: np.ndarray) -> tuple[tuple, tuple]:
  """Mean and standard deviation per channel of uint8 images, in 0..1."""
  x = image.reshape(-1, image.shape[-1])
  counts = [np.bincount(x[:, c], minlength=256) for c in range(x.shape[1])]
  value = np.arange(256) / 255
  mean = [float(n @ value / n.sum()) for n in counts]
  var = [float(n @ (value - m) ** 2 / n.sum()) for n, m in zip(counts, mean)]
  return tuple(mean), tuple(v**0.5 for v in var)


def in_memory(image, label, class_names, mean, std, fingerprint) -> Source:
  """A source over uint8 images (n, h, w, c) held in memory."""
  return Source(
    images=functools.partial(np.take, image, axis=0),
    label=np.asarray(label, np.int32),
    class_names=tuple(class_names),
    shape=image.shape[1:],
    mean=mean,
    std=std,
    fingerprint=fingerprint,
  )


# Wrappers, for any source ----------------------------------------------------


def readable(source: Source, *, whole: bool = True) -> Source:
  """The samples that can be decoded; a warning names and counts the others.

  Decodes all of them, in threads: about as long as an epoch of loading. Of
  videos those are left out too that are too short.

  Args:
    source: any.
    whole: every class must keep a sample.

  Raises:
    UserError: nothing is left, or none of a class.
  """

  def fault(i: int) -> str:
    try:
      source.images(np.array([i]))
    except Unreadable as e:
      return re.sub("^cannot read (image|video) ", "", str(e).split(": ")[0])
    return ""

  with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    faults = list(pool.map(fault, range(len(source))))
  bad = [text for text in faults if text]
  if not bad:
    return source
  more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
  text = f"{len(bad)} of {len(source)} samples can't be read"
  named = f"{', '.join(bad[:10])}{more}"
  kept = subset(
    source, np.array([i for i, x in enumerate(faults) if not x], int)
  )
  lost = np.flatnonzero((source.counts > 0) & (kept.counts == 0))
  if not len(kept) or (whole and len(lost)):
    names = ", ".join(source.class_names[c] for c in lost[:5])
    left = f"nothing is left of {names}" if len(kept) else "none is left"
    raise UserError(f"{text}: {named}; {left}")
  warnings.warn(f"{text} and are left out: {named}", stacklevel=2)
  return kept


def subset(source: Source, indices: np.ndarray) -> Source:
  """The samples at `indices`, in that order."""
  return dataclasses.replace(
    source,
    images=functools.partial(_subset, source.images, indices),
    label=source.label[indices],
    fingerprint=digest(source.fingerprint, "subset", indices),
    measure=source.measure
    and functools.partial(_subset_sizes, source.measure, indices),
    files=source.files and functools.partial(_subset, source.files, indices),
  )


def _subset(images, chosen, indices):
  return images(chosen[indices])


def _subset_sizes(measure, chosen):
  return measure()[chosen]


def limited(source: Source, limit: int) -> Source:
  """The first `limit` samples in order, classes as equal as they can be."""
  if limit < 1:
    raise UserError(f"limit must be at least 1, got {limit}")
  if limit >= len(source):
    return source
  order = np.argsort(source.label, kind="stable")
  start = np.cumsum(source.counts) - source.counts
  rank = np.empty(len(source), np.int64)  # of a sample within its class
  rank[order] = np.arange(len(source)) - start[source.label[order]]
  first = np.lexsort((source.label, rank))[:limit]
  return subset(source, np.sort(first))


def upsampled(source: Source, k: int) -> Source:
  """Every pixel repeated k x k: more tokens at a patch, no information."""
  if k < 1:
    raise UserError(f"upsample must be at least 1, got {k}")
  if k == 1:
    return source
  h, w, c = _shape(source, "upsample")
  return dataclasses.replace(
    source,
    images=functools.partial(_upsample, source.images, k),
    files=None,
    shape=(h * k, w * k, c),
    fingerprint=digest(source.fingerprint, "upsample", k),
  )


def _upsample(images, k, indices):
  return images(indices).repeat(k, axis=1).repeat(k, axis=2)


def tiled(source: Source, k: int) -> Source:
  """The image k x k times side by side: more tokens at the same patch."""
  if k < 1:
    raise UserError(f"tile must be at least 1, got {k}")
  if k == 1:
    return source
  h, w, c = _shape(source, "tile")
  return dataclasses.replace(
    source,
    images=functools.partial(_tile, source.images, k),
    files=None,
    shape=(h * k, w * k, c),
    fingerprint=digest(source.fingerprint, "tile", k),
  )


def _tile(images, k, indices):
  return np.tile(images(indices), (1, k, k, 1))


def permuted(source: Source, seed: int) -> Source:
  """Pixels in one fixed random order: all neighbourhoods are destroyed."""
  h, w, _ = _shape(source, "permute_seed")
  order = Rng(seed, 0, 0).choose("pixels", h * w, h * w)[0]
  return dataclasses.replace(
    source,
    images=functools.partial(_permute, source.images, order),
    files=None,
    fingerprint=digest(source.fingerprint, "permute", order),
  )


def _permute(images, order, indices):
  image = images(indices)
  flat = image.reshape(len(image), -1, image.shape[3])
  return flat[:, order].reshape(image.shape)


def _shape(source: Source, what: str) -> tuple[int, int, int]:
  if source.shape is None:
    raise UserError(f"{what} needs images of one shape, these differ")
  if len(source.shape) != 3:
    raise UserError(f"{what} is for images, these are videos")
  return source.shape


def check_split(split: str, known: Sequence[str] = SPLITS) -> None:
  if split not in known:
    raise UserError(f"no split {split!r}{nearest(split, known)}")
