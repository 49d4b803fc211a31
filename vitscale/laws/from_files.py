"""`vitscale fit`: from anybody's files to a law, its card and its page."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import curation, extrapolate, ingest, registry
from vitscale.laws.allocate import allocate
from vitscale.laws.fit import Fit
from vitscale.laws.fit import fit as fit_law
from vitscale.laws.table import Table, derive, map_columns


def fit_files(
  files: Sequence[str | Path],
  *,
  law: str,
  mapping: Mapping[str, str] | None = None,
  y: str = "loss",
  drop_highest: int = 0,
  objective: str = "log-mse",
  groups: str | None = None,
  pin: Mapping[str, float] | None = None,
  bootstrap: int = 4000,
  resample: str = "auto",
  seed: int = 0,
  predict: Mapping[str, float] | None = None,
  compute: float | None = None,
  out: str | Path | None = None,
) -> dict[str, Any]:
  """Reads, cleans, fits and says what follows.

  Args:
    files: what `ingest.read_files` takes.
    law: a name of `registry.LAWS`.
    mapping: variable -> column or expression of columns; a law's variable
      with a column of its own name needs none.
    y: column of the loss, unless `mapping` has `loss`.
    drop_highest: keeps rows whose loss is below so many of the largest.
    objective, groups, bootstrap, resample, seed: see `fit`.
    pin: parameters with a fixed value.
    predict: values of all variables to forecast the loss at.
    compute: budget of the allocation; default the largest in the data.
    out: folder for card.json and a page.

  Returns:
    The card (`law, n, params, se, ci95, objective, seconds, warnings, ...`),
    with `objective` as the number, `notes`, `sha256`, `allocation` for laws of
    N and D, and `forecast` where asked.

  Raises:
    UserError: anything about files, columns, the law or its data.
  """
  chosen = registry.named(law)
  if pin:
    chosen = chosen.pin(**pin)
  table, notes = clean(
    ingest.read_files(files), chosen.variables, mapping or {}, y, drop_highest
  )
  if predict is not None:
    check_point(chosen.variables, predict)
  fitted = fit_law(
    chosen,
    table,
    objective=objective,
    groups=groups,
    bootstrap=bootstrap,
    resample=resample,
    seed=seed,
  )
  card = fitted.card()
  result = {
    **card,
    "objective_name": fitted.objective_name,
    "objective": fitted.objective,
    "notes": notes,
    "sha256": table.provenance.sha256,
  }
  if {"N", "D"} <= set(chosen.variables):
    extra = {
      v: float(np.exp(np.log(table[v]).mean()))
      for v in chosen.variables
      if v not in ("N", "D")
    }
    budget = compute or float((6.0 * table["N"] * table["D"]).max())
    found = allocate(fitted, budget, fixed=extra)
    result["allocation"] = {**found.as_dict(), "rule": "C = 6 N D", **extra}
    if found.at_edge:
      result["warnings"].append("the law has no best N at this budget")
    elif not found.inside:
      result["warnings"].append(
        f"the best N at C = {budget:.3g} lies outside of the fitted sizes"
      )
  if predict is not None:
    low, high = fitted.predict_ci(**predict)
    result["forecast"] = {
      "at": dict(predict),
      "value": fitted.predict(**predict),
      "ci95": [low, high],
    }
    result["warnings"] += beyond(fitted, predict)
  if out is not None:
    result["report"] = str(_page(Path(out), fitted, result))
  return result


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


def clean(
  table: Table,
  variables: Sequence[str],
  mapping: Mapping[str, str],
  y: str,
  drop_highest: int,
) -> tuple[Table, list[str]]:
  """The mapped table with the law's variables and `loss`, and its notes."""
  mapping = dict(mapping)
  mapping.setdefault("loss", y)
  table = derive(map_columns(table, mapping), variables)
  said = []
  if drop_highest:
    table, said = curation.drop_highest(table, drop_highest)
  return table, [*table.notes, *(s for s in said if s not in table.notes)]


def check_point(variables: Sequence[str], point: Mapping[str, float]) -> None:
  """Raises UserError unless `point` gives each variable a positive number."""
  for name in variables:
    if name not in point:
      raise UserError(f"the forecast needs a value for {name!r}")
  for name, value in point.items():
    if name not in variables:
      raise UserError(
        f"the forecast has no variable {name!r}"
        f" (the law has {', '.join(variables)})"
      )
    if not 0 < value < np.inf:
      raise UserError(f"the forecast's {name}={value} must be positive")


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


def text(result: Mapping[str, Any]) -> str:
  """What a terminal shows."""
  lines = [f"{result['formula']}", f"{result['source']}", ""]
  lines.append(f"{result['n']} points, {result['objective_name']}"
               f" = {result['objective']:.12g} (sum)")  # fmt: skip
  for name, value in result["params"].items():
    low, high = result["ci95"][name]
    ci = "" if low is None else f"   95 % [{low:.6g}, {high:.6g}]"
    lines.append(f"  {name:>8} = {value:.8g}{ci}")
  for name, value in result["derived"].items():
    lines.append(f"  {name:>8} = {value:.6g}   (derived)")
  if "allocation" in result:
    a = result["allocation"]
    low, high = a["ci"]["n"]
    lines.append(
      f"best at C = {a['compute']:.3g}: N = {a['n']:.4g} [{low:.3g},"
      f" {high:.3g}], D = {a['d']:.4g}, N* ~ C^{a['exponent']:.3f}"
    )
  if "forecast" in result:
    f = result["forecast"]
    low, high = f["ci95"]
    lines.append(f"forecast: {f['value']:.6g} [{low:.5g}, {high:.5g}]")
  lines += [f"note: {note}" for note in result["notes"]]
  lines += [f"warning: {warning}" for warning in result["warnings"]]
  if "report" in result:
    lines.append(f"report: {result['report']}")
  return "\n".join(lines)


def _page(out: Path, fitted: Fit, result: Mapping[str, Any]) -> Path:
  from vitscale.core.log import write_json
  from vitscale.report import page
  from vitscale.report.figures import Axis, Figure, Level, Line, Panel, Points

  law, y = fitted.law, fitted.points.y
  x = dict(zip(law.variables, fitted.points.x))
  predicted = fitted.predict(**x)
  off = 100 * (y / predicted - 1)
  ends = np.array(
    [min(y.min(), predicted.min()), max(y.max(), predicted.max())]
  )
  fit_panel = Panel(
    Axis("loss of the law", "log"),
    Axis("measured loss", "log"),
    [Line("equal", ends, ends), Points("points", predicted, y)],
  )
  residuals = [
    Panel(
      Axis(name, "log"),
      Axis("measured - law (%)"),
      [Level(0.0, "law"), Points("points", values, off)],
    )
    for name, values in x.items()
  ]
  rows = [
    {
      "parameter": name,
      "value": value,
      "se": result["se"][name],
      "low": result["ci95"][name][0],
      "high": result["ci95"][name][1],
    }
    for name, value in result["params"].items()
  ]
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / "card.json", result)
  said = [*result["notes"], *(f"**{w}**" for w in result["warnings"])]
  return page.write(
    out / "report.html",
    title=f"{law.name}: {law.formula}",
    intro="\n\n".join([law.source, *said]),
    tables=[page.Table("Parameters, 95 % intervals", rows)],
    figures=[
      Figure("fit", "Law and points", [fit_panel]),
      Figure("residuals", "What the law leaves", residuals),
    ],
    meta={"n": fitted.n, "objective": fitted.objective_name,
          "interval": fitted.interval, "data": fitted.points.digest,
          "seed": fitted.seed},
    data={"card": result},
  )  # fmt: skip
