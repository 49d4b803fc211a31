"""From files to the points of a fit: columns, conventions, what was dropped.

Steps, in this order, each saying what it removed: columns are mapped, missing
ones of N, D, C, M derived; for curves, rows without a loss dropped; equal rows
(`dedup`); warm-up (`drop_warmup`); smoothing (`smooth`); all but each run's
last row (`final`); the highest losses (`drop_highest`); outliers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import curation, expression, ingest, registry
from vitscale.laws.forms import Bound, Law
from vitscale.laws.table import CONVENTIONS, Table, derive, map_columns


@dataclasses.dataclass(frozen=True)
class Curation:
  """What to clean, see the module for the order.

  Attributes:
    drop_warmup: steps such as "500", or a share of each run such as "10%".
    smooth: window in rows, over the logarithm of the loss along a run.
    final: keep the last row of each run.
    dedup: drop rows equal in run, step, variables and loss to an earlier one.
    drop_highest: keep rows whose loss is below so many of the largest.
    outliers: "report" or "drop" rows far from the trend of their neighbours.
    run: column that names the run of a row; default `run` if there is one.
    x: column that orders the rows of a run, default `step`; for outliers the
      variable of the trend, default the law's only one.
  """

  drop_warmup: str = ""
  smooth: int = 0
  final: bool = False
  dedup: bool = False
  drop_highest: int = 0
  outliers: str = ""
  run: str | None = None
  x: str | None = None

  @property
  def of_curves(self) -> bool:
    """Whether rows are points along runs."""
    return bool(self.drop_warmup or self.smooth or self.final)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A law and its points.

  Attributes:
    table: the rows to fit, with the law's variables and `loss`.
    rows_read: before anything was dropped.
    dropped: what was dropped or changed and why, sentences.
    origin: variable or loss -> the column or rule it comes from.
  """

  law: Law
  table: Table
  rows_read: int
  dropped: tuple[str, ...]
  origin: dict[str, str]


def prepare(
  files: Sequence[str | Path],
  law: str,
  mapping: Mapping[str, str],
  bounds: Mapping[str, Bound] | None = None,
  clean: Curation | None = None,
) -> Prepared:
  """Reads files and makes them a law's points.

  Args:
    files: what `ingest.read_files` takes.
    law: a name or a formula (`registry.find`).
    mapping: name -> column or expression, `loss` among them.
    bounds: of the law's parameters.
    clean: what to drop.

  Raises:
    UserError: anything about files, columns or the law.
  """
  clean = clean or Curation()
  raw = ingest.read_files(files, curves=clean.of_curves)
  table = map_columns(raw, mapping)
  columns = [k for k in table if k not in ("loss", mapping["loss"])]
  chosen, said = registry.find(law, columns, bounds)
  origin = {
    v: mapping.get(v) or (v if v in raw else CONVENTIONS.get(v, ""))
    for v in (*chosen.variables, "loss")
  }
  table = derive(table.extended({}, said), chosen.variables)
  table, dropped = curated(table, chosen.variables, clean)
  _check_sources(table, (*chosen.variables, "loss"))
  if law not in registry.LAWS:
    x = [table.numbers(v) for v in chosen.variables]
    expression.check_domain(chosen, x, table.numbers("loss"))
  return Prepared(chosen, table, raw.n, tuple(dropped), origin)


def curated(
  table: Table, variables: Sequence[str], clean: Curation
) -> tuple[Table, list[str]]:
  """The cleaned rows and one sentence per step that did something.

  Raises:
    UserError: a step lacks its columns or its argument is malformed.
  """
  out: list[str] = []

  def take(step: str, found: curation.Cleaned) -> Table:
    cleaned, said = found
    nothing = [] if said else [f"{step}: no row dropped"]
    out.extend(said or nothing)
    return cleaned.extended({}, nothing)

  run = clean.run or ("run" if "run" in table else None)
  step = clean.x or "step"
  if clean.of_curves:
    _check_curves(table, clean, run, step)
    table, blank = _with_loss(table)
    out += blank
  if clean.dedup:
    keys = dict.fromkeys((run, step, *variables, "loss"))
    table = take(
      "equal rows", curation.dedup(table, [k for k in keys if k in table])
    )
  where = {"run": run, "step": step}
  if clean.drop_warmup:
    share = _warmup(clean.drop_warmup)
    found = curation.drop_warmup(table, **share, **where)
    table = take("warm-up", found)
  if clean.smooth:
    table = take("smooth", curation.smooth(table, clean.smooth, **where))
  if clean.final:
    table = take("final", curation.final_points(table, **where))
  if clean.drop_highest:
    found = curation.drop_highest(table, clean.drop_highest)
    table = take("drop highest", found)
  if clean.outliers:
    table = take("outliers", _outliers(table, variables, clean, run))
  return table, out


def _check_curves(
  table: Table, clean: Curation, run: str | None, step: str
) -> None:
  """Raises UserError where a curve's columns are missing."""
  name = (
    "--drop-warmup" if clean.drop_warmup
    else "--smooth" if clean.smooth else "--final"
  )  # fmt: skip
  if step not in table:
    raise UserError(
      f"{name} needs the column that orders a run: no column {step!r}"
      f"{nearest(step, table)}, give --x COLUMN"
    )
  if run is not None and run not in table:
    raise UserError(f"--groups: no column {run!r}{nearest(run, table)}")
  if run is None and len(np.unique(table[step])) < table.n:
    raise UserError(
      f"{name} needs the column that names a run, as {step!r} repeats: there is"
      " no column 'run', give --groups COLUMN"
    )


def _with_loss(table: Table) -> curation.Cleaned:
  blank = np.isnan(table.numbers("loss"))
  if not blank.any():
    return table, []
  said = [
    f"{blank.sum()} of {table.n} rows without a loss dropped:"
    f" {table.where(blank)}"
  ]
  return table.take(~blank, said), said


def _warmup(text: str) -> dict[str, float]:
  """Arguments of `drop_warmup` from "500" or "10%"."""
  number = text.strip().removesuffix("%")
  try:
    value = float(number)
  except ValueError:
    value = np.nan
  share = number != text.strip()
  if not 0 <= value < (100 if share else np.inf):
    raise UserError(f"--drop-warmup {text!r} is neither steps nor a share, 10%")
  if not share and 0 < value < 1:
    raise UserError(f"--drop-warmup {text!r}: write {100 * value:g}%")
  return {"fraction": value / 100} if share else {"steps": value}


def _outliers(
  table: Table, variables: Sequence[str], clean: Curation, run: str | None
) -> curation.Cleaned:
  if clean.outliers not in ("report", "drop"):
    raise UserError(
      f"--outliers {clean.outliers!r}"
      f"{nearest(clean.outliers, ('report', 'drop'))}"
    )
  if clean.x is None and len(variables) > 1:
    raise UserError(
      "--outliers needs the variable of the trend, --x COLUMN: the law has"
      f" {', '.join(variables)}"
    )
  by_run = run if run and len(np.unique(table[run])) < table.n else None
  flagged, said = curation.outliers(table, clean.x or variables[0], run=by_run)
  bad = np.flatnonzero(flagged["outlier"] != "")
  if clean.outliers == "report" or not bad.size:
    return flagged, said
  reasons = [
    f"outlier dropped: {table.where([i])}: {flagged['outlier'][i]}"
    for i in bad.tolist()
  ]
  return table.take(flagged["outlier"] == "", reasons), reasons


def _check_sources(table: Table, needed: Sequence[str]) -> None:
  """Raises UserError where one of several files lacks a needed column."""
  source = table.provenance.source
  for name in needed:
    values = table.numbers(name)
    full = {s: ~np.isnan(values[source == s]).all() for s in np.unique(source)}
    lacking = [s for s, some in full.items() if not some]
    if lacking and len(lacking) < len(full):
      raise UserError(
        f"{name!r} is blank in every row of {lacking[0]}: the files must have"
        " the columns that it is made of"
      )
