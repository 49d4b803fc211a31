"""Mean and covariance of features in one pass, and the Frechet distance.

`Moments` of batches, hosts or processes merge to those of all samples (Chan,
Golub, LeVeque 1979, the pairwise update), in float64. The Frechet distance of
two Gaussians with these moments is FID (Heusel et al., 1706.08500) when, and
only when, the features are those of its Inception network; of other features
it is a distance of its own, comparable with nothing outside a study.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data.random import Rng


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """Of n samples of d features.

  Attributes:
    n: samples.
    mean: (d,) float64.
    scatter: (d, d) float64, sum of products of deviations from the mean.
  """

  n: int
  mean: np.ndarray
  scatter: np.ndarray

  @property
  def covariance(self) -> np.ndarray:
    """(d, d), unbiased: divided by n - 1."""
    if self.n < 2:
      raise UserError(f"moments: a covariance needs 2 samples, got {self.n}")
    return self.scatter / (self.n - 1)


def of(x: np.ndarray) -> Moments:
  """Of features (n, d) of any float type, n >= 1."""
  x = np.asarray(x, np.float64)
  if x.ndim != 2 or not x.size:
    raise UserError(f"moments: features are (n, d), n >= 1, got {x.shape}")
  if not np.isfinite(x).all():
    raise UserError("moments: features hold values that are not finite")
  mean = x.mean(0)
  deviation = x - mean
  return Moments(len(x), mean, deviation.T @ deviation)


def merge(a: Moments, b: Moments) -> Moments:
  """Of the samples of both."""
  if a.mean.shape != b.mean.shape:
    raise UserError(
      f"moments: of {len(a.mean)} and of {len(b.mean)} features do not merge"
    )
  n = a.n + b.n
  step = b.mean - a.mean
  scatter = a.scatter + b.scatter + np.outer(step, step) * (a.n * b.n / n)
  return Moments(n, a.mean + step * (b.n / n), scatter)


def merged(parts: Iterable[Moments]) -> Moments:
  """Of the samples of all parts, at least one; a generator is streamed."""
  parts = iter(parts)
  first = next(parts, None)
  if first is None:
    raise UserError("moments: nothing to merge")
  return functools.reduce(merge, parts, first)


def frechet(a: Moments, b: Moments, *, minimum: int | None = None) -> float:
  """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2).

  The last trace is the sum of roots of the eigenvalues of the symmetric
  product, in float64, rounding's negative ones as 0. In squared units of the
  features; equal moments give 0 to rounding, of either sign. Biased upward by
  order 1/n (Chong and Forsyth, 1911.07023): compare at equal n only.

  Args:
    a, b: of the same d features.
    minimum: samples that both need; by default d + 1, as with n <= d a
      covariance is singular and the distance mostly counts missing samples.
  """
  d = len(a.mean)
  if len(b.mean) != d:
    raise UserError(f"frechet: {d} features against {len(b.mean)}")
  least = d + 1 if minimum is None else minimum
  if min(a.n, b.n) < least:
    raise UserError(
      f"frechet: needs {least} samples of {d} features on both sides, got "
      f"{a.n} and {b.n}; with n <= {d} a covariance is singular"
    )
  sa, sb = a.covariance, b.covariance
  values, vectors = np.linalg.eigh(sa)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = root @ sb @ root
  product = np.linalg.eigvalsh((product + product.T) / 2)
  trace = np.trace(sa) + np.trace(sb) - 2 * np.sqrt(product.clip(0)).sum()
  return float(((a.mean - b.mean) ** 2).sum() + trace)


def split_half(x: np.ndarray, *, repeats: int = 4, seed: int = 0) -> np.ndarray:
  """The floor: distances between two random halves of x (n, d): (repeats,).

  What equal distributions measure at n/2 samples a side. At n a side the bias
  is about half of that. Repeats share samples: their spread is no interval.
  """
  x = np.asarray(x)
  half, found = len(x) // 2, []
  for r in range(repeats):
    order = Rng(seed, r, 0).choose("split half", len(x), 2 * half)[0]
    halves = (of(x[order[:half]]), of(x[order[half:]]))
    found.append(frechet(*halves))
  return np.array(found)


def standard_error(
  a: Sequence[Moments], b: Sequence[Moments], *, paired: bool = False
) -> float:
  """Of `frechet(merged(a), merged(b))`, by a jackknife over groups.

  Each side is a sequence of g disjoint groups of equal n, at random, not by
  class. The distance is taken anew without each group i, with the other side
  whole; the side adds (g - 1)/g sum_i (D_i - mean D)^2 to the variance (Efron
  and Tibshirani 1993, chapter 11, for groups). A side of one group is fixed
  and adds nothing. Sampling only: bias and retraining are not in it. 10 to 30
  groups; the error itself is then known to 1/sqrt(2 g).

  Args:
    a, b: groups of either side.
    paired: group i of b was made of the samples of group i of a, as
      reconstructions are of images: both are left out at once.
  """
  if max(len(a), len(b)) < 2:
    raise UserError("jackknife: needs 2 groups or more on one side at least")
  if paired:
    if len(a) != len(b):
      raise UserError(f"jackknife: {len(a)} groups are no pairs of {len(b)}")
    return _variance(map(frechet, _without(a), _without(b))) ** 0.5
  variance = 0.0
  for side, other in ((a, merged(b)), (b, merged(a))):
    if len(side) > 1:
      variance += _variance(frechet(x, other) for x in _without(side))
  return variance**0.5


def _without(groups: Sequence[Moments]) -> list[Moments]:
  """Of all samples but those of each group."""
  sizes = {group.n for group in groups}
  if len(sizes) > 1:
    raise UserError(f"jackknife: groups must be equal, got n {sorted(sizes)}")
  return [merged(x for j, x in enumerate(groups) if j != i)
          for i in range(len(groups))]  # fmt: skip


def _variance(distances: Iterable[float]) -> float:
  found = list(distances)
  return (len(found) - 1) * float(np.var(found))
