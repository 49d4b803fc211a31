"""Images of a prepared TensorFlow Datasets folder, without TensorFlow.

  config.data = {"source": "tfds", "path": "~/tfds/cifar10/3.0.2"}

Only data prepared with `file_format="array_record"` can be read at any index.
Labels are read once, in one pass, and kept in the user's cache.

Reading needs the package (`pip install 'vitscale[tfds]'`), which brings no
TensorFlow.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.data import files, folder, records
from vitscale.data.source import Source, Unreadable


def tfds(
  path: str,
  split: str = "train",
  *,
  image: str = "image",
  label: str = "label",
  val: float = 0.1,
  test: float = 0.0,
  channels: int = 3,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> Source:
  """Examples in the order that they were prepared in.

  Args:
    path: a data set's version folder, with a dataset_info.json.
    split: "train", "val" (TFDS: validation) or "test".
    image, label: features.
    val, test, channels, mean, std: see `folder.folder`; shares are held out
      where there is no such split.

  Raises:
    UserError: the package is missing, no such folder, another file format, no
      such features; later, from `read`, an image that can't be decoded.
  """
  root = files.local(path, "tfds")
  if not (root / "dataset_info.json").is_file():
    below = sorted(root.glob("*/dataset_info.json"))
    hint = f": did you mean {below[-1].parent}?" if below else ""
    raise UserError(f"tfds: {root} holds no dataset_info.json{hint}")
  builder = _builder(str(root))
  features = builder.info.features or {}
  for what, name, kind in (
    ("image", image, "Image"),
    ("label", label, "ClassLabel"),
  ):
    if name not in features:
      raise UserError(
        f"tfds: {root} has no feature {name!r}{nearest(name, features)}: set"
        f" data.{what}=FEATURE"
      )
    if type(features[name]).__name__ != kind:
      raise UserError(
        f"tfds: {root}: feature {name!r} is a {type(features[name]).__name__},"
        f" not a {kind}"
      )
  parts = {}
  for own, known in folder.ALIASES.items():
    for name in set(known) & set(builder.info.splits):
      parts[own] = _records(root, name, image, label)
  if not parts:
    raise UserError(
      f"tfds: {root} has no train split, but {', '.join(builder.info.splits)}"
    )
  return records.source(
    str(root), parts, split, val=val, test=test, channels=channels, mean=mean,
    std=std, class_names=features[label].names,
  )  # fmt: skip


def _package() -> Any:
  try:
    import tensorflow_datasets
  except ImportError as e:
    raise UserError(
      "reading TensorFlow Datasets needs its package: pip install"
      " 'vitscale[tfds]'"
    ) from e
  return tensorflow_datasets


@functools.lru_cache(8)
def _builder(root: str) -> Any:
  try:
    return _package().builder_from_directory(root)
  except UserError:
    raise
  except Exception as e:  # of its own kinds, or of a damaged JSON
    raise UserError(f"tfds: cannot read {root}: {_line(e)}") from e


@functools.lru_cache(16)
def _opened(root: str, split: str) -> Any:
  """A split's examples at any index, images as their bytes."""
  builder, skip = _builder(root), _package().decode.SkipDecoding
  images = {
    name: skip()
    for name, feature in builder.info.features.items()
    if type(feature).__name__ == "Image"
  }
  try:
    return builder.as_data_source(split, decoders=images)
  except Exception as e:
    raise UserError(
      f"tfds: {root} can't be read at any index ({_line(e)}): prepare it with"
      ' file_format="array_record"'
    ) from e


def _line(e: Exception) -> str:
  return " ".join(str(e).split())[:200] or type(e).__name__


def _records(root: Path, split: str, image: str, label: str) -> records.Records:
  where = str(root)
  shards = [
    (file.name, file.stat().st_size, file.stat().st_mtime_ns)
    for file in sorted(root.glob(f"*-{split}.*"))
  ]
  labels = files.stored(
    json.dumps(["tfds 1", str(root.absolute()), label, shards]), None,
    functools.partial(_labels, where, split, label),
  )["label"]  # fmt: skip
  return records.Records(
    read=functools.partial(_read, where, split, image),
    name=functools.partial(_name, split),
    label=labels,
    key=[entry[:2] for entry in shards],
  )


def _labels(root: str, split: str, label: str) -> dict[str, np.ndarray]:
  data = _opened(root, split)
  found = []
  for start in range(0, len(data), 1024):
    stop = min(start + 1024, len(data))
    found += [x[label] for x in data.__getitems__(list(range(start, stop)))]
  return {"label": np.array(found, np.int64)}


def _name(split: str, i: int) -> str:
  return f"{split}:{i}"


def _read(root, split, image, indices) -> list[bytes]:
  try:
    data = _opened(root, split)
    found = data.__getitems__([int(i) for i in indices])
  except UserError:
    raise
  except Exception as e:  # the library raises what its C++ does
    raise Unreadable(
      f"cannot read image {root}/{split}:{indices[0]}: {_line(e)};"
      f" {records.REMEDY}"
    ) from e
  return [bytes(x[image]) for x in found]
