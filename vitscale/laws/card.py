"""The card of a fit: what a reader needs to judge or repeat it."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from vitscale.laws.fit import Fit


def card(fit: "Fit") -> dict[str, Any]:
  """Plain JSON types; None for what is not known."""
  ci = {k: [_number(v) for v in pair] for k, pair in fit.ci().items()}
  ranges = {
    v: [float(x.min()), float(x.max())]
    for v, x in zip(fit.law.variables, fit.points.x)
  }
  some = any(v is not None for pair in ci.values() for v in pair)
  return {
    "law": fit.law.name,
    "name": fit.law.name,
    "formula": fit.law.formula,
    "source": fit.law.source,
    "params": {k: _number(v) for k, v in fit.params.items()},
    "derived": {k: _number(v) for k, v in fit.derived.items()},
    "pinned": dict(fit.law.pinned),
    "se": {k: _number(v) for k, v in fit.se().items()},
    "ci95": ci,
    "derived_ci95": {
      k: [_number(v) for v in pair] for k, pair in fit.derived_ci().items()
    },
    "n": fit.n,
    "dof": _number(fit.dof),
    "objective": {"name": fit.objective_name, "value": fit.objective},
    "sigma_log": _number(fit.sigma),
    "rmse_log": _number(fit.rmse_log),
    "r2": _number(fit.r2),
    "lack_of_fit_p": _number(fit.lack_of_fit),
    "interval": fit.interval or ("delta" if some else None),
    "bootstrap": len(next(iter(fit.draws.values()))),
    "seed": fit.seed,
    "range": ranges,
    "data_sha256": fit.points.digest,
    "bounds": {
      p.name: [_number(p.low), _number(p.high)] for p in fit.law.parameters
    },
    "degenerate": list(fit.degenerate),
    "warnings": list(fit.warnings),
    "search": fit.search,
    "seconds": fit.seconds,
  }


def _number(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None
