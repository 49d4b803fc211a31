"""Random numbers as a pure function of (seed, epoch, sample, name).

Augmentation must not depend on the order, the batch or the process a sample
comes in, so nothing here has a state: every draw hashes its coordinates with
the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), whole batches
at a time. The values are fixed by this file, not by a numpy version.
"""

import functools
import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # odd, 2^64 over the golden ratio
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = (np.uint64(s) for s in (27, 30, 31, 11))


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of uint64 in which every input bit stirs every output bit."""
  x = x + _GOLDEN
  x = (x ^ (x >> _S30)) * _MUL1
  x = (x ^ (x >> _S27)) * _MUL2
  return x ^ (x >> _S31)


@functools.lru_cache(4096)
def _word(name: str) -> np.uint64:
  digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
  return np.uint64(int.from_bytes(digest, "little"))


def _words(x) -> np.ndarray:
  """Integers of any sign as a 1-d uint64 array (scalars would warn)."""
  return np.atleast_1d(np.asarray(x, np.int64)).astype(np.uint64)


class Rng:
  """Draws for a batch of samples; equal coordinates give equal values.

  Args:
    seed: of the run.
    epochs: (b,) or scalar, the epoch each sample is seen in.
    ids: (b,) sample numbers in their source.
  """

  def __init__(self, seed: int, epochs, ids):
    ids = _words(ids)
    keys = mix(mix(_words(seed)) ^ _words(epochs))
    self._keys = np.broadcast_to(mix(keys ^ ids), ids.shape)
    self._scope = ""

  def __len__(self) -> int:
    return len(self._keys)

  def scope(self, name: str) -> "Rng":
    """The same samples with every name prefixed: independent draws."""
    rng = object.__new__(Rng)
    rng._keys, rng._scope = self._keys, f"{self._scope}{name}/"
    return rng

  def take(self, rows: np.ndarray) -> "Rng":
    """Some of the samples, with the draws that they have."""
    rng = object.__new__(Rng)
    rng._keys, rng._scope = self._keys[rows], self._scope
    return rng

  def bits(self, name: str, n: int = 1) -> np.ndarray:
    """(b, n) uint64."""
    keys = mix(self._keys ^ _word(self._scope + name))
    return mix(keys[:, None] + np.arange(n, dtype=np.uint64) * _GOLDEN)

  def uniform(self, name: str, n: int = 1) -> np.ndarray:
    """(b, n) float64 in [0, 1)."""
    return (self.bits(name, n) >> _S11) * 2.0**-53

  def integers(self, name: str, high, n: int = 1, *, low=0) -> np.ndarray:
    """(b, n) int64 in [low, high); the bounds may be (b, 1) arrays."""
    span = np.asarray(high) - low
    return low + (self.uniform(name, n) * span).astype(np.int64)

  def normal(self, name: str, n: int = 1) -> np.ndarray:
    """(b, n) float64, standard normal (Box and Muller)."""
    u = self.uniform(name, n + n % 2)  # in pairs, so that n cuts, not moves
    radius = np.sqrt(-2 * np.log1p(-u[:, 0::2]))
    angle = 2 * np.pi * u[:, 1::2]
    both = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1)
    return both.reshape(len(self), -1)[:, :n]

  def choose(self, name: str, k: int, n: int) -> np.ndarray:
    """(b, n) distinct int64 of range(k), in random order."""
    return np.argsort(self.bits(name, k), axis=1, kind="stable")[:, :n]


@functools.lru_cache(4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
  """The order in which an epoch visits n samples: (n,) int64, read-only.

  Sorting n hashed keys is uniform over all orders; 0.3 s a million, once
  an epoch.
  """
  keys = Rng(seed, epoch, np.arange(n)).bits("shuffle")[:, 0]
  order = np.argsort(keys, kind="stable")
  order.setflags(write=False)
  return order
