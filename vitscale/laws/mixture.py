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


def log_mean(fits: Sequence[Fit], x: Mapping[str, Any]) -> Array:
  """Mean over fits of ln loss at x; each law takes the variables it has."""
  each = [_log(f, f.params, x) for f in fits]
  return np.mean(each, axis=0)


def log_draws(fits: Sequence[Fit], x: Mapping[str, Any]) -> Array:
  """(draws, ...) ln loss of the resampled curves of all fits together.

  Empty where one of them has no draws.
  """
  shape = np.broadcast_shapes(*(np.shape(v) for v in x.values()))
  if not all(f.interval for f in fits):
    return np.empty((0, *shape))
  stack = lambda f: {
    k: v.reshape(-1, *(1,) * len(shape)) for k, v in f.draws.items()
  }
  return np.concatenate([_log(f, stack(f), x) for f in fits])


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
  return intervals.percentile(draws, level, min(f.dof for f in fits))


def misses(fits: Sequence[Fit], draws: Array, error: Array) -> float:
  """p-value of the errors under the spread of `draws` and run noise."""
  m = len(error)
  finite = draws[np.isfinite(draws).all(-1)]
  if len(finite) < len(draws) or len(draws) < 2:
    return math.nan
  noise = max(_sigma(fits) ** 2, 1e-24)
  spread = np.cov(draws.T).reshape(m, m) + noise * np.eye(m)
  ratio = error @ np.linalg.solve(spread, error) / m
  dof = min(min(f.dof, f.n - len(f.law.free)) for f in fits)
  return float(special.fdtrc(m, max(dof, 1), ratio))


def _sigma(fits: Sequence[Fit]) -> float:
  return math.sqrt(np.mean([f.sigma**2 for f in fits]))


def _log(f: Fit, params: Mapping[str, Any], x: Mapping[str, Any]) -> Array:
  loss = f.law(params, **{v: x[v] for v in f.law.variables})
  return np.log(np.maximum(loss, 1e-300))
