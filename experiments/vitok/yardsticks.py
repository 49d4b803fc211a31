"""Two yardsticks of vitok: what E and p explain, and what PCA of patches keeps.

Shares of variance are of least squares, with intervals from runs drawn within
cells; PCA is fitted to training images and scored on test images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.arms import Interval
from vitscale.data.source import Source
from vitscale.laws import intervals

Part = tuple[float, Interval | None]  # a number, and between which it lies
DRAWS = 2000

# ---------------------------------------------------------- shares of variance


def shares(
  y: np.ndarray, floats: np.ndarray, patch: np.ndarray, weight: np.ndarray
) -> dict[str, float]:
  """Least squares of a metric on log2 E, its square, and p as a factor.

  Args:
    y, floats, patch: (n,) of each run.
    weight: (n,), how often a run counts.

  Returns:
    `E`: partial R2 of E and its square, given p; `p`: of p, given E and its
    square; `p of all`: what p adds to them as a share of the variance of y;
    `curve`: coefficient of the square, in units of y. NaN where the levels are
    too few to tell.
  """
  x = np.log2(floats)
  x = x - np.average(np.unique(x))
  one, factor = np.ones((len(y), 1)), patch[:, None] == np.unique(patch)
  e = np.stack([x, x**2], 1)
  lost = lambda *parts: _lost(np.concatenate(parts, 1), y, weight)[0]
  none, of_e, of_p = lost(one), lost(one, e), lost(factor)
  both, found = _lost(np.concatenate([factor, e], 1), y, weight)
  share = lambda part, whole: part / whole if whole > 0 else math.nan
  enough = len(np.unique(patch)) > 1
  return {
    "E": share(of_p - both, of_p) if len(np.unique(x)) > 1 else math.nan,
    "p": share(of_e - both, of_e) if enough else math.nan,
    "p of all": share(of_e - both, none) if enough else math.nan,
    "curve": float(found[-1]) if len(np.unique(x)) > 2 else math.nan,
  }


def _lost(
  x: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> tuple[float, np.ndarray]:
  """Weighted sum of squares that least squares leave, and coefficients."""
  root = np.sqrt(weight)
  found = np.linalg.lstsq(x * root[:, None], y * root, rcond=None)[0]
  return float(weight @ np.square(y - x @ found)), found


def bootstrapped(
  rows: Sequence[Mapping[str, Any]], metric: str, draws: int = DRAWS
) -> dict[str, Part]:
  """`shares` of runs, each with its interval: runs drawn within cells."""
  if not rows:
    return {}
  read = lambda key: np.array([row[key] for row in rows], float)
  y, floats, patch = read(metric), read("floats"), read("patch")
  value = shares(y, floats, patch, np.ones(len(y)))
  plan = intervals.design([floats, patch], None)
  if plan.dof < 1:
    return {key: (v, None) for key, v in value.items()}
  weights = intervals.cluster_weights(plan, draws, np.random.default_rng(0))
  drawn = [shares(y, floats, patch, w) for w in weights]
  return {
    key: (v, _between([one[key] for one in drawn], plan.dof))
    for key, v in value.items()
  }


def _between(values: Sequence[float], dof: int) -> Interval | None:
  if not np.isfinite(values).all():
    return None
  low, high = intervals.percentile(np.array(values), 0.95, dof)
  return float(low), float(high)


# ---------------------------------------------------------------- linear codes


def pixels(source: Source) -> np.ndarray:
  """(n, h, w) in 0..1, of one channel."""
  images = source.images(np.arange(len(source)))
  return np.asarray(images)[..., 0].astype(np.float32) / 255


def linear_psnr(
  train: np.ndarray, test: np.ndarray, patch: int, floats: int
) -> float:
  """PSNR, mean over images, of PCA of patches, a basis for every place.

  Args:
    train, test: (n, h, w) in 0..1, bases are of `train`.
    patch: pixels a side; a whole image makes the best linear code.
    floats: of an image, shared evenly by its patches.
  """
  a, b = (_cut(x, patch) for x in (train, test))
  kept, lost = floats // a.shape[1], np.zeros(len(test))
  for i in range(a.shape[1]):
    mean = a[:, i].mean(0)
    basis = np.linalg.eigh(np.cov((a[:, i] - mean).T))[1][:, ::-1][:, :kept]
    y = b[:, i] - mean
    lost += np.square(y - y @ basis @ basis.T).sum(1)
  lost = lost / test[0].size
  return float(np.mean(-10 * np.log10(np.maximum(lost, 1e-9))))


def _cut(x: np.ndarray, p: int) -> np.ndarray:
  """(n, h, w) -> (n, patches, p p)."""
  n, h, w = x.shape
  x = x.reshape(n, h // p, p, w // p, p).transpose(0, 1, 3, 2, 4)
  return x.reshape(n, -1, p * p)
