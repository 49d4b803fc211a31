"""Streaming moments and the Frechet distance."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.metrics import moments


def _x(n, d, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d))


def _given(mean, covariance, n=1000):
  """Moments that are exactly these."""
  covariance = np.asarray(covariance, np.float64)
  return moments.Moments(n, np.asarray(mean, np.float64), covariance * (n - 1))


def test_merge_is_one_pass():
  x = 1000 + _x(300, 5) @ _x(5, 5, 1)  # far from 0: plain sums would lose it
  parts = [moments.of(p) for p in np.split(x, [1, 4, 100, 250])]
  whole = moments.of(x)
  left = moments.merged(iter(parts))
  right = moments.merge(parts[0], moments.merged(parts[1:]))
  scale = np.abs(whole.scatter).max()
  for found in (left, right):
    assert found.n == 300
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    assert np.abs(found.scatter - whole.scatter).max() < 1e-12 * scale
  np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-11)
  assert moments.of(x.astype(np.float32)).mean.dtype == np.float64


def test_known_gaussians():
  # Diagonal: sum of (mu difference)^2 + (sigma difference)^2.
  a = _given([0, 1, 2], np.diag([1, 4, 9]))
  b = _given([1, 1, 0], np.diag([4, 4, 1]))
  assert moments.frechet(a, b) == pytest.approx(5 + 1 + 0 + 4, abs=1e-10)
  # A rotation changes nothing; it makes both covariances full.
  q = np.linalg.qr(_x(3, 3))[0]
  turned = [_given(q @ m.mean, q @ m.covariance @ q.T) for m in (a, b)]
  assert moments.frechet(*turned) == pytest.approx(10, abs=1e-10)
  assert moments.frechet(a, a) == pytest.approx(0, abs=1e-10)


def test_matrices_that_do_not_commute():
  """2 x 2: tr (A B)^1/2 = sqrt(tr A B + 2 sqrt(det A B))."""
  a, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 4]])
  product = a @ b
  root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
  says = np.trace(a) + np.trace(b) - 2 * root
  a, b = _given([0, 0], a), _given([0, 0], b)
  assert moments.frechet(a, b) == pytest.approx(says, rel=1e-12)
  assert moments.frechet(b, a) == pytest.approx(says, rel=1e-12)


def test_negative_eigenvalues_are_clipped():
  flat = _given([0, 0, 0], np.diag([1.0, 0.0, -1e-15]))
  assert moments.frechet(flat, flat) == pytest.approx(0, abs=1e-12)


def test_floor_falls_with_samples():
  few, many = (moments.split_half(_x(n, 4)) for n in (100, 1600))
  assert few.shape == (4,) and (few > 0).all() and len(set(few)) == 4
  assert many.mean() < few.mean() / 6  # the bias goes as 1/n
  np.testing.assert_array_equal(few, moments.split_half(_x(100, 4)))
  shifted = moments.frechet(moments.of(_x(800, 4)), moments.of(_x(800, 4) + 1))
  assert shifted > 20 * many.max()


def test_jackknife_is_the_spread_over_repeats():
  """Error of a known shift, against the spread of 150 fresh samples."""
  reference = [_given([0, 0], np.eye(2), n=10**6)]
  distance, error = [], []
  for seed in range(150):
    groups = [moments.of(p) for p in np.split(_x(400, 2, seed) + 1, 20)]
    distance.append(moments.frechet(moments.merged(groups), reference[0]))
    error.append(moments.standard_error(groups, reference))
  assert np.mean(error) == pytest.approx(np.std(distance), rel=0.2)
  # Two sampled sides add their variances.
  other = [moments.of(p) for p in np.split(_x(400, 2, 999), 20)]
  both = moments.standard_error(groups, other)
  sides = [
    moments.standard_error(groups, [moments.merged(other)]),
    moments.standard_error([moments.merged(groups)], other),
  ]
  assert both == pytest.approx(np.hypot(*sides), rel=1e-9)


def test_jackknife_of_pairs():
  """A sample and what was made of it: the spread over fresh ones, again."""
  distance, error, apart = [], [], []
  for seed in range(150):
    x = _x(400, 2, seed)
    made = x @ np.array([[0.8, 0.1], [0.0, 0.9]]) + 0.2
    groups = [[moments.of(p) for p in np.split(side, 20)] for side in (x, made)]
    distance.append(moments.frechet(*map(moments.merged, groups)))
    error.append(moments.standard_error(*groups, paired=True))
    apart.append(moments.standard_error(*groups))
  assert np.mean(error) == pytest.approx(np.std(distance), rel=0.2)
  assert np.mean(apart) > 2 * np.std(distance)  # as if x had been drawn twice
  same = moments.standard_error(groups[0], groups[0], paired=True)
  assert same == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
  "call, says",
  [
    (lambda m: moments.frechet(m(4), m(4)), "needs 5 samples of 4 features"),
    (lambda m: moments.frechet(m(9), m(4)), "n <= 4 a covariance is singular"),
    (lambda m: moments.frechet(m(9), m(9), minimum=10), "needs 10 samples"),
    (lambda m: moments.frechet(m(9), m(9, 3)), "4 features against 3"),
    (lambda m: moments.merge(m(9), m(9, 3)), "of 4 and of 3 features"),
    (lambda m: moments.merged([]), "nothing to merge"),
    (lambda m: moments.of(np.zeros(3)), "are (n, d), n >= 1, got (3,)"),
    (lambda m: moments.of(np.zeros((0, 3))), "got (0, 3)"),
    (lambda m: moments.of(np.full((2, 2), np.nan)), "not finite"),
    (lambda m: m(1).covariance, "needs 2 samples, got 1"),
    (lambda m: moments.split_half(_x(8, 4)), "got 4 and 4"),
    (lambda m: moments.standard_error([m(9)], [m(9)]), "2 groups or more"),
    (
      lambda m: moments.standard_error([m(9), m(8)], [m(9)]),
      "groups must be equal, got n [8, 9]",
    ),
    (
      lambda m: moments.standard_error([m(9)] * 3, [m(9)] * 2, paired=True),
      "3 groups are no pairs of 2",
    ),
  ],
)
def test_refusals(call, says):
  with pytest.raises(UserError) as e:
    call(lambda n, d=4: moments.of(_x(n, d)))
  assert says in str(e.value) and "\n" not in str(e.value)
