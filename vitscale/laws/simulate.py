"""Points from a known law, and how often intervals hold the truth.

    design = simulate.isoflop(np.geomspace(6e18, 3e21, 5), 8)
    data = simulate.simulate(laws.chinchilla(), TRUTH, design, sigma=0.01)
    rows = simulate.coverage(laws.chinchilla(), TRUTH, design, sigma=0.01)

A 95 % interval that holds the truth in 80 % of simulations is a wrong interval,
however plausible it looks: this is the only way to see it.
"""

import concurrent.futures
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.launch import machine
from vitscale.laws.fit import Fit, fit
from vitscale.laws.forms import Law

Array = np.ndarray
Function = Callable[[Mapping[str, Array]], Array]
KINDS = ("case", "residual", "delta", "profile")

# --------------------------------------------------------------------- designs


def grid(**axes: Sequence[float]) -> dict[str, Array]:
  """Every combination of the given values, as `grid(N=sizes, D=tokens)`."""
  mesh = np.meshgrid(*(np.asarray(v, float) for v in axes.values()))
  return {k: v.ravel() for k, v in zip(axes, mesh)}


def isoflop(
  budgets: Sequence[float],
  sizes: int,
  *,
  ratio: tuple[float, float] = (1.0, 400.0),
  per: float = 6.0,
) -> dict[str, Array]:
  """N and D of `sizes` models at each budget C = per x N x D (FLOPs).

  `ratio`: tokens a parameter, D/N, of the largest and the smallest model.
  """
  c = np.repeat(np.asarray(budgets, float), sizes)
  tokens = np.tile(np.geomspace(*ratio, sizes), len(budgets))
  n = np.sqrt(c / per / tokens)
  return {"N": n, "D": tokens * n}


def log_uniform(
  n: int, seed: int = 0, **ranges: tuple[float, float]
) -> dict[str, Array]:
  """n points, uniform in the logarithms: `log_uniform(40, C=(1, 1e3))`."""
  rng = np.random.default_rng(seed)
  return {
    k: np.exp(rng.uniform(math.log(low), math.log(high), n))
    for k, (low, high) in ranges.items()
  }


# ------------------------------------------------------------------- simulation


def simulate(
  law: Law,
  params: Mapping[str, float],
  design: Mapping[str, Array],
  *,
  sigma: float | Array = 0.01,
  tails: float = math.inf,
  run_sigma: float = 0.0,
  seed: int | Sequence[int] = 0,
) -> dict[str, Array]:
  """The columns of a design and a noisy `loss`.

  Args:
    law, params: the truth.
    design: columns of the law's variables, (n,) each; `run` names the rows'
      runs where they have common errors.
    sigma: standard deviation of ln loss, or (n,) of them.
    tails: degrees of freedom of Student's t (above 2, the standard deviation
      stays sigma); infinite for normal noise.
    run_sigma: standard deviation of an error common to the rows of a run.
    seed: of the noise.

  Raises:
    UserError: tails without a variance, or common errors without runs.
  """
  if not tails > 2:
    raise UserError(f"tails is {tails}: Student's t has no variance below 2")
  if run_sigma and "run" not in design:
    raise UserError("run_sigma needs a column 'run' in the design")
  truth = law(params, **{v: design[v] for v in law.variables})
  rng = np.random.default_rng(seed)
  if math.isinf(tails):
    noise = rng.standard_normal(truth.shape)
  else:
    noise = rng.standard_t(tails, truth.shape) * math.sqrt(1 - 2 / tails)
  noise = sigma * noise
  if run_sigma:
    _, run = np.unique(design["run"], return_inverse=True)
    noise += run_sigma * rng.standard_normal(run.max() + 1)[run]
  return {**design, "loss": truth * np.exp(noise)}


# --------------------------------------------------------------------- coverage


def coverage(
  law: Law,
  params: Mapping[str, float],
  design: Mapping[str, Array],
  *,
  kinds: Sequence[str] = KINDS,
  targets: Mapping[str, Function] | None = None,
  simulations: int = 1000,
  draws: int = 400,
  level: float = 0.95,
  objective: str = "log-mse",
  groups: str | None = None,
  seed: int = 0,
  **noise: Any,
) -> list[dict[str, Any]]:
  """How often each kind of interval holds the truth, over simulated data.

  Every simulation is a whole `fit`: starts, refusals of degenerate fits and
  intervals as a user gets them.

  Args:
    law, params, design: the truth and where it is seen.
    kinds: "delta", "profile", or what the bootstrap draws: "case",
      "residual", "cluster", "auto".
    targets: further positive quantities, functions of the parameters; profile
      intervals have none.
    draws: of each bootstrap.
    objective, groups: see `fit`.
    seed: of everything; simulation i is the same for every kind.
    noise: `sigma`, `tails`, `run_sigma` of `simulate`.

  Returns:
    A row per quantity and kind: `quantity, kind, truth, coverage, se` (the
    binomial standard error), `below` and `above` (share of intervals wholly
    below or above the truth), `width` (median, relative to the truth),
    `n` (intervals: degenerate fits give none), `given` (their share).

  Raises:
    UserError: an unknown kind.
  """
  for kind in kinds:
    if kind not in (known := (*KINDS, "cluster", "auto")):
      raise UserError(f"no interval kind {kind!r}{nearest(kind, known)}")
  targets = dict(targets or {})

  def one(i: int) -> list[dict[str, tuple[float, float]]]:
    data = simulate(law, params, design, seed=[seed, i], **noise)
    fitted = fit(law, data, objective=objective, groups=groups, bootstrap=0)
    return [_ends(fitted, kind, targets, level, draws, i) for kind in kinds]

  found = [one(0)]  # compiles, once for all threads
  with concurrent.futures.ThreadPoolExecutor(len(machine.cores())) as pool:
    found += pool.map(one, range(1, simulations))
  truths = {k: float(params[k]) for k in law.names}
  point = {k: np.array([v]) for k, v in params.items()}
  truths |= {k: float(f(point)[0]) for k, f in targets.items()}
  return [
    _row(name, kind, truth, np.array([each[j][name] for each in found]))
    for name, truth in truths.items()
    for j, kind in enumerate(kinds)
    if name in found[0][j]
  ]


def _ends(
  fitted: Fit,
  kind: str,
  targets: Mapping[str, Function],
  level: float,
  draws: int,
  seed: int,
) -> dict[str, tuple[float, float]]:
  """Quantity -> interval of one simulation."""
  if kind == "profile":
    return fitted.ci(level, kind)
  if kind != "delta":
    fitted, kind = fitted.resampled(kind, draws, seed), "bootstrap"
  found = fitted.ci(level, kind)
  for name, function in targets.items():
    ends = fitted.interval_of(function, level, kind, log=True)
    found[name] = tuple(float(v) for v in ends)
  return found


def _row(name: str, kind: str, truth: float, ends: Array) -> dict[str, Any]:
  given = ~np.isnan(ends).any(1)
  low, high = ends[given].T
  n = int(given.sum())
  share = float(((low <= truth) & (truth <= high)).mean()) if n else math.nan
  return {
    "quantity": name,
    "kind": kind,
    "truth": truth,
    "coverage": share,
    "se": math.sqrt(share * (1 - share) / n) if n else math.nan,
    "below": float((high < truth).mean()) if n else math.nan,
    "above": float((low > truth).mean()) if n else math.nan,
    "width": float(np.median((high - low) / abs(truth))) if n else math.nan,
    "n": n,
    "given": n / len(ends),
  }
