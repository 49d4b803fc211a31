"""`vitscale runs` on the command line: filters, order, columns, a page."""

import argparse
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitscale.core.errors import UserError, nearest

EXAMPLE = "runs out/lab --where status=finished --sort=-params"

MOST = 50  # runs of one page: beyond them no curve can be told from another
_CONDITION = re.compile(r"\s*(.+?)\s*(!=|<=|>=|==?|<|>|~)\s*(.*?)\s*", re.S)
_ORDERS = {
  "<": operator.lt,
  "<=": operator.le,
  ">": operator.gt,
  ">=": operator.ge,
}

Row = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("folder", metavar="DIR", help="holds runs at any depth")
  parser.add_argument(
    "--where", action="append", default=[], metavar="'KEY OP VALUE'",
    help="only runs for which it holds: = != < <= > >=, ~ for a part of the"
    " text; several must hold together",
  )  # fmt: skip
  parser.add_argument(
    "--sort", metavar="KEY", help="--sort=-KEY for the largest first"
  )
  parser.add_argument(
    "--columns", metavar="A,B,C",
    help="what is shown; the metrics among them are what a page draws",
  )  # fmt: skip
  parser.add_argument(
    "--page", metavar="FILE.html",
    help="write a page that compares the runs; replaces only such a page",
  )  # fmt: skip


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Lists the runs below a folder, or compares them on a page.

  Keys are those of `--json`. The page has curves, final metrics, a law over
  size, and what differs between the configs; report.json and figures/ come
  beside it.
  """
  from vitscale.report.plain import table

  everything = _read(args.folder)
  rows = select(everything, args.where, args.sort)
  columns = named(everything, args.columns) if args.columns else None
  result: dict[str, Any] = {"runs": rows}
  if args.page:
    if not rows:
      raise UserError(f"{_none_match(args, everything)}: no page written")
    result["page"] = str(write(args.page, args.folder, rows, columns))
  if args.columns:
    result["runs"] = [{key: row.get(key) for key in columns} for row in rows]
  if not args.json:
    if rows:
      print(table(rows, columns or usual(everything)))
    else:
      print(_none_match(args, everything))
    if args.page:
      print(result["page"])
  return result, 0


def _read(folder: str) -> list[dict[str, Any]]:
  from vitscale import workdir

  try:
    rows = workdir.runs(folder)
  except (AttributeError, TypeError) as error:
    raise UserError(
      f"{folder}: a run.json there is not one of vitscale's ({error})"
    ) from error
  if not rows:
    raise UserError(f"no runs in {folder}: no run.json at any depth")
  return rows


def _none_match(args: argparse.Namespace, rows: Sequence[Row]) -> str:
  return (
    f"none of the {len(rows)} runs in {args.folder} has"
    f" {' and '.join(args.where)}"
  )


# ------------------------------------------------------------- rows of a table


class Condition(NamedTuple):
  """`KEY OP VALUE`, as `params<1e6`."""

  key: str
  sign: str
  value: str
  text: str


def condition(text: str) -> Condition:
  """Reads one condition.

  Raises:
    UserError: no operator, or an order between things that aren't numbers.
  """
  found = _CONDITION.fullmatch(text)
  if not found:
    raise UserError(
      f"--where {text!r} is no condition: KEY OP VALUE, as 'status=finished'"
      " or 'params<1e6' (= != < <= > >= ~)"
    )
  key, sign, value = found.groups()
  sign = "=" if sign == "==" else sign
  if sign in _ORDERS and _number(value) is None:
    raise UserError(f"--where {text!r}: {sign} takes a number, not {value!r}")
  return Condition(key, sign, value, text)


def holds(row: Row, wanted: Condition) -> bool:
  """Whether a row has it; a row without the key has only `!=`.

  Numbers are equal as numbers (`params=1e6`), all else as text.

  Raises:
    UserError: the order of a value that is no number.
  """
  value, sign = row.get(wanted.key), wanted.sign
  if value is None:
    return sign == "!="
  if sign == "~":
    return wanted.value in str(value)
  mine, theirs = _number(value), _number(wanted.value)
  if sign in _ORDERS:
    if mine is None:
      raise UserError(
        f"--where {wanted.text!r}: {wanted.key} is {value!r} in run"
        f" {row.get('name')}, no number: use = != or ~"
      )
    return _ORDERS[sign](mine, theirs)
  if mine is None or theirs is None:
    equal = str(value) == wanted.value
  else:
    equal = mine == theirs
  return equal == (sign == "=")


def select(
  rows: Sequence[Row], where: Iterable[str] = (), sort: str | None = None
) -> list[Row]:
  """The rows that have all conditions, in the order of a key.

  Args:
    sort: a key, with `-` in front for the largest first; numbers are less
      than text, rows without the key come last.

  Raises:
    UserError: no such key in any row, with the nearest one.
  """
  conditions = [condition(text) for text in where]
  for wanted in conditions:
    _known(rows, wanted.key, f"--where {wanted.text!r}")
  kept = [row for row in rows if all(holds(row, c) for c in conditions)]
  if sort is None:
    return kept
  down = sort.startswith("-")
  key = sort[1:] if down else sort
  _known(rows, key, "--sort")
  has = [row for row in kept if row.get(key) is not None]
  lacks = [row for row in kept if row.get(key) is None]

  def place(row: Row) -> tuple[bool, float, str]:
    value = _number(row[key])
    text = str(row[key]) if value is None else ""
    return (value is None, value or 0.0, text)

  return sorted(has, key=place, reverse=down) + lacks


def named(rows: Sequence[Row], text: str) -> list[str]:
  """The keys of `a,b,c`.

  Raises:
    UserError: no such key in any row, with the nearest one.
  """
  keys = [key.strip() for key in text.split(",") if key.strip()]
  if not keys:
    raise UserError("--columns is empty: keys with commas between")
  for key in keys:
    _known(rows, key, "--columns")
  return list(dict.fromkeys(keys))


def usual(rows: Sequence[Row]) -> list[str]:
  """Columns without --columns: where a run is, its size, its scores."""
  evals = {key for row in rows for key in row if key.startswith("eval/")}
  return ["name", "status", "step", "params", "train/loss"] + sorted(
    key for key in evals if not key.endswith("_se")
  )


def _known(rows: Sequence[Row], key: str, where: str) -> None:
  keys = dict.fromkeys(k for row in rows for k in row)
  if key not in keys:
    raise UserError(f"{where}: no run has {key!r}{nearest(key, keys)}")


def _number(value: Any) -> float | None:
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return None if math.isnan(number) else number


# ------------------------------------------------------------------------ page


def write(
  file: str, folder: str, rows: Sequence[Row], columns: Sequence[str] | None
) -> Path:
  """Writes the page that compares the runs of some rows.

  Args:
    file: of the page; report.json and figures/ come beside it.
    columns: the metrics among them are drawn; all by default, up to a limit.

  Raises:
    UserError: something else is there, too many runs, or no place to write.
  """
  from vitscale.core.log import read_json, read_rows
  from vitscale.report import compare, page

  if len(rows) > MOST:
    raise UserError(
      f"{len(rows)} runs are too many for one page (at most {MOST}): narrow"
      " them with --where"
    )
  path = Path(file).absolute()
  if path.suffix.lower() not in (".html", ".htm"):
    raise UserError(f"--page {file}: not an .html file")
  _ours(path)
  runs = [
    compare.Run(
      Path(row["workdir"]).name if row["name"] == "." else row["name"],
      read_json(Path(row["workdir"]) / "run.json"),
      read_rows(Path(row["workdir"]) / "metrics.jsonl"),
    )
    for row in rows
  ]
  metrics = None if columns is None else compare.metrics(rows, columns)
  try:
    return page.write(
      path,
      title=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of {folder}",
      sections=compare.sections(runs, metrics or None),
      data={"compares": path.name, "runs": list(rows)},
    )
  except OSError as error:
    raise UserError(f"can't write {path}: {error.strerror}") from error


def _ours(path: Path) -> None:
  """Refuses to replace what is no comparison under this name."""
  from vitscale.core.log import read_json

  report = path.with_name("report.json")
  old = read_json(report) if report.is_file() else None
  if isinstance(old, Mapping) and old.get("compares") == path.name:
    return
  for there in (path, report):
    if there.exists():
      raise UserError(
        f"{there} is there and not of this page: choose another folder for"
        " --page"
      )
