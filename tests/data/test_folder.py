"""Folders of images, good and bad."""

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitscale.core.errors import UserError
from vitscale.data import (
  augment,
  image_file,
  pipeline,
  random,
  sources,
  transforms,
)
from vitscale.data import folder as folder_lib
from vitscale.data import source as source_lib

folder = folder_lib.folder


def _write(path, color=(200, 100, 50), size=(12, 8), mode="RGB"):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).convert(mode).save(path)


def _fill(root, classes=("cat", "dog"), n=10, tops=("",)):
  for top in tops:
    for c, name in enumerate(classes):
      for i in range(n):
        _write(root / top / name / f"{i:02}.png", (c * 100, i * 10, 0))
  return root


def _paths(source):
  return list(source.images.args[1])


def test_explicit_splits(tmp_path):
  _fill(tmp_path, tops=("train", "val"))
  (tmp_path / "train" / "cat" / ".hidden.png").write_text("")
  (tmp_path / "train" / "cat" / "notes.txt").write_text("")
  _write(tmp_path / "train" / "dog" / "deep" / "er" / "x.JPG")
  train, val = (folder(str(tmp_path), s) for s in ("train", "val"))
  assert len(train) == 21 and len(val) == 20 and train.classes == 2
  assert train.class_names == ("cat", "dog")
  assert list(train.counts) == [10, 11]
  assert _paths(train) == sorted(_paths(train))
  batch = train.read(np.array([3, 0]))
  assert batch["image"][0].shape == (8, 12, 3)
  assert tuple(batch["image"][0][0, 0]) == (0, 30, 0)
  with pytest.raises(UserError, match="no test/ folder"):
    folder(str(tmp_path), "test")
  assert train.mean == (0.485, 0.456, 0.406)


def test_images_without_classes(tmp_path):
  for top in ("a", "b/train", "b/val"):
    for i in range(10):
      _write(tmp_path / top / f"{i}.png", (i, 0, 0))
  assert folder_lib.is_flat(tmp_path / "a")
  assert not folder_lib.is_flat(tmp_path / "b")  # has folders
  assert not folder_lib.is_flat(tmp_path / "none")
  parts = [folder(str(tmp_path / "a"), s, flat=True) for s in ("train", "val")]
  assert [len(part) for part in parts] == [9, 1]
  assert len(set(_paths(parts[0]) + _paths(parts[1]))) == 10
  val = folder(str(tmp_path / "b"), "val", flat=True)
  assert len(val) == 10 and val.class_names == ("images",)
  assert val.read(np.array([7]))["image"][0][0, 0, 0] == 7
  with pytest.raises(UserError, match=r"no images in .*b itself; leave flat"):
    (tmp_path / "b/train").rename(tmp_path / "b/cat")
    (tmp_path / "b/val").rename(tmp_path / "b/dog")
    folder(str(tmp_path / "b"), flat=True)


def test_class_numbers_come_from_train(tmp_path):
  _fill(tmp_path, ("ant", "bee", "cat"), tops=("train",))
  _fill(tmp_path, ("cat",), tops=("validation",))
  val = folder(str(tmp_path), "val")
  assert set(val.label) == {2} and val.classes == 3
  _fill(tmp_path, ("wolf",), tops=("validation",))
  with pytest.raises(UserError, match="train/ lacks: wolf"):
    folder(str(tmp_path), "val")


@pytest.mark.parametrize("top", ["", "train"])
def test_held_out_shares(tmp_path, top):
  _fill(tmp_path, n=20, tops=(top,))
  parts = {
    s: _paths(folder(str(tmp_path), s, val=0.2, test=0.1))
    for s in source_lib.SPLITS
  }
  assert [len(p) for p in parts.values()] == [28, 8, 4]
  assert len(set().union(*parts.values())) == 40
  assert _paths(folder(str(tmp_path), "val", val=0.2)) == parts["val"]
  # By name, not by place: elsewhere and with other files, the same choice.
  assert parts["val"] != sorted(set().union(*parts.values()))[:8]


def test_tiny_classes_are_still_held_out(tmp_path):
  _fill(tmp_path, n=2)
  assert list(folder(str(tmp_path), "val").counts) == [1, 1]
  assert list(folder(str(tmp_path), "train").counts) == [1, 1]
  alone = _fill(tmp_path / "alone", n=1)
  with pytest.raises(UserError, match="too few images to hold any out"):
    folder(str(alone), "val")


def test_modes_are_converted(tmp_path):
  for mode, name in [("L", "a.png"), ("P", "b.png"), ("RGBA", "c.png"),
                     ("CMYK", "d.jpg"), ("1", "e.png")]:  # fmt: skip
    _write(tmp_path / "cat" / name, mode=mode)
  deep = np.full((8, 12), 40_000, np.uint16)
  Image.fromarray(deep).save(tmp_path / "cat" / "f.png")
  for channels in (1, 3):
    source = folder(str(tmp_path), val=0.0, channels=channels)
    for image in source.read(np.arange(6))["image"]:
      assert image.dtype == np.uint8 and image.shape == (8, 12, channels)
    assert len(source.mean) == channels
  assert abs(int(image[0, 0, 0]) - 40_000 / 257) <= 1


def test_camera_orientation_is_applied(tmp_path):
  image = Image.new("RGB", (12, 8))
  exif = image.getexif()
  exif[0x0112] = 6  # rotate
  (tmp_path / "cat").mkdir()
  image.save(tmp_path / "cat" / "a.jpg", exif=exif)
  assert image_file.decode(tmp_path / "cat" / "a.jpg").shape == (12, 8, 3)


def test_fingerprint_follows_the_files(tmp_path):
  _fill(tmp_path)
  before = folder(str(tmp_path)).fingerprint
  assert folder(str(tmp_path)).fingerprint == before
  _write(tmp_path / "cat" / "zz.png")
  _write(tmp_path / "cat" / "zy.png")
  assert folder(str(tmp_path)).fingerprint != before


def test_through_the_pipeline(tmp_path):
  _fill(tmp_path)
  _write(tmp_path / "cat" / "wide.png", size=(40, 9))
  source = sources.make("folder", path=tmp_path, limit=12)
  transform = transforms.parse("inception_crop(8)|flip_lr|randaug(2, 9)")
  with pipeline.train_batches(
    source, batch_size=6, seed=0, transform=transform
  ) as batches:
    assert next(batches)["image"].shape == (6, 8, 8, 3)
  transform = transforms.parse("resize_small(8)|central_crop(8)")
  with pipeline.eval_batches(
    source, batch_size=8, transform=transform
  ) as batches:
    weights = [b["weight"].sum() for b in batches]
  assert weights == [8, 4]
  with pytest.raises(UserError, match="upsample needs images of one shape"):
    sources.make("folder", path=tmp_path, upsample=2)


# Bad input -------------------------------------------------------------------


def _corrupt(root):
  """One file of each kind of damage."""
  whole = (root / "cat" / "00.png").read_bytes()
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(root / "cat" / "x_cut.jpg")
  jpeg = (root / "cat" / "x_cut.jpg").read_bytes()
  bad = {"x_cut.jpg": jpeg[: len(jpeg) // 2], "x_cut.png": whole[:40],
         "x_empty.png": b"", "x_text.png": b"hello"}  # fmt: skip
  for name, content in bad.items():
    (root / "cat" / name).write_bytes(content)
  return sorted(f"cat/{name}" for name in bad)


def test_corrupt_files_are_listed_counted_and_left_out(tmp_path):
  bad = _corrupt(_fill(tmp_path))
  with pytest.warns(UserWarning) as caught:
    source = sources.make(
      "folder", path=str(tmp_path), val=0.0, skip_corrupt=True
    )
  text = str(caught[0].message)
  assert "4 of 24 samples" in text and "left out" in text
  assert all(name in text for name in bad)
  assert len(source) == 20 and all(
    name not in str(source.files(np.array([i]))[0].name)
    for i in range(20)
    for name in bad
  )
  assert len(source.read(np.arange(20))["image"]) == 20
  # Not checked: the first one read is named.
  source = folder(str(tmp_path), val=0.0)
  for name in bad:
    with pytest.raises(UserError, match="cannot read image") as e:
      source.read(np.array([_paths(source).index(name)]))
    assert name in str(e.value) and "\n" not in str(e.value)
  with (
    pytest.raises(UserError, match="cannot read image"),
    pipeline.eval_batches(
      source, batch_size=24, transform=transforms.parse("resize(8)")
    ) as batches,
  ):
    next(batches)


def test_nothing_left_after_the_check(tmp_path):
  for name in ("cat", "dog"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.png").write_text("no image")
  with pytest.raises(UserError, match=r"2 of 2 .*cat/a.png.*none is left"):
    sources.make("folder", path=str(tmp_path), skip_corrupt=True)
  _write(tmp_path / "cat" / "b.png")
  with pytest.raises(UserError, match="nothing is left of dog"):
    sources.make("folder", path=str(tmp_path), val=0.0, skip_corrupt=True)


def _make(root, kind):
  root.mkdir()
  if kind == "flat":
    _write(root / "a.png")
  elif kind == "no images":
    (root / "cat").mkdir()
    (root / "cat" / "a.txt").write_text("")
  elif kind == "one empty class":
    _fill(root)
    (root / "fox").mkdir()
  elif kind == "no train":
    _fill(root, tops=("val",))
  elif kind == "empty train":
    (root / "train").mkdir()
  return root


@pytest.mark.parametrize(
  "kind, says",
  [
    ("empty", "holds nothing to read; expected PATH/train/CLASS"),
    ("flat", "1 images and no class folders; expected"),
    ("no images", "no images below"),
    ("one empty class", "1 of 3 class folders of .*: fox; fill or remove"),
    ("no train", "has val/ but no train/"),
    ("empty train", "train holds nothing to read"),
  ],
)
def test_bad_layouts(tmp_path, kind, says):
  root = _make(tmp_path / "images", kind)
  with pytest.raises(UserError, match=says) as e:
    folder(str(root))
  assert str(root) in str(e.value) and "\n" not in str(e.value)


@pytest.fixture
def shared():
  """A folder that another user can reach; root's tmp_path is not."""
  path = Path(tempfile.mkdtemp())
  path.chmod(0o755)
  yield path
  shutil.rmtree(path)


@pytest.mark.parametrize(
  ("closed", "mode"),
  [
    ("photos", 0o000),
    ("photos/cat", 0o000),
    ("photos/cat", 0o444),  # names can be listed, files not looked at
    (".", 0o000),
  ],
)
def test_folder_without_permission(shared, closed, mode):
  root = _fill(shared / "photos", n=2)
  (shared / closed).chmod(mode)
  privileged = os.geteuid() == 0
  if privileged:  # root may read everything
    os.seteuid(65534)
  try:
    with pytest.raises(UserError) as e:
      folder(str(root))
  finally:
    if privileged:
      os.seteuid(0)
    (shared / closed).chmod(0o755)
  text = str(e.value)
  assert str(shared) in text and "ermission denied" in text, text


def test_bad_arguments(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    folder(str(tmp_path / "gone"))
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="is not a folder"):
    folder(str(tmp_path / "file"))
  for wrong in ({"channels": 4}, {"val": 0.6, "test": 0.5}, {"val": -1.0},
                {"split": "dev"}, {"mean": (0.5,)}):  # fmt: skip
    with pytest.raises(UserError):
      folder(str(_fill(tmp_path / "ok")), **wrong)


@pytest.mark.parametrize(
  "text",
  ["inception_crop(8)|flip_lr", "resize_small(8)|central_crop(8)", "resize(8)",
   "randaug(2, 9)|resize(8)"],
)  # fmt: skip
def test_decoding_late_changes_nothing(tmp_path, text):
  """A batch of the pipeline is what the transform makes of decoded images."""
  for i, mode in enumerate(["RGB", "L", "RGBA", "CMYK"]):
    noise = np.random.default_rng(i).integers(0, 256, (31, 23, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6 if i % 2 else 1  # turned
    path = tmp_path / "cat" / f"{i}.{'png' if mode == 'RGBA' else 'jpg'}"
    path.parent.mkdir(exist_ok=True)
    image.save(path, exif=exif)
  source, transform = folder(str(tmp_path), val=0.0), transforms.parse(text)
  with pipeline.train_batches(
    source, batch_size=4, seed=1, transform=transform
  ) as batches:
    made = next(batches)["image"]
  order = random.permutation(1, 0, 4)
  want = transform(source.read(order), random.Rng(1, 0, order))["image"]
  np.testing.assert_array_equal(made, want)
  files = source.read(order, files=True)["image"]
  assert [f.shape for f in files] == [x.shape for x in source.images(order)]


def test_a_file_that_goes_away_is_named(tmp_path):
  _fill(tmp_path, n=3)
  source = folder(str(tmp_path), val=0.0)
  (tmp_path / "cat" / "01.png").unlink()
  for files in (False, True):
    with pytest.raises(UserError, match=r"cannot read image .*cat/01.png") as e:
      source.read(np.array([1]), files=files)
    assert "\n" not in str(e.value)


def _smooth(h, w):
  y, x = np.mgrid[:h, :w]
  waves = [np.sin(x / 37 + y / 23), np.cos(x / 29), np.sin(y / 41 - x / 53)]
  return (128 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize("turn", [1, 6])
def test_draft_decodes_less_and_shows_the_same(turn):
  exif = Image.Exif()
  exif[0x0112] = turn
  out = io.BytesIO()
  Image.fromarray(_smooth(300, 420)).save(out, "JPEG", quality=95, exif=exif)
  file = image_file.ImageFile(out.getvalue(), 3, "x")
  h, w = file.shape[:2]
  assert (h, w) == ((300, 420) if turn == 1 else (420, 300))
  box = (20.5, 30.0, 190.0, 250.0)  # about 170 x 220 of it
  whole, draft = (
    augment.scale(file, (40, 50), box, draft=d).astype(int)
    for d in (False, True)
  )
  least = (40 * h / 220, 50 * w / 169.5)
  assert file.pil(least).size == (-(-w // 2), -(-h // 2))
  assert np.abs(whole - draft).max() <= 4 and (whole != draft).any()
  # Nothing to save: the same pixels.
  for size in ((200, 160), (400, 300)):
    np.testing.assert_array_equal(
      augment.scale(file, size, box, draft=True), augment.scale(file, size, box)
    )
  png = io.BytesIO()
  file.pil().save(png, "PNG")
  for image in (image_file.ImageFile(png.getvalue(), 3, "x"), np.asarray(file)):
    np.testing.assert_array_equal(
      augment.scale(image, (40, 50), box, draft=True), whole
    )
