"""`vitscale fit`: from anybody's files to a law, its card and its page."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale.core.errors import UserError, nearest
from vitscale.laws import extrapolate, extras, ingest, report
from vitscale.laws.fit import fit as fit_law
from vitscale.laws.forms import Bound
from vitscale.laws.prepare import Curation, prepare

text = report.text


def fit_files(
  files: Sequence[str | Path],
  *,
  law: str,
  mapping: Mapping[str, str] | None = None,
  y: str = "loss",
  bounds: Mapping[str, Bound] | None = None,
  pin: Mapping[str, float] | None = None,
  objective: str = "log-mse",
  groups: str | None = None,
  bootstrap: int = 4000,
  resample: str = "auto",
  seed: int = 0,
  predict: Mapping[str, float] | None = None,
  compute: float | None = None,
  next_count: int = 0,
  budget: float | None = None,
  approaches: bool = False,
  levels: Sequence[float] | None = None,
  validate: str | None = None,
  count: str | None = None,
  out: str | Path | None = None,
  **clean: Any,
) -> dict[str, Any]:
  """Reads, cleans, fits and says what follows.

  Args:
    files: what `ingest.read_files` takes.
    law: a name of `registry.LAWS`, or a formula (`expression.law`).
    mapping: variable -> column or expression of columns; a law's variable
      with a column of its own name needs none.
    y: column of the loss, unless `mapping` has `loss`.
    bounds: parameter -> (low, high) or (low, high, "log").
    pin: parameters with a fixed value.
    objective, groups, bootstrap, resample, seed: see `fit`.
    predict: values of all variables to forecast the loss at.
    compute: budget of the allocation; default the largest in the data.
    next_count, budget: plans so many runs for so many FLOPs together, those
      that narrow the forecast at `predict` most.
    approaches: adds Approaches 1, 2 and 3; `levels`: FLOPs of the second.
    validate: adds checks by extrapolation over a column, "" for the default.
    count: "total" or "non-embedding", what N counts.
    out: folder for card.json and a page.
    clean: fields of `prepare.Curation`: what to drop, and the order.

  Returns:
    The card (`report.card`), with `allocation` for laws of N and D, and where
    asked `forecast`, `next_runs` and `next_plan`, `approaches`, `validation`.

  Raises:
    UserError: anything about files, columns, the law or its data.
  """
  _check(bootstrap, seed, count)
  mapping = {"loss": y, **(mapping or {})}
  points = prepare(files, law, mapping, bounds, Curation(run=groups, **clean))
  chosen = points.law.pin(**pin) if pin else points.law
  if predict is not None:
    extras.check_point(chosen.variables, predict)
  extras.check_asked(chosen, predict, next_count, budget, approaches, levels)
  fitted = fit_law(
    chosen,
    points.table,
    objective=objective,
    groups=groups,
    bootstrap=bootstrap,
    resample=resample,
    seed=seed,
  )
  result = report.card(fitted, points, count)
  if groups is None:
    extras.add_dependence(result, points)
  if {"N", "D"} <= set(chosen.variables):
    extras.add_allocation(result, fitted, points, compute)
  if predict is not None:
    extras.add_forecast(result, fitted, predict)
  if next_count:
    extras.add_next_runs(result, fitted, predict, next_count, budget, seed)
  if approaches:
    extras.add_approaches(result, points, groups, levels, seed)
  if validate is not None:
    options = {"objective": objective, "seed": seed, "bootstrap": bootstrap}
    extras.add_validation(result, chosen, points, validate, groups, options)
  if out is not None:
    from vitscale.laws import fit_page

    result["report"] = str(fit_page.write(Path(out), fitted, result))
  return result


def _check(bootstrap: int, seed: int, count: str | None) -> None:
  for name, value in (("bootstrap", bootstrap), ("seed", seed)):
    if value < 0:
      raise UserError(f"--{name} is {value}, must not be negative")
  if count is not None and count not in report.COUNTS:
    raise UserError(f"--count {count!r}{nearest(count, report.COUNTS)}")


# ---------------------------------------------------------------------- auto


def extrapolate_files(
  files: Sequence[str | Path],
  *,
  x: str | None,
  y: str,
  group: str | None,
  holdout: str | None,
) -> dict[str, Any]:
  """`--law auto`: fits each curve where `holdout` is 1, predicts where it is 0.

  Args:
    x, y: columns; `group`: columns that name a curve, separated by commas.

  Returns:
    `groups` with `group, n_fit, n_test, method, rmse_log` (by method), and
    `summary` by method: mean, geometric mean and median over curves.

  Raises:
    UserError: an option or a column is missing, or values are not positive.
  """
  for name, value in (("--x", x), ("--group", group), ("--holdout", holdout)):
    if value is None:
      raise UserError(f"--law auto needs {name}")
  table = ingest.read_files(files)
  found = extrapolate.curves(
    table, x=x, y=y, group=group.split(","), holdout=holdout
  )
  start = time.perf_counter()
  groups = list(extrapolate.extrapolate(found))
  return {
    "law": "auto",
    "groups": groups,
    "summary": extrapolate.summary(groups),
    "seconds": round(time.perf_counter() - start, 3),
    "sha256": table.provenance.sha256,
  }


def table(result: Mapping[str, Any]) -> str:
  """What a terminal shows of `extrapolate_files`."""
  from vitscale.report.plain import table as draw

  rows = [{"method": k, **v} for k, v in result["summary"].items()]
  head = f"{len(result['groups'])} curves, RMSE of ln loss where held out"
  return f"{head}\n{draw(rows, list(rows[0]))}"
