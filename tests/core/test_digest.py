"""core/digest: any change is seen, no sharding is (8 devices: multidevice)."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vitscale.core import digest


def text(x):
  return digest.text(digest.digests({"x": x})["x"])


DTYPES = (
  np.float32, np.int32, np.uint8, np.bool_, np.float16, ml_dtypes.bfloat16,
)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_single_bit_counts(dtype):
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2, (3, 5)).astype(dtype)
  want = text(jnp.asarray(x))
  assert text(x) == want  # on the host as on the device
  bits = x.view(np.uint8).ravel()
  flips = 1 if dtype == np.bool_ else 8
  for byte in range(bits.size):
    bad = bits.copy()
    bad[byte] ^= 1 << rng.integers(flips)
    assert text(bad.view(dtype).reshape(x.shape)) != want


def test_what_a_linear_sum_would_miss():
  x = np.ones((64, 64), np.float32)  # words with 23 trailing zeros
  want = text(x)
  zeroed = x.copy()
  zeroed.reshape(-1)[1024:2048] = 0  # a 4 KiB block
  swapped = np.arange(64.0, dtype=np.float32).reshape(8, 8)
  again = swapped[::-1].copy()
  assert text(zeroed) != want
  assert text(swapped) != text(again)
  assert text(np.zeros((2, 3), np.float32)) != text(np.zeros(7, np.float32))
  assert text(np.float32(0.0)) != text(np.float32(-0.0))


@pytest.mark.parametrize(
  "x",
  [
    np.array([1.0, np.pi, np.nan]),  # a device without x64 would round it
    np.array([2**40 + 1], np.int64),
    np.array([1 + 2j, 3 - 1j], np.complex64),
    np.zeros((0, 3), np.float32),
    np.int32(7),
  ],
)
def test_other_kinds(x):
  assert len(text(x)) == 16
  if x.size:
    bad = np.array(x, copy=True).reshape(-1)
    bad.view(np.uint8)[0] ^= 1
    assert text(bad.reshape(x.shape)) != text(x)


def test_random_keys_have_one():
  assert text(jax.random.key(1)) != text(jax.random.key(2))
