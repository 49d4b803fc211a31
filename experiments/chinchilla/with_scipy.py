"""Contestants on SciPy: BFGS from one start and from a grid, curve_fit.

Parameters are (ln A, ln B, ln E, alpha, beta) and the objective is the sum of
Huber's loss of log residuals, with its gradient written out. Many fits go to
as many processes as there are cores.
"""

import itertools
import multiprocessing
import os

import numpy as np
import race
from scipy import optimize

DELTA = 1e-3
# Where Hoffmann et al. ended: the start of the replication's bootstrap.
START = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
GRID = list(
  itertools.product(
    np.arange(0, 26, 5), np.arange(0, 26, 5), np.arange(-1, 1.1, 0.5),
    np.arange(0, 2.1, 0.5), np.arange(0, 2.1, 0.5),
  )
)  # fmt: skip


def objective(t, log_n, log_d, log_loss):
  """Value and gradient."""
  terms = np.stack([t[0] - t[3] * log_n, t[1] - t[4] * log_d,
                    np.full_like(log_n, t[2])])  # fmt: skip
  top = terms.max(0)
  weight = np.exp(terms - top)
  sums = weight.sum(0)
  r = top + np.log(sums) - log_loss
  inside = np.abs(r) <= DELTA
  value = np.where(inside, 0.5 * r**2, DELTA * (np.abs(r) - 0.5 * DELTA)).sum()
  pull = np.where(inside, r, DELTA * np.sign(r)) * weight / sums
  a, b, e = pull
  gradient = [a.sum(), b.sum(), e.sum(), -(a @ log_n), -(b @ log_d)]
  return value, np.array(gradient)


def named(t):
  values = [*np.exp(t[:3]), *t[3:]]
  return dict(zip(("A", "B", "E", "alpha", "beta"), map(float, values)))


def curve(x, a, b, e, alpha, beta):
  log_n, log_d = x
  return np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)


def build(points):
  data = [np.log(points[k]) for k in ("N", "D", "loss")]
  n = len(data[0])
  pool = multiprocessing.Pool(len(os.sched_getaffinity(0)))

  def bfgs(size):
    return {"params": named(minimum(START, data, "BFGS")[0])}

  def draws(size):
    old = np.random.RandomState(42)
    picks = (old.choice(n, n) for _ in range(size))
    jobs = [(START, [v[p] for v in data], "BFGS") for p in picks]
    ends = [named(t) for t, _ in pool.starmap(minimum, jobs, 8)]
    kept = {k: [end[k] for end in ends] for k in ends[0]}
    return {"params": ends[0], "draws": kept}

  def grid(size):
    every = np.linspace(0, len(GRID) - 1, size).round().astype(int)
    jobs = [(np.array(GRID[i]), data, "BFGS") for i in every]
    best, _ = min(pool.starmap(minimum, jobs, 8), key=lambda end: end[1])
    return {"params": named(best)}

  def curve_fit(size):
    best, _ = optimize.curve_fit(
      curve, np.stack(data[:2]), data[2], START, method="trf", loss="huber",
      f_scale=DELTA,
    )  # fmt: skip
    return {"params": named(best)}

  return {"fit": bfgs, "draws": draws, "grid": grid, "curve_fit": curve_fit}


def minimum(start, data, method):
  found = optimize.minimize(objective, start, tuple(data), method, jac=True)
  value = float(found.fun)
  return found.x, value if np.isfinite(value) else np.inf


if __name__ == "__main__":
  race.serve(build)
