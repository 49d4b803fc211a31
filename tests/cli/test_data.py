"""`vitscale data`: any format is found, shown, converted."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.data import written
from vitscale import cli
from vitscale.core.errors import UserError
from vitscale.data import detect, fashion, image_file, sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _write(kind, root):
  if kind in written.NEEDS:
    pytest.importorskip(written.NEEDS[kind])
  return written.FORMATS[kind](root, written.files(), written.label())


def _photos(root, n=12):
  for i, file in enumerate(written.files(n)):
    path = root / "train" / written.CLASSES[i % 3] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)
  return root


def _json(capfd, *argv):
  code = cli.main(["data", *map(str, argv), "--json"])
  out, err = capfd.readouterr()
  assert code == 0, err
  return json.loads(out)


def _fails(capfd, *argv):
  code = cli.main(["data", *map(str, argv)])
  out, err = capfd.readouterr()
  assert code == 2 and not out and len(err.splitlines()) == 1, (out, err)
  return err


@pytest.mark.parametrize("kind", written.FORMATS)
def test_each_format_is_found_and_shown(tmp_path, capfd, kind):
  path = _write(kind, tmp_path / "data")
  capfd.readouterr()
  shown = _json(capfd, path, "--sheet", tmp_path / "sheet.png")
  name = "numpy" if kind == "npz" else kind
  assert shown["options"] == {"source": name, "path": path}
  assert shown["class_names"] == list(written.CLASSES)
  parts = shown["splits"]
  counts = np.sum([part["counts"] for part in parts.values()], axis=0)
  assert counts.tolist() == [8, 8, 8]
  train = sources.make(name, path=path)
  assert parts["train"]["fingerprint"] == train.fingerprint
  assert parts["train"]["images"] == len(train)
  assert parts["train"]["height"] == {"least": 9, "median": 9, "most": 9}
  pixels = np.stack(train.read(np.arange(len(train)))["image"]) / 255
  np.testing.assert_allclose(
    parts["train"]["measured_mean"], pixels.mean((0, 1, 2)), rtol=1e-9
  )
  np.testing.assert_allclose(
    parts["train"]["measured_std"], pixels.std((0, 1, 2)), rtol=1e-9
  )
  assert shown["mean"] == list(train.mean)
  sheet = image_file.decode(tmp_path / "sheet.png")
  assert sheet.shape[0] > 4 * 96 and sheet.std() > 10


def test_class_folders_in_words(tmp_path, capfd):
  root = _photos(tmp_path / "photos")
  assert cli.main(["data", "show", str(root), "val=0.25"]) == 0
  out = capfd.readouterr().out
  assert f"data.source=folder data.path={root} data.val=0.25" in out
  assert "train       9" in out and "val         3" in out
  assert out.count("\nant") == 1 and "mean 0.485" in out
  flat = tmp_path / "flat"
  flat.mkdir()
  for i, file in enumerate(written.files(4)):
    (flat / f"{i}.png").write_bytes(file)
  shown = _json(capfd, flat)
  assert shown["options"]["flat"] and shown["class_names"] == ["images"]
  assert cli.main(["data", "8", "--source", "stripes"]) == 2  # has no path
  capfd.readouterr()


def test_a_sheet_is_from_all_over(tmp_path, capfd):
  """Its tiles are spread over the files, whose neighbours may be alike."""
  for i in range(200):
    Image.new("L", (8, 8), i).save(tmp_path / f"{i:03}.png")
  _json(
    capfd, tmp_path, "val=0", "channels=1", "--sheet", tmp_path / "a" / "s.png"
  )
  sheet = image_file.decode(tmp_path / "a" / "s.png")
  tiles = sheet[2:, 2:].reshape(8, 98, 8, 98, 3)[:, 48, :, 48, 0].ravel()
  np.testing.assert_array_equal(tiles, np.linspace(0, 199, 64).round())


def test_a_sheet_is_class_by_class(tmp_path, capfd):
  for c, name in enumerate(("dark", "light")):
    for i in range(8):
      path = tmp_path / "photos" / name / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (40, 30), (c * 200 + i, 0, 0)).save(path)
  _json(
    capfd, tmp_path / "photos", "val=0", "--sheet", tmp_path / "a" / "s.png"
  )
  sheet = image_file.decode(tmp_path / "a" / "s.png")
  tiles = sheet[2:, 2:].reshape(4, 98, 4, 98, 3)[:, 48, :, 48, 0]
  assert (np.diff(tiles.ravel().astype(int)) > 0).all()


def test_convert_gives_equal_data(tmp_path, capfd):
  root = _photos(tmp_path / "photos")
  out = tmp_path / "shards"
  done = _json(capfd, "convert", root, "--out", out)
  assert done["whole"] and done["splits"]["train"]["images"] == 9
  again = _json(capfd, out)
  assert again["options"]["source"] == "array_record"
  for split in ("train", "val"):
    a = sources.make("folder", path=root, split=split)
    b = sources.make("array_record", path=out, split=split)
    rows = np.arange(len(a))
    for x, y in zip(a.images(rows), b.images(rows), strict=True):
      np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.label, b.label)
    assert (a.class_names, a.mean) == (b.class_names, b.mean)
  assert "is of other data" in _fails(
    capfd, "convert", root, "--out", out, "val=0.5"
  )
  assert cli.main(["data", "convert", str(root), "--out", str(out)]) == 0
  assert "9 train, 3 val images: use data.source=array_record" in (
    capfd.readouterr().out
  )


def test_get_asks_for_the_set(tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(fashion, "download", lambda out: [f"{out}/x.gz"])
  done = _json(capfd, "get", "fashion_mnist", "--out", tmp_path)
  assert done == {"name": "fashion_mnist", "files": [f"{tmp_path}/x.gz"]}
  assert "did you mean 'fashion_mnist'" in _fails(
    capfd, "get", "fashion", "--out", tmp_path
  )


@pytest.mark.parametrize(
  "argv, says",
  [
    (["gone"], "gone does not exist"),
    (["empty"], "holds nothing that is known"),
    (["a.zip"], "a.zip is of no format that is known"),
    (["photos", "valid=0.5"], "'valid'"),
    (["photos", "more"], "'more' is no key=value"),
    (["photos", "--source", "foldr"], "did you mean 'folder'"),
    (["photos", "--out", "x"], "--out is of `get` and `convert`"),
    (["photos", "--sheet", "x.gif"], "--sheet writes a .png"),
    (["show"], "of what? give a PATH"),
    (["convert", "photos"], "--out DIR is missing"),
    (["convert", "photos", "--out", "empty", "--sheet", "x.png"], "no --sheet"),
    (["both"], "could be folder or webdataset: say --source NAME"),
    (["bad"], "cannot read image bad/a/0.png"),
  ],
)
def test_bad_input(tmp_path, capfd, monkeypatch, argv, says):
  monkeypatch.chdir(tmp_path)
  _photos(tmp_path / "photos")
  for name in ("empty", "both"):
    (tmp_path / name).mkdir()
  (tmp_path / "a.zip").write_text("x")
  _photos(tmp_path / "both")
  written.tar(tmp_path / "both" / "x.tar", {"1.png": b"x", "1.cls": b"a"})
  (tmp_path / "bad" / "a").mkdir(parents=True)
  (tmp_path / "bad" / "a" / "0.png").write_text("x")
  before = sorted(tmp_path.rglob("*"))
  assert says in _fails(capfd, *argv)
  assert sorted(tmp_path.rglob("*")) == before


def test_tables_are_found(tmp_path):
  pytest.importorskip("pyarrow")
  import pyarrow as pa
  import pyarrow.parquet as pq

  root = tmp_path / "a"
  path = written.as_table(root, written.files(), written.label())
  assert detect.source_of(f"{path}/labels.csv") == "table"
  (root / "labels.csv").unlink()
  pq.write_table(pa.table({"path": ["a.png"]}), root / "labels.parquet")
  assert detect.source_of(path) == "table"
  assert detect.source_of(f"{path}/labels.parquet") == "table"
  shard = written.as_parquet(tmp_path / "b", written.files(), written.label())
  assert detect.source_of(f"{shard}/part-00000-of-00002.parquet") == "parquet"
  with pytest.raises(UserError, match="memory://gone does not exist"):
    detect.source_of("memory://gone")
