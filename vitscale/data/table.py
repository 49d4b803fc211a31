"""Images whose labels are in a table: CSV or Parquet.

  photos/labels.csv:      path,label[,split]
                          cats/01.jpg,cat,train
  photos/train.csv, photos/val.csv: the same without a split

Paths are relative to the folder of the table. Every image below that folder
must have one row, and every row an image: what has not is named, nothing is
guessed.
"""

import csv
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.data import files, folder, parquet, records
from vitscale.data import source as source_lib
from vitscale.data.source import Source

SUFFIXES = (".csv", ".parquet")
Row = tuple[str, object, str]  # path, label, split or ""


def table(
  path: str,
  split: str = "train",
  *,
  image: str = "path",
  label: str = "label",
  val: float = 0.1,
  test: float = 0.0,
  channels: int = 3,
  mean: Sequence[float] | None = None,
  std: Sequence[float] | None = None,
) -> Source:
  """Rows in the order of the table.

  Args:
    path: the table, or a folder that holds one, or one for each split.
    split: "train", "val" or "test".
    image, label: columns. A column `split`, if there is one, says what a row
      is of.
    val, test, channels, mean, std: see `folder.folder`; shares are held out
      where the table has no such split.

  Raises:
    UserError: no table, no such column, rows without a file or label, files
      without a row, two rows of a file, unknown splits; later, from `read`, an
      image that can't be decoded.
  """
  here = files.local(path, "table")
  if not here.exists():
    raise UserError(f"table: {here} does not exist")
  tables = _tables(here)
  root = here if here.is_dir() else here.parent
  rows = [row for t, own in tables for row in _rows(t, image, label, own)]
  sizes = _check(root, rows, tables)
  parts = {}
  for name in dict.fromkeys(own for *_, own in rows):
    mine = [row for row in rows if row[2] == name]
    paths = tuple(row[0] for row in mine)
    parts[name] = records.Records(
      read=functools.partial(_read, str(root), paths),
      name=paths.__getitem__,
      label=_label([row[1] for row in mine]),
      key=[(p, sizes[p]) for p in paths],
    )
  return records.source(
    str(root), parts, split, val=val, test=test, channels=channels, mean=mean,
    std=std,
  )  # fmt: skip


def _read(root: str, paths, indices) -> list[bytes]:
  found = []
  for i in indices:
    try:
      found.append(Path(root, paths[i]).read_bytes())
    except OSError as e:
      raise UserError(f"cannot read {root}/{paths[i]}: {e.strerror}") from e
  return found


def _label(values: list) -> np.ndarray:
  if all(type(x) is int for x in values):
    return np.array(values, np.int64)
  return records.labels_of([str(x) for x in values])


# --------------------------------------------------------------------- table


def _tables(here: Path) -> list[tuple[Path, str]]:
  """The tables to read, and the split each is of, "" for any."""
  if here.is_file():
    if not here.name.lower().endswith(SUFFIXES):
      raise UserError(f"table reads {' or '.join(SUFFIXES)}, {here} is neither")
    return [(here, "")]
  names = sorted(
    e.name for e in folder.entries(here)
    if e.name.lower().endswith(SUFFIXES) and e.is_file()
  )  # fmt: skip
  if not names:
    raise UserError(f"table: {here} holds no {' or '.join(SUFFIXES)} itself")
  if len(names) == 1:
    return [(here / names[0], "")]
  found = []
  for name in names:
    stem = name.rpartition(".")[0].lower()
    own = [s for s, known in folder.ALIASES.items() if stem in known]
    if not own:
      raise UserError(
        f"table: {here} holds {len(names)} tables: give the path of one, or"
        f" call them by splits: {', '.join(names[:5])}"
      )
    found.append((here / name, own[0]))
  return found


def _rows(path: Path, image: str, label: str, own: str) -> list[Row]:
  reader = _csv if path.name.lower().endswith(".csv") else _parquet
  columns = reader(path)
  for what, name in (("image", image), ("label", label)):
    if name not in columns:
      raise UserError(
        f"table: {path} has no column {name!r}{nearest(name, columns)}: set"
        f" data.{what}=COLUMN"
      )
  paths, labels = columns[image], columns[label]
  splits = columns.get("split", [own] * len(paths))
  found = []
  for i, (p, value, s) in enumerate(zip(paths, labels, splits, strict=True)):
    if p in (None, "") or value in (None, ""):
      what = f"no {label}" if p else f"no {image}"
      raise UserError(f"table: {path}: row {i + 1} has {what}: {p or value!r}")
    name = [k for k, known in folder.ALIASES.items() if s in known]
    if not name and s:
      raise UserError(
        f"table: {path}: row {i + 1} says split {s!r}"
        f"{nearest(str(s), source_lib.SPLITS)}"
      )
    if own and name != [own]:
      raise UserError(f"table: {path}: row {i + 1} says split {s!r}")
    value = value if type(value) is int else str(value).strip()
    found.append((os.path.normpath(str(p)), value, name[0] if name else ""))
  if not found:
    raise UserError(f"table: {path} has no rows")
  if len({s for *_, s in found} - {""}) and any(not s for *_, s in found):
    raise UserError(f"table: {path}: some rows say a split, others none")
  return found


def _csv(path: Path) -> dict[str, list]:
  try:
    with open(path, newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file, strict=True)
      rows = list(reader)
      names = reader.fieldnames or []
  except (OSError, ValueError, csv.Error) as e:
    raise UserError(f"cannot read {path}: {e}") from e
  for i, row in enumerate(rows):
    if None in row or None in row.values():
      raise UserError(
        f"table: {path}: row {i + 1} has not the {len(names)} columns of the"
        " header"
      )
  return {name: [row[name] for row in rows] for name in names}


def _parquet(path: Path) -> dict[str, list]:
  with parquet.opened(parquet.pyarrow_parquet(), str(path)) as file:
    return file.read().to_pydict()


# ---------------------------------------------------------------------- files


def _check(
  root: Path, rows: list[Row], tables: list[tuple[Path, str]]
) -> dict[str, int]:
  """Bytes of every image, by path; rows and files must agree."""
  where = ", ".join(path.name for path, _ in tables)
  _, entries = files.listing(root, folder.SUFFIXES, "table")
  sizes = {entry.name: entry.size for entry in entries}
  seen: set[str] = set()
  twice = [p for p, *_ in rows if p in seen or seen.add(p)]
  listed = dict.fromkeys(p for p, *_ in rows)
  for what, wrong in (
    (f"rows of {where} name a file that another row has", twice),
    (f"rows of {where} have no image", [p for p in listed if p not in sizes]),
    (f"images have no row in {where}", [p for p in sizes if p not in listed]),
  ):
    if wrong:
      more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
      raise UserError(
        f"table: {root}: {len(wrong)} {what}: {', '.join(wrong[:5])}{more}"
      )
  return sizes
