"""KID, and precision and recall by nearest neighbours."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.metrics import kernels


def _x(n, d=3, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d))


def test_by_hand():
  """{0, 1} against {1, 2}: 1 + 27 - 2 (1 + 1 + 8 + 27) / 4."""
  x, y = np.array([[0.0], [1]]), np.array([[1.0], [2]])
  assert kernels.mmd(x, y) == pytest.approx(9.5, abs=1e-12)
  # Two features: x.y is divided by 2. Within 1 and 1.5^3; across 1, 1, 8, 8.
  x, y = np.array([[0.0, 0], [2, 0]]), np.array([[1.0, 0], [1, 0]])
  across = (1 + 1 + 8 + 8) / 4
  says = 1 + 1.5**3 - 2 * across
  assert kernels.mmd(x, y) == pytest.approx(says, abs=1e-12)


def test_blocks_are_drawn_by_the_seed():
  """A seed repeats its value, another seed cuts otherwise."""
  x, y = _x(40), _x(44, seed=1)
  value, error = kernels.kid(x, y, blocks=5)
  assert (value, error) == kernels.kid(x, y, blocks=5)
  assert value != kernels.kid(x, y, blocks=5, seed=1)[0]


def test_order_of_the_samples_does_not_matter():
  """Blocks of a sorted set, unshuffled, would each be a slice of it."""
  found = [
    kernels.kid(np.sort(_x(200, 1, s), 0), _x(200, 1, s + 1000))[0]
    for s in range(100)
  ]
  assert abs(np.mean(found)) < 4 * np.std(found) / 10
  x, y = np.sort(_x(200, 1), 0), _x(200, 1, 1000)
  slices = zip(np.split(x, 10), np.split(y, 10))
  assert np.mean([kernels.mmd(a, b) for a, b in slices]) > 3 * np.std(found)


def test_zero_mean_between_equals_and_honest_error():
  found = [
    kernels.kid(_x(60, seed=s), _x(80, seed=s + 1000), blocks=6)
    for s in range(300)
  ]
  value, error = np.array(found).T
  assert abs(value.mean()) < 4 * value.std() / 300**0.5
  assert (value < 0).any()
  assert np.sqrt((error**2).mean()) == pytest.approx(value.std(), rel=0.2)


def test_positive_when_shifted():
  value, error = kernels.kid(_x(600), _x(600, seed=1) + 0.5)
  assert value > 5 * error > 0


def test_manifolds_by_hand():
  """On a line, k = 1: radii 1, 1, 2 of 0, 1, 3; 6.5, 1, 1 of 2.5, 9, 10."""
  real, fake = np.array([[0.0], [1], [3]]), np.array([[2.5], [9], [10]])
  # 2.5 is .5 from 3, 9 and 10 are far; its own ball of 6.5 holds all real.
  assert kernels.precision_recall(real, fake, k=1) == (1 / 3, 1.0)
  assert kernels.precision_recall(fake, real, k=1) == (1.0, 1 / 3)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_against_the_definition(rows):
  real, fake = _x(40, 2), 1.5 * _x(30, 2, 1) + 1
  distance = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1)

  def covered(x, support):
    radius = np.sort(distance(support, support), 1)[:, 3]  # 0 is itself
    return (distance(x, support) <= radius).any(1).mean()

  says = covered(fake, real), covered(real, fake)
  assert 0.2 < says[0] < says[1] <= 1
  np.testing.assert_allclose(
    kernels.precision_recall(real, fake, rows=rows), says
  )


def test_modes():
  left, right = _x(200) - 10, _x(200, seed=1) + 10
  both = np.concatenate([left, right])
  dropped = _x(400, seed=2) - 10  # one mode is missing
  precision, recall = kernels.precision_recall(both, dropped)
  assert precision > 0.9 and 0.4 < recall < 0.51
  assert kernels.precision_recall(both, both) == (1, 1)
  assert kernels.precision_recall(left, right) == (0, 0)


@pytest.mark.parametrize(
  "call, says",
  [
    (lambda: kernels.kid(_x(19), _x(30)), "10 blocks of 19 and 30 samples"),
    (lambda: kernels.kid(_x(9), _x(9), blocks=1), "needs 2 blocks"),
    (lambda: kernels.mmd(_x(1), _x(9)), "needs 2 samples, got 1 and 9"),
    (lambda: kernels.mmd(_x(9, 2), _x(9)), "got (9, 2) and (9, 3)"),
    (lambda: kernels.mmd(_x(9), _x(9) * np.inf), "not finite"),
    (lambda: kernels.precision_recall(_x(9), _x(3)), "below both 9 and 3"),
    (lambda: kernels.precision_recall(_x(9), _x(9), k=0), "got 0"),
    (lambda: kernels.precision_recall(_x(9), _x(9), rows=0), "rows must be"),
  ],
)
def test_refusals(call, says):
  with pytest.raises(UserError) as e:
    call()
  assert says in str(e.value) and "\n" not in str(e.value)
