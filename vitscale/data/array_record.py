"""Images in ArrayRecord shards, as `vitscale data convert` writes them.

    vitscale data convert photos --out photos.ar
    config.data = {"source": "array_record", "path": "photos.ar"}

A folder of them:

    card.json                 class names, statistics, the shards of each split
    SPLIT.label.npy           (n,) int32
    SPLIT-00000.array_record  records, a group each, so that any is one read

A record describes itself: 4 bytes, the length of what follows (little
endian); JSON with `label` and `class`; then the image's file as it was.
Images that never were files become PNG, which loses nothing.
"""

import functools
import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.core.log import jsonable, read_json, write_json
from vitscale.data import files, pixels, records
from vitscale.data.source import NoSplit, Source, Unreadable

FORMAT = "vitscale array_record 1"
CARD = "card.json"
SHARD = 2048  # images


def array_record(path: str, split: str = "train") -> Source:
  """One split of a folder that `vitscale data convert` wrote.

  Raises:
    UserError: no such folder or split, or one that isn't whole; later, from
      `read`, an image that can't be decoded.
  """
  root = files.local(path, "array_record")
  card = read_card(root)
  if not card["whole"]:
    raise UserError(
      f"array_record: {root} isn't whole: run `vitscale data convert` with the"
      " same --out again to go on"
    )
  if split not in card["splits"]:
    raise NoSplit(
      f"array_record: {root} has no split {split!r}"
      f"{nearest(split, card['splits'])}"
    )
  own = card["splits"][split]
  label = _label(root / f"{split}.label.npy", own["images"])
  paths = tuple(str(root / _shard(split, k)) for k in range(own["shards"]))
  for shard in paths:
    if not Path(shard).is_file():
      raise UserError(f"array_record: {shard} is missing: convert again")
  return records.source(
    str(root),
    {"train": records.Records(
      read=functools.partial(_read, paths, card["per_shard"]),
      name=functools.partial(_name, split, card["per_shard"]),
      label=label,
      key=own["fingerprint"],
    )},
    "train", val=0.0, test=0.0, channels=card["channels"], mean=card["mean"],
    std=card["std"], class_names=card["class_names"],
  )  # fmt: skip


def read_card(root: Path) -> dict[str, Any]:
  """What is known of a folder of shards.

  Raises:
    UserError: it is none of ours.
  """
  card = read_json(root / CARD) if root.is_dir() else None
  if not isinstance(card, dict) or card.get("format") != FORMAT:
    raise UserError(
      f"array_record: no {CARD} of {FORMAT!r} in {root}: data.path is a folder"
      " that `vitscale data convert` wrote"
    )
  return card


def _label(path: Path, n: int) -> np.ndarray:
  try:
    label = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f"array_record: cannot read {path}: {e}") from e
  if label.shape != (n,):
    raise UserError(
      f"array_record: {path} is {label.shape}, {CARD} says ({n},)"
    )
  return label


def _shard(split: str, k: int) -> str:
  return f"{split}-{k:05}.array_record"


def _name(split: str, per_shard: int, i: int) -> str:
  return f"{_shard(split, i // per_shard)}:{i % per_shard}"


@functools.lru_cache(512)
def _reader(path: str) -> Any:
  options = "readahead_buffer_size:0,max_parallelism:0"  # for random access
  return _library().ArrayRecordReader(path, options)


def _library() -> Any:
  try:  # Grain brings it, but not to every system
    from array_record.python import array_record_module
  except ImportError as e:
    raise UserError(
      "array_record needs the package of that name: pip install array_record"
    ) from e
  return array_record_module


def _read(paths, per_shard, indices) -> list[bytes]:
  found = []
  for i in indices:
    path, row = paths[i // per_shard], int(i % per_shard)
    try:
      (record,) = _reader(path).read([row])
      found.append(unpack(record)[1])
    except UserError:
      raise
    except Exception as e:  # the library raises what its C++ does
      text = " ".join(str(e).split())[:200]
      raise Unreadable(
        f"cannot read image {path}:{row}: {text}; {records.REMEDY}"
      ) from e
  return found


# ------------------------------------------------------------------- records


def pack(meta: Mapping[str, Any], image: bytes) -> bytes:
  """A record of a JSON-able description and a file's bytes."""
  text = json.dumps(jsonable(meta), ensure_ascii=False).encode()
  return struct.pack("<I", len(text)) + text + image


def unpack(record: bytes) -> tuple[dict[str, Any], bytes]:
  """What `pack` packed.

  Raises:
    ValueError: it is no such record.
  """
  if len(record) < 4:
    raise ValueError("a record of less than 4 bytes")
  end = 4 + struct.unpack("<I", record[:4])[0]
  if end > len(record):
    raise ValueError("a record without description")
  return json.loads(record[4:end]), record[end:]


# ------------------------------------------------------------------- writing


def write(
  splits: Mapping[str, Source],
  out: Path,
  *,
  channels: int,
  per_shard: int = SHARD,
  report: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
  """Writes sources of one data set; stopped, the same call goes on.

  Args:
    splits: sources by split, of the same classes.
    out: a new folder, or one that this call has begun. A shard is there when
      it is whole.
    channels: of the images.
    per_shard: images.
    report: called with (split, images written, images) after each shard.

  Returns:
    What `CARD` says.

  Raises:
    UserError: `out` holds something else, videos or latents, a damaged image.
  """
  first = next(iter(splits.values()))
  if first.tokenizer is not None:
    raise UserError("convert is for images, these are a tokenizer's latents")
  card = json.loads(json.dumps(jsonable({
    "format": FORMAT, "whole": False, "per_shard": per_shard,
    "channels": channels, "class_names": first.class_names,
    "mean": first.mean, "std": first.std,
    "splits": {
      name: {"images": len(source), "shards": -(-len(source) // per_shard),
             "fingerprint": source.fingerprint}
      for name, source in splits.items()
    },
  })))  # fmt: skip
  old = read_json(out / CARD) if out.is_dir() else None
  if old is None and out.exists() and (out.is_file() or any(out.iterdir())):
    raise UserError(f"--out {out} has other files: give a new folder")
  if old is not None and {**old, "whole": False} != card:
    raise UserError(f"--out {out} is of other data: give a new folder")
  if old is not None and old["whole"]:
    return old
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / CARD, card)
  for name, source in splits.items():
    for k in range(card["splits"][name]["shards"]):
      rows = np.arange(k * per_shard, min((k + 1) * per_shard, len(source)))
      if not (out / _shard(name, k)).exists():
        _write_shard(out / _shard(name, k), source, rows)
      if report:
        report(name, int(rows[-1]) + 1, len(source))
    with open(out / f".{name}.label.npy", "wb") as file:
      np.save(file, source.label)
    os.replace(out / f".{name}.label.npy", out / f"{name}.label.npy")
  card["whole"] = True
  write_json(out / CARD, card)
  return card


def _write_shard(path: Path, source: Source, rows: np.ndarray) -> None:
  part = path.with_name(f".{path.name}.part")
  writer = _library().ArrayRecordWriter(str(part), "group_size:1,uncompressed")
  for i in rows:
    label = int(source.label[i])
    writer.write(
      pack(
        {"label": label, "class": source.class_names[label]}, _file(source, i)
      )
    )
  writer.close()
  os.replace(part, path)


def _file(source: Source, i: int) -> bytes:
  """The image's file, or a PNG of it; decoded once, as it should be whole."""
  (image,) = source.images(np.array([i]))
  if image.ndim != 3:
    raise UserError("convert is for images, these are videos")
  if source.files is not None:
    return source.files(np.array([i]))[0].data
  out = io.BytesIO()
  pixels.to_pil(image).save(out, "PNG")
  return out.getvalue()
