"""What is peculiar to WebDataset, Parquet, NumPy and TFDS files."""

import json
import os
import sys

import numpy as np
import pytest

from tests.data import written
from vitscale.core.errors import UserError
from vitscale.data import arrays, files, parquet, tfds, webdataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _first(source):
  images = source.read(np.arange(len(source)))["image"]
  return [int(x[0, 0, 0]) for x in images]


# WebDataset ------------------------------------------------------------------


def _tar(path, names, **more):
  """A shard of images and labels: {key: label}, and other members."""
  data = written.files()
  members = {}
  for key, text in names.items():
    members[f"{key}.png"] = data[int(key[-2:])]
    members[f"{key}.cls"] = str(text).encode()
  for name, value in more.items():
    members[name.replace("__", ".")] = value
  path.parent.mkdir(parents=True, exist_ok=True)
  written.tar(path, members)


def test_splits_and_labels_of_a_webdataset(tmp_path):
  _tar(tmp_path / "x-train-0.tar", {"a/01": 0, "a/02": 2})
  _tar(tmp_path / "x-train-1.tar", {"b/01": 1})
  _tar(tmp_path / "x-validation-0.tar", {"03": 2})
  train, val = (
    webdataset.webdataset(str(tmp_path), s) for s in ("train", "val")
  )
  assert _first(train) == [1, 2, 1] and list(train.label) == [0, 2, 1]
  assert _first(val) == [3] and list(val.label) == [2]
  assert train.class_names == ("0", "1", "2")
  named = webdataset.webdataset(str(tmp_path), class_names=["x", "y", "z"])
  assert named.class_names == ("x", "y", "z")
  with pytest.raises(UserError, match=r"label 2 of 1 train .* 2 classes"):
    webdataset.webdataset(str(tmp_path), class_names=["x", "y"])
  one = webdataset.webdataset(str(tmp_path / "x-train-0.tar"))
  assert _first(one) == [1, 2]
  _tar(tmp_path / "more.tar", {"03": 2})
  with pytest.raises(UserError, match=r"more.tar names no split, others do"):
    webdataset.webdataset(str(tmp_path))
  _tar(tmp_path / "val" / "train.tar", {"03": 2})
  with pytest.raises(UserError, match="says train and val"):
    webdataset.webdataset(str(tmp_path))


def test_labels_in_json_and_txt(tmp_path):
  png = written.files(3)
  written.tar(tmp_path / "a.tar", {
    "0.json": b'{"label": "dog", "x": 1}', "0.png": png[0],
    "1.txt": b"a caption\n", "1.png": png[1], "1.json": b'{"label": "cat"}',
    "2.PNG": png[2], "2.txt": b" dog \n", "2.json": b'{"width": 3}',
    "2.seg.npy": b"ignored",
  })  # fmt: skip
  source = webdataset.webdataset(str(tmp_path), val=0.0)
  assert source.class_names == ("cat", "dog")
  assert list(source.label) == [1, 0, 1] and _first(source) == [0, 1, 2]


def test_the_index_is_made_once_and_anew_for_other_shards(
  tmp_path, monkeypatch
):
  path = tmp_path / "data" / "a.tar"
  _tar(path, {"01": 0, "02": 1})
  read = lambda: webdataset.webdataset(str(path.parent), val=0.0)
  assert _first(read()) == [1, 2]
  (index,) = path.parent.glob("vitscale-index-*.npz")
  with monkeypatch.context() as m:
    m.setattr(webdataset, "_scan", None)  # would raise
    assert _first(read()) == [1, 2]
  index.write_bytes(index.read_bytes()[:100])  # as of a full disk
  assert _first(read()) == [1, 2]
  _tar(path.parent / "b.tar", {"05": 0, "04": 1})
  assert _first(read()) == [1, 2, 5, 4]
  # The same names and sizes, at another time.
  _tar(path.parent / "b.tar", {"06": 1, "07": 0})
  os.utime(path.parent / "b.tar", ns=(1, 1))
  source = read()
  assert list(source.label) == [0, 1, 1, 0]
  assert not list(path.parent.glob(".index-*"))


def test_the_index_is_kept_elsewhere(tmp_path, monkeypatch):
  made = []
  build = lambda: made.append(1) or {"x": np.arange(3)}
  nowhere = tmp_path / "file"
  nowhere.write_text("")  # no folder: nothing can be written in it
  for _ in range(2):
    assert list(files.stored("key", nowhere, build)["x"]) == [0, 1, 2]
  assert made == [1] and list((tmp_path / "cache").rglob("*.npz"))
  files.stored("other", nowhere, build)
  assert made == [1, 1]
  monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere))
  assert list(files.stored("key", nowhere, build)["x"]) == [0, 1, 2]


@pytest.mark.parametrize(
  "more, says",
  [
    ({"03__png": b"x"}, "1 of 2 samples have no label.*: 03"),
    ({"03__cls": b"1"}, "1 of 2 samples have no image.*: 03"),
    ({"03__png": b"x", "03__json": b'{"a": 1}'}, "have no label.*: 03"),
    ({"03__png": b"x", "03__json": b"{"}, "03.json: "),
    ({"03__png": b"x", "03__json": b'{"label": [1]}'}, r"label \[1\]"),
    ({"03__png": b"x", "03__cls": b"a\nb"}, "no label of one line"),
    ({"03__png": b"x", "03__cls": b""}, "no label of one line"),
    ({"03__png": b"x", "03__jpg": b"x", "03__cls": b"1"}, "two images"),
  ],
)
def test_bad_samples(tmp_path, more, says):
  _tar(tmp_path / "a.tar", {"01": 0}, **more)
  with pytest.raises(UserError, match=says) as e:
    webdataset.webdataset(str(tmp_path))
  assert "a.tar" in str(e.value) and "\n" not in str(e.value)


def test_shards_that_were_cut(tmp_path):
  _tar(tmp_path / "a.tar", {f"{i:02}": 0 for i in range(9)})
  whole = (tmp_path / "a.tar").read_bytes()
  (tmp_path / "a.tar").write_bytes(whole[:1100])  # within an image
  with pytest.raises(UserError, match=r"a.tar is no whole tar"):
    webdataset.webdataset(str(tmp_path))
  (tmp_path / "a.tar").write_bytes(whole)
  source = webdataset.webdataset(str(tmp_path), val=0.0)
  files._descriptor.cache_clear()
  (tmp_path / "a.tar").write_bytes(whole[:2000])
  with pytest.raises(UserError, match=r"ends before byte .* it has changed"):
    source.read(np.array([8]))


# Parquet ---------------------------------------------------------------------


def _columns(path, **columns):
  pa = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.table(columns), path, row_group_size=2)


def test_splits_and_columns_of_parquet(tmp_path):
  png = written.files()
  _columns(tmp_path / "data/train-00000-of-00002.parquet", img=png[:3],
           kind=["b", "a", "b"])  # fmt: skip
  _columns(tmp_path / "data/train-00001-of-00002.parquet", img=png[3:5],
           kind=["c", "a"])  # fmt: skip
  _columns(tmp_path / "data/test-00000-of-00001.parquet", img=png[5:6],
           kind=["c"])  # fmt: skip
  read = lambda split, **more: parquet.parquet(
    str(tmp_path), split, image="img", label="kind", val=0.0, **more
  )
  train, test = read("train"), read("test")
  assert _first(train) == [0, 1, 2, 3, 4] and _first(test) == [5]
  assert train.class_names == ("a", "b", "c")
  assert list(train.label) == [1, 0, 1, 2, 0] and list(test.label) == [2]
  with pytest.raises(UserError, match=r"no column 'image'.*data.image=COLUMN"):
    parquet.parquet(str(tmp_path), label="kind")
  with pytest.raises(UserError, match="no val split"):
    read("val")


def test_bad_parquet(tmp_path):
  png = written.files(3)
  _columns(tmp_path / "a/x.parquet", image=png, label=[0, None, 1])
  with pytest.raises(UserError, match=r"1 of 3 rows have no label .* row 1"):
    parquet.parquet(str(tmp_path / "a"))
  _columns(tmp_path / "b/x.parquet", image=["1.png"] * 3, label=[0, 1, 1])
  with pytest.raises(UserError, match="'image' is string, not the bytes"):
    parquet.parquet(str(tmp_path / "b"))
  _columns(
    tmp_path / "c/x.parquet", image=[png[0], None, png[2]], label=[0] * 3
  )
  source = parquet.parquet(str(tmp_path / "c"), val=0.0)
  with pytest.raises(UserError, match="group 0 row 1: no bytes; mend it"):
    source.read(np.array([1]))
  path = written.as_parquet(tmp_path / "d", png, [0, 1, 2])
  _columns(tmp_path / "d/part-9.parquet", image=png, label=[0, 1, 1])
  with pytest.raises(UserError, match="name classes differently"):
    parquet.parquet(path)


def test_few_row_groups_are_kept(tmp_path, monkeypatch):
  path = pytest.importorskip("pyarrow") and written.as_parquet(
    tmp_path / "a", written.files(), written.label(), struct=False
  )
  source = parquet.parquet(path, val=0.0)
  order = np.random.default_rng(0).permutation(written.N)
  monkeypatch.setattr(parquet, "KEPT", 2500)  # two groups of five
  parquet._kept.clear()
  seen = [int(source.read(order[i : i + 1])["image"][0][0, 0, 0])
          for i in range(written.N)]  # fmt: skip
  assert seen == order.tolist()
  assert 1 <= len(parquet._kept) <= 2


# NumPy -----------------------------------------------------------------------


def _save(path, **made):
  path.parent.mkdir(exist_ok=True)
  np.savez(path, **made)
  return str(path)


def test_splits_of_arrays(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (10, 6, 5), np.uint8)
  path = _save(
    tmp_path / "m.npz", train_images=image[:6], val_images=image[6:],
    train_labels=np.array([0, 1, 0, 1, 2, 2])[:, None],
    val_labels=np.array([2, 1, 0, 0], np.uint8),
  )  # fmt: skip
  train, val = (arrays.numpy(path, s) for s in ("train", "val"))
  assert train.shape == (6, 5, 1) and len(val) == 4 and val.classes == 3
  np.testing.assert_array_equal(val.images(np.array([1]))[0, ..., 0], image[7])
  assert train.mean == val.mean
  np.testing.assert_allclose(train.mean, image[:6].mean() / 255, rtol=1e-9)
  np.testing.assert_allclose(train.std, image[:6].std() / 255, rtol=1e-9)
  own = arrays.numpy(path, mean=[0.5], std=[0.25])
  assert (own.mean, own.std) == ((0.5,), (0.25,))
  with pytest.raises(UserError, match="mean needs 1 values"):
    arrays.numpy(path, mean=[0.5, 0.5, 0.5])


IMAGES, LABELS = np.zeros((4, 6, 6), np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
  "made, says",
  [
    ({"x": IMAGES}, "has x; expected images and labels"),
    ({"images": IMAGES}, "has no labels"),
    ({"images": IMAGES, "labels": LABELS, "val_images": IMAGES}, "val_labels"),
    ({"images": IMAGES / 2, "labels": LABELS}, "are float64"),
    ({"images": np.zeros((4, 6, 6, 4), np.uint8), "labels": LABELS},
     "4 channels"),
    ({"images": IMAGES, "labels": LABELS[:3]}, "4 images, 3 labels"),
    ({"images": IMAGES, "labels": LABELS / 2}, "labels are float64"),
    ({"images": IMAGES, "labels": np.array([0, 1, None, 1])}, "cannot read"),
    ({"images": IMAGES, "labels": -LABELS}, "label -1 of 2"),
    ({"images": IMAGES[:0], "labels": LABELS[:0]}, "holds no images"),
  ],
)  # fmt: skip
def test_bad_arrays(tmp_path, made, says):
  path = _save(tmp_path / "a.npz", **made)
  with pytest.raises(UserError, match=says) as e:
    arrays.numpy(path)
  assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


# TFDS ------------------------------------------------------------------------


def test_bad_tfds(tmp_path):
  with pytest.raises(UserError, match=r"holds no dataset_info.json"):
    tfds.tfds(str(tmp_path))
  pytest.importorskip("tensorflow_datasets")
  path = written.as_tfds(tmp_path / "a", written.files(6), written.label(6))
  with pytest.raises(UserError, match=r"did you mean .*1.0.0\?"):
    tfds.tfds(os.path.dirname(path))
  with pytest.raises(UserError, match=r"no feature 'picture'.*data.image="):
    tfds.tfds(path, image="picture")
  with pytest.raises(UserError, match="feature 'image' is a Image"):
    tfds.tfds(path, label="image")
  assert "tensorflow" not in sys.modules
  (tmp_path / "b").mkdir()
  (tmp_path / "b/dataset_info.json").write_text(json.dumps({"name": "b"}))
  with pytest.raises(UserError, match="tfds: ") as e:
    tfds.tfds(str(tmp_path / "b"))
  assert "\n" not in str(e.value)
