"""Plain values: strict JSON, numbers for people, tables for the terminal."""

import dataclasses
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def to_json(value: Any) -> Any:
  """The same in types that strict JSON has: NaN and infinities become null."""
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {str(k): to_json(v) for k, v in value.items()}
  if isinstance(value, (np.generic, np.ndarray)):
    return to_json(value.tolist())
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    if hasattr(value, "as_dict"):
      return to_json(value.as_dict())
    fields = dataclasses.fields(value)
    return {f.name: to_json(getattr(value, f.name)) for f in fields}
  if isinstance(value, (list, tuple, set, frozenset)):
    return [to_json(v) for v in value]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "__array__"):  # jax arrays, without importing jax
    return to_json(np.asarray(value))
  raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


def dumps(value: Any, *, indent: int | None = None) -> str:
  """Strict JSON text of anything `to_json` takes."""
  return json.dumps(
    to_json(value), indent=indent, allow_nan=False, ensure_ascii=False
  )


def number(value: Any, digits: int = 4) -> str:
  """Four significant digits, no exponent where a reader would not want one."""
  if value is None:
    return "–"
  if isinstance(value, (bool, np.bool_)):
    return "yes" if value else "no"
  if isinstance(value, (int, np.integer)):
    return f"{value:,}" if abs(value) >= 1e4 else str(value)
  if not isinstance(value, (float, np.floating)):
    return str(value)
  if not math.isfinite(value):
    return "–" if math.isnan(value) else f"{value:+}".replace("inf", "∞")
  if value == 0:
    return "0"
  if 1e-4 <= abs(value) < 1e5:
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 0), 6)}f}"
  return f"{value:.{digits - 1}e}"


def cells(
  rows: Sequence[Mapping[str, Any] | Sequence[Any]],
  columns: Sequence[str] | None = None,
) -> tuple[list[str], list[list[str]], list[bool]]:
  """(headings, formatted cells, which columns hold numbers only)."""
  if columns is None:
    if rows and not isinstance(rows[0], Mapping):
      raise ValueError("rows without names need columns=[...]")
    columns = list(dict.fromkeys(k for row in rows for k in row))
  values = [
    [row.get(c) for c in columns] if isinstance(row, Mapping) else list(row)
    for row in rows
  ]
  for i, row in enumerate(values):
    if len(row) != len(columns):
      raise ValueError(f"row {i} has {len(row)} cells, not {len(columns)}")
  numeric = [
    any(_is_number(row[j]) for row in values)
    and all(row[j] is None or _is_number(row[j]) for row in values)
    for j in range(len(columns))
  ]
  return list(columns), [[number(v) for v in row] for row in values], numeric


def table(
  rows: Sequence[Mapping[str, Any] | Sequence[Any]],
  columns: Sequence[str] | None = None,
) -> str:
  """Rows aligned for a terminal; numbers to the right, no colours, no boxes."""
  heads, body, numeric = cells(rows, columns)
  lines = [heads, *([_one_line(v) for v in row] for row in body)]
  widths = [max(map(_width, column)) for column in zip(*lines)]
  lines.insert(1, ["─" * w for w in widths])
  out = []
  for line in lines:
    padded = [
      " " * (w - _width(v)) + v if right else v + " " * (w - _width(v))
      for v, w, right in zip(line, widths, numeric)
    ]
    out.append("  ".join(padded).rstrip())
  return "\n".join(out)


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float, np.number)) and not isinstance(
    value, bool
  )


def _one_line(text: str) -> str:
  return " ".join(text.split("\n"))


def _width(text: str) -> int:
  """Terminal columns: wide East Asian characters take two, marks none."""
  return sum(
    0
    if unicodedata.combining(c)
    else 2
    if unicodedata.east_asian_width(c) in "WF"
    else 1
    for c in text
  )
