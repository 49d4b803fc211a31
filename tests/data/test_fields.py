"""Gaussian random fields with a known spectrum."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import fields, sources


def _images(**changes):
  made = sources.make("fields", **{"size": 8, "n": 300, **changes})
  return made, made.read(np.arange(len(made)))["image"]


def test_images_are_rounded_values():
  made, image = _images(channels=2, power=2.0, seed=3)
  assert made.shape == (8, 8, 2) and made.classes == 1
  assert image.dtype == np.uint8 and (made.label == 0).all()
  x = fields.values(np.arange(300), size=8, power=2.0, channels=2, seed=3)
  assert x.shape == image.shape and x.dtype == np.float64
  assert np.abs(image - np.clip(128 + 32 * x, 0, 255)).max() <= 0.5
  channels = np.corrcoef(x[..., 0].ravel(), x[..., 1].ravel())[0, 1]
  assert abs(channels) < 0.05


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_power_of_each_mode(power):
  x = fields.values(np.arange(4000), size=6, power=power)[..., 0]
  found = (np.abs(np.fft.fft2(x)) ** 2).mean(0) / 36
  says = fields.spectrum(6, power)
  np.testing.assert_allclose(found, says, rtol=0.12)  # real modes: 2.2 % each
  assert says[0, 0] == says[0, 1] and says.mean() == pytest.approx(1)
  assert says[0, 2] / says[0, 1] == pytest.approx(2.0**-power)
  assert x.mean() == pytest.approx(0, abs=0.05)
  assert (x**2).mean() == pytest.approx(1, abs=0.05)


def test_splits_seeds_and_length():
  _, image = _images()
  np.testing.assert_array_equal(_images(n=40)[1], image[:40])
  np.testing.assert_array_equal(
    fields.to_uint8(fields.values(np.array([7, 2]), size=8)), image[[7, 2]]
  )
  for changes in ({"split": "val"}, {"seed": 1}, {"power": 4.0}):
    other, pixels = _images(**changes)
    assert (pixels != image).mean() > 0.9
    assert other.fingerprint != _images()[0].fingerprint


def test_blocks_join(monkeypatch):
  whole = _images()[0].fingerprint
  monkeypatch.setattr(fields, "BLOCK", 128)
  assert _images()[0].fingerprint == whole


@pytest.mark.parametrize("grey", [32.0, 90.0])
def test_stated_statistics(grey):
  v = np.random.default_rng(0).normal(size=400_000)
  pixels = fields.to_uint8(v, grey) / 255
  mean, std = fields.statistics(grey)
  assert pixels.mean() == pytest.approx(mean, abs=4 * std / 632)
  assert pixels.std() == pytest.approx(std, rel=0.005)
  outside = np.mean((128 + grey * v < 0) | (128 + grey * v > 255))
  share = fields.clipped_share(grey)
  assert outside == pytest.approx(share, abs=4 * (share / 400_000) ** 0.5)


def test_default_mapping():
  assert fields.clipped_share() == pytest.approx(6.8e-5, rel=0.01)
  made, _ = _images(n=1, channels=3)
  assert made.mean == pytest.approx((128 / 255,) * 3, abs=1e-5)
  assert made.std == pytest.approx((32 / 255,) * 3, rel=1e-3)


@pytest.mark.parametrize(
  "kwargs, says",
  [
    ({"n": 0}, "n must be at least 1, got 0"),
    ({"size": 1}, "size must be at least 2, got 1"),
    ({"channels": 0}, "channels must be at least 1"),
    ({"power": -1.0}, "power must be from 0"),
    ({"power": float("nan")}, "power must be from 0"),
    ({"grey": 0.0}, "grey must be above 0"),
    ({"split": "tset"}, "did you mean 'test'?"),
  ],
)
def test_bad_arguments(kwargs, says):
  with pytest.raises(UserError) as e:
    sources.make("fields", **kwargs)
  assert says in str(e.value) and "\n" not in str(e.value)
