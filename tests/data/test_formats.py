"""Every format gives the same batches; what is wrong is named."""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.data import written
from vitscale.core.errors import UserError
from vitscale.data import files, pipeline, sources, transforms

WARP = transforms.parse("inception_crop(8)|flip_lr")
ENCODED = [f for f in written.FORMATS if f not in ("numpy", "npz")]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _data(source, rows):
  return [file.data for file in source.files(rows)]


def _write(kind, root, data=None, label=None):
  if kind in written.NEEDS:
    pytest.importorskip(written.NEEDS[kind])
  data = written.files() if data is None else data
  return written.FORMATS[kind](root, data, label or written.label(len(data)))


def _make(kind, path, **options):
  if kind != "array_record":  # a folder that has its splits
    options = {"val": 0.0} | options
  name = "numpy" if kind == "npz" else kind
  return sources.make(name, path=path, **options)


def _take(source, n=4, **options):
  options = {"batch_size": 6, "seed": 3, "transform": WARP} | options
  with pipeline.train_batches(source, **options) as batches:
    return list(itertools.islice(batches, n))


def _equal(a, b):
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("kind", written.FORMATS)
def test_equal_batches(tmp_path, kind):
  source = _make(kind, _write(kind, tmp_path / "data"))
  read = source.read(np.arange(written.N))
  np.testing.assert_array_equal(np.stack(read["image"]), written.images())
  np.testing.assert_array_equal(read["label"], written.label())
  assert source.class_names == written.CLASSES and len(source.mean) == 3
  assert source.label.dtype == np.int32
  assert (source.sizes() == [9, 7]).all()
  if kind in ENCODED:
    assert _data(source, np.arange(written.N)) == written.files()
  table = _make("table", _write("table", tmp_path / "table"))
  want = _take(table)
  _equal(_take(source), want)
  _equal(_take(source, 2, start=2), want[2:])
  halves = [_take(source, process_index=h, process_count=2) for h in range(2)]
  joined = [
    {k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves)
  ]
  _equal(joined, want)


@pytest.mark.parametrize("kind", written.FORMATS)
def test_held_out_share_and_fingerprint(tmp_path, kind):
  if kind == "array_record":
    pytest.skip("its splits are those of what was converted")
  path = _write(kind, tmp_path / "data")
  parts = {
    s: _make(kind, path, split=s, val=0.25, test=0.125)
    for s in ("train", "val", "test")
  }
  assert [len(p) for p in parts.values()] == [15, 6, 3]
  for part in parts.values():
    assert len(set(part.counts)) == 1
  first = lambda p: [x[0, 0, 0] for x in p.read(np.arange(len(p)))["image"]]
  every = [x for p in parts.values() for x in first(p)]
  assert sorted(every) == list(range(written.N))
  marks = [p.fingerprint for p in parts.values()]
  assert len(set(marks)) == 3
  again = _make(kind, path, split="val", val=0.25, test=0.125)
  assert again.fingerprint == parts["val"].fingerprint
  other = _write(kind, tmp_path / "other", written.files()[:-3])
  assert _make(kind, other).fingerprint != _make(kind, path).fingerprint
  with pytest.raises(UserError, match="no test split; hold a share out"):
    _make(kind, path, split="test")


def test_workers_see_the_same(tmp_path):
  """All in one script: starting processes is what takes time."""
  kinds = ["table", "webdataset", "array_record", "numpy"]
  try:
    import pyarrow  # noqa: F401

    kinds.append("parquet")
  except ImportError:
    pass
  paths = {k: _write(k, tmp_path / k) for k in kinds}
  want = _take(_make("table", paths["table"]), 2)
  script = textwrap.dedent("""
    import itertools, json, sys
    from vitscale.data import pipeline, sources, transforms
    if __name__ == "__main__":
      for kind, path in json.loads(sys.argv[1]).items():
        more = {} if kind == "array_record" else {"val": 0.0}
        source = sources.make(kind, path=path, **more)
        with pipeline.train_batches(
          source, batch_size=6, seed=3, workers=1,
          transform=transforms.parse("inception_crop(8)|flip_lr"),
        ) as batches:
          for batch in itertools.islice(batches, 2):
            print(kind, batch["image"].tobytes().hex())
  """)
  (tmp_path / "load.py").write_text(script)
  done = subprocess.run(
    [sys.executable, str(tmp_path / "load.py"), json.dumps(paths)],
    capture_output=True, text=True, timeout=300,
    env={**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.split("\n")[:-1]
  assert lines == [
    f"{k} {b['image'].tobytes().hex()}" for k in kinds for b in want
  ]


# Corrupt images --------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODED)
def test_corrupt_images_are_named_and_left_out_when_asked(tmp_path, kind):
  data = written.files()
  if kind == "array_record":  # converting would refuse; damage the shard
    root = Path(_write(kind, tmp_path / "data"))
    for file in root.glob("*.array_record"):
      blob = file.read_bytes()
      for i in (5, 17):
        blob = blob.replace(data[i], data[i][:40] + b"\0" * (len(data[i]) - 40))
      file.write_bytes(blob)
    path = str(root)
  else:
    data[5], data[17] = data[5][:40], b"no image"
    path = _write(kind, tmp_path / "data", data)
  source = _make(kind, path)
  for i in (5, 17):
    with pytest.raises(UserError, match="cannot read image") as e:
      source.read(np.array([i]))
    text = str(e.value)
    assert "\n" not in text and path in text, text
    assert "data.skip_corrupt=True" in text
  with pytest.warns(UserWarning, match="2 of 24 samples can't be read") as w:
    source = _make(kind, path, skip_corrupt=True)
  assert str(w[0].message).count(path) == 2
  assert len(source) == 22
  kept = [i for i in range(written.N) if i not in (5, 17)]
  read = source.read(np.arange(22))
  np.testing.assert_array_equal(
    np.stack(read["image"]), np.array(written.images())[kept]
  )
  np.testing.assert_array_equal(read["label"], np.array(written.label())[kept])


def test_nothing_is_left(tmp_path):
  bad = [b"x"] * 6
  path = _write("table", tmp_path / "a", bad)
  with pytest.raises(UserError, match=r"6 of 6 samples .*; none is left"):
    _make("table", path, skip_corrupt=True)
  data = written.files(6)
  data[1] = data[4] = b"x"
  path = _write("table", tmp_path / "b", data)
  with pytest.raises(UserError, match="nothing is left of bee"):
    _make("table", path, skip_corrupt=True)
  with pytest.raises(UserError, match="skip_corrupt is true or false"):
    _make("table", path, skip_corrupt=1)
  with pytest.warns(UserWarning, match="2 of 6 samples"):
    source = sources.make(
      "folder", path=str(tmp_path / "b"), val=0.0, skip_corrupt=True
    )  # one class folder, pictures/
  assert len(source) == 4


# Wrong, empty, absent --------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "numpy"])
def test_wrong_files(tmp_path, kind):
  if kind == "parquet":
    pytest.importorskip("pyarrow")
  suffix = {"parquet": ".parquet", "webdataset": ".tar", "numpy": ".npy"}[kind]
  with pytest.raises(UserError, match="does not exist"):
    _make(kind, str(tmp_path / "gone"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty holds no files"):
    _make(kind, str(tmp_path / "empty"))
  (tmp_path / "a.zip").write_bytes(b"x")
  with pytest.raises(UserError, match=rf"reads .*{suffix}.*a.zip is none"):
    _make(kind, str(tmp_path / "a.zip"))
  with pytest.raises(UserError, match=f"none of them .*{suffix}"):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    (tmp_path / "other" / "b.txt").write_text("x")
    _make(kind, str(tmp_path / "other"))
  (tmp_path / f"zero{suffix}").write_bytes(b"")
  with pytest.raises(UserError, match="is empty: fetch it again"):
    _make(kind, str(tmp_path / f"zero{suffix}"))
  (tmp_path / f"text{suffix}").write_bytes(b"hello" * 200)
  with pytest.raises(UserError, match=f"text{suffix}") as e:
    _make(kind, str(tmp_path / f"text{suffix}"))
  assert "\n" not in str(e.value)


@pytest.mark.parametrize("module", ["pyarrow", "tensorflow_datasets", "fsspec"])
def test_missing_extras(tmp_path, monkeypatch, module):
  (tmp_path / "a.parquet").write_bytes(b"x")
  (tmp_path / "dataset_info.json").write_text("{}")
  monkeypatch.setitem(sys.modules, module, None)
  files._filesystem.cache_clear()
  ask, says = {
    "pyarrow": (("parquet", str(tmp_path)), r"pyarrow: .*vitscale\[parquet\]"),
    "tensorflow_datasets": (("tfds", str(tmp_path)), r"vitscale\[tfds\]"),
    "fsspec": (("webdataset", "memory://x"), r"vitscale\[remote\]"),
  }[module]
  with pytest.raises(UserError, match=says):
    _make(*ask)


# Remote ----------------------------------------------------------------------


@pytest.fixture
def memory():
  fsspec = pytest.importorskip("fsspec")
  fs = fsspec.filesystem("memory")
  yield fs
  if fs.exists("/vitscale-test"):
    fs.rm("/vitscale-test", recursive=True)


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "numpy", "npz"])
def test_remote_paths(tmp_path, memory, kind):
  path = Path(_write(kind, tmp_path / "data"))
  for file in [path] if path.is_file() else path.iterdir():
    memory.pipe_file(f"/vitscale-test/{file.name}", file.read_bytes())
  where = "memory://vitscale-test" + (f"/{path.name}" if kind == "npz" else "")
  _equal(_take(_make(kind, where)), _take(_make(kind, str(path))))


def test_remote_paths_that_cannot_be_read(memory):
  memory.pipe_file("/vitscale-test/a.txt", b"x")
  for kind in ("parquet", "webdataset", "numpy"):
    if kind == "parquet":
      pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="vitscale-test/gone does not exist"):
      _make(kind, "memory://vitscale-test/gone")
  with pytest.raises(UserError, match="gs:// paths need gcsfs: pip install"):
    sources.make("webdataset", path="gs://bucket/x")
  with pytest.raises(UserError, match="no such kind of path: nosuch://"):
    sources.make("webdataset", path="nosuch://x")
  for kind in ("table", "array_record", "tfds"):
    with pytest.raises(UserError, match=f"{kind} reads local files, not s3://"):
      sources.make(kind, path="s3://bucket/x")


def test_a_file_is_open_until_it_is_read(tmp_path, monkeypatch):
  """Two threads may open one file at once, and only one stays in the cache."""
  (tmp_path / "x").write_bytes(b"abcdef")
  monkeypatch.setattr(files, "_descriptor", files._Descriptor)  # keeps none
  assert files.pread(str(tmp_path / "x"), 2, 3) == b"cde"
