import json
import math

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.core.log import (
  Rows,
  jsonable,
  read_json,
  read_rows,
  write_json,
)


def test_jsonable_is_strict_json():
  value = {
    "nan": math.nan, "inf": np.float32(np.inf), "x": np.float32(0.5),
    "n": np.int64(3), "list": (np.arange(2), [True, None]), 1: "key",
  }  # fmt: skip
  text = json.dumps(jsonable(value), allow_nan=False)
  assert json.loads(text) == {
    "nan": None, "inf": None, "x": 0.5, "n": 3,
    "list": [[0, 1], [True, None]], "1": "key",
  }  # fmt: skip


def test_rows_are_cut_to_the_restored_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = Rows(path, upto=0)
  for step in (1, 2, 3):
    rows.append({"step": step, "x": step / 3})
  with open(path, "a") as file:
    file.write('{"step": 4, "x"')  # killed while writing
  assert [r["step"] for r in read_rows(path)] == [1, 2, 3]
  again = Rows(path, upto=2)
  assert again.last == {"step": 2, "x": 2 / 3}
  again.append({"step": 3, "x": 1.0})
  assert [r["step"] for r in read_rows(path)] == [1, 2, 3]


def test_disk_full_is_a_user_error(tmp_path):
  (tmp_path / "full.jsonl").symlink_to("/dev/full")
  rows = Rows(tmp_path / "full.jsonl", upto=0)
  with pytest.raises(UserError, match="disk full"):
    rows.append({"step": 1})


def test_write_json_leaves_the_old_file_when_it_fails(tmp_path):
  path = tmp_path / "run.json"
  write_json(path, {"a": 1})
  with pytest.raises(UserError, match="can't write"):
    write_json(tmp_path / "missing" / "run.json", {"a": 2})
  assert read_json(path) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_broken_json_names_the_file(tmp_path):
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(UserError, match=r"run\.json is not JSON"):
    read_json(tmp_path / "run.json")
  assert read_json(tmp_path / "none.json") is None
