"""ArrayRecord shards: written whole, gone on with, refused."""

import numpy as np
import pytest

from tests.data import written
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.data import array_record, sources


def _data(source, rows):
  return [file.data for file in source.files(rows)]


def _source(root, **options):
  path = written.as_table(root, written.files(), written.label())
  make = lambda split: sources.make("table", path=path, split=split, **options)
  return {"train": make("train"), "val": make("val")}


def _write(parts, out, **options):
  options = {"channels": 3, "per_shard": 5} | options
  return array_record.write(parts, out, **options)


def test_round_trip(tmp_path):
  parts = _source(tmp_path / "a")
  seen = []
  _write(parts, tmp_path / "out", report=lambda *x: seen.append(x))
  assert seen[-2:] == [("train", 21, 21), ("val", 3, 3)]
  for split, part in parts.items():
    back = sources.make("array_record", path=tmp_path / "out", split=split)
    np.testing.assert_array_equal(back.label, part.label)
    assert back.class_names == part.class_names and back.mean == part.mean
    rows = np.arange(len(part))[::-1]
    assert _data(back, rows) == _data(part, rows)
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
    [f"train-{k:05}.array_record" for k in range(5)]
    + [
      "card.json",
      "train.label.npy",
      "val.label.npy",
      "val-00000.array_record",
    ]
  )
  with pytest.raises(UserError, match="no split 'test'"):
    sources.make("array_record", path=tmp_path / "out", split="test")


def test_images_that_were_no_files(tmp_path):
  source = sources.make("fashion_mnist", limit=12, size=14)
  _write({"train": source}, tmp_path / "out", channels=1)
  back = sources.make("array_record", path=tmp_path / "out")
  rows = np.arange(12)
  np.testing.assert_array_equal(
    np.stack(back.images(rows)), source.images(rows)
  )
  assert back.mean == source.mean and len(back.class_names) == 10


def test_only_the_pixels_that_a_source_shows_are_written(tmp_path):
  source = sources.make(
    "fashion_mnist", limit=12, size=14, upsample=2, permute_seed=1
  )
  assert source.files is None
  table = _source(tmp_path / "a")["train"]
  part = sources.make("table", path=str(tmp_path / "a"), limit=6)
  rows = [
    _data(table, np.arange(21)).index(x) for x in _data(part, np.arange(6))
  ]
  np.testing.assert_array_equal(part.label, table.label[rows])


def test_stopped_it_goes_on(tmp_path):
  parts, out = _source(tmp_path / "a"), tmp_path / "out"

  def stop(split, done, total):
    if done == 10:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _write(parts, out, report=stop)
  with pytest.raises(
    UserError, match="isn't whole: run `vitscale data convert"
  ):
    sources.make("array_record", path=out)
  first = out / "train-00000.array_record"
  stamp = first.stat().st_mtime_ns
  (out / ".train-00002.array_record.part").write_bytes(b"half of it")
  with pytest.raises(UserError, match="is of other data: give a new folder"):
    _write(parts, out, per_shard=4)
  _write(parts, out)
  assert first.stat().st_mtime_ns == stamp
  assert not list(out.glob(".*"))
  back = sources.make("array_record", path=out)
  assert _data(back, np.arange(21)) == _data(parts["train"], np.arange(21))
  assert _write(parts, out)["whole"]  # nothing is left to do


def test_refused(tmp_path):
  parts = _source(tmp_path / "a")
  (tmp_path / "other").mkdir()
  (tmp_path / "other/x.txt").write_text("")
  with pytest.raises(UserError, match="has other files"):
    _write(parts, tmp_path / "other")
  with pytest.raises(UserError, match="has other files"):
    _write(parts, tmp_path / "other/x.txt")
  with pytest.raises(UserError, match=r"no card.json of .*convert"):
    sources.make("array_record", path=tmp_path / "other")
  data = written.files()
  data[3] = b"x"
  bad = written.as_table(tmp_path / "b", data, written.label())
  source = sources.make("table", path=bad, val=0.0)
  with pytest.raises(UserError, match=r"cannot read image .*03.png"):
    _write({"train": source}, tmp_path / "bad")
  assert [p.name for p in (tmp_path / "bad").glob("[!.]*")] == ["card.json"]


def test_damaged(tmp_path):
  out = tmp_path / "out"
  _write(_source(tmp_path / "a"), out)
  card = read_json(out / "card.json")
  write_json(out / "card.json", card | {"format": "another"})
  with pytest.raises(UserError, match=r"no card.json of 'vitscale array_rec"):
    sources.make("array_record", path=out)
  write_json(out / "card.json", card)
  np.save(out / "train.label.npy", np.zeros(3, np.int32))
  with pytest.raises(UserError, match=r"is \(3,\), card.json says \(21,\)"):
    sources.make("array_record", path=out)
  np.save(out / "train.label.npy", np.zeros(21, np.int32))
  shard = out / "train-00001.array_record"
  shard.write_bytes(b"x" * 300)
  source = sources.make("array_record", path=out)
  with pytest.raises(UserError, match=r"cannot read image .*00001.*:2: ") as e:
    source.read(np.array([7]))
  assert "\n" not in str(e.value)
  shard.unlink()
  with pytest.raises(UserError, match=r"00001.array_record is missing"):
    sources.make("array_record", path=out)


@pytest.mark.parametrize(
  "record", [b"", b"\x05", b"\xff\0\0\0{}", b"\1\0\0\0{"]
)
def test_what_is_no_record(record):
  with pytest.raises(ValueError):
    array_record.unpack(record)
  meta, image = {"label": 3, "class": "Käse"}, b"\0\1"
  assert array_record.unpack(array_record.pack(meta, image)) == (meta, image)
