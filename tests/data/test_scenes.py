"""Scenes: labels follow their pixels."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import sources, transforms
from vitscale.data.random import Rng


def images(**changes):
  made = sources.make("scenes", **{"size": 16, "n": 64, **changes})
  return made, made.read(np.arange(len(made)))["image"]


def test_grey_values_come_from_the_classes():
  """Without noise an image is its label map, up to the sign of contrast."""
  made, image = images(noise=0.0)
  grey, classes = image[..., 0], image[..., 1]
  assert made.shape == (16, 16, 2) and made.classes == 4
  assert (grey[classes == 0] == 128).all()
  assert set(np.unique(grey[classes > 0])) == {38, 218}
  assert set(np.unique(classes)) == {0, 1, 2, 3}


def test_grey_values_do_not_tell_the_class():
  _, image = images(n=512, noise=0.0)
  bright = [(image[..., 0][image[..., 1] == c] > 128).mean() for c in (1, 2, 3)]
  assert max(abs(np.array(bright) - 0.5)) < 0.1


def test_strokes_are_thin():
  _, image = images(n=256, size=32, objects=1)
  rows = lambda c: (image[..., 1] == c).sum(2).max(1)
  areas = [
    np.median((image[..., 1] == c).sum((1, 2))[rows(c) > 0]) for c in (1, 3)
  ]
  assert areas[1] < 0.35 * areas[0]


def test_a_flip_moves_both():
  _, image = images()
  flipped = transforms.parse("flip_lr(1.0)")(
    {"image": image}, Rng(0, 0, np.arange(64))
  )
  np.testing.assert_array_equal(flipped["image"], image[:, :, ::-1])


def test_splits_differ_and_repeat():
  a, b = images(split="train")[1], images(split="val")[1]
  assert not np.array_equal(a, b)
  np.testing.assert_array_equal(a, images(split="train")[1])


def test_refuses():
  with pytest.raises(UserError, match="size >= 8"):
    images(size=4)
