"""Tables of points that know where each row came from; new columns.

Rows are counted from 1 in the file they came from, header apart.
"""

import ast
import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest

Array = np.ndarray

OPERATORS = {
  ast.Add: np.add,
  ast.Sub: np.subtract,
  ast.Mult: np.multiply,
  ast.Div: np.divide,
  ast.Pow: np.power,
}
BLANK = ("", "nan", "na", "n/a", "null", "none")
# 6 FLOPs per parameter and token (forward 2, backward 4).
CONVENTIONS = {
  "D": "C / (6 * N)",
  "C": "6 * N * D",
  "N": "C / (6 * D)",
  "M": "D / N",
}


@dataclasses.dataclass
class Provenance:
  """Where rows come from: `source` and `row` are (n,), see the module."""

  source: Array
  row: Array
  sha256: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)


class Table(dict[str, Array]):
  """Columns (n,) by name, float64 or text, and their `provenance`."""

  def __init__(
    self, columns: Mapping[str, Any], provenance: Provenance | None = None
  ):
    super().__init__({k: np.asarray(v) for k, v in columns.items()})
    sizes = {k: v.shape for k, v in self.items()}
    if len(set(sizes.values())) > 1 or any(len(v) != 1 for v in sizes.values()):
      raise UserError(f"columns must all be (n,) of one length, are {sizes}")
    n = len(next(iter(self.values()))) if self else 0
    self.provenance = provenance or Provenance(
      np.full(n, "the data"), np.arange(1, n + 1)
    )

  @property
  def n(self) -> int:
    return len(self.provenance.row)

  @property
  def notes(self) -> list[str]:
    return self.provenance.notes

  def take(self, rows: Array, notes: Iterable[str] = ()) -> "Table":
    """The rows of a mask or an index, and notes about the others."""
    p = self.provenance
    origin = Provenance(
      p.source[rows], p.row[rows], dict(p.sha256), [*p.notes, *notes]
    )
    return Table({k: v[rows] for k, v in self.items()}, origin)

  def extended(
    self, columns: Mapping[str, Array], notes: Iterable[str] = ()
  ) -> "Table":
    """More columns or others, and notes about them."""
    p = self.provenance
    origin = dataclasses.replace(p, notes=[*p.notes, *notes])
    return Table({**self, **columns}, origin)

  def numbers(self, name: str, *, finite: bool = False) -> Array:
    """A column as float64; UserError names the rows that are no numbers."""
    if name not in self:
      raise UserError(f"no column {name!r}{nearest(name, self)}")
    raw = self[name]
    try:
      values = raw.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
      cells = [_number(v) for v in raw.tolist()]
      bad = np.array([i for i, v in enumerate(cells) if v is None], int)
      if not bad.size:
        return np.array(cells)
      raise UserError(
        f"column {name!r} is text: {self.where(bad)} ({str(raw[bad[0]])!r}"
        f"{' first' if bad.size > 1 else ''}), must be numbers"
      ) from None
    bad = np.flatnonzero(~np.isfinite(values))
    if finite and bad.size:
      raise UserError(
        f"column {name!r} is {values[bad[0]]} in {self.where(bad)}, must be"
        " finite: fill in or drop such rows"
      )
    return values

  def where(self, rows: Array, most: int = 12) -> str:
    """`rows 1-4, 9 of a.csv; row 3 of b.csv`, at most so many ranges."""
    rows = np.arange(self.n)[rows]
    parts, shown = [], 0
    for source in dict.fromkeys(self.provenance.source[rows].tolist()):
      mine = rows[self.provenance.source[rows] == source]
      numbers = np.sort(self.provenance.row[mine])
      cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
      ranges = np.split(numbers, cuts)[: most - shown]
      if not ranges:
        return "; ".join(parts) + " and others"
      shown += len(ranges)
      text = ", ".join(
        f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in ranges
      )
      more = len(numbers) - sum(map(len, ranges))
      parts.append(
        f"row{'s' * (len(numbers) > 1)} {text}"
        + (f" and {more} more" if more else "")
        + f" of {source}"
      )
    return "; ".join(parts)


def table_of(data: Mapping[str, Any]) -> Table:
  """The table itself, or one of a plain dict of columns."""
  return data if isinstance(data, Table) else Table(data)


def parsed(columns: Mapping[str, list], notes: list[str]) -> dict[str, Array]:
  """Cells as read -> float64 columns (blank is NaN) or text (blank is "")."""
  out = {}
  for name, cells in columns.items():
    values = [_number(cell) for cell in cells]
    bad = [i for i, v in enumerate(values) if v is None]
    if not bad:
      out[name] = np.array(values, np.float64)
      continue
    out[name] = np.array(["" if c is None else str(c) for c in cells])
    if len(bad) <= 0.2 * len(cells):
      notes.append(
        f"column {name!r} is taken as text: row {bad[0] + 1} is"
        f" {str(cells[bad[0]])!r}"
        + (f", so are {len(bad) - 1} more" if len(bad) > 1 else "")
      )
  return out


def stacked(parts: Sequence[Array | None], sizes: Sequence[int]) -> Array:
  """Concatenates pieces of a column; None is blank, text wins over numbers."""
  text = any(p is not None and p.dtype.kind != "f" and p.size for p in parts)
  out = []
  for part, n in zip(parts, sizes):
    blank = part is None or (part.dtype.kind == "f" and np.isnan(part).all())
    if blank:
      part = np.full(n, "" if text else np.nan)
    out.append(part.astype(str) if text else part.astype(np.float64))
  return np.concatenate(out)


def _number(cell: Any) -> float | None:
  """NaN for a blank cell, None for what is no number."""
  if cell is None:
    return math.nan
  if isinstance(cell, str):
    cell = cell.strip().lower()
    if cell in BLANK:
      return math.nan
    if "_" in cell:  # Python would read 1_2 as 12
      return None
  try:
    value = float(cell)
  except (TypeError, ValueError, OverflowError):
    return None
  # A run's id such as 8e532100 is not infinity.
  overflow = isinstance(cell, str) and math.isinf(value) and "inf" not in cell
  return None if overflow else value


# ------------------------------------------------------------------ columns


def map_columns(table: Mapping[str, Any], mapping: Mapping[str, str]) -> Table:
  """Adds columns by other names, or computed from other columns.

  Args:
    table: the columns.
    mapping: new name -> a column's name, or an expression of columns and
      numbers with `+ - * / **` (names that are no identifiers in backticks);
      names mapped before may be used.

  Raises:
    UserError: no such column (the nearest is offered), not an expression, or
      text where numbers are needed.
  """
  table, done, notes = table_of(table), {}, []
  for name, text in mapping.items():
    text = str(text).strip()
    known = table.extended({k: v for k, v in done.items() if k not in table})
    plain = text.strip("`") if text.strip("`") in known else text
    done[name] = known[plain] if plain in known else _value(name, text, known)
    if plain != name:
      notes.append(
        f"{name} = {plain}" + (" (replaces a column)" if name in table else "")
      )
  return table.extended(done, notes)


def derive(table: Mapping[str, Any], wanted: Iterable[str]) -> Table:
  """Adds the wanted N, D, C = 6 N D and M = D / N that the table lacks.

  Raises:
    UserError: a wanted column is neither there nor derivable.
  """
  table = table_of(table)
  if {"N", "D", "C"} <= set(table):
    rule = _value("C", CONVENTIONS["C"], table)
    ratio = np.nanmedian(table.numbers("C") / rule)
    if not 0.95 < ratio < 1.05:
      note = f"C is {ratio:.3g} times 6 N D (median): counted by another rule"
      table = table.extended({}, [note])
  for name in wanted:
    if name in table:
      continue
    rule = CONVENTIONS.get(name)
    if rule is None:
      raise UserError(f"no column {name!r}{nearest(name, table)}")
    if name == "M" and "N" in table and "C" in table:
      table = derive(table, ["D"])
    needs = [v for v in re.findall("[A-Z]", rule) if v not in table]
    if needs:
      raise UserError(
        f"no column {name!r}{nearest(name, table)}: map it, or map"
        f" {' and '.join(needs)}, then {name} = {rule}"
      )
    note = f"{name} was not given: {name} = {rule} is used"
    table = table.extended({name: _value(name, rule, table)}, [note])
  return table


def _value(name: str, text: str, table: Table) -> Array:
  quoted = {}

  def hide(match: re.Match) -> str:
    quoted[f"_quoted{len(quoted)}"] = match[1]
    return f"_quoted{len(quoted) - 1}"

  def value(node: ast.AST) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
      return OPERATORS[type(node.op)](value(node.left), value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
      return -value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
      return np.float64(node.value)
    if isinstance(node, ast.Name):
      return table.numbers(quoted.get(node.id, node.id))
    raise SyntaxError

  try:
    if len(text) > 500:
      raise SyntaxError
    tree = ast.parse(re.sub("`([^`]+)`", hide, text), mode="eval")
    with np.errstate(all="ignore"):
      return np.broadcast_to(value(tree.body), (table.n,)).copy()
  except UserError as error:
    # A mistyped name may look like an expression: train/los.
    close = difflib.get_close_matches(text, list(table), 1, 0.8)
    reason = f"no column {text!r}{nearest(text, table)}" if close else error
    raise UserError(f"{name} = {text}: {reason}") from None
  except (SyntaxError, ValueError, OverflowError, RecursionError):
    raise UserError(
      f"{name}: {text!r} is neither a column{nearest(text, table)} nor an"
      " expression of columns and numbers with + - * / **; write names with"
      " spaces in `backticks`"
    ) from None
