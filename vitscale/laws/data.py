"""From whatever holds the points to checked float64 columns."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws.forms import Law
from vitscale.laws.frame import frame, outer
from vitscale.laws.table import Table

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Points:
  """What a fit sees: `x` per variable, all arrays (n,)."""

  x: tuple[Array, ...]
  y: Array
  weights: Array
  groups: Array | None
  digest: str

  @property
  def n(self) -> int:
    return len(self.y)

  @property
  def cell(self) -> Array:
    """(n,) number of the distinct x that each row sits at."""
    rows = np.stack(self.x, -1)
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def columns_of(data: Any) -> dict[str, Array]:
  """A mapping of columns, a data frame, or a list of row dicts."""
  if isinstance(data, Table):
    return data
  if isinstance(data, Sequence) and all(isinstance(r, Mapping) for r in data):
    names = list(dict.fromkeys(k for r in data for k in r))
    return {k: np.array([r.get(k) for r in data], object) for k in names}
  if hasattr(data, "keys"):
    return {k: np.asarray(data[k]) for k in data.keys()}  # noqa: SIM118
  raise UserError(
    f"data is a {type(data).__name__}, must be a dict of columns, a data frame "
    "or a list of row dicts"
  )


def read(
  law: Law,
  data: Any,
  *,
  y: str,
  weights: str | Array | None = None,
  groups: str | Array | None = None,
) -> Points:
  """Checks everything a fit relies on; every complaint names its rows."""
  table = columns_of(data)
  x = tuple(
    _positive(table, v, f"a variable of law {law.name!r}")
    for v in law.variables
  )
  loss = _positive(table, y, "the loss")
  for name, v in zip(law.variables, x):
    if len(v) != len(loss):
      raise UserError(
        f"column {name!r} has {len(v)} rows, {y!r} has {len(loss)}"
      )

  n, k = len(loss), len(law.free)
  if n < k:
    names = ", ".join(p.name for p in law.free)
    raise UserError(
      f"law {law.name!r} has {k} parameters ({names}), the data "
      f"only {n} {'point' if n == 1 else 'points'}"
    )
  distinct = len(np.unique(np.stack(x, -1), axis=0))
  if distinct < k:
    raise UserError(
      f"law {law.name!r} needs {k} different values of "
      f"{', '.join(law.variables)}, the data have {distinct}"
    )
  _check_varies(law, x, loss)

  if weights is None:
    w = np.ones(n)
  else:
    name = weights if isinstance(weights, str) else "weights"
    w = _positive(
      {**table, **({} if isinstance(weights, str) else {name: weights})},
      name,
      "the weights",
    )
  if isinstance(groups, str):
    if groups not in table:
      raise UserError(f"groups: no column {groups!r}{nearest(groups, table)}")
    groups = table[groups]
  g = None if groups is None else np.asarray(groups).astype(str)
  for name, v in (("weights", w), ("groups", g)):
    if v is not None and len(v) != n:
      raise UserError(f"{name} has {len(v)} rows, {y!r} has {n}")
  if g is not None and len(set(g)) == 1:
    raise UserError(
      f"groups: all {n} rows belong to run {str(g[0])!r}, resampling runs"
      " needs 2"
    )

  digest = hashlib.sha256()
  for v in (*x, loss, w):
    digest.update(np.ascontiguousarray(v, "<f8").tobytes())
  return Points(x, loss, w, g, digest.hexdigest()[:16])


def _check_varies(law: Law, x: Sequence[Array], loss: Array) -> None:
  """Raises UserError where one value of a variable makes two terms one.

  Laws that are not linear in anything are left to the fit's own check.
  """
  constant = [v for v, values in zip(law.variables, x) if np.ptp(values) == 0]
  if not constant or law.basis is None:
    return
  where, k = frame(law, x, loss), len(law.linear)
  low, high = where.low[k:], where.high[k:]
  t = np.r_[np.ones(k), low + 0.15 * (high - low)]
  columns = np.stack(
    np.broadcast_arrays(*law.basis(x, outer(law, where, t)[k:]))
  )[[p in law.free for p in law.linear]]
  columns = columns / np.linalg.norm(columns, axis=1, keepdims=True)
  if np.linalg.matrix_rank(columns) < len(columns):
    value = x[law.variables.index(constant[0])][0]
    raise UserError(
      f"{constant[0]!r} is {value:g} in every row: law {law.name!r} needs"
      " different values of it"
    )


def _positive(table: Mapping[str, Any], name: str, role: str) -> Array:
  if name not in table:
    raise UserError(f"no column {name!r} ({role}){nearest(name, table)}")
  raw = np.asarray(table[name])
  if raw.ndim != 1:
    raise UserError(f"column {name!r} ({role}) has shape {raw.shape}, not (n,)")
  try:
    # Float before anything is multiplied: int64 overflows silently.
    value = raw.astype(np.float64)
  except (TypeError, ValueError):
    bad = np.array([i for i, v in enumerate(raw) if not _is_number(v)])
    raise UserError(
      f"column {name!r} ({role}): {_rows(table, bad, raw)}, must be numbers"
    ) from None
  bad = np.flatnonzero(~(np.isfinite(value) & (value > 0)))
  if bad.size:
    raise UserError(
      f"column {name!r} ({role}): {_rows(table, bad, value)}, must be positive"
    )
  return value


def _is_number(v: Any) -> bool:
  try:
    float(v)
  except (TypeError, ValueError):
    return False
  return True


def _rows(
  table: Mapping[str, Any], bad: Array, values: Array, most: int = 5
) -> str:
  """Which rows are wrong, counted as in their file where there is one."""
  if isinstance(table, Table):
    first = values[bad[0]]
    where = table.where(bad, most)
    return (
      f"{where} is {first}" if len(bad) == 1 else f"{where} ({first} first)"
    )
  shown = ", ".join(f"row {i} is {values[i]}" for i in bad[:most])
  return shown + (f" and {len(bad) - most} more" if len(bad) > most else "")
