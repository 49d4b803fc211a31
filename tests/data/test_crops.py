"""Crops: disjoint, of photographs that only one split has."""

import warnings

import numpy as np
import pytest
from PIL import Image

from vitscale.core.errors import UserError
from vitscale.data import crops as crops_lib
from vitscale.data import sources


def photo(path, number, size=(70, 41), mode="RGB"):
  """Noise whose red values are about `number`: who a crop comes from."""
  path.parent.mkdir(parents=True, exist_ok=True)
  w, h = size
  x = np.random.default_rng(number).integers(0, 256, (h, w, 3), np.uint8)
  x[..., 0] = number
  Image.fromarray(x).convert(mode).save(path)
  return x


@pytest.fixture
def photos(tmp_path):
  return tmp_path, [photo(tmp_path / f"{i}.png", i) for i in range(10)]


def test_crops_tile_the_middle(photos):
  root, arrays = photos
  made = sources.make("crops", path=str(root), size=20, val=0.0)
  assert len(made) == 10 * 6 and made.shape == (20, 20, 3)
  assert made.class_names == ("images",)
  found = {x.tobytes() for x in made.read(np.arange(60))["image"]}
  want = {
    photo[y : y + 20, x : x + 20].tobytes()
    for photo in arrays
    for y in (0, 20)
    for x in (5, 25, 45)
  }
  assert found == want and len(found) == 60


def test_the_first_ones_are_of_many_images(photos):
  """Shuffled, and always alike: `limit` doesn't mean the first photograph."""
  root, _ = photos
  options = {"path": str(root), "size": 20, "val": 0.0}
  some = sources.make("crops", limit=20, **options)
  whom = some.read(np.arange(20))["image"][:, 0, 0, 0]
  assert len(set(whom)) > 6
  again = sources.make("crops", limit=20, **options)
  np.testing.assert_array_equal(
    again.read(np.arange(20))["image"], some.read(np.arange(20))["image"]
  )


def test_images_of_a_split_without_classes(tmp_path):
  for top in ("train", "val"):
    photo(tmp_path / top / "a.png", 7)
  made = sources.make(
    "crops", split="val", path=str(tmp_path), size=20, channels=1
  )
  assert len(made) == 6 and made.shape == (20, 20, 1)
  assert made.class_names == ("images",)


def test_no_class_is_emptied(tmp_path):
  for name in ("cat", "dog"):
    for i in range(2):
      photo(tmp_path / name / f"{i}.png", i)
  for i in range(2):
    Image.new("RGB", (50, 50)).save(tmp_path / "dog" / f"{i}.png")
  with pytest.raises(UserError, match="nothing is left of dog"):
    sources.make("crops", path=str(tmp_path), size=20, val=0.0)


def test_no_photograph_is_in_two_splits(photos):
  root, _ = photos
  found = {}
  for split in ("train", "val", "test"):
    made = sources.make(
      "crops", split=split, path=str(root), size=20, val=0.2, test=0.3
    )
    found[split] = set(made.read(np.arange(len(made)))["image"][:, 0, 0, 0])
  assert [len(found[s]) for s in ("train", "val", "test")] == [5, 2, 3]
  assert len(set.union(*found.values())) == 10


def test_classes_are_those_of_the_folders(tmp_path):
  for i in range(4):
    photo(tmp_path / ("ab"[i % 2]) / f"{i}.png", i)
  made = sources.make("crops", path=str(tmp_path), size=20, val=0.0)
  read = made.read(np.arange(len(made)))
  assert made.class_names == ("a", "b") and (made.counts == 12).all()
  np.testing.assert_array_equal(read["image"][:, 0, 0, 0] % 2, read["label"])


def test_flat_ground_is_left_out(tmp_path):
  x = np.full((40, 60, 3), 90, np.uint8)
  x[:20, 20:40, 1] = np.random.default_rng(0).integers(0, 256, (20, 20))
  Image.fromarray(x).save(tmp_path / "a.png")
  Image.fromarray(x[::-1]).save(tmp_path / "b.png")
  options = {"path": str(tmp_path), "size": 20, "val": 0.0}
  assert len(sources.make("crops", **options)) == 2
  assert len(sources.make("crops", contrast=0.0, **options)) == 12
  with pytest.raises(UserError, match=r"has a contrast of 0\.9: lower it"):
    sources.make("crops", contrast=0.9, **options)


def test_so_many_of_each_and_reduced(photos):
  root, arrays = photos
  few = sources.make("crops", path=str(root), size=20, per_image=2, val=0.0)
  ends = [
    x[y : y + 20, z : z + 20] for x in arrays for y, z in ((0, 5), (20, 45))
  ]
  found = {x.tobytes() for x in few.read(np.arange(20))["image"]}
  assert found == {x.tobytes() for x in ends}  # the first and the last
  assert len(few) == 20
  small = sources.make("crops", path=str(root), size=20, shorter=20, val=0.0)
  assert len(small) == 10  # 34 x 20
  assert few.fingerprint != small.fingerprint
  # The mean of a photograph survives.
  image = crops_lib.reduced(photo(root / "x.png", 3, (400, 200)), 50)
  assert image.shape == (50, 100, 3)
  assert abs(image[..., 1].mean() - 127.5) < 3


def test_small_and_broken_images(photos, monkeypatch):
  root, _ = photos
  photo(root / "tiny.png", 0, (19, 90))
  options = {"path": str(root), "size": 20, "val": 0.0}
  with pytest.warns(UserWarning, match="1 of 11 images .* than 20 px.*tiny"):
    assert len(sources.make("crops", **options)) == 60
  with pytest.raises(UserError, match="11 of 11 images are smaller than 99 px"):
    sources.make("crops", **{**options, "size": 99})
  (root / "tiny.png").write_bytes(b"no image")
  with pytest.raises(UserError, match=r"cannot read image .*tiny\.png"):
    sources.make("crops", **options)
  with pytest.warns(UserWarning, match=r"1 of 11 .* left out: tiny\.png"):
    assert len(sources.make("crops", skip_corrupt=True, **options)) == 60
  (root / "tiny.png").unlink()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sources.make("crops", **options)
  monkeypatch.setattr(crops_lib, "MOST", 60 * 20 * 20 * 3 - 1)
  with pytest.raises(UserError, match=r"60 crops of 20 px take .* per_image"):
    sources.make("crops", **options)
  sources.make("crops", per_image=5, **options)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"size": 0}, "need size >= 1"),
    ({"size": 20, "shorter": 10}, "shorter=10 is less than size=20"),
    ({"size": 20, "per_image": 0}, "per_image=0"),
    ({"size": 20, "path": "nowhere"}, "nowhere does not exist"),
    ({}, "size"),
  ],
)
def test_mistakes(photos, options, says):
  with pytest.raises(UserError, match=says):
    sources.make("crops", **{"path": str(photos[0]), **options})
