"""Two sets of features without a Gaussian in between: KID, precision, recall.

Features are (n, d) arrays, computed with in float64 on the host. Both metrics
depend on the network that made the features: name it with the numbers.
"""

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data.random import Rng


def kid(
  x: np.ndarray, y: np.ndarray, *, blocks: int = 10, seed: int = 0
) -> tuple[float, float]:
  """Kernel distance of x (n, d) and y (m, d), and its standard error.

  Squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski
  et al., 1801.01401, section 4). Both sets are shuffled and cut into disjoint
  blocks; the value is the mean of the blocks' unbiased estimates, hence
  unbiased at any n (so it can be below 0), and the error is their standard
  deviation / sqrt(blocks). As the blocks are independent that also holds
  between equal distributions, where the first-order variance of one
  U-statistic over all samples would be 0. There the blocks' estimates are
  skewed (many a little below 0, few far above), so with few blocks more than
  5 % of values lie beyond 2 errors, most of them below 0. The price of blocks
  is a wider spread than that statistic has. Published values use random
  subsets of 1000 that overlap: same mean, but their spread is no standard
  error. Memory (n / blocks)^2.
  """
  x, y = _pair(x, y, "kid")
  if blocks < 2 or min(len(x), len(y)) < 2 * blocks:
    raise UserError(
      f"kid: needs 2 blocks or more of 2 samples or more, got {blocks} blocks "
      f"of {len(x)} and {len(y)} samples"
    )
  x, y = (
    np.array_split(a[Rng(seed, 0, i).choose("kid", len(a), len(a))[0]], blocks)
    for i, a in enumerate((x, y))
  )
  found = np.array([mmd(a, b) for a, b in zip(x, y)])
  return float(found.mean()), float(found.std(ddof=1) / blocks**0.5)


def mmd(x: np.ndarray, y: np.ndarray) -> float:
  """The unbiased estimate of KID from all pairs of x (n, d) and y (m, d)."""
  x, y = _pair(x, y, "mmd")
  if min(len(x), len(y)) < 2:
    raise UserError(f"mmd: needs 2 samples, got {len(x)} and {len(y)}")
  return _within(x) + _within(y) - 2 * float(_kernel(x, y).mean())


def _kernel(x, y):
  return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: np.ndarray) -> float:
  """Mean of the kernel over pairs of different samples."""
  k, n = _kernel(x, x), len(x)
  return float((k.sum() - np.trace(k)) / (n * (n - 1)))


def precision_recall(
  real: np.ndarray, fake: np.ndarray, *, k: int = 3, rows: int = 1024
) -> tuple[float, float]:
  """Improved precision and recall (Kynkaanniemi et al., 1904.06991, eq. 1, 2).

  A set's manifold is the union of balls about its samples, each as wide as
  the distance to its k-th nearest other sample. Precision is the share of
  `fake` (m, d) within the manifold of `real` (n, d), recall the converse. Both
  depend on n, m and k: compare at equal ones. They see no density, and an
  outlier widens a manifold.

  Distances are taken for `rows` samples against all others at a time: memory
  `rows` x max(n, m), time n m d.
  """
  real, fake = _pair(real, fake, "precision_recall")
  if not 1 <= k < min(len(real), len(fake)):
    raise UserError(
      f"precision_recall: k must be 1 to below both {len(real)} and "
      f"{len(fake)} samples, got {k}"
    )
  if rows < 1:
    raise UserError(f"precision_recall: rows must be at least 1, got {rows}")
  centre = real.mean(0)  # digits are lost with distance from 0
  real, fake = real - centre, fake - centre
  return _covered(fake, real, k, rows), _covered(real, fake, k, rows)


def _covered(x: np.ndarray, support: np.ndarray, k: int, rows: int) -> float:
  """Share of x within the manifold of `support`."""
  radius = np.empty(len(support))
  for i in range(0, len(support), rows):
    d = _squared(support[i : i + rows], support)
    own = np.arange(len(d))
    d[own, i + own] = np.inf
    radius[i : i + rows] = np.partition(d, k - 1, 1)[:, k - 1]
  inside = 0
  for i in range(0, len(x), rows):
    inside += int((_squared(x[i : i + rows], support) <= radius).any(1).sum())
  return inside / len(x)


def _squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Squared distances of all pairs: (n, m)."""
  d = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
  return np.maximum(d, 0, out=d)


def _pair(x, y, what: str) -> tuple[np.ndarray, np.ndarray]:
  x, y = (np.asarray(a, np.float64) for a in (x, y))
  if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or not x.size:
    raise UserError(
      f"{what}: features are (n, d) and (m, d), got {x.shape} and {y.shape}"
    )
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise UserError(f"{what}: features hold values that are not finite")
  return x, y
