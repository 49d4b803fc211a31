"""`fit(law, data)`: parameters, intervals, and honest warnings.

    fit = laws.fit(laws.power_constant("p", exponent=(0, 4)), table,
                   groups="run")
    fit.params["L0"], fit.ci()["L0"], fit.predict(p=1), fit.predict_ci(p=1)
    fit.ci(kind="profile"), fit.ci(kind="delta")

The default objective is the mean squared log residual: seeds scatter around
their law by a few per cent, symmetrically in logs. `huber` (delta 1e-3) is the
one Hoffmann et al. (2203.15556) use over points of unequal trust, `lad` (least
absolute deviations) its limit.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import (
  card,
  delta,
  diagnose,
  intervals,
  profile,
  resampling,
  solve,
)
from vitscale.laws import data as tables
from vitscale.laws.forms import Law
from vitscale.laws.objective import Objective

Array = np.ndarray
Kind = Literal["bootstrap", "delta", "profile"]
KINDS = ("bootstrap", "delta", "profile")


@dataclasses.dataclass(frozen=True)
class Fit:
  """A law with numbers.

  Attributes:
    params: best value of each parameter.
    objective: its value, a sum over points.
    n: points; `dof` the degrees of freedom behind the bootstrap's intervals.
    sigma: run-to-run noise, standard deviation of ln loss; from repeats at
      equal x where there are any, else from the residuals.
    lack_of_fit: p-value of "the scatter around the curve is only run noise"
      (F test); NaN without repeats. Small: the form is wrong.
    degenerate: why the parameters mean nothing, empty if they do.
    warnings: plain sentences, the degeneracies among them.
    draws: parameter -> (bootstrap,) resampled values.
    interval: what was resampled, empty without draws.
    search: how the optimum was found: `converged`, `starts`, `agree` (share
      of starts that ended there), `start_gap` (relative distance of the best
      start), `condition` (of the scaled Gauss-Newton matrix), `bounds`.
    best, goal, plan: the optimum, what it minimises, which rows are one run.

  Three kinds of 95 % intervals, each of the parameters or of any function of
  them (`interval_of`):

  * "bootstrap": percentiles of `draws` (`resampling`);
  * "delta": slopes at the optimum and Student's t (`delta`);
  * "profile": the objective's rise (`profile`); of parameters alone.

  The default is the bootstrap where there are draws, else delta.
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
  draws: dict[str, Array] = dataclasses.field(repr=False)
  points: tables.Points = dataclasses.field(repr=False)
  interval: str
  seed: int
  seconds: dict[str, float]
  search: dict[str, Any]
  best: solve.Best = dataclasses.field(repr=False)
  goal: Objective = dataclasses.field(repr=False)
  plan: intervals.Design = dataclasses.field(repr=False)

  @property
  def weights(self) -> Array:
    """(n,) with mean 1, as fitted."""
    return self.points.weights / self.points.weights.mean()

  @functools.cached_property
  def local(self) -> delta.Local:
    """Slopes and covariance at the optimum."""
    several = len(self.plan.stratum) < self.n
    return delta.local(
      self.law, self.best.frame, self.goal, self.best.t, self.points.y,
      self.weights, self.plan.cluster if several else None,
    )  # fmt: skip

  def resampled(
    self, how: resampling.Method = "auto", draws: int = 4000, seed: int = 0
  ) -> "Fit":
    """The same fit with other draws; arguments as of `fit`."""
    start = time.perf_counter()
    found = resampling.bootstrap(
      self.law, self.best, self.goal, self.points, self.plan, how, draws, seed
    )
    said = diagnose.warnings(self, found, draws)
    return dataclasses.replace(
      self,
      draws=found.values,
      interval=found.kind,
      dof=found.dof,
      seed=seed,
      warnings=(*self.degenerate, *said),
      seconds={
        **self.seconds,
        "bootstrap": round(time.perf_counter() - start, 6),
      },
    )

  def ci(
    self, level: float = 0.95, kind: Kind | None = None
  ) -> dict[str, tuple[float, float]]:
    """Interval of each parameter; NaN where there is none.

    A degenerate fit has no intervals: its draws wander along a valley.
    Factors such as A and B get delta intervals symmetric in their logarithm
    (`delta.is_scale`). An end of a profile interval at a parameter's bound or
    at infinity is open: `profile` says so.
    """
    kind = self._kind(kind)
    if self.degenerate:
      return {k: (float("nan"),) * 2 for k in self.params}
    if kind == "profile":
      return {k: (v.low, v.high) for k, v in self.profile(level).items()}
    found = {}
    for k in self.params:
      log = kind == "delta" and delta.is_scale(self.local, k)
      ends = self.interval_of(lambda p, k=k: p[k], level, kind, log=log)
      found[k] = tuple(float(v) for v in ends)
    return found

  def profile(self, level: float = 0.95) -> dict[str, profile.Profile]:
    """Profile-likelihood interval of each parameter, with its notes."""
    return {
      k: profile.profile(
        self.local, k, self.goal, self.objective, self.points.y, self.weights,
        level,
      )
      for k in self.params
    }  # fmt: skip

  def se(self) -> dict[str, float]:
    """Standard deviation of the draws; without draws, of the delta method."""
    if self.degenerate:
      return {k: float("nan") for k in self.params}
    if self._kind(None) == "bootstrap":
      return {k: float(v.std(ddof=1)) for k, v in self.draws.items()}
    if not self.local.dof:
      return {k: float("nan") for k in self.params}
    errors = {
      k: delta.spread(self.local, lambda p, k=k: p[k], log=False)[1]
      for k in self.params
    }
    return {k: float(v) for k, v in errors.items()}

  def interval_of(
    self,
    function: Callable[[Mapping[str, Array]], Any],
    level: float = 0.95,
    kind: Kind | None = None,
    *,
    log: bool = False,
  ) -> tuple[Array, Array]:
    """Interval of anything that follows from the parameters.

    Args:
      function: parameters, each (m,), to values (m, ...).
      level: as 0.95.
      kind: "bootstrap" or "delta".
      log: "delta" is symmetric in the logarithm (positive quantities).

    Returns:
      Two arrays (...); NaN for a fit that did not converge.
    """
    kind = self._kind(kind)
    if kind == "profile":
      raise UserError("profile intervals are of parameters alone: use 'delta'")
    if kind == "bootstrap" and self.interval and self.search["converged"]:
      values = np.asarray(function(self.draws), float)
      return intervals.percentile(values, level, self.dof)
    if kind == "delta" and not self.degenerate:
      return delta.interval(self.local, function, level, log=log)
    one = {k: np.array([v]) for k, v in self.params.items()}
    nan = np.full(np.shape(function(one))[1:], np.nan)
    return nan, nan

  def predict(self, **x: float | Array) -> float | Array:
    """Loss at x, as `fit.predict(p=1)` or with arrays."""
    value = self.law(self.params, **x)
    return float(value) if np.ndim(value) == 0 else value

  def predict_ci(
    self,
    level: float = 0.95,
    *,
    runs: int | None = None,
    kind: Kind | None = None,
    **x: float | Array,
  ) -> tuple[Any, Any]:
    """Interval of the curve at x, or of the mean loss of `runs` new runs.

    Without `runs` a confidence interval: only the curve's own uncertainty,
    which many points make small. With `runs` a prediction interval: run-to-run
    noise is added, so that a measured mean of so many runs should fall inside.
    A degenerate fit with draws still predicts: its curve is known where data
    are. One that did not converge does not.
    """
    shape = np.shape(self.law(self.params, **x))
    if runs is not None and runs < 1:
      raise UserError(f"runs is {runs}, must be 1 at least")
    error = 0.0 if runs is None else self.sigma / np.sqrt(runs)

    def curve(params: Mapping[str, Array]) -> Array:
      wide = {k: v.reshape(-1, *(1,) * len(shape)) for k, v in params.items()}
      return self.law(wide, **x)

    def noisy(params: Mapping[str, Array]) -> Array:
      curves = curve(params)
      rng = np.random.default_rng([self.seed, 1])
      return curves * np.exp(error * rng.standard_normal(curves.shape))

    if self._kind(kind) == "delta" and not self.degenerate:
      low, high = delta.interval(
        self.local, curve, level, log=True, noise=error
      )
    else:
      function = curve if runs is None else noisy
      low, high = self.interval_of(function, level, kind)
    return (float(low), float(high)) if not shape else (low, high)

  def _kind(self, kind: str | None) -> str:
    if kind is None:
      return "bootstrap" if self.interval else "delta"
    if kind not in KINDS:
      raise UserError(
        f"kind is {kind!r}, must be {' or '.join(KINDS)}{nearest(kind, KINDS)}"
      )
    return kind

  def card(self) -> dict[str, Any]:
    """Everything needed to judge or repeat the fit; plain JSON types."""
    return card.card(self)

  @property
  def derived(self) -> dict[str, float]:
    """What follows from the parameters, such as allocation exponents."""
    return self.law.derived(self.params) if self.law.derived else {}

  def derived_ci(
    self, level: float = 0.95, kind: Kind | None = None
  ) -> dict[str, tuple[float, float]]:
    """Interval of each derived quantity; NaN for a degenerate fit."""
    names = list(self.derived)

    def each(params: Mapping[str, Array]) -> Array:
      rows = zip(*(np.asarray(v) for v in params.values()))
      one = (self.law.derived(dict(zip(params, row))) for row in rows)
      return np.array([[d.get(k, np.nan) for k in names] for d in one])

    log = all(v > 0 for v in self.derived.values())
    if self.degenerate or not names:
      return {k: (float("nan"),) * 2 for k in names}
    low, high = self.interval_of(each, level, kind, log=log)
    return {k: (float(a), float(b)) for k, a, b in zip(names, low, high)}


def fit(
  law: Law,
  data: Any,
  *,
  y: str = "loss",
  weights: str | Array | None = None,
  objective: str = "log-mse",
  groups: str | Array | None = None,
  resample: resampling.Method = "auto",
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
    resample: what the bootstrap draws, see `resampling`: "case" rows with their
      x, "residual" residuals over all x, "cluster" runs. "auto" is cluster
      where runs have several rows, residual where x repeat or there are fewer
      than 20 rows a parameter, else case: measured to hold the truth in 94 to
      96 % of simulations at n = 40 and 240 (`resampling` has the table).
    starts: how many of the Sobol starts are polished; default 8, or 48 for
      laws of more than three shape parameters.
    bootstrap: number of draws; 0 for none.
    seed: of the resampling.

  Raises:
    UserError: bad rows, unknown columns, too few points, a variable that does
      not vary, naming them.
  """
  points = tables.read(law, data, y=y, weights=weights, groups=groups)
  goal = Objective.parse(objective)
  w = points.weights / points.weights.mean()
  starts = starts or (8 if len(law.shape) <= 3 else 48)
  best = solve.best(law, points, goal, w, starts=starts)
  params = dict(zip(law.names, best.params))
  fitted = law(params, **dict(zip(law.variables, points.x)))
  search = diagnose.search(law, best, w)
  residual = np.log(fitted) - np.log(points.y)
  noise, lack = diagnose.noise(points, residual, len(law.free))
  spread = np.log(points.y) - np.average(np.log(points.y), weights=w)
  r2 = 1 - (w * residual**2).sum() / max((w * spread**2).sum(), 1e-300)
  found = Fit(
    law=law,
    params=params,
    objective=best.value,
    objective_name=goal.name,
    n=points.n,
    dof=0,
    sigma=noise,
    rmse_log=float(np.sqrt(np.average(residual**2, weights=w))),
    r2=float(r2),
    lack_of_fit=lack,
    degenerate=tuple(diagnose.degenerate(law, search, points, residual, w)),
    warnings=(),
    draws={},
    points=points,
    interval="",
    seed=seed,
    seconds={
      "compile": round(best.compile, 6),
      "fit": round(best.seconds, 6),
    },
    search=search,
    best=best,
    goal=goal,
    plan=intervals.design(points.x, points.groups),
  )
  return found.resampled(resample, bootstrap, seed)
