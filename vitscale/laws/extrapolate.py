"""Extrapolation of curves: fit the near part, predict the far one, score.

`--law auto` predicts by the log mean of two estimators of different kinds: M4,
which is steady (`released`), and a broken power law with one break, which is
flexible. The choice rests on language-model curves of ColPret (every third of
192, first half fitted): there the pair beats each of the five methods alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import released, single
from vitscale.laws.data import Points
from vitscale.laws.frame import bucket
from vitscale.laws.objective import Objective
from vitscale.laws.released import rmse_log
from vitscale.laws.solve import best

Array = np.ndarray
STARTS = 24
BROKEN = "bnsl1"
METHODS = (*released.METHODS, BROKEN, "auto")


class Curve(NamedTuple):
  """One curve: `x`, `y` to fit, `far_x`, `far_y` to predict."""

  name: str
  x: Array
  y: Array
  far_x: Array
  far_y: Array


def curves(
  table: Mapping[str, Any],
  *,
  x: str,
  y: str,
  group: Sequence[str],
  holdout: str,
) -> list[Curve]:
  """Splits a table into curves: rows where `holdout` is 1 are fitted.

  Points of equal x and y count once; the fitted ones are sorted by x.

  Raises:
    UserError: a column is missing, or a curve has nothing to fit or predict.
  """
  for name in (x, y, holdout, *group):
    if name not in table:
      raise UserError(f"no column {name!r}{nearest(name, table)}")
  try:
    near = np.asarray(table[holdout], float)
  except ValueError:
    near = np.full(len(table[holdout]), np.nan)
  if not np.isin(near, (0, 1)).all():
    raise UserError(f"column {holdout!r} must be 1 (fit) or 0 (predict)")
  keys = list(zip(*(np.asarray(table[g]).astype(str) for g in group)))
  found = []
  for key in dict.fromkeys(keys):
    mine = np.array([k == key for k in keys])
    parts = []
    for value in (1, 0):
      rows = mine & (near == value)
      pairs = np.stack([np.asarray(table[c], float)[rows] for c in (x, y)], -1)
      if value:
        _, first = np.unique(pairs[:, 0], return_index=True)
        pairs = pairs[first]
      parts += [pairs[:, 0], pairs[:, 1]]
    name = " / ".join(key)
    if not len(parts[0]) or not len(parts[2]):
      what = "fit" if not len(parts[0]) else "predict"
      raise UserError(f"curve {name!r} has no rows to {what}")
    found.append(Curve(name, *parts))
  return found


def extrapolate(found: Sequence[Curve]) -> Iterator[dict[str, Any]]:
  """Per curve: `group, n_fit, n_test, method` and `rmse_log` by method.

  Raises:
    UserError: values that are not positive (the curve is named).
  """
  estimates = released.fit_all([(c.x, c.y, {}) for c in found])
  law, goal = single.bnsl(1), Objective.parse("log-mse")
  # One size for all curves: one compilation.
  size = bucket(max(len(c.x) for c in found))
  for curve, by_name in zip(found, estimates):
    predicted = {k: fit.predict(curve.far_x) for k, fit in by_name.items()}
    n = len(curve.x)
    if n >= len(law.parameters):
      points = Points((curve.x,), curve.y, np.ones(n), None, "")
      fit = best(law, points, goal, points.weights, starts=STARTS, size=size)
      params = dict(zip(law.names, fit.params))
      predicted[BROKEN] = law(params, x=curve.far_x)
    pair = [name for name in ("M4", BROKEN) if name in predicted]
    with np.errstate(divide="ignore", invalid="ignore"):
      logs = [np.log(predicted[name]) for name in pair]
    predicted["auto"] = np.exp(np.mean(logs, axis=0))
    yield {
      "group": curve.name,
      "n_fit": n,
      "n_test": len(curve.far_x),
      "method": "log mean of " + " and ".join(pair),
      "rmse_log": {
        k: rmse_log(predicted[k], curve.far_y)
        for k in METHODS
        if k in predicted
      },
    }


def summary(groups: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
  """Per method: mean, geometric mean and median of the curves' RMSE of logs.

  A curve that a method could not predict counts as 1 (a factor of e).
  """
  out = {}
  for name in METHODS:
    each = [g["rmse_log"].get(name, math.nan) for g in groups]
    values = np.array([1.0 if math.isnan(v) else v for v in each])
    out[name] = {
      "mean": float(values.mean()),
      "gmean": float(np.exp(np.log(np.maximum(values, 1e-12)).mean())),
      "median": float(np.median(values)),
      "curves": sum(not math.isnan(v) for v in each),
    }
  return out
