"""Images in Parquet shards, as Hugging Face datasets keep them, at any index.

  data/train-00000-of-00002.parquet  data/validation-00000-of-00001.parquet

An image is its file's bytes, or a struct of `bytes` and `path`; a label is a
number or a string. Parquet is read by row groups: the last ones used are kept,
half a GiB a process, so data that are larger are read many times over when
they are shuffled; `vitscale data convert` makes a format that isn't.

Reading needs pyarrow (`pip install 'vitscale[parquet]'`).
"""

import collections
import functools
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.data import files, records
from vitscale.data.source import Source, Unreadable

KEPT = 2**29  # bytes of row groups in memory


def parquet(
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
  """Rows in the order of shards and within them.

  Args:
    path: a .parquet, or a folder of them; local or remote (see `files`).
    split: "train", "val" or "test": of shards whose names say so, or held out.
    image, label: columns.
    val, test, channels, mean, std: see `folder.folder`.

  Classes are named as the schema's ClassLabel says, if there is one.

  Raises:
    UserError: pyarrow is missing, no shards, damaged ones, no such column, a
      row without a label; later, from `read`, an image that can't be decoded.
  """
  pq = pyarrow_parquet()
  root, shards = files.listing(path, (".parquet",), "parquet")
  naming: dict[str, tuple[str, ...] | None] = {}
  parts = {}
  for name, mine in files.by_split(shards, root).items():
    found = [_shard(pq, f"{root}/{s.name}", image, label) for s in mine]
    for shard, (_, _, names) in zip(mine, found, strict=True):
      naming[shard.name] = names
    parts[name] = _records(root, mine, found, image)
  if len(set(naming.values())) > 1:
    raise UserError(
      f"parquet: {root}: shards name classes differently: {', '.join(naming)}"
    )
  return records.source(
    root, parts, split, val=val, test=test, channels=channels, mean=mean,
    std=std, class_names=next(iter(naming.values())),
  )  # fmt: skip


def pyarrow_parquet() -> Any:
  """The module that reads Parquet.

  Raises:
    UserError: it is missing.
  """
  try:
    import pyarrow.parquet
  except ImportError as e:
    raise UserError(
      "reading .parquet needs pyarrow: pip install 'vitscale[parquet]'"
    ) from e
  return pyarrow.parquet


def _shard(
  pq: Any, path: str, image: str, label: str
) -> tuple[list[int], list, tuple[str, ...] | None]:
  """Rows of each group, labels and the classes' names."""
  with opened(pq, path) as file:
    meta, schema = file.metadata, file.schema_arrow
    for what, name in (("image", image), ("label", label)):
      if name not in schema.names:
        raise UserError(
          f"parquet: {path} has no column {name!r}"
          f"{nearest(name, schema.names)}: set data.{what}=COLUMN"
        )
    kind = str(schema.field(image).type)
    if "binary" not in kind:
      raise UserError(
        f"parquet: {path}: column {image!r} is {kind}, not the bytes of images"
      )
    groups = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
    values = file.read(columns=[label]).column(0).to_pylist()
  bad = [i for i, x in enumerate(values) if type(x) not in (int, str)]
  if bad:
    raise UserError(
      f"parquet: {path}: {len(bad)} of {len(values)} rows have no label that is"
      f" a number or a string in {label!r}, first row {bad[0]}:"
      f" {values[bad[0]]!r}"
    )
  return groups, values, _class_label(schema.metadata, label)


def opened(pq: Any, path: str, metadata: Any = None) -> Any:
  """A Parquet file.

  Raises:
    UserError: it is none, or can't be read.
  """
  try:
    source = files.opened(path) if files.is_remote(path) else path
    return pq.ParquetFile(source, metadata=metadata)
  except UserError:
    raise
  except Exception as e:  # of pyarrow, or of a remote file's driver
    raise _damaged(path, e) from e


def _damaged(path: str, e: Exception) -> UserError:
  return UserError(f"cannot read {path}: {str(e).splitlines()[0]}")


def _class_label(metadata: Any, label: str) -> tuple[str, ...] | None:
  """Class names in what `datasets` writes into a schema."""
  text = (metadata or {}).get(b"huggingface", b"{}")
  try:
    features = json.loads(text).get("info", {}).get("features", {})
  except ValueError:
    return None
  feature = features.get(label) or {}
  names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
  return tuple(map(str, names)) if names else None


def _records(root, shards, found, image) -> records.Records:
  place = [  # of each group: shard, number in it, rows
    (s, g, rows)
    for s, (groups, _, _) in enumerate(found)
    for g, rows in enumerate(groups)
  ]
  place = np.array(place, np.int64).reshape(-1, 3)
  start = np.cumsum(place[:, 2]) - place[:, 2]
  values = [x for _, labels, _ in found for x in labels]
  whole = all(type(x) is int for x in values)
  names = tuple(shard.name for shard in shards)
  paths = tuple(f"{root}/{name}" for name in names)
  return records.Records(
    read=functools.partial(_read, paths, image, place, start),
    name=functools.partial(_name, names, place, start),
    label=np.array(values, np.int64) if whole else np.array(values, object),
    key=[entry[:2] for entry in shards],
  )


# ------------------------------------------------------------------- reading


def _read(paths, image, place, start, indices) -> list[bytes]:
  found = []
  for i in indices:
    k = int(np.searchsorted(start, i, side="right")) - 1
    path, row = paths[place[k, 0]], int(i - start[k])
    value = _group(path, int(place[k, 1]), image)[row].as_py()
    if isinstance(value, dict):
      value = value.get("bytes")
    if not isinstance(value, bytes):
      raise Unreadable(
        f"cannot read image {path}:group {place[k, 1]} row {row}: no bytes;"
        f" {records.REMEDY}"
      )
    found.append(value)
  return found


def _name(names, place, start, i: int) -> str:
  k = int(np.searchsorted(start, i, side="right")) - 1
  return f"{names[place[k, 0]]}:group {place[k, 1]} row {i - start[k]}"


_kept: collections.OrderedDict[tuple, Any] = collections.OrderedDict()
_lock = threading.Lock()


def _group(path: str, group: int, image: str) -> Any:
  """The images of a row group, among the last used."""
  key = (path, group, image)
  with _lock:
    if key in _kept:
      _kept.move_to_end(key)
      return _kept[key]
  pq = pyarrow_parquet()
  with opened(pq, path, _metadata(path)) as file:
    try:
      column = file.read_row_group(group, [image], use_threads=False).column(0)
    except Exception as e:
      raise _damaged(path, e) from e
  with _lock:
    _kept[key] = column
    while len(_kept) > 1 and sum(x.nbytes for x in _kept.values()) > KEPT:
      _kept.popitem(last=False)
  return column


@functools.lru_cache(1024)
def _metadata(path: str) -> Any:
  with opened(pyarrow_parquet(), path) as file:
    return file.metadata
