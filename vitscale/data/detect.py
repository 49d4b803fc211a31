"""Which source reads a path, by what lies there."""

from pathlib import Path

from vitscale.core.errors import UserError
from vitscale.core.log import read_json
from vitscale.data import (
  array_record,
  files,
  folder,
  latents,
  parquet,
  table,
  video,
)

_SHARDS = {".tar": "webdataset", ".npz": "numpy", ".npy": "numpy"}
_DEEP = 3  # folders below which files are looked at
_MANY = 10_000  # of them, at most


def source_of(path: str) -> str:
  """Name of the source for a file or folder, local or remote.

  Raises:
    UserError: there is nothing, nothing that is known, or several formats.
  """
  if files.is_remote(path):
    kinds = (*_SHARDS, ".parquet")
    _, found = files.listing(path, kinds, "data")
    names = [entry.name for entry in found]
    return _one(path, {_shard(name) or "parquet" for name in names})
  root = Path(path).expanduser()
  if not root.exists():
    raise UserError(f"data: {root} does not exist")
  if root.is_file():
    return _of_file(root)
  if own := _of_card(root):
    return own
  names = _names(root, _DEEP)
  pictures = any(name.lower().endswith(folder.SUFFIXES) for name in names)
  moving = any(
    name.lower().endswith(video.SUFFIXES) and not name.lower().endswith(".gif")
    for name in names
  )
  tables = [e.name for e in folder.entries(root) if _is_table(e.name)]
  found = {kind for name in names if (kind := _shard(name))}
  if any(name.endswith(".parquet") for name in names) and not pictures:
    found.add("parquet")
  if pictures:
    found.add("table" if tables else "folder")
  elif moving:
    found.add("video")
  return _one(str(root), found)


def _one(path: str, found: set[str]) -> str:
  if len(found) > 1:
    raise UserError(
      f"data: {path} could be {' or '.join(sorted(found))}: say --source NAME"
    )
  if not found:
    raise UserError(
      f"data: {path} holds nothing that is known: images, .csv or .parquet"
      " tables of them, .parquet, .tar, .npz or .npy shards, videos"
    )
  return found.pop()


def _of_file(file: Path) -> str:
  name = file.name.lower()
  if kind := _shard(name):
    return kind
  if name.endswith(".csv"):
    return "table"
  if name.endswith(".parquet"):
    with parquet.opened(parquet.pyarrow_parquet(), str(file)) as opened:
      kinds = [str(field.type) for field in opened.schema_arrow]
    return "parquet" if any("binary" in kind for kind in kinds) else "table"
  raise UserError(
    f"data: {file} is of no format that is known: .csv .parquet .tar .npz .npy,"
    " or a folder"
  )


def _of_card(root: Path) -> str | None:
  """Of folders that say themselves what they are."""
  if (root / "dataset_info.json").is_file() and any(
    ".array_record-" in e.name for e in folder.entries(root)
  ):
    return "tfds"
  if (root / array_record.CARD).is_file():
    card = read_json(root / array_record.CARD)
    known = isinstance(card, dict)
    if known and card.get("format") == array_record.FORMAT:
      return "array_record"
    if known and "tokenizer" in card and latents.CARD == array_record.CARD:
      return "latents"
  return None


def _names(root: Path, deep: int) -> list[str]:
  """Names of files below a folder, as many as say what it is."""
  found, folders = [], []
  for entry in folder.entries(root):
    if entry.is_dir():
      folders.append(entry.path)
    else:
      found.append(entry.name)
    if len(found) >= _MANY:
      return found
  for path in sorted(folders) if deep else []:
    found += _names(Path(path), deep - 1)
    if len(found) >= _MANY:
      break
  return found


def _shard(name: str) -> str | None:
  stem = name.lower()
  if stem.startswith("vitscale-index-"):
    return None  # of WebDataset shards
  return next((k for s, k in _SHARDS.items() if stem.endswith(s)), None)


def _is_table(name: str) -> bool:
  return name.lower().endswith(table.SUFFIXES)
