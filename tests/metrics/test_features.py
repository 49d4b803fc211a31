"""Random features: fixed numbers, and distances that grow with damage."""

import itertools

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.metrics import features, moments

see = jax.jit(features.features)
NUMBERS = [0.153239, 0.118335, 0.879451, 0.0707174, 0.248121]


@pytest.fixture(scope="module")
def clothes():
  """(800, 28, 28, 1) in 0..1, and labels."""
  data = sources.make("fashion_mnist", split="val", limit=800)
  read = data.read(np.arange(800))
  return read["image"].astype(np.float32) / 255, read["label"]


def ramp(h, w, c):
  """An image that needs no generator."""
  return np.linspace(0, 1, h * w * c, dtype=np.float32).reshape(1, h, w, c)


# ------------------------------------------------------------------- numbers


def test_the_numbers_are_these():
  """A record names the network; its numbers must not move with versions."""
  found = np.asarray(see(ramp(8, 9, 3)))
  assert found.shape == (1, features.DIM) and found.dtype == np.float32
  np.testing.assert_allclose(found[0, [0, 1, 31, 64, 127]], NUMBERS, rtol=1e-5)
  assert features.DIM <= 256
  assert "seed=0" in features.IDENTITY and "128" in features.IDENTITY


def test_the_same_on_every_call(clothes):
  x = clothes[0][:7]
  first, kernel = np.asarray(see(x)), features.weights()[0].copy()
  features.weights.cache_clear()
  np.random.seed(7)
  np.testing.assert_array_equal(jax.jit(features.features)(x), first)
  np.testing.assert_array_equal(features.weights()[0], kernel)


def test_each_image_for_itself(clothes):
  x = clothes[0][:6]
  whole = np.asarray(see(x))
  alone = np.concatenate([see(x[i : i + 1]) for i in range(6)])
  np.testing.assert_allclose(whole, alone, rtol=1e-4, atol=1e-6)
  assert np.abs(whole[0] - whole[1]).max() > 0.01


@pytest.mark.parametrize("shape", [(8, 8), (11, 30), (64, 64)])
def test_any_size_grey_or_colour(shape):
  grey = ramp(*shape, 1)
  found = np.asarray(see(grey))
  assert found.shape == (1, features.DIM) and np.isfinite(found).all()
  np.testing.assert_allclose(found, see(np.repeat(grey, 3, -1)), rtol=1e-5)
  half = features.WIDTHS[0]  # of a level: means, then roots of mean squares
  assert (found[0, half : 2 * half] >= found[0, :half]).all()


# ----------------------------------------------------------------- distances


def damaged(how, x, label):
  z = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
  if how == "blur":
    made = [gaussian_filter(x, (0, s, s, 0)) for s in (0.4, 0.8, 1.6, 3.2)]
  elif how == "noise":
    made = [np.clip(x + s * z, 0, 1) for s in (0.02, 0.06, 0.2, 0.6)]
  elif how == "levels":
    made = [np.rint(x * (k - 1)) / (k - 1) for k in (16, 8, 4, 2)]
  else:  # modes: fewer classes, in as many images
    kept = [np.flatnonzero(label < k) for k in (8, 6, 3, 1)]
    made = [x[np.resize(i, len(x))] for i in kept]
  return [np.asarray(see(m.astype(np.float32))) for m in made]


@pytest.mark.parametrize("how", ["blur", "noise", "levels", "modes"])
def test_distance_grows_with_damage(clothes, how):
  x, label = clothes
  clean = moments.of(see(x))
  far = [
    moments.frechet(clean, moments.of(made)) for made in damaged(how, x, label)
  ]
  assert abs(moments.frechet(clean, clean)) < 1e-6 < far[0]
  assert all(b > 1.5 * a for a, b in itertools.pairwise(far)), far


def test_the_floor_is_that_of_fresh_samples():
  """Split halves say what other images of the same kind measure."""
  data = sources.make("strokes", split="val", size=12, n=1600)
  x = data.read(np.arange(1600))["image"].astype(np.float32) / 255
  found = np.asarray(see(x))
  floor = moments.split_half(found[:800])  # 400 a side
  a, b, c, d = (moments.of(part) for part in np.split(found, 4))
  fresh = [moments.frechet(a, b), moments.frechet(c, d)]
  assert np.mean(fresh) == pytest.approx(floor.mean(), rel=0.2)
  blurred = gaussian_filter(x, (0, 0.5, 0.5, 0))
  far = moments.frechet(moments.of(found), moments.of(see(blurred)))
  assert far > 10 * floor.max()


@pytest.mark.parametrize(
  ("images", "says"),
  [
    (np.zeros((2, 8, 8, 2), "f4"), "with 1 or 3 channels, got (2, 8, 8, 2)"),
    (np.zeros((8, 8, 3), "f4"), "are (b, h, w, c)"),
    (np.zeros((2, 8, 7, 3), "f4"), "need 8 pixels a side, got (8, 7)"),
    (np.zeros((2, 8, 8, 3), np.uint8), "got uint8; divide by 255"),
  ],
)
def test_refusals(images, says):
  with pytest.raises(UserError) as error:
    features.features(images)
  assert says in str(error.value) and "\n" not in str(error.value)
