"""What `vitscale fit` adds to a card: what follows from the law, if asked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import report
from vitscale.laws import validate as checks
from vitscale.laws.allocate import allocate
from vitscale.laws.approaches import approaches
from vitscale.laws.fit import Fit
from vitscale.laws.forms import Law
from vitscale.laws.next_runs import next_runs
from vitscale.laws.prepare import Prepared


def check_asked(
  law: Law,
  predict: Mapping[str, float] | None,
  next_count: int,
  budget: float | None,
  compared: bool,
  levels: Sequence[float] | None,
) -> None:
  """Raises UserError for what can't be answered, before anything is fitted."""
  if next_count < 0:
    raise UserError(f"--next is {next_count}, must be 1 or more runs")
  if bool(next_count) != (budget is not None):
    raise UserError("--next K and --budget FLOPS go together")
  if next_count and predict is None:
    example = ",".join(f"{v}=..." for v in law.variables)
    raise UserError(f"--next needs the forecast's place: --predict {example}")
  if levels and not compared:
    raise UserError("--levels belongs to --approaches")


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


def add_next_runs(
  result: dict[str, Any],
  fitted: Fit,
  target: Mapping[str, float],
  count: int,
  budget: float,
  seed: int,
) -> None:
  """The runs that narrow the forecast most; none for a degenerate fit."""
  if fitted.degenerate:
    result |= {"next_runs": [], "next_plan": None}
    result["warnings"].append("no next runs: the fit is degenerate")
    return
  plan = next_runs(
    fitted, target, budget=budget, count=count, seed=seed
  ).as_dict()
  result["next_runs"] = plan.pop("runs")
  result["next_plan"] = plan
  result["warnings"] += [f"next runs: {w}" for w in plan["warnings"]]


def add_approaches(
  result: dict[str, Any],
  points: Prepared,
  groups: str | None,
  levels: Sequence[float] | None,
  seed: int,
) -> None:
  """Approaches 1, 2 and 3 on the same rows; `groups` are runs with curves."""
  found = approaches(points.table, run=groups, levels=levels, seed=seed)
  result["approaches"] = found.as_dict()


def add_validation(
  result: dict[str, Any],
  law: Law,
  points: Prepared,
  by: str,
  groups: str | None,
  options: Mapping[str, Any],
) -> None:
  """Hold-out of the largest, rollout, and each size left out.

  Args:
    by: the column that measures scale, "" for compute or the first variable.
    options: of every fit.
  """
  result["validation"] = {}
  common = {"groups": groups, **options}
  for name, check, scale in (
    ("holdout", checks.holdout, by or None),
    ("rollout", checks.rollout, by or None),
    ("leave_one_out", checks.leave_one_out, None),
  ):
    try:
      found = check(law, points.table, by=scale, **common)
    except UserError as error:
      result["warnings"].append(f"{name}: {error}")
      continue
    result["validation"][name] = found.as_dict()
    result["warnings"] += [f"{name}: {w}" for w in found.warnings]
