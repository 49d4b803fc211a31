"""The bootstrap of a fit: what is drawn, and the fits to each draw.

*case*: rows with their x; plain percentiles. *residual*: the residual of a row
from the curve may have happened at any x (in logs, where noise is a share of
the loss); percentiles expanded to t. *cluster*: runs, all rows of one together,
among the runs measured at the same x; where no two were, among all; expanded.

Coverage of nominal 95 % intervals, lowest to highest over all parameters, N*,
the allocation's exponent and the loss at ten times the largest compute; 1000
simulations of 400 draws, 1 % normal noise, binomial standard error .007
(experiments/coverage has designs, and heavy tails):

                 chinchilla              power + constant
                 n = 40     n = 240      n = 40     n = 240
    case         .925-.950  .952-.958 *  .924-.937  .938-.949 *
    residual     .942-.959* .950-.965    .942-.958* .947-.955
    delta        .941-.958  .947-.963    .944-.955  .943-.954
    profile      .948-.960  .947-.958    .947-.955  .948-.954

`*` is what "auto" draws. Of runs with errors in common, cluster holds .939 to
.962; their rows drawn apart held .46. Three runs at each of five patch sizes
and 1 % noise: residual .92-.94, cluster .88-.93 (400 simulations of 300 draws).
If noise differs fourfold between x, both can fall to .8 at the noisy end.
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import intervals, solve
from vitscale.laws.data import Points
from vitscale.laws.forms import Law
from vitscale.laws.frame import outer
from vitscale.laws.objective import Objective

Array = np.ndarray
Method = Literal["auto", "case", "residual", "cluster"]
MANY = 20  # rows a parameter from which "auto" draws rows with their x


@dataclasses.dataclass(frozen=True)
class Draws:
  """Refitted parameters.

  Attributes:
    kind: "case bootstrap" and so on; empty if there was nothing to draw.
    values: parameter -> (draws,).
    dof: degrees of freedom behind them, for the t quantile; infinite for
      plain percentiles.
  """

  kind: str
  values: dict[str, Array]
  dof: float


def choose(plan: intervals.Design, n: int, k: int) -> Method:
  """What "auto" draws for n rows and k free parameters; see `fit`."""
  if len(plan.stratum) < n:
    return "cluster"
  return "residual" if plan.dof or n < MANY * k else "case"


def bootstrap(
  law: Law,
  best: solve.Best,
  goal: Objective,
  points: Points,
  plan: intervals.Design,
  how: Method,
  draws: int,
  seed: int,
) -> Draws:
  """Refits `draws` resamples, each from the optimum of the data.

  Raises:
    UserError: an unknown method, or residuals of runs with several rows.
  """
  if how not in get_args(Method):
    options = ", ".join(get_args(Method))
    raise UserError(
      f"resample is {how!r}, must be one of {options}"
      f"{nearest(how, get_args(Method))}"
    )
  n, k, runs = points.n, len(law.free), len(plan.stratum)
  if how == "auto":
    how = choose(plan, n, k)
  if how == "residual" and runs < n:
    raise UserError(
      f"resample='residual' needs one row per run, {runs} runs have {n} rows; "
      "use 'cluster'"
    )
  w = points.weights / points.weights.mean()
  none = Draws("", {name: np.empty(0) for name in law.names}, 0)
  rng = np.random.default_rng(seed)
  if not draws:
    return none
  if how == "case":
    y, dof, weights = points.y[None], math.inf, w * counts(n, draws, seed)
  elif how == "residual":
    if n <= k:
      return none
    dof, weights = n - k, w[None]
    fitted = law(
      dict(zip(law.names, best.params)), **dict(zip(law.variables, points.x))
    )
    residual = np.log(points.y) - np.log(fitted)
    errors = (residual - residual.mean()) * np.sqrt(n / dof)
    y = fitted * np.exp(errors[rng.integers(0, n, (draws, n))])
  else:
    if not plan.dof:
      plan = dataclasses.replace(plan, stratum=np.zeros(runs, int))
    if not plan.dof:
      return none
    y, dof = points.y[None], plan.dof
    weights = w * intervals.cluster_weights(plan, draws, rng)
  t, _, _ = solve.polish(law, best.frame, goal, best.t[None], y, weights)
  values = np.broadcast_arrays(*outer(law, best.frame, t))
  return Draws(f"{how} bootstrap", dict(zip(law.names, values)), dof)


def counts(n: int, draws: int, seed: int) -> Array:
  """(draws, n) how often each row was drawn.

  numpy's legacy generator, as the published replication of Chinchilla
  (2404.10102) draws: the same seed gives the same resamples.
  """
  old = np.random.RandomState(seed)
  picks = [old.choice(n, n) for _ in range(draws)]
  return np.stack([np.bincount(p, minlength=n) for p in picks])
