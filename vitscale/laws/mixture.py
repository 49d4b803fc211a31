"""Log means of fits: one curve from several laws, with its interval.

The resampled curves of all laws form one mixture, so the interval holds what
the laws disagree on beside what each of them leaves open.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from vitscale.core.errors import UserError
from vitscale.laws import intervals
from vitscale.laws.fit import Fit

Array = np.ndarray
NORMAL = 2000  # draws from the delta method's covariance


def log_mean(fits: Sequence[Fit], x: Mapping[str, Any]) -> Array:
  """Mean over fits of ln loss at x; each law takes the variables it has."""
  return np.mean([_log(f, f.params, x) for f in fits], axis=0)


def log_draws(fits: Sequence[Fit], x: Mapping[str, Any]) -> Array:
  """(draws, ...) ln loss of the resampled curves of all fits together.

  The bootstrap's where there are draws, else normal ones (`delta`). Empty
  where a fit has neither.
  """
  shape = np.broadcast_shapes(*(np.shape(v) for v in x.values()))
  wide = (-1, *(1,) * len(shape))
  found = []
  for f in fits:
    draws = _draws(f)
    if draws is None:
      return np.empty((0, *shape))
    found.append(_log(f, {k: v.reshape(wide) for k, v in draws.items()}, x))
  return np.concatenate(found)


def interval(
  fits: Sequence[Fit], draws: Array, level: float, *, runs: int | None = None
) -> tuple[Array, Array]:
  """Bounds of ln loss from `log_draws`; with `runs`, of their mean."""
  if not len(draws):
    nan = np.full(draws.shape[1:], np.nan)
    return nan, nan
  if runs is not None:
    if runs < 1:
      raise UserError(f"runs is {runs}, must be 1 at least")
    rng = np.random.default_rng([fits[0].seed, 1])
    noise = rng.standard_normal(draws.shape) * _sigma(fits)
    draws = draws + noise / math.sqrt(runs)
  return intervals.percentile(draws, level, min(_dof(f) for f in fits))


def misses(fits: Sequence[Fit], draws: Array, error: Array) -> float:
  """p-value of errors (m,) under the spread of `draws` and run noise.

  An F test of all of them together; NaN where draws are not finite.
  """
  m = len(error)
  if len(draws) < 2 or not np.isfinite(draws).all():
    return math.nan
  noise = max(_sigma(fits) ** 2, 1e-24)
  spread = np.cov(draws.T).reshape(m, m) + noise * np.eye(m)
  ratio = error @ np.linalg.solve(spread, error) / m
  dof = min(min(_dof(f), f.n - len(f.law.free)) for f in fits)
  return float(special.fdtrc(m, max(dof, 1), ratio))


def _draws(f: Fit) -> Mapping[str, Array] | None:
  if not f.search["converged"]:
    return None
  if f.interval:
    return f.draws
  near = f.local
  if f.degenerate or not near.dof:
    return None
  rng = np.random.default_rng(f.seed)
  t = np.repeat(near.t[None], NORMAL, 0)
  zero = np.zeros(len(near.free))
  t[:, near.free] += rng.multivariate_normal(zero, near.covariance, NORMAL)
  return near.params(np.clip(t, near.frame.low, near.frame.high))


def _dof(f: Fit) -> float:
  return f.dof if f.interval else f.local.dof


def _sigma(fits: Sequence[Fit]) -> float:
  return math.sqrt(np.mean([f.sigma**2 for f in fits]))


def _log(f: Fit, params: Mapping[str, Any], x: Mapping[str, Any]) -> Array:
  loss = f.law(params, **{v: x[v] for v in f.law.variables})
  return np.log(np.maximum(loss, 1e-300))
