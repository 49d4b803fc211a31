"""`fit(law, data)`: parameters, intervals over runs, and honest warnings.

    fit = laws.fit(laws.power_constant("p", exponent=(0, 4)), table,
                   groups="run")
    fit.params["L0"], fit.ci()["L0"], fit.predict(p=1), fit.predict_ci(p=1)

The default objective is the mean squared log residual: seeds scatter around
their law by a few per cent, symmetrically in logs. `huber` (delta 1e-3) is the
one Hoffmann et al. (2203.15556) use over points of unequal trust, `lad` (least
absolute deviations) its limit.
"""

import dataclasses
import math
import time
from typing import Any, Literal

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import data as tables
from vitscale.laws import diagnose, intervals, solve
from vitscale.laws.forms import Law
from vitscale.laws.frame import outer
from vitscale.laws.objective import Objective

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law with numbers.

  Attributes:
    params: best value of each parameter.
    objective: its value, a sum over points.
    n: points; `dof` the degrees of freedom behind the intervals.
    sigma: run-to-run noise, standard deviation of ln loss; from repeats at
      equal x where there are any, else from the residuals.
    lack_of_fit: p-value of "the scatter around the curve is only run noise"
      (F test); NaN without repeats. Small: the form is wrong.
    degenerate: why the parameters mean nothing, empty if they do.
    warnings: plain sentences, the degeneracies among them.
    draws: parameter -> (bootstrap,) resampled values.
    search: how the optimum was found: `converged`, `starts`, `agree` (share
      of starts that ended there), `start_gap` (relative distance of the best
      start), `condition` (of the scaled Gauss-Newton matrix), `bounds`.
  """

  law: Law
  params: dict[str, float]
  objective: float
  objective_name: str
  n: int
  dof: float
  sigma: float
  rmse_log: float
  r2: float
  lack_of_fit: float
  degenerate: tuple[str, ...]
  warnings: tuple[str, ...]
  draws: dict[str, Array]
  points: tables.Points
  interval: str
  seed: int
  seconds: dict[str, float]
  search: dict[str, Any] = dataclasses.field(default_factory=dict)

  def ci(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Bootstrap interval of each parameter; NaN where there is none.

    A degenerate fit has no intervals: its draws wander along a valley.
    """
    if self.degenerate or not self.interval:
      return {k: (float("nan"),) * 2 for k in self.params}
    bounds = {
      k: intervals.percentile(v, level, self.dof) for k, v in self.draws.items()
    }
    return {k: (float(a), float(b)) for k, (a, b) in bounds.items()}

  def se(self) -> dict[str, float]:
    """Standard deviation of the draws."""
    if self.degenerate or not self.interval:
      return {k: float("nan") for k in self.params}
    return {k: float(v.std(ddof=1)) for k, v in self.draws.items()}

  def predict(self, **x: float | Array) -> float | Array:
    """Loss at x, as `fit.predict(p=1)` or with arrays."""
    value = self.law(self.params, **x)
    return float(value) if np.ndim(value) == 0 else value

  def predict_ci(
    self, level: float = 0.95, *, runs: int | None = None, **x: float | Array
  ) -> tuple[Any, Any]:
    """Interval of the curve at x, or of the mean loss of `runs` new runs.

    Without `runs` only the curve's own uncertainty; with it, run-to-run noise
    is added to every draw: where a measured mean of so many runs should fall.
    A degenerate fit still predicts: its curve is known where data are.
    """
    shape = np.shape(self.law(self.params, **x))
    if not self.interval:
      nan = np.full(shape, np.nan)
      return (float("nan"),) * 2 if not shape else (nan, nan)
    params = {
      k: v.reshape(-1, *(1,) * len(shape)) for k, v in self.draws.items()
    }
    curves = self.law(params, **x)
    if runs is not None:
      if runs < 1:
        raise UserError(f"runs is {runs}, must be 1 at least")
      rng = np.random.default_rng([self.seed, 1])
      noise = rng.standard_normal(curves.shape)
      curves = curves * np.exp(self.sigma / np.sqrt(runs) * noise)
    low, high = intervals.percentile(curves, level, self.dof)
    return (float(low), float(high)) if not shape else (low, high)

  def card(self) -> dict[str, Any]:
    """Everything needed to judge or repeat the fit; plain JSON types."""
    ci = {k: [_number(v) for v in pair] for k, pair in self.ci().items()}
    ranges = {
      v: [float(x.min()), float(x.max())]
      for v, x in zip(self.law.variables, self.points.x)
    }
    return {
      "law": self.law.name,
      "name": self.law.name,
      "formula": self.law.formula,
      "source": self.law.source,
      "params": {k: _number(v) for k, v in self.params.items()},
      "derived": {k: _number(v) for k, v in self.derived.items()},
      "pinned": dict(self.law.pinned),
      "se": {k: _number(v) for k, v in self.se().items()},
      "ci95": ci,
      "n": self.n,
      "dof": _number(self.dof),
      "objective": {"name": self.objective_name, "value": self.objective},
      "sigma_log": _number(self.sigma),
      "rmse_log": _number(self.rmse_log),
      "r2": _number(self.r2),
      "lack_of_fit_p": _number(self.lack_of_fit),
      "interval": self.interval or None,
      "bootstrap": len(next(iter(self.draws.values()))),
      "seed": self.seed,
      "range": ranges,
      "data_sha256": self.points.digest,
      "bounds": {
        p.name: [_number(p.low), _number(p.high)] for p in self.law.parameters
      },
      "degenerate": list(self.degenerate),
      "warnings": list(self.warnings),
      "search": self.search,
      "seconds": self.seconds,
    }

  @property
  def derived(self) -> dict[str, float]:
    """What follows from the parameters, such as allocation exponents."""
    return self.law.derived(self.params) if self.law.derived else {}


def fit(
  law: Law,
  data: Any,
  *,
  y: str = "loss",
  weights: str | Array | None = None,
  objective: str = "log-mse",
  groups: str | Array | None = None,
  resample: Literal["auto", "pooled", "stratified", "case"] = "auto",
  starts: int | None = None,
  bootstrap: int = 4000,
  seed: int = 0,
) -> Fit:
  """Fits a law and resamples its runs.

  Args:
    law: a declaration from `forms`.
    data: dict of columns, data frame, or list of row dicts.
    y: column of the loss.
    weights: column or array of positive weights; default all equal.
    objective: see `Objective.parse`.
    groups: column or array saying which rows come from one run; default each
      row is a run.
    resample: what the bootstrap draws, see `intervals`: "pooled" the residuals
      of runs over all x, "stratified" runs among those measured at the same
      x, "case" rows with their x. "auto" is stratified where runs have
      several rows, pooled where x repeat or rows are few, else case.
    starts: how many of the Sobol starts are polished; default 8, or 48 for
      laws of more than three shape parameters.
    bootstrap: number of draws; 0 for none.
    seed: of the resampling.

  Raises:
    UserError: bad rows, unknown columns, too few points, naming them.
  """
  points = tables.read(law, data, y=y, weights=weights, groups=groups)
  goal = Objective.parse(objective)
  w = points.weights / points.weights.mean()
  starts = starts or (8 if len(law.shape) <= 3 else 48)
  best = solve.best(law, points, goal, w, starts=starts)
  params = dict(zip(law.names, best.params))
  fitted = law(params, **dict(zip(law.variables, points.x)))
  search = diagnose.search(law, best, w)
  mid = time.perf_counter()

  residual = np.log(fitted) - np.log(points.y)
  noise, lack = diagnose.noise(points, residual, len(law.free))
  plan = intervals.design(points.x, points.groups)
  kind, draws, dof = _bootstrap(
    law, points, w, goal, plan, fitted, residual, resample, bootstrap, seed,
    best,
  )  # fmt: skip
  degenerate = tuple(diagnose.degenerate(law, search, points, residual, w))
  named = dict(zip(law.names, draws.T))
  warnings = (
    *degenerate,
    *diagnose.warnings(law, params, points, plan, bootstrap, kind, named, lack),
  )
  spread = np.log(points.y) - np.average(np.log(points.y), weights=w)
  r2 = 1 - (w * residual**2).sum() / max((w * spread**2).sum(), 1e-300)
  return Fit(
    law=law,
    params=params,
    objective=best.value,
    objective_name=goal.name,
    n=points.n,
    dof=dof,
    sigma=noise,
    rmse_log=float(np.sqrt(np.average(residual**2, weights=w))),
    r2=float(r2),
    lack_of_fit=lack,
    degenerate=degenerate,
    warnings=warnings,
    draws=named,
    points=points,
    interval=kind,
    seed=seed,
    seconds={
      "compile": round(best.compile, 6),
      "fit": round(best.seconds, 6),
      "bootstrap": round(time.perf_counter() - mid, 6),
    },
    search=search,
  )


def _bootstrap(
  law: Law,
  points: tables.Points,
  w: Array,
  goal: Objective,
  plan: intervals.Design,
  fitted: Array,
  residual: Array,
  resample: str,
  draws: int,
  seed: int,
  best: solve.Best,
) -> tuple[str, Array, float]:
  """(kind or "", draws (d, k), degrees of freedom)."""
  k = len(law.free)
  rng = np.random.default_rng(seed)
  single = len(plan.stratum) == points.n
  if resample not in ("auto", "pooled", "stratified", "case"):
    raise UserError(
      f"resample is {resample!r}, must be auto, pooled, stratified or case"
    )
  if resample == "auto" and single and not plan.dof and points.n >= 20 * k:
    resample = "case"
  if resample == "pooled" and not single:
    raise UserError(
      f"resample='pooled' needs one row per run, {len(plan.stratum)} runs have "
      f"{points.n} rows; use 'stratified'"
    )
  pooled = resample != "stratified" and single
  if draws and resample == "case":
    # numpy's legacy generator, as the published replication of Chinchilla
    # (2404.10102) draws: the same seed gives the same resamples.
    old = np.random.RandomState(seed)
    picks = [old.choice(points.n, points.n) for _ in range(draws)]
    counts = np.stack([np.bincount(p, minlength=points.n) for p in picks])
    kind, dof, y, weights = (
      "case bootstrap",
      math.inf,
      points.y[None],
      w * counts,
    )
  elif draws and pooled and points.n > k:
    kind, dof = "pooled run bootstrap", points.n - k
    errors = (residual - residual.mean()) * np.sqrt(points.n / dof)
    picks = rng.integers(0, points.n, (draws, points.n))
    y, weights = fitted * np.exp(-errors[picks]), w[None]  # observed/fitted
  elif draws and not pooled and plan.dof:
    kind, dof = "stratified run bootstrap", plan.dof
    weights = w * intervals.cluster_weights(plan, draws, rng)
    y = points.y[None]
  else:
    return "", np.empty((0, k)), 0
  where = best.frame
  found, _, _ = solve.polish(law, where, goal, best.t[None], y, weights)
  return kind, np.stack(outer(law, where, found), -1), dof


def _number(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None
