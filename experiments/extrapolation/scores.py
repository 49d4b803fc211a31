"""Errors of many curves: fits, averages, and intervals over curves."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vitscale.laws import extrapolate, released

Array = np.ndarray
# Start and limit of M4's eps0 by domain, as the released code sets them.
EPS0 = {
  "IC": {"start": 1.0, "limit": 1.001},
  "NMT": {"start": 1.0},
  "LM": {"start": 1.0},
  "BB": {"start": 1.001, "limit": 1.001},
}
RELEASED = tuple(released.METHODS)
METHODS = extrapolate.METHODS  # the four, one break, auto
DRAWS = 10_000


def released_errors(
  curves: Sequence[extrapolate.Curve], domains: Sequence[str]
) -> dict[str, Array]:
  """RMSE of logs of M1 to M4 with the released bounds, (curves,) each."""
  fits = released.fit_all(
    [(c.x, c.y, EPS0[d]) for c, d in zip(curves, domains)]
  )
  return {
    name: np.array(
      [
        released.rmse_log(fit[name].predict(c.far_x), c.far_y)
        for c, fit in zip(curves, fits)
      ]
    )
    for name in RELEASED
  }


def errors(curves: Sequence[extrapolate.Curve]) -> dict[str, Array]:
  """RMSE of logs of all methods as `vitscale fit --law auto` runs them."""
  rows = list(extrapolate.extrapolate(curves))
  return {
    name: np.array([r["rmse_log"].get(name, math.nan) for r in rows])
    for name in METHODS
  }


def averages(each: Array) -> dict[str, float]:
  """Mean, geometric mean and median; no prediction counts as 1."""
  each = filled(each)
  return {
    "mean": float(each.mean()),
    "gmean": float(np.exp(np.log(each).mean())),
    "median": float(np.median(each)),
  }


def filled(each: Array) -> Array:
  return np.maximum(np.where(np.isnan(each), 1.0, each), 1e-12)


@dataclasses.dataclass(frozen=True)
class Paired:
  """Two methods on the same curves.

  Attributes:
    mean: of a - b; `ratio`: geometric mean of a / b.
    mean_ci, ratio_ci: 95 %, percentile bootstrap over families of curves.
    wins: share of curves where a is nearer.
  """

  mean: float
  mean_ci: tuple[float, float]
  ratio: float
  ratio_ci: tuple[float, float]
  wins: float
  curves: int
  families: int


def paired(
  a: Array, b: Array, families: Sequence[str] | None = None, *, seed: int = 0
) -> Paired:
  """Compares by curve; whole families are drawn (default: single curves)."""
  a, b = filled(a), filled(b)
  names = list(families or map(str, range(len(a))))
  order = {k: i for i, k in enumerate(dict.fromkeys(names))}
  which = np.array([order[k] for k in names])
  # Sums by family: a draw's mean is a ratio of two sums.
  total = lambda v: np.bincount(which, v, len(order))
  size, gap = total(np.ones(len(a))), total(a - b)
  log = total(np.log(a) - np.log(b))
  rng = np.random.default_rng(seed)
  picks = rng.integers(0, len(order), (DRAWS, len(order)))
  count = size[picks].sum(1)
  ends = lambda v: tuple(np.quantile(v[picks].sum(1) / count, (0.025, 0.975)))
  low, high = ends(log)
  return Paired(
    mean=float((a - b).mean()),
    mean_ci=tuple(float(v) for v in ends(gap)),
    ratio=float(np.exp((np.log(a) - np.log(b)).mean())),
    ratio_ci=(float(np.exp(low)), float(np.exp(high))),
    wins=float((a < b).mean()),
    curves=len(a),
    families=len(order),
  )
