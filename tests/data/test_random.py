"""The hashed random numbers are uniform, independent, and fixed."""

import numpy as np
import pytest

from vitscale.data.random import Rng, mix, permutation

IDS = np.arange(20_000)
GOLDEN_BITS = [
  [8818347845803071802, 15037958876792419752],
  [18291758398634447609, 15406495873067346117],
]
GOLDEN_ORDER = [3, 0, 7, 6, 2, 1, 4, 5]


def _draws() -> dict[str, np.ndarray]:
  """Streams that must not know of each other."""
  base = Rng(0, 0, IDS)
  return {
    "base": base.uniform("a", 2)[:, 0],
    "next": base.uniform("a", 2)[:, 1],
    "name": base.uniform("b")[:, 0],
    "scope": base.scope("s").uniform("a")[:, 0],
    "epoch": Rng(0, 1, IDS).uniform("a")[:, 0],
    "seed": Rng(1, 0, IDS).uniform("a")[:, 0],
    "id": Rng(0, 0, IDS + 1).uniform("a")[:, 0],
  }


@pytest.mark.parametrize("name", list(_draws()))
def test_uniform(name):
  u = _draws()[name]
  counts = np.histogram(u, 64, (0, 1))[0]
  expected = len(u) / 64
  chi2 = ((counts - expected) ** 2 / expected).sum()
  assert 25 < chi2 < 125  # 63 degrees of freedom: 5.5 sigma
  assert u.min() >= 0 and u.max() < 1


def test_streams_are_independent():
  streams = np.stack(list(_draws().values()))
  correlation = np.corrcoef(streams) - np.eye(len(streams))
  assert np.abs(correlation).max() < 5 / len(IDS) ** 0.5
  for a in range(len(streams)):
    for b in range(a):
      assert (streams[a] == streams[b]).mean() < 0.001


def test_every_input_bit_stirs_every_output_bit():
  x = mix(np.arange(1000, dtype=np.uint64))
  for bit in range(64):
    flipped = mix(np.arange(1000, dtype=np.uint64) ^ np.uint64(1 << bit))
    changed = np.bitwise_count(x ^ flipped)
    assert 30.5 < changed.mean() < 33.5


def test_values_never_change():
  # Runs of an old version must be resumable: these are not to be updated.
  rng = Rng(1, 2, [3, 4])
  np.testing.assert_array_equal(
    rng.bits("x", 2),
    np.array(GOLDEN_BITS, np.uint64),
  )
  np.testing.assert_array_equal(permutation(5, 6, 8), GOLDEN_ORDER)


def test_draws_depend_on_the_sample_alone():
  whole = Rng(0, 3, np.arange(10)).uniform("a", 3)
  part = Rng(0, np.full(2, 3), [7, 2]).uniform("a", 3)
  np.testing.assert_array_equal(part, whole[[7, 2]])
  np.testing.assert_array_equal(
    Rng(0, 3, [7]).normal("n", 3), Rng(0, 3, [7]).normal("n", 8)[:, :3]
  )


def test_negative_and_huge_seeds():
  seeds = (-1, 0, 1, 2**31, 2**62)
  values = {float(Rng(s, 0, [0]).uniform("a")[0, 0]) for s in seeds}
  assert len(values) == len(seeds)


def test_normal_integers_choose():
  rng = Rng(0, 0, IDS)
  z = rng.normal("z", 3)
  assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
  assert abs((z**4).mean() - 3) < 0.2
  assert abs(np.corrcoef(z.T)[0, 1]) < 0.03  # the two of a Box-Muller pair
  i = rng.integers("i", 3, 2, low=-2)
  assert set(np.unique(i)) == {-2, -1, 0, 1, 2}
  picked = rng.choose("c", 5, 3)
  assert all(len(set(row)) == 3 for row in picked[:100])


def test_permutations_are_uniform():
  seen = [tuple(permutation(0, e, 3)) for e in range(3000)]
  counts = np.array([seen.count(p) for p in set(seen)])
  assert len(counts) == 6 and np.abs(counts - 500).max() < 110  # 5 sigma
  with pytest.raises(ValueError):
    permutation(0, 0, 3)[0] = 1  # cached: must be read-only
