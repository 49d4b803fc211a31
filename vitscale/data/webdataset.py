"""Images in WebDataset tar shards, at any index.

  shards/train-0000.tar: 0001.jpg 0001.cls 0002.jpg 0002.cls ...

A sample is an image and a label whose names agree up to the first dot. Tar
files have no index: one pass over their headers makes it, and keeps it beside
the shards or, where that can't be, in the user's cache. It is made anew when a
shard's name, size or time has changed.
"""

import functools
import json
import tarfile
from collections.abc import Sequence

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import files, records
from vitscale.data.source import Source

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm")
LABELS = ("cls", "json", "txt")  # the first that a sample has


def webdataset(
  path: str,
  split: str = "train",
  *,
  val: float = 0.1,
  test: float = 0.0,
  channels: int = 3,
  class_names: Sequence[str] | None = None,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> Source:
  """Samples in the order of shards and within them.

  Args:
    path: a .tar, or a folder of them; local or remote (see `files`).
    split: "train", "val" or "test": of shards whose names say so, or held out.
    val, test, channels, mean, std: see `folder.folder`.
    class_names: of labels that are numbers; else they are called by those.

  Labels are `.cls` or `.txt`, a number or a name, or `.json` with a "label".

  Raises:
    UserError: no shards, a shard that is no tar, a sample without image or
      label; later, from `read`, an image that can't be decoded.
  """
  root, shards = files.listing(path, (".tar",), "webdataset")
  index = files.stored(
    json.dumps(["webdataset 1", root, shards]),
    None if files.is_remote(root) else root,
    functools.partial(_index, root, shards),
  )
  keys = bytes(index["keys"]).decode().split("\n")
  texts = bytes(index["labels"]).decode().split("\n")
  parts = {
    name: _records(root, shards, mine, index, keys, texts)
    for name, mine in files.by_split(shards, root).items()
  }
  return records.source(
    root, parts, split, val=val, test=test, channels=channels, mean=mean,
    std=std, class_names=class_names,
  )  # fmt: skip


def _records(root, shards, mine, index, keys, texts) -> records.Records:
  rows = np.flatnonzero(
    np.isin(index["shard"], [shards.index(entry) for entry in mine])
  )
  place = np.stack([index[k][rows] for k in ("shard", "offset", "length")], 1)
  names = tuple(shard.name for shard in shards)
  samples = tuple(keys[i] for i in rows)
  label = records.labels_of([texts[i] for i in rows])
  return records.Records(
    read=functools.partial(_read, root, names, place),
    name=functools.partial(_name, names, place, samples),
    label=label,
    key=[mine and [entry[:2] for entry in mine], samples, place],
  )


def _read(root, names, place, indices) -> list[bytes]:
  return [
    files.pread(f"{root}/{names[shard]}", int(offset), int(length))
    for shard, offset, length in place[indices]
  ]


def _name(names, place, samples, i: int) -> str:
  return f"{names[place[i, 0]]}:{samples[i]}"


# --------------------------------------------------------------------- index


def _index(root: str, shards: Sequence[files.Entry]) -> dict[str, np.ndarray]:
  """Where every sample's image is, what its label says, over all shards."""
  place, keys, labels = [], [], []
  for number, shard in enumerate(shards):
    for key, offset, length, label in _scan(f"{root}/{shard.name}"):
      place.append((number, offset, length))
      keys.append(key)
      labels.append(label)
  columns = np.array(place, np.int64).reshape(-1, 3).T
  texts = {"keys": keys, "labels": labels}
  return dict(zip(("shard", "offset", "length"), columns, strict=True)) | {
    name: np.frombuffer("\n".join(text).encode(), np.uint8)
    for name, text in texts.items()
  }


def _scan(path: str) -> list[tuple[str, int, int, str]]:
  """(key, offset and bytes of the image, label) of each sample of a shard."""
  image: dict[str, tuple[int, int]] = {}
  label: dict[str, tuple[int, str]] = {}
  try:
    with (
      files.opened(path) as file,
      tarfile.open(fileobj=file, mode="r:") as tar,
    ):
      for member in tar:
        folder, slash, file_name = member.name.rpartition("/")
        stem, _, kind = file_name.partition(".")
        key, kind = folder + slash + stem, kind.lower()
        if not member.isfile() or not stem:
          continue
        if kind in IMAGES:
          if key in image:
            raise UserError(f"{path}: {key} has two images")
          image[key] = member.offset_data, member.size
        elif kind in LABELS:
          rank = LABELS.index(kind)
          if rank < label.get(key, (len(LABELS), ""))[0]:
            text = tar.extractfile(member).read()
            if (found := _label(path, key, kind, text)) is not None:
              label[key] = rank, found
      file.seek(tar.offset)  # tarfile takes a cut header for the end
      if file.read(512) != bytes(512):
        raise EOFError(f"it was cut at byte {tar.offset}")
  except (tarfile.TarError, EOFError, OSError) as e:
    raise UserError(f"webdataset: {path} is no whole tar file: {e}") from e
  for what, has, lacks in (
    ("label (.cls, .json with a label, .txt)", image, label),
    (f"image ({' '.join('.' + kind for kind in IMAGES)})", label, image),
  ):
    if missing := [key for key in has if key not in lacks]:
      raise UserError(
        f"webdataset: {path}: {len(missing)} of {len(has)} samples have no"
        f" {what}: {', '.join(missing[:5])}"
      )
  return [(key, *image[key], label[key][1]) for key in image]


def _label(path: str, key: str, kind: str, data: bytes) -> str | None:
  try:
    text = data.decode().strip()
    if kind == "json":
      value = json.loads(text)
      text = value.get("label") if isinstance(value, dict) else None
      if text is None:
        return None  # of something else
      if type(text) not in (int, str):
        raise ValueError(f"label {text!r}")
  except ValueError as e:
    raise UserError(f"webdataset: {path}: {key}.{kind}: {e}") from e
  text = str(text)
  if not text or "\n" in text:
    raise UserError(
      f"webdataset: {path}: {key}.{kind} is no label of one line: {text[:40]!r}"
    )
  return text
