"""From anybody's logs to a table of checked columns.

    table = read_files("runs/")
    table = map_columns(table, {"N": "params", "loss": "eval/loss"})
    table = derive(table, ["N", "D"])

Numbers become float64 on reading, so that 6 N D can't overflow an integer.
Nothing is guessed silently: `table.notes` says what was renamed or left out.
"""

import csv
import difflib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import logs
from vitscale.laws.table import (
  Provenance,
  Table,
  derive,
  map_columns,
  parsed,
  stacked,
)

__all__ = ["Provenance", "Table", "derive", "map_columns", "read_files"]

KINDS = (
  "a workdir or a folder of runs, .csv, .tsv, .json, .jsonl, .parquet, .npz,"
  " TensorBoard event files or a W&B export"
)


def read_files(
  paths: str | Path | Sequence[str | Path], *, curves: bool = False
) -> Table:
  """Reads files of any known kind into one table.

  Args:
    paths: files and folders; their rows follow each other, and a column that
      one of them lacks is blank there (NaN, "" for text).
    curves: a workdir gives one row per row of its metrics, not one per run.

  Returns:
    float64 or text columns (n,) with `provenance`: `source` and `row` of
    every row, `sha256` of every file, and `notes`.

  Raises:
    UserError: no such file, unknown kind, empty or damaged, with the line.
  """
  paths = [paths] if isinstance(paths, str | Path) else list(paths)
  if not paths:
    raise UserError(f"no file given: name {KINDS}")
  tables, seen, notes = [], {}, []
  for path in map(Path, paths):
    if not path.exists():
      raise UserError(f"no file {path}{_similar(path)}")
    if path.resolve() in seen:
      notes.append(f"{path} is given twice, read once")
      continue
    seen[path.resolve()] = path
    try:
      tables.append(_read(path, several=len(paths) > 1, curves=curves))
    except OSError as error:
      raise UserError(f"can't read {path}: {error.strerror}") from error
  if len(tables) == 1:
    return tables[0].extended({}, notes)
  return _joined(tables, notes)


def _similar(path: Path) -> str:
  siblings = []
  if path.parent.is_dir():
    siblings = [p.name for p in path.parent.iterdir()]
  close = difflib.get_close_matches(path.name, siblings, 1)
  return f", did you mean {str(path.parent / close[0])!r}?" if close else ""


def _read(path: Path, *, several: bool, curves: bool) -> Table:
  if path.name == "run.json":
    path = path.parent
  if path.is_dir():
    if next(path.rglob("run.json"), None):
      return logs.read_workdirs(path, several=several, curves=curves)
    if next(path.rglob(logs.EVENTS), None):
      return logs.read_events(path, several=several)
    raise UserError(
      f"{path} holds neither runs (run.json) nor TensorBoard event files; give"
      " files of other kinds by name"
    )
  if path.match(logs.EVENTS):
    return logs.read_events(path, several=several)

  with open(path, "rb") as file:
    start = file.read(512)
  if not start.strip():
    raise UserError(f"{path} is empty")
  notes: list[str] = []
  suffix = path.suffix.lower()
  if start.startswith(b"PAR1") or suffix == ".parquet":
    columns = _parquet(path)
  elif start.startswith(b"PK\x03\x04") or suffix == ".npz":
    columns = _npz(path, notes)
  else:
    text = _text(path, start)
    first = text.lstrip()[:1]
    if suffix == ".jsonl" and first != "[":
      columns = _json_lines(path, text)
    elif first in ("{", "[") or suffix == ".json":
      columns = _json(path, text)
    elif suffix in (".csv", ".tsv") or set(text.partition("\n")[0]) & set(
      ",;\t"
    ):
      columns = _csv(path, text, notes)
    else:
      raise UserError(f"{path} is of no known kind, must be {KINDS}")
  if not columns or not len(next(iter(columns.values()))):
    raise UserError(f"{path} is empty: it has no rows")

  arrays = parsed(columns, notes)
  n = len(next(iter(arrays.values())))
  notes = [f"{path}: {note}" for note in notes]
  sha = {str(path): logs.digest(path)}
  origin = Provenance(np.full(n, str(path)), np.arange(1, n + 1), sha, notes)
  table = Table(arrays, origin)
  return logs.melt(table, path.stem) if logs.is_export(table) else table


def _joined(tables: list[Table], notes: list[str]) -> Table:
  sizes, sources = [t.n for t in tables], [t.provenance for t in tables]
  columns = {}
  for name in dict.fromkeys(k for t in tables for k in t):
    parts = [t.get(name) for t in tables]
    columns[name] = stacked(parts, sizes)
    lacking = [str(p.source[0]) for p, v in zip(sources, parts) if v is None]
    if lacking:
      notes.append(f"column {name!r} is blank where {lacking} lack it")
    kinds = {v.dtype.kind == "f" for v in parts if v is not None}
    if len(kinds) == 2 and columns[name].dtype.kind != "f":
      notes.append(f"column {name!r} is text: it is no number in every file")
  sha = {k: v for p in sources for k, v in p.sha256.items()}
  for k, same in sha.items():
    twin = next(other for other, v in sha.items() if v == same)
    if twin != k:
      notes.append(f"{twin} and {k} are the same bytes: rows count twice")
  origin = Provenance(
    np.concatenate([p.source for p in sources]),
    np.concatenate([p.row for p in sources]),
    sha,
    [note for p in sources for note in p.notes] + notes,
  )
  return Table(columns, origin)


# --------------------------------------------------------------------- text


def _text(path: Path, start: bytes) -> str:
  if start.startswith(b"\x1f\x8b"):
    raise UserError(f"{path} is compressed: unpack it first (gunzip)")
  try:
    text = path.read_text("utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{path} is of no known kind, or text that is not UTF-8 (byte"
      f" {error.start}): must be {KINDS}"
    ) from error
  if "\0" in text:
    raise UserError(
      f"{path} is of no known kind (a binary file): must be {KINDS}"
    )
  return text


def _csv(path: Path, text: str, notes: list[str]) -> dict[str, list]:
  line = text.partition("\n")[0]
  delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
  if delimiter not in line:
    delimiter = next((c for c in ";\t," if c in line), delimiter)
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=delimiter, strict=True
  )
  header, rows = None, []
  try:
    for cells in reader:
      if not "".join(cells).strip() and len(cells) < 2:
        continue  # a blank line
      if header is None:
        header = _header(path, cells, notes)
      elif len(cells) != len(header):
        raise UserError(
          f"{path} line {reader.line_num} has {len(cells)} cells, the header"
          f" has {len(header)}: quote cells that hold {delimiter!r}"
        )
      else:
        rows.append(cells)
  except csv.Error as error:
    raise UserError(f"{path} line {reader.line_num}: {error}") from error
  if not rows:
    raise UserError(f"{path} is empty: a header and no rows")
  return dict(zip(header, map(list, zip(*rows))))


def _header(path: Path, cells: list[str], notes: list[str]) -> list[str]:
  header = [cell.strip() for cell in cells]
  if parsed({"": header}, [])[""].dtype.kind == "f":
    raise UserError(f"{path} line 1 holds numbers, must be the columns' names")
  for i, name in enumerate(header):
    if not name:
      header[i] = f"column {i + 1}"
      notes.append(f"column {i + 1} has no name, called {header[i]!r}")
    elif name in header[:i]:
      raise UserError(
        f"{path} has two columns {name!r} ({header.index(name) + 1} and"
        f" {i + 1}): rename one"
      )
  return header


def _json_lines(path: Path, text: str) -> dict[str, list]:
  rows = []
  # Not splitlines: JSON strings may hold other line separators.
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise UserError(f"{path} line {number} is not JSON: {error}") from error
    if not isinstance(row, dict):
      raise UserError(
        f"{path} line {number} is a {type(row).__name__}, must be an object of"
        ' columns such as {"loss": 2.5}'
      )
    rows.append(_flat(row))
  return logs.rows_to_columns(rows)


def _json(path: Path, text: str) -> dict[str, list]:
  try:
    data = json.loads(text)
  except RecursionError as error:
    raise UserError(f"{path} is nested too deeply") from error
  except json.JSONDecodeError as error:
    if error.msg == "Extra data":  # JSON lines by another name
      return _json_lines(path, text)
    raise UserError(
      f"{path} line {error.lineno} is not JSON: {error.msg}"
    ) from error
  right = "a list of rows or an object of columns"
  if isinstance(data, list):
    for i, row in enumerate(data, 1):
      if not isinstance(row, dict):
        raise UserError(
          f"{path}: item {i} is a {type(row).__name__}, must be {right}"
        )
    return logs.rows_to_columns([_flat(row) for row in data])
  if not isinstance(data, dict):
    raise UserError(f"{path} is a {type(data).__name__}, must be {right}")
  if data and all(isinstance(v, dict) for v in data.values()):
    inner = list(dict.fromkeys(k for v in data.values() for k in v))
    if all(k.isdigit() for k in inner):  # columns as pandas writes them
      return {k: [v.get(i) for i in inner] for k, v in data.items()}
    rows = [{"run": k} | _flat(v) for k, v in data.items()]
    return logs.rows_to_columns(rows)
  lists = {k: v for k, v in data.items() if isinstance(v, list)}
  if not lists:
    return logs.rows_to_columns([_flat(data)])  # one row
  lengths = {k: len(v) for k, v in lists.items()}
  if len(lists) < len(data) or len(set(lengths.values())) > 1:
    odd = {k: type(v).__name__ for k, v in data.items() if k not in lists}
    raise UserError(
      f"{path}: columns of different lengths {lengths | odd}, must be {right}"
    )
  return lists


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested objects as `outer/inner` columns."""
  out = {}
  for key, value in row.items():
    if isinstance(value, dict):
      out |= _flat(value, f"{prefix}{key}/")
    else:
      out[f"{prefix}{key}"] = value
  return out


# ------------------------------------------------------------------- binary


def _parquet(path: Path) -> dict[str, list]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      f"{path}: parquet needs the extra: pip install 'vitscale[parquet]'"
    ) from error
  try:
    return pyarrow.parquet.read_table(path).to_pydict()
  except (pyarrow.ArrowException, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f"{path} is no whole parquet file: {reason}") from error


def _npz(path: Path, notes: list[str]) -> dict[str, list]:
  """Arrays (2, n), one per curve, or arrays (n,), one per column."""
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {k: file[k] for k in file.files}
  except Exception as error:  # zipfile, zlib, numpy: whatever is broken
    raise UserError(
      f"{path} is no whole .npz file of numbers: {error}"
    ) from error
  shapes = {a.shape for a in arrays.values()}
  if len(shapes) == 1 and len(next(iter(shapes))) == 1:
    return {k: a.tolist() for k, a in arrays.items()}
  out: dict[str, list] = {"curve": [], "x": [], "y": []}
  unsorted = []
  for name, a in arrays.items():
    if a.ndim != 2 or len(a) != 2 or a.dtype.kind not in "fiu":
      raise UserError(
        f"{path}: array {name!r} is {a.dtype} {a.shape}, must be numbers"
        " (2, n): x and y of a curve"
      )
    out["curve"] += [name] * a.shape[1]
    out["x"] += a[0].astype(np.float64).tolist()
    out["y"] += a[1].astype(np.float64).tolist()
    unsorted += [name] * bool((np.diff(a[0].astype(np.float64)) <= 0).any())
  if unsorted:
    notes.append(
      f"x does not strictly increase in {len(unsorted)} of {len(arrays)}"
      f" curves, {unsorted[0]!r} first"
    )
  return out
