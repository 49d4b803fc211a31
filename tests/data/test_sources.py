"""Fashion-MNIST, the wrappers, and sources by name."""

import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import fashion, idx, sources, synthetic
from vitscale.data import source as source_lib
from vitscale.data.embedded import make as embedded

EMBEDDED = Path(embedded.__file__).parent


def _all(source):
  return source.read(np.arange(len(source)))


def _keys(source):
  return {x.tobytes() for x in _all(source)["image"]}


def test_splits_are_balanced_and_disjoint():
  splits = {s: fashion.fashion_mnist(s) for s in source_lib.SPLITS}
  assert [len(s) for s in splits.values()] == [10_000, 2_000, 4_000]
  for source in splits.values():
    assert source.shape == (28, 28, 1) and source.classes == 10
    assert (source.counts == len(source) // 10).all()
    assert source.mean == splits["train"].mean
    batch = source.read(np.array([3, 0, 3]))
    assert batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][0], batch["image"][2])
  train, val, test = (_keys(s) for s in splits.values())
  assert not train & val and not train & test and not val & test
  whole = fashion.fashion_mnist("train", val=0)
  assert _keys(whole) == train | val
  assert len({s.fingerprint for s in (*splits.values(), whole)}) == 4


def test_statistics_are_of_the_training_images():
  source = fashion.fashion_mnist(size=14)
  x = _all(source)["image"] / 255
  np.testing.assert_allclose(source.mean, x.mean(), rtol=1e-9)
  np.testing.assert_allclose(source.std, x.std(), rtol=1e-9)
  assert abs(fashion.fashion_mnist().mean[0] - 0.286) < 0.002  # published
  assert abs(fashion.fashion_mnist().std[0] - 0.353) < 0.002


@pytest.mark.parametrize("size", [12, 14, 16, 24])
def test_smaller_images_are_averages(size):
  full, small = fashion.fashion_mnist("val"), fashion.fashion_mnist("val", size)
  assert small.shape == (size, size, 1)
  a, b = (_all(s) for s in (full, small))
  np.testing.assert_array_equal(a["label"], b["label"])
  means = a["image"].mean((1, 2, 3)), b["image"].mean((1, 2, 3))
  assert np.abs(means[0] - means[1]).mean() < 1.5  # grey levels of 255
  assert full.fingerprint != small.fingerprint


def test_other_files_from_a_path(tmp_path, monkeypatch):
  """Makes a subset of the subset, reads it back by path."""
  monkeypatch.setattr(embedded, "PER_CLASS", {"train": 30, "test": 10})
  embedded.make(EMBEDDED, tmp_path)
  source = fashion.fashion_mnist("train", path=str(tmp_path), val=100)
  assert (source.counts == 20).all()
  image, label = idx.read_split(EMBEDDED, "train")
  for c in range(10):
    ours = _all(source)["image"][source.label == c, :, :, 0]
    np.testing.assert_array_equal(ours, image[label == c][:20])
  first = min(np.flatnonzero(label == source.label[0]))
  assert first == 0  # the original order is kept
  held_out = fashion.fashion_mnist("val", path=str(tmp_path), val=100)
  assert (held_out.counts == 10).all()
  assert held_out.fingerprint != fashion.fashion_mnist("val").fingerprint


def test_embedded_files_carry_their_licence():
  assert "Zalando" in (EMBEDDED / "LICENSE").read_text()
  assert "1,200" in (EMBEDDED / "NOTICE").read_text()
  size = sum(f.stat().st_size for f in EMBEDDED.glob("*.gz"))
  assert size < 8_000_000


def test_embedded_pixels_never_change():
  """Not to be updated lightly: results of finished runs rest on them."""
  test, small = fashion.fashion_mnist("test"), fashion.fashion_mnist("test", 12)
  assert test.fingerprint == "da04321f82ade0c153d84c8d3f516188"
  data = _all(small)["image"].tobytes()
  assert hashlib.sha256(data).hexdigest()[:16] == "48a4a48c82078560"


# Wrappers --------------------------------------------------------------------


def test_upsampled_repeats_pixels():
  source = fashion.fashion_mnist("val", 7)
  big = source_lib.upsampled(source, 3)
  assert big.shape == (21, 21, 1) and len(big) == len(source)
  x, y = (s.read(np.arange(5))["image"] for s in (source, big))
  np.testing.assert_array_equal(y, np.kron(x, np.ones((1, 3, 3, 1), np.uint8)))
  assert big.fingerprint != source.fingerprint
  assert source_lib.upsampled(source, 1) is source


def test_permuted_moves_every_image_alike():
  source = fashion.fashion_mnist("val", 7)
  mixed, other = (source_lib.permuted(source, seed) for seed in (0, 1))
  x, y = (
    s.read(np.arange(50))["image"].reshape(50, -1) for s in (source, mixed)
  )
  order = [
    int(np.flatnonzero((y == x[:, [j]]).all(0))[0]) for j in _distinct(x)
  ]
  assert (np.array(order) != _distinct(x)).mean() > 0.8
  np.testing.assert_array_equal(np.sort(x), np.sort(y))
  np.testing.assert_array_equal(
    mixed.read(np.arange(50))["image"].reshape(50, -1), y
  )
  assert mixed.fingerprint != other.fingerprint
  # The same permutation on train and test, or nothing could be learnt.
  test = source_lib.permuted(fashion.fashion_mnist("test", 7), 0)
  raw = fashion.fashion_mnist("test", 7)
  a, b = (s.read(np.arange(50))["image"].reshape(50, -1) for s in (raw, test))
  for j, k in zip(_distinct(x), order):
    np.testing.assert_array_equal(a[:, j], b[:, k])


def _distinct(x):
  """Pixels whose values over the images occur only once."""
  _, first, count = np.unique(x, axis=1, return_index=True, return_counts=True)
  return np.sort(first[count == 1])


def test_limit_is_balanced_and_nested():
  source = fashion.fashion_mnist("train", 7)
  small = source_lib.limited(source, 105)
  assert len(small) == 105
  assert small.counts.min() == 10 and small.counts.max() == 11
  assert _keys(source_lib.limited(source, 50)) <= _keys(small)
  assert source_lib.limited(source, 10**9) is source


def test_make_applies_limit_then_permutation_then_upsampling():
  made = sources.make(
    "fashion_mnist", split="val", size=7, limit=20, permute_seed=3, upsample=2
  )
  by_hand = source_lib.limited(fashion.fashion_mnist("val", 7), 20)
  by_hand = source_lib.upsampled(source_lib.permuted(by_hand, 3), 2)
  assert made.fingerprint == by_hand.fingerprint
  np.testing.assert_array_equal(_all(made)["image"], _all(by_hand)["image"])


@pytest.mark.parametrize(
  "kwargs, says",
  [
    ({"name": "fashon_mnist"}, "did you mean 'fashion_mnist'?"),
    ({"name": "limited"}, "no data source 'limited'"),
    ({"name": "fashion_mnist", "siez": 12}, "did you mean 'size'?"),
    ({"name": "fashion_mnist", "size": "12"}, "must be an integer, got '12'"),
    ({"name": "fashion_mnist", "size": 32}, "use upsample=2"),
    ({"name": "fashion_mnist", "size": 0}, "got size=0"),
    ({"name": "fashion_mnist", "split": "tset"}, "did you mean 'test'?"),
    ({"name": "fashion_mnist", "val": 2005}, "val must be a multiple of 10"),
    ({"name": "fashion_mnist", "val": 12_000}, "below 12000"),
    ({"name": "fashion_mnist", "split": "val", "val": 0}, "'val' is empty"),
    ({"name": "fashion_mnist", "path": "/no/where"}, "vitscale data get"),
    ({"name": "fashion_mnist", "limit": 0}, "limit must be at least 1"),
    ({"name": "fashion_mnist", "upsample": 0}, "upsample must be at least 1"),
    ({"name": "fashion_mnist", "limit": "9"}, "limit must be an integer"),
    ({"name": "folder"}, "folder needs 'path'"),
    ({"name": "strokes", "classes": 3}, "classes must be 2 or 4"),
    ({"name": "strokes", "length": 20}, "length 20"),
    ({"name": "strokes", "majority": 9}, "majority 9"),
    ({"name": "blobs", "n": 0}, "n >= 1"),
  ],
)
def test_bad_arguments(kwargs, says):
  with pytest.raises(UserError) as e:
    sources.make(**kwargs)
  assert says in str(e.value) and "\n" not in str(e.value)


def test_data_code_does_not_import_jax():
  code = (
    "import sys; from vitscale.data import sources, synthetic, transforms, "
    "folder; assert 'jax' not in sys.modules and 'grain' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# idx files and the download --------------------------------------------------


def test_idx_round_trip(tmp_path):
  array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
  (tmp_path / "a.gz").write_bytes(idx.encode(array))
  np.testing.assert_array_equal(idx.read(tmp_path / "a.gz"), array)
  assert idx.encode(array) == idx.encode(array.copy())


@pytest.mark.parametrize(
  "content, says",
  [
    (b"plain text", "no readable gzip"),
    (idx.encode(np.zeros(999, np.uint8))[:-12], "no readable gzip"),
    (gzip.compress(b"\0\0\x0d\x01rest"), "is not an idx file"),
    (gzip.compress(b"\0\0\x08\x01\0\0\0\x09short"), "is cut or damaged"),
    (gzip.compress(b"\0\0\x08\x03\0"), "is cut or damaged"),
  ],
  # gzip stamps the time: bytes as ids would differ between the workers of xdist
  ids=["no gzip", "cut gzip", "no idx", "count", "header"],
)
def test_bad_idx(tmp_path, content, says):
  (tmp_path / "x.gz").write_bytes(content)
  with pytest.raises(UserError, match=says):
    idx.read(tmp_path / "x.gz")


def test_other_idx_sets_are_refused(tmp_path):
  for split, names in idx.FILES.items():
    n = {"train": 20, "test": 10}[split]
    image = np.zeros((n, 20, 20), np.uint8)
    for name, array in zip(names, (image, np.zeros(n, np.uint8))):
      (tmp_path / name).write_bytes(idx.encode(array))
  with pytest.raises(UserError, match="holds no Fashion-MNIST: 20x20"):
    fashion.fashion_mnist(path=str(tmp_path), val=0)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
  """Four files behind file://, whose digests are the expected ones."""
  folder = tmp_path / "mirror"
  folder.mkdir()
  digests = {}
  for i, name in enumerate(idx.SHA256):
    data = bytes([i]) * 1000
    (folder / name).write_bytes(gzip.compress(data))
    digests[name] = hashlib.sha256(data).hexdigest()
  monkeypatch.setattr(idx, "SHA256", digests)
  return folder


def test_download(tmp_path, mirror):
  out = tmp_path / "new" / "out"
  paths = fashion.download(out, base=mirror.as_uri())
  assert [p.name for p in paths] == list(idx.SHA256)
  assert sorted(p.name for p in out.iterdir()) == sorted(idx.SHA256)
  # A second call needs no mirror: what is right is kept.
  paths = fashion.download(out, base="file:///no/where")
  assert len(paths) == 4


def test_download_refuses_other_content(tmp_path, mirror):
  name = list(idx.SHA256)[2]
  (mirror / name).write_bytes(gzip.compress(b"something else"))
  with pytest.raises(UserError, match="not the published file: sha256"):
    fashion.download(tmp_path / "out", base=mirror.as_uri())
  # Nothing half-done under a final name, no temporary left.
  assert len(list((tmp_path / "out").iterdir())) == 2


def test_download_without_network(tmp_path):
  with pytest.raises(UserError, match=r"cannot download .*put them in"):
    fashion.download(tmp_path, base="http://localhost:9/")
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(UserError, match="cannot write to"):
    fashion.download(file)


# Generated -------------------------------------------------------------------


@pytest.mark.parametrize("maker", [synthetic.strokes, synthetic.blobs])
def test_generated_sets_are_reproducible_and_disjoint(maker):
  a, b = maker(n=500), maker(n=5000)
  x = _all(a)
  assert x["image"].shape == (500, 12, 12, 1) and x["image"].dtype == np.uint8
  np.testing.assert_array_equal(x["image"], _all(b)["image"][:500])
  assert a.mean == b.mean == maker("test", n=500).mean
  assert not _keys(b) & _keys(maker("test", n=5000))
  assert not _keys(b) & _keys(maker("train", n=5000, seed=1))
  assert b.counts.min() > 1100 and len(_keys(b)) == 5000
  assert maker(n=500, size=8).shape == (8, 8, 1)
  x = _all(b)["image"] / 255
  np.testing.assert_allclose(b.mean, x.mean(), atol=0.003)
  np.testing.assert_allclose(b.std, x.std(), rtol=0.03)


@pytest.mark.parametrize("orientation", range(4))
def test_strokes_lie_inside_and_point_the_right_way(orientation):
  source = synthetic.strokes(n=2000, strokes=1, majority=1, noise=0, length=4)
  batch = _all(source)
  image = batch["image"][batch["label"] == orientation, :, :, 0]
  for x in image[:200]:
    rows, columns = np.nonzero(x != 128)
    assert len(rows) == 4  # none cut off by the border
    step = {0: (0, 1), 1: (-1, 1), 2: (1, 0), 3: (1, 1)}[orientation]
    by = np.argsort(columns if step[1] else rows)
    assert (np.diff(rows[by]) == step[0]).all()
    assert (np.diff(columns[by]) == step[1]).all()
  used = (image != 128).any(0)  # diagonals cannot reach all corners
  assert used.mean() > 0.8 and used[[0, -1]].any(1).all()
  assert used[:, [0, -1]].any(0).all()
  bright = (image > 128).any((1, 2)).mean()
  assert 0.35 < bright < 0.65


def test_two_classes_are_across_and_up():
  source = synthetic.strokes(n=100, classes=2)
  assert source.class_names == ("0 degrees", "90 degrees")
  assert source.label.max() == 1


def _linear_accuracy(features, label):
  """Held-out accuracy of a least-squares classifier."""
  x = np.concatenate([features, np.ones((len(features), 1))], 1)
  half = len(x) // 2
  w = np.linalg.lstsq(x[:half], np.eye(4)[label[:half]], rcond=None)[0]
  return ((x[half:] @ w).argmax(1) == label[half:]).mean()


def test_blobs_need_no_detail_and_strokes_do():
  quadrants = lambda x: x.reshape(-1, 2, 6, 2, 6).mean((2, 4)).reshape(-1, 4)
  blobs = _all(synthetic.blobs(n=6000))
  pixels = blobs["image"].reshape(6000, -1) / 255.0
  coarse = _linear_accuracy(quadrants(pixels), blobs["label"])
  fine = _linear_accuracy(pixels, blobs["label"])
  assert 0.7 < coarse < 0.8 and fine < coarse + 0.05
  strokes = _all(synthetic.strokes(n=6000))
  pixels = strokes["image"].reshape(6000, -1) / 255.0
  assert _linear_accuracy(quadrants(pixels), strokes["label"]) < 0.32
  assert _linear_accuracy(pixels, strokes["label"]) < 0.32
