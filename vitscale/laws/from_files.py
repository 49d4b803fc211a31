"""`vitscale fit`: from anybody's files to a law, its card and its page."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import extrapolate, ingest, report
from vitscale.laws.allocate import allocate
from vitscale.laws.fit import Fit
from vitscale.laws.fit import fit as fit_law
from vitscale.laws.forms import Bound
from vitscale.laws.prepare import Curation, Prepared, prepare

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
    count: "total" or "non-embedding", what N counts.
    out: folder for card.json and a page.
    clean: fields of `prepare.Curation`: what to drop, and the order.

  Returns:
    The card (`report.card`), with `allocation` for laws of N and D and
    `forecast` where asked.

  Raises:
    UserError: anything about files, columns, the law or its data.
  """
  _check(bootstrap, seed, count)
  mapping = {"loss": y, **(mapping or {})}
  points = prepare(files, law, mapping, bounds, Curation(run=groups, **clean))
  chosen = points.law.pin(**pin) if pin else points.law
  if predict is not None:
    check_point(chosen.variables, predict)
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
    add_dependence(result, points)
  if {"N", "D"} <= set(chosen.variables):
    add_allocation(result, fitted, points, compute)
  if predict is not None:
    add_forecast(result, fitted, predict)
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


# -------------------------------------------------------------------- extras


def add_dependence(result: dict[str, Any], points: Prepared) -> None:
  """A warning where rows of one run are taken as independent."""
  table = points.table
  runs = len(set(table["run"].tolist())) if "run" in table else table.n
  if runs < table.n:
    result["warnings"].append(
      f"{table.n} rows of {runs} runs are taken as independent: --groups run"
      " resamples runs"
    )


def add_allocation(
  result: dict[str, Any],
  fitted: Fit,
  points: Prepared,
  compute: float | None,
) -> None:
  """The best N and D for a budget, by default the largest in the data."""
  table = points.table
  extra = {
    v: float(np.exp(np.log(table[v]).mean()))
    for v in fitted.law.variables
    if v not in ("N", "D")
  }
  flops = 6.0 * table.numbers("N") * table.numbers("D")
  budget = compute or float(flops.max())
  found = allocate(fitted, budget, fixed=extra).as_dict()
  none = bool(fitted.degenerate)
  found["ci"] = {k: _known(v, none) for k, v in found["ci"].items()}
  result["allocation"] = {**found, "rule": report.RULE, **extra}
  if found["at_edge"]:
    result["warnings"].append("the law has no best N at this budget")
  elif not found["inside"]:
    result["warnings"].append(
      f"the best N at C = {budget:.3g} lies outside of the fitted sizes"
    )


def add_forecast(
  result: dict[str, Any], fitted: Fit, point: Mapping[str, float]
) -> None:
  """The loss at a point; no interval where the fit is degenerate."""
  ends = fitted.predict_ci(**point)
  result["forecast"] = {
    "at": dict(point),
    "value": fitted.predict(**point),
    "ci95": _known(ends, bool(fitted.degenerate)),
  }
  result["warnings"] += beyond(fitted, point)


def _known(ends: Sequence[float], none: bool) -> list[float] | None:
  if none or not np.isfinite(ends).all():
    return None
  return [float(v) for v in ends]


def check_point(variables: Sequence[str], point: Mapping[str, float]) -> None:
  """Raises UserError unless `point` gives each variable a positive number."""
  for name, value in point.items():
    if name not in variables:
      raise UserError(
        f"the forecast has no variable {name!r}{nearest(name, variables)}"
      )
    if not 0 < value < np.inf:
      raise UserError(f"the forecast's {name}={value} must be positive")
  for name in variables:
    if name not in point:
      raise UserError(f"the forecast needs a value for {name!r}")


def beyond(fitted: Fit, point: Mapping[str, float]) -> list[str]:
  """How far a point lies outside of the data, in words."""
  out = []
  for name, x in zip(fitted.law.variables, fitted.points.x):
    value = point[name]
    if not x.min() <= value <= x.max():
      factor = value / x.max() if value > x.max() else x.min() / value
      side = "above" if value > x.max() else "below"
      out.append(f"{name} = {value:.4g} lies {factor:.3g}x {side} the data")
  return out


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
