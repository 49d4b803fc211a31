"""PSNR and SSIM against slow references in float64."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.metrics import images

psnr, ssim = jax.jit(images.psnr), jax.jit(images.ssim)


@pytest.fixture(scope="module")
def pair():
  """Smooth, noisy, flat and equal images, (4, 14, 17, 3)."""
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[0:14, 0:17]
  x = 0.5 + 0.4 * np.sin(rows / 3)[..., None] * np.cos(columns / 4)[..., None]
  x = np.stack([np.repeat(x, 3, -1)] * 4)
  x[1] = rng.uniform(size=x[1].shape)
  x[2] = 0.9
  y = np.clip(x + 0.1 * rng.normal(size=x.shape), 0, 1)
  y[3] = x[3]
  return x.astype(np.float32), y.astype(np.float32)


def _slow_ssim(x, y):
  """One window after another, from the definition; x, y (h, w)."""
  g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  weights = np.outer(g, g) / np.outer(g, g).sum()
  found = []
  for i in range(x.shape[0] - 10):
    for j in range(x.shape[1] - 10):
      a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
      ma, mb = (weights * a).sum(), (weights * b).sum()
      va = (weights * (a - ma) ** 2).sum()
      vb = (weights * (b - mb) ** 2).sum()
      both = (weights * (a - ma) * (b - mb)).sum()
      found.append(
        (2 * ma * mb + 1e-4) * (2 * both + 9e-4)
        / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
      )  # fmt: skip
  return np.mean(found)


def test_against_the_definition(pair):
  x, y = (a.astype(np.float64) for a in pair)
  slow = [
    np.mean([_slow_ssim(a[..., c], b[..., c]) for c in range(3)])
    for a, b in zip(x, y)
  ]
  np.testing.assert_allclose(ssim(*pair), slow, atol=3e-6)
  assert slow[0] < 0.95 and slow[2] < 0.5
  error = ((x - y) ** 2).reshape(4, -1).mean(1)[:3]
  np.testing.assert_allclose(
    psnr(*pair)[:3], 10 * np.log10(1 / error), rtol=1e-5
  )
  assert ssim(*pair).dtype == jnp.float32 and psnr(*pair).shape == (4,)


@pytest.mark.skipif(
  importlib.util.find_spec("skimage") is None,
  reason="scikit-image is not installed; the definition above is the reference",
)
def test_against_scikit_image(pair):
  from skimage.metrics import structural_similarity

  theirs = [
    structural_similarity(
      a, b, gaussian_weights=True, use_sample_covariance=False,
      data_range=1, channel_axis=-1,
    )
    for a, b in zip(*(p.astype(np.float64) for p in pair))
  ]  # fmt: skip
  np.testing.assert_allclose(ssim(*pair), theirs, atol=3e-6)


def test_identities(pair):
  x, y = pair
  assert ssim(*pair)[3] == pytest.approx(1, abs=1e-6)
  assert np.isinf(psnr(*pair)[3])
  np.testing.assert_allclose(ssim(x, y), ssim(y, x), atol=3e-6)
  # A constant shift: 20 dB at .1, and only the means of SSIM see it.
  flat = np.full_like(x, 0.4)
  np.testing.assert_allclose(psnr(flat, flat + 0.1), 20, rtol=1e-5)
  says = (2 * 0.4 * 0.5 + 1e-4) / (0.4**2 + 0.5**2 + 1e-4)
  np.testing.assert_allclose(ssim(flat, flat + 0.1), says, atol=3e-6)


def test_each_image_for_itself(pair):
  x, y = pair
  np.testing.assert_allclose(ssim(x, y)[1:2], images.ssim(x[1:2], y[1:2]), 3e-6)
  channels = [images.ssim(x[..., [c]], y[..., [c]]) for c in range(3)]
  np.testing.assert_allclose(ssim(x, y), np.mean(channels, 0), atol=3e-6)


@pytest.mark.parametrize("metric", [images.psnr, images.ssim])
@pytest.mark.parametrize(
  "x, y, says",
  [
    ((2, 12, 12, 1), (2, 12, 12, 3), "of one shape, got (2, 12, 12, 1) and"),
    ((12, 12, 1), (12, 12, 1), "two (b, h, w, c)"),
    ((2, 12, 0, 1), (2, 12, 0, 1), "pixels a side, got (12, 0)"),
  ],
)
def test_bad_shapes(metric, x, y, says):
  with pytest.raises(UserError) as e:
    metric(np.zeros(x, np.float32), np.zeros(y, np.float32))
  assert says in str(e.value) and "\n" not in str(e.value)


def test_other_refusals():
  with pytest.raises(UserError, match=r"11 pixels a side, got \(10, 12\)"):
    images.ssim(*[np.zeros((1, 10, 12, 1), np.float32)] * 2)
  with pytest.raises(UserError, match=r"got uint8; divide by 255"):
    images.psnr(*[np.zeros((1, 12, 12, 1), np.uint8)] * 2)
