"""Tables of labels, whole and with holes."""

import numpy as np
import pytest

from tests.data import written
from vitscale.core.errors import UserError
from vitscale.data import table


def _fill(root, text, n=4, name="labels.csv"):
  root.mkdir(exist_ok=True)
  for i, file in enumerate(written.files(n)):
    (root / f"{i}.png").write_bytes(file)
  (root / name).write_text(text)
  return str(root)


def _first(source):
  images = source.read(np.arange(len(source)))["image"]
  return [int(x[0, 0, 0]) for x in images]


def test_splits_of_a_column(tmp_path):
  path = _fill(
    tmp_path,
    "label,path,split\n7,3.png,train\n0,./1.png,validation\n3,0.png,train\n"
    "7,2.png,train\n",
  )
  train, val = (table.table(path, s) for s in ("train", "val"))
  assert _first(train) == [3, 0, 2] and _first(val) == [1]
  assert list(train.label) == [7, 3, 7] and train.classes == 8
  assert list(val.label) == [0]
  one = table.table(f"{path}/labels.csv")
  assert one.fingerprint == train.fingerprint
  with pytest.raises(UserError, match="no test split"):
    table.table(path, "test")


def test_a_table_for_each_split(tmp_path):
  path = _fill(tmp_path, "path,label\n0.png,b\n1.png,a\n", name="train.csv")
  (tmp_path / "val.csv").write_text("path,label\n3.png,a\n2.png,b\n")
  train, val = (table.table(path, s) for s in ("train", "val"))
  assert train.class_names == ("a", "b")
  assert list(train.label) == [1, 0] and list(val.label) == [0, 1]
  (tmp_path / "val.csv").write_text("path,label\n3.png,a\n2.png,c\n")
  with pytest.raises(UserError, match="val has classes that train lacks: c"):
    table.table(path, "val")
  (tmp_path / "more.csv").write_text("path,label\n3.png,a\n")
  with pytest.raises(UserError, match="holds 3 tables"):
    table.table(path)


def test_parquet_table(tmp_path):
  pa = pytest.importorskip("pyarrow")
  pq = pytest.importorskip("pyarrow.parquet")
  path = _fill(tmp_path, "", name="x.txt")
  names = [f"{i}.png" for i in range(4)]
  kinds = pa.table({"file": names, "kind": [1, 0, 1, 0]})
  pq.write_table(kinds, tmp_path / "labels.parquet")
  source = table.table(path, val=0.0, image="file", label="kind")
  assert _first(source) == [0, 1, 2, 3] and list(source.label) == [1, 0, 1, 0]


ROWS = "path,label\n0.png,a\n1.png,b\n2.png,a\n"


@pytest.mark.parametrize(
  "text, says",
  [
    (ROWS, r"1 images have no row in labels.csv: 3.png"),
    (ROWS + "3.png,a\n4.png,a\n5.png,b\n",
     "2 rows of labels.csv have no image: 4.png, 5.png"),
    (ROWS + "3.png,a\n2.png,b\n", "name a file that another row has: 2.png"),
    (ROWS + "3.png,\n", "row 4 has no label: '3.png'"),
    (ROWS + "3.png\n", "row 4 has not the 2 columns"),
    (ROWS + "3.png,a,b\n", "row 4 has not the 2 columns"),
    ("file,label\n0.png,a\n", "no column 'path'.*data.image=COLUMN"),
    ("path,class\n0.png,a\n", "no column 'label'.*data.label=COLUMN"),
    ("path,label,split\n0.png,a,trian\n", "'trian', did you mean 'train'"),
    ("path,label,split\n0.png,a,train\n1.png,b,\n", "others none"),
    ("path,label\n", "has no rows"),
    ("path,label\n0.png,1\n1.png,-1\n2.png,0\n3.png,0\n", "label -1 of 1"),
  ],
)  # fmt: skip
def test_bad_tables(tmp_path, text, says):
  path = _fill(tmp_path / "data", text)
  with pytest.raises(UserError, match=says) as e:
    table.table(path)
  assert "\n" not in str(e.value) and path in str(e.value)


def test_no_table(tmp_path):
  with pytest.raises(UserError, match="does not exist"):
    table.table(str(tmp_path / "gone"))
  with pytest.raises(UserError, match=r"holds no .csv or .parquet itself"):
    table.table(str(tmp_path))
  (tmp_path / "a.xlsx").write_text("")
  with pytest.raises(UserError, match=r"reads .csv or .parquet, .*a.xlsx"):
    table.table(str(tmp_path / "a.xlsx"))
  with pytest.raises(UserError, match="val and test are shares"):
    table.table(_fill(tmp_path / "d", ROWS + "3.png,b\n"), val=1.5)
