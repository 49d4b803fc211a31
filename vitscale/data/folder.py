"""Your own images: one folder per class.

  photos/train/cat/*.jpg  photos/train/dog/*.jpg  photos/val/cat/*.jpg ...
  photos/cat/*.jpg        photos/dog/*.jpg
  photos/*.jpg            with flat=True: no classes

Without a folder for a split, a fixed share of each class is held out, picked
by a hash of the file names. Files may lie deeper than the class folder;
hidden files and files without an image suffix are ignored.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import image_file, source
from vitscale.data.image_file import ImageFile

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff",
            ".webp")  # fmt: skip
ALIASES = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation"),
  "test": ("test",),
}
_RIGHT = "expected PATH/train/CLASS/*.png and PATH/val/..., or PATH/CLASS/*.png"
FLAT = "images"  # the class of images that have none
# ImageNet's, which published recipes use for every set of photographs.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

File = tuple[str, int, int]  # path below the root, bytes, class


class Kind(NamedTuple):
  """What a folder is searched for.

  Attributes:
    what: "image", for errors.
    right: what the folder should look like, for errors.
    scan: (root, folder below it) -> class names and files, both sorted.
  """

  what: str
  right: str
  scan: Callable[[Path, str], tuple[list[str], list[File]]]


def folder(
  path: str,
  split: str = "train",
  *,
  val: float = 0.1,
  test: float = 0.0,
  channels: int = 3,
  flat: bool = False,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> source.Source:
  """Images in class folders; classes and samples in alphabetical order.

  Args:
    path: see the top of this file.
    split: "train", "val" or "test".
    val, test: share of each class held out where PATH has no folder for
      that split (at least one image of a class that has two).
    channels: 3 converts everything to RGB, 1 to grey; transparency becomes
      white, and the orientation that cameras note is applied.
    flat: images lie in PATH or PATH/SPLIT itself and have no classes.
    mean, std: per channel in 0..1; None is ImageNet's (its average if grey).

  Returns:
    a source whose `image` is a list of uint8 (h, w, channels).

  Raises:
    UserError: no such folder, no class folders, no images, unknown split;
      later, from `read`, a file that can't be decoded.
  """
  root, names, files = find(path, split, val, test, images(flat))
  mean, std = statistics(channels, mean, std)
  paths = tuple(file for file, _, _ in files)
  label = np.array([c for _, _, c in files], np.int32)
  return source.Source(
    images=functools.partial(_images, str(root), paths, channels),
    label=label,
    class_names=tuple(names),
    shape=None,
    mean=mean,
    std=std,
    fingerprint=source.digest(names, channels, files),
    measure=functools.partial(_sizes, str(root), paths),
    files=functools.partial(_files, str(root), paths, channels),
  )


def statistics(
  channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation of each channel, as given or ImageNet's.

  Raises:
    UserError: neither grey nor RGB, or another number of values.
  """
  if channels not in (1, 3):
    raise UserError(f"folder: channels must be 1 or 3, got {channels}")
  default = (_MEAN, _STD) if channels == 3 else ((0.449,), (0.226,))
  found = []
  for name, given, usual in zip(("mean", "std"), (mean, std), default):
    value = usual if given is None else tuple(float(x) for x in given)
    if len(value) != channels:
      raise UserError(f"folder: {name} needs {channels} values, got {given}")
    found.append(value)
  return found[0], found[1]


# Finding ---------------------------------------------------------------------


def images(flat: bool) -> Kind:
  """Image files: in class folders, or in none."""
  return Kind("image", _RIGHT, _scan_flat if flat else _scan)


def find(
  path: str, split: str, val: float, test: float, kind: Kind
) -> tuple[Path, list[str], list[File]]:
  """The folder, its class names and the files of a split, sorted.

  Args:
    path, split, val, test: see `folder`.
    kind: of files that are looked for.

  Raises:
    UserError: see `folder`.
  """
  root = Path(path).expanduser()
  source.check_split(split)
  if min(val, test) < 0 or val + test >= 1:
    raise UserError(
      f"folder: val and test are shares that leave something to train on, "
      f"got {val} and {test}"
    )
  try:
    if not root.is_dir():
      what = "is not a folder" if root.exists() else "does not exist"
      raise UserError(f"{kind.what} folder {root} {what}; {kind.right}")
    return root, *_split(root, split, val, test, kind)
  except OSError as e:  # no permission, links in a circle
    raise UserError(f"cannot list {e.filename or root}: {e.strerror}") from e


def _split(root, split, val, test, kind) -> tuple[list[str], list[File]]:
  """Class names and the files of a split."""
  own = {s: _first_dir(root, names) for s, names in ALIASES.items()}
  if own["train"] is None:
    if any(own.values()):
      there = next(f for f in own.values() if f)
      raise UserError(f"{root} has {there}/ but no train/; {kind.right}")
    return _carve(kind, root, "", split, {"val": val, "test": test})
  names, _ = kind.scan(root, own["train"])
  if split != "train" and own[split]:
    found, files = kind.scan(root, own[split])
    if unknown := sorted(set(found) - set(names)):
      raise UserError(
        f"{root / own[split]} has class folders that {own['train']}/ lacks: "
        f"{', '.join(unknown[:5])}"
      )
    index = [names.index(name) for name in found]
    return names, [(file, size, index[c]) for file, size, c in files]
  shares = {s: 0.0 if own[s] else x for s, x in (("val", val), ("test", test))}
  return _carve(kind, root, own["train"], split, shares)


def _first_dir(root: Path, names: Sequence[str]) -> str | None:
  return next((name for name in names if (root / name).is_dir()), None)


def _carve(kind, root, top, split, shares) -> tuple[list[str], list[File]]:
  """Files of `split` when val and test are taken out of one folder."""
  names, files = kind.scan(root, top)
  if split != "train" and not shares[split]:
    raise source.NoSplit(
      f"{root} has no {split}/ folder; add one, or hold a share out by "
      f"{split}=0.1"
    )
  label = np.array([c for _, _, c in files])
  rows = held_out([file for file, _, _ in files], label, split, shares)
  chosen = [files[i] for i in rows]
  if not chosen:
    raise source.NoSplit(
      f"{root}: too few {kind.what}s to hold any out for {split}"
    )
  return names, chosen


def held_out(
  names: Sequence[str],
  label: np.ndarray,
  split: str,
  shares: Mapping[str, float],
) -> list[int]:
  """Which samples are of `split` when others are taken out of one set.

  Args:
    names: of the samples; their hashes decide.
    label: (n,) class of each.
    split: "train", or one of `shares`.
    shares: of each class, for every split but "train".

  Returns:
    Class by class, in the order they are given.
  """
  chosen = []
  order = np.argsort(label, kind="stable")
  for mine in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
    # By rank of the hash, not by threshold: small classes get their share.
    mine = sorted(
      mine.tolist(), key=lambda i: hashlib.sha256(names[i].encode()).digest()
    )
    start, parts = 0, {}
    for part, share in shares.items():
      n = max(round(share * len(mine)), 1) if share and len(mine) > 1 else 0
      n = min(n, len(mine) - 1 - start)  # one is left to train on
      parts[part] = mine[start : start + max(n, 0)]
      start += max(n, 0)
    parts["train"] = mine[start:]
    chosen += sorted(parts[split])
  return chosen


def _scan(root: Path, top: str) -> tuple[list[str], list[File]]:
  """Class folders of root/top and their image files, both sorted."""
  here = root / top
  names = sorted(e.name for e in entries(here) if e.is_dir())
  loose = sum(is_image(e) for e in entries(here))
  if not names:
    what = (
      f"{loose} images and no class folders" if loose else "nothing to read"
    )
    raise UserError(f"{here} holds {what}; {_RIGHT}")
  files, empty = [], []
  for c, name in enumerate(names):
    found = sorted(_walk(root, os.path.join(top, name)))
    files += [(file, size, c) for file, size in found]
    empty += [] if found else [name]
  if not files:
    kinds = " ".join(SUFFIXES)
    raise UserError(f"no images below {here} (looked for {kinds}); {_RIGHT}")
  if empty:
    raise UserError(
      f"no images in {len(empty)} of {len(names)} class folders of {here}: "
      f"{', '.join(empty[:5])}; fill or remove them"
    )
  return names, files


def _scan_flat(root: Path, top: str) -> tuple[list[str], list[File]]:
  """As `_scan`, of images without class folders: one class of all."""
  found = [e for e in entries(root / top) if is_image(e)]
  if not found:
    raise UserError(f"no images in {root / top} itself; leave flat out")
  files = [(os.path.join(top, e.name), e.stat().st_size, 0) for e in found]
  return [FLAT], sorted(files)


def is_flat(path: Path) -> bool:
  """A folder with images and without folders."""
  found = entries(path) if path.is_dir() else []
  folders = any(e.is_dir() for e in found)
  return not folders and any(is_image(e) for e in found)


def entries(folder: Path | str) -> list[os.DirEntry]:
  """What is in a folder, hidden things apart."""
  try:
    with os.scandir(folder) as entries:
      return [e for e in entries if not e.name.startswith((".", "__MACOSX"))]
  except OSError as e:
    raise UserError(f"cannot list {folder}: {e.strerror}") from e


def is_image(entry: os.DirEntry) -> bool:
  """A file whose name says that it is an image."""
  return entry.name.lower().endswith(SUFFIXES) and entry.is_file()


def _walk(root: Path, below: str) -> Iterator[tuple[str, int]]:
  """(path below root with forward slashes, bytes) of every image."""
  for entry in entries(root / below):
    file = f"{below}/{entry.name}"
    if entry.is_dir():
      yield from _walk(root, file)
    elif is_image(entry):
      yield file, entry.stat().st_size


# Reading ---------------------------------------------------------------------


@functools.lru_cache(4)
def _sizes(root: str, paths: tuple[str, ...]) -> np.ndarray:
  with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    paths = [f"{root}/{path}" for path in paths]
    found = list(pool.map(image_file.size_of, paths))
  return np.array(found)


def _images(root: str, paths, channels, indices) -> list[np.ndarray]:
  return [image_file.decode(f"{root}/{paths[i]}", channels) for i in indices]


def _files(root: str, paths, channels, indices) -> list[ImageFile]:
  found = []
  for path in (f"{root}/{paths[i]}" for i in indices):
    try:
      data = Path(path).read_bytes()
    except OSError as e:
      raise image_file.unreadable(path, e) from e
    found.append(ImageFile(data, channels, path))
  return found
