"""Cleaning of points that says what it dropped and why.

Every function takes a table and returns `(table, sentences)`; the sentences
also join the table's notes, so that a fit's card can print them. Rows are
named as `vitscale.laws.table` counts them. A run is named by the column
`run`, or by the columns given; its rows are ordered by the column `step`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws.table import Table, table_of

Array = np.ndarray
Cleaned = tuple[Table, list[str]]


def _runs(
  table: Table, run: str | Sequence[str] | None, notes: list[str]
) -> dict[str, Array]:
  keys = [run] if isinstance(run, str) else list(run or ())
  if keys == ["run"] and "run" not in table:
    notes.append("no column 'run': all rows are taken as one run")
    keys = []
  for key in keys:
    if key not in table:
      raise UserError(f"no column {key!r}{nearest(key, table)}")
  rows: dict[tuple[str, ...], list[int]] = {}
  columns = [table[k].astype(str) for k in keys]
  for i in range(table.n):
    rows.setdefault(tuple(str(c[i]) for c in columns), []).append(i)
  return {", ".join(k) or "all": np.array(v) for k, v in rows.items()}


def drop_warmup(
  table: Mapping[str, Any],
  *,
  fraction: float | None = None,
  steps: float | None = None,
  run: str | Sequence[str] | None = "run",
  step: str = "step",
) -> Cleaned:
  """Drops rows before `steps`, or before a fraction of a run's last step."""
  table, notes = table_of(table), []
  if (fraction is None) == (steps is None):
    raise UserError("drop_warmup takes either fraction or steps")
  if fraction is not None and not 0 <= fraction < 1:
    raise UserError(f"fraction is {fraction}, must be at least 0, below 1")
  at, early = table.numbers(step, finite=True), np.zeros(table.n, bool)
  for name, rows in _runs(table, run, notes).items():
    first = fraction * at[rows].max() if steps is None else steps
    early[rows] = at[rows] < first
    if early[rows].all():
      notes.append(f"run {name} is dropped: it ends before {step} {first:g}")
  if early.all():
    raise UserError(f"every row has {step} below {steps}: nothing would stay")
  if early.any():
    bound = f"{steps:g}" if fraction is None else f"{fraction:g} of the last"
    notes.append(
      f"warm-up: {early.sum()} of {table.n} rows with {step} below {bound}"
      f" dropped: {table.where(early)}"
    )
  return table.take(~early, notes), notes


def smooth(
  table: Mapping[str, Any],
  window: int,
  *,
  y: str = "loss",
  kind: str = "mean",
  run: str | Sequence[str] | None = "run",
  step: str = "step",
) -> Cleaned:
  """Smooths log y along each run; a point sees itself and earlier ones only.

  `kind` "mean": the last `window` rows; "ema": decay 1 - 2 / (window + 1),
  without the bias of a start at zero. Rows whose y is NaN stay as they are.
  """
  table, notes = table_of(table), []
  if kind not in ("mean", "ema"):
    raise UserError(f"kind is {kind!r}{nearest(kind, ('mean', 'ema'))}")
  if not (isinstance(window, int | np.integer) and window >= 1):
    raise UserError(f"window is {window}, must be a whole number of rows >= 1")
  at, values = table.numbers(step, finite=True), table.numbers(y).copy()
  bad = np.flatnonzero((values <= 0) | np.isinf(values))
  if bad.size:
    raise UserError(
      f"column {y!r} is {values[bad[0]]:g} in {table.where(bad)}, must be"
      " positive for a mean of its logarithm"
    )
  runs = _runs(table, run, notes)
  for rows in runs.values():
    rows = rows[~np.isnan(values[rows])]
    rows = rows[np.argsort(at[rows], kind="stable")]
    values[rows] = np.exp(_trailing(np.log(values[rows]), int(window), kind))
  name = {"mean": "running mean", "ema": "exponential mean"}[kind]
  notes.append(
    f"{y} smoothed by a {name} over {window} rows of its logarithm, in each of"
    f" {len(runs)} runs; no row dropped"
  )
  return table.extended({y: values}, notes), notes


def _trailing(values: Array, window: int, kind: str) -> Array:
  if kind == "mean":
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (total[end] - total[start]) / (end - start)
  out, decay = np.empty(len(values)), 1 - 2 / (window + 1)
  total = weight = 0.0
  for i, v in enumerate(values):
    total, weight = decay * total + v, decay * weight + 1
    out[i] = total / weight
  return out


def final_points(
  table: Mapping[str, Any],
  last: int = 1,
  *,
  y: str = "loss",
  run: str | Sequence[str] | None = "run",
  step: str = "step",
) -> Cleaned:
  """One row per run: its last with a finite y, y the mean of the `last` ones.

  The mean is arithmetic; every other column is the last row's.
  """
  table, notes = table_of(table), []
  if not (isinstance(last, int | np.integer) and last >= 1):
    raise UserError(f"last is {last}, must be a whole number of rows >= 1")
  at, values = table.numbers(step, finite=True), table.numbers(y).copy()
  kept, short, runs = [], [], _runs(table, run, notes)
  for name, rows in runs.items():
    rows = rows[np.isfinite(values[rows])]
    rows = rows[np.argsort(at[rows], kind="stable")][-last:]
    if not rows.size:
      notes.append(f"run {name} is dropped: no row has a finite {y}")
      continue
    if rows.size < last:
      short.append(f"{name} ({rows.size})")
    values[rows[-1]] = values[rows].mean()
    kept.append(rows[-1])
  if not kept:
    raise UserError(f"column {y!r} has no finite value: no run has a last one")
  mean = f", {y} the mean of the last {last} rows" if last > 1 else ""
  notes.append(
    f"final points: the last row of each of {len(kept)} runs kept{mean},"
    f" {table.n - len(kept)} of {table.n} rows dropped"
  )
  if short:
    notes.append(f"runs with fewer than {last} rows: {', '.join(short)}")
  return table.extended({y: values}).take(np.array(kept), notes), notes


def dedup(table: Mapping[str, Any], keys: str | Sequence[str]) -> Cleaned:
  """Keeps the first of the rows that agree in all `keys`."""
  table, notes = table_of(table), []
  keys = [keys] if isinstance(keys, str) else list(keys)
  for key in keys:
    if key not in table:
      raise UserError(f"no column {key!r}{nearest(key, table)}")
  if not keys:
    raise UserError("dedup needs the columns that make two rows the same")
  # By repr, so that NaN equals itself.
  rows = list(zip(*(map(repr, table[k].tolist()) for k in keys)))
  first = {row: i for i, row in reversed(list(enumerate(rows)))}
  origin = np.array([first[row] for row in rows])
  gone = np.flatnonzero(origin != np.arange(table.n))
  if gone.size:
    notes.append(
      f"{gone.size} of {table.n} rows dropped, equal in {', '.join(keys)} to an"
      f" earlier one: {table.where(gone)}"
    )
    for name in (k for k in table if k not in keys):
      a, b = (table[name][i].astype(str) for i in (gone, origin[gone]))
      if (a != b).any():
        notes.append(
          f"{(a != b).sum()} of the dropped rows differ in {name!r} from the"
          f" one kept: {table.where(gone[a != b])}"
        )
  return table.take(origin == np.arange(table.n), notes), notes


def drop_highest(table: Mapping[str, Any], k: int, y: str = "loss") -> Cleaned:
  """Keeps rows whose y is strictly below the k-th largest."""
  table, notes = table_of(table), []
  values = table.numbers(y, finite=True)
  if not (isinstance(k, int | np.integer) and 0 <= k < table.n):
    raise UserError(
      f"drop_highest {k}: must be a whole number from 0 to {table.n - 1}, the"
      f" data have {table.n} rows"
    )
  if k == 0:
    return table, notes
  bound = np.sort(values)[-k]
  gone = values >= bound
  if gone.all():
    raise UserError(f"drop_highest {k}: all {table.n} rows have {y} {bound:g}")
  ties = f" ({gone.sum() - k} more by ties)" if gone.sum() > k else ""
  notes.append(
    f"the {k} highest{ties}: {gone.sum()} of {table.n} rows with {y} at or"
    f" above {bound:.10g} dropped: {table.where(gone)}"
  )
  return table.take(~gone, notes), notes


def outliers(
  table: Mapping[str, Any],
  x: str,
  y: str = "loss",
  *,
  run: str | Sequence[str] | None = None,
  window: int = 11,
  limit: float = 5.0,
) -> Cleaned:
  """Flags rows far from the local log-log trend; drops none.

  The trend at a row is the median-of-slopes line through the `window` rows
  nearest in rank of x, applied twice, within the groups of `run`. A row is
  flagged when its residual exceeds `limit` times 1.4826 MAD of its group's
  residuals, the MAD taken as 0.001 at least (a tenth of a percent of y). Look
  before dropping: the ends of a steep curve of few rows may be flagged.

  Returns:
    The table with a text column `outlier`, the reason or "", and one sentence
    per flagged row or group that could not be judged.
  """
  table, notes = table_of(table), []
  values = {k: table.numbers(k) for k in (x, y)}
  reasons = np.full(table.n, "", object)
  for k, v in values.items():
    reasons[(reasons == "") & ~(np.isfinite(v) & (v > 0))] = (
      f"{k} is not positive and finite"
    )
  for name, rows in _runs(table, run, notes).items():
    rows = rows[reasons[rows] == ""]
    if rows.size < 5:
      notes.append(f"{name}: {rows.size} usable rows are too few to judge")
      continue
    rows = rows[np.argsort(values[x][rows], kind="stable")]
    log_x, log_y = (np.log(values[k][rows]) for k in (x, y))
    near = min(window, rows.size)
    residual = log_y - _trend(log_x, log_y, near)
    residual -= _trend(log_x, residual, near)  # what bends at the ends
    residual -= np.median(residual)
    scale = 1.4826 * max(np.median(np.abs(residual)), 1e-3)
    for i in np.flatnonzero(np.abs(residual) > limit * scale):
      side = "above" if residual[i] > 0 else "below"
      reasons[rows[i]] = (
        f"{y} is {100 * abs(np.expm1(residual[i])):.2g}% {side} the trend in"
        f" {x}, {abs(residual[i]) / scale:.1f} robust standard deviations"
      )
  for i in np.flatnonzero(reasons != ""):
    notes.append(f"flagged, not dropped: {table.where([i])}: {reasons[i]}")
  return table.extended({"outlier": reasons.astype(str)}, notes), notes


def _trend(log_x: Array, log_y: Array, window: int) -> Array:
  """(n,) robust local line at every point of sorted log_x."""
  n = len(log_x)
  start = np.clip(np.arange(n) - window // 2, 0, n - window)
  near = start[:, None] + np.arange(window)  # (n, window)
  dx, y = log_x[near] - log_x[:, None], log_y[near]
  i, j = np.triu_indices(window, 1)
  run = dx[:, j] - dx[:, i]  # (n, pairs), >= 0
  rise = np.where(run > 0, y[:, j] - y[:, i], np.nan)
  flat = ~(run > 0).any(-1)  # replicates only
  rise[flat] = 0.0
  slope = np.nanmedian(rise / np.where(run > 0, run, 1.0), -1)
  return np.median(y - slope[:, None] * dx, -1)
