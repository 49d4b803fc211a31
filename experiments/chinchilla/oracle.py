"""The published numbers, computed here: optima, likelihoods, allocations."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws import curation, ingest
from vitscale.laws.objective import Objective

Array = np.ndarray
Params = Mapping[str, float]
HUBER = "huber:1e-3"
COLUMNS = {"N": "Model Size", "C": "Training FLOP"}
OUTLIERS = 5  # the replication keeps rows below the fifth largest loss
SIZES = ("A", "B", "E")  # their logarithms are fitted


def read(file: Path) -> dict[str, Array]:
  """N, D and loss, D = C / (6 N), without the five highest losses."""
  table = ingest.map_columns(ingest.read_files(file), COLUMNS)
  table = ingest.derive(table, ("N", "D"))
  table, _ = curation.drop_highest(table, OUTLIERS)
  return {k: np.asarray(table[k], float) for k in ("N", "D", "loss")}


def fits(points: Mapping[str, Array], draws: int, seed: int) -> dict[str, Any]:
  """Both optima; the Huber one with the replication's resamples."""
  law = laws.chinchilla()
  return {
    "lad": laws.fit(law, points, objective="lad", bootstrap=0),
    HUBER: laws.fit(
      law, points, objective=HUBER, resample="case", bootstrap=draws, seed=seed
    ),
  }


def total(
  params: Params,
  points: Mapping[str, Array],
  objective: str = HUBER,
  counts: Array | None = None,
) -> float:
  """The objective of any parameters; `counts`: how often a point counts."""
  goal = Objective.parse(objective)
  fitted = laws.chinchilla()(params, N=points["N"], D=points["D"])
  counts = np.ones(len(fitted)) if counts is None else counts
  return float(goal.total(goal.residual(fitted, points["loss"]), counts))


def log_likelihood(deviation: float, n: int) -> float:
  """Of n Laplace residuals with sum |r| = deviation, at their best scale."""
  return -n * (np.log(2 * deviation / n) + 1)


def chi2(fit: Any, point: Params, other: Params) -> tuple[float, float]:
  """Distance of `other` from `point` in the draws' covariance; its p-value.

  In (ln A, ln B, ln E, alpha, beta), as the replication computes it.
  """
  log = lambda k, v: np.log(v) if k in SIZES else v
  draws = np.stack([log(k, fit.draws[k]) for k in fit.draws])
  gap = [log(k, other[k]) - log(k, point[k]) for k in fit.draws]
  value = float(gap @ np.linalg.solve(np.cov(draws), gap))
  return value, float(special.chdtrc(len(gap), value))


def likelihood_ratio(
  point: Params, other: Params, points: Mapping[str, Array]
) -> tuple[float, float]:
  """Twice the gap of log likelihoods, five parameters; its p-value."""
  n = len(points["loss"])
  here, there = (total(p, points, "lad") for p in (point, other))
  value = 2 * (log_likelihood(here, n) - log_likelihood(there, n))
  return float(value), float(special.chdtrc(5, value))


def ratio(params: Mapping[str, Any], compute: Any) -> Any:
  """D / N at the best N for C = 6 N D (Hoffmann et al., eq. 4)."""
  a, b = params["alpha"], params["beta"]
  g = (a * params["A"] / (b * params["B"])) ** (1 / (a + b))
  return (compute / 6) ** ((a - b) / (a + b)) / g**2


def hoffmann(expected: Mapping[str, Any]) -> dict[str, Params]:
  """Their parameters as printed, and with the digits of the TeX source."""
  logs = expected["hoffmann"]["logarithms"]
  exact = {k: float(np.exp(v)) if k in SIZES else v for k, v in logs.items()}
  return {
    "Hoffmann": exact,
    "Hoffmann, rounded": expected["hoffmann"]["rounded"],
  }


def muennighoff(file: Path, expected: Mapping[str, Any]) -> dict[str, float]:
  """R^2 of the losses and the Huber sum at the published parameters."""
  with open(file) as opened:
    rows = list(csv.DictReader(opened))
  try:
    x = {k: np.array([float(r[k]) for r in rows]) for k in ("N", "D", "U")}
    loss = np.array([float(r["loss"]) for r in rows])
  except (KeyError, ValueError) as error:
    raise UserError(f"{file} needs numbers N, D, U, loss: {error}") from None
  logs = {k: float(np.exp(v)) for k, v in expected["logarithms"].items()}
  got = laws.muennighoff()({**logs, **expected["params"]}, **x)
  goal = Objective.parse(HUBER)
  spread = ((loss - loss.mean()) ** 2).sum()
  return {
    "n": len(loss),
    "r2": float(1 - ((got - loss) ** 2).sum() / spread),
    "huber": float(goal.total(goal.residual(got, loss), np.ones(len(loss)))),
  }
