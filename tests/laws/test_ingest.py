"""From files of every kind to float64 columns; every complaint in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.laws.log_files import complaint, notes, write
from vitscale.core.errors import UserError
from vitscale.laws.ingest import derive, map_columns, read_files

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "laws"


def test_import_needs_numpy_only():
  code = (
    "import sys, vitscale.laws.ingest, vitscale.laws.curation\n"
    "print([m for m in ('flax', 'pyarrow', 'tensorboard', 'pandas')"
    " if m in sys.modules])"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "[]"


# --------------------------------------------------------------------- text


def test_csv(tmp_path):
  path = tmp_path / "a.csv"
  path.write_bytes(
    b'\xef\xbb\xbfrun,"N, all",loss,,id\r\n"6 Enc, 6 Dec",4000000000,2.5,0,'
    b"8e532100\r\n\r\nb,3000000000,nan,1,7\r\n"
  )
  table = read_files(path)
  assert list(table) == ["run", "N, all", "loss", "column 4", "id"]
  assert table["run"].tolist() == ["6 Enc, 6 Dec", "b"]
  assert table["N, all"].dtype == np.float64
  assert np.isnan(table["loss"][1])
  assert table["id"].tolist() == ["8e532100", "7"]  # an id is no infinity
  assert table.provenance.row.tolist() == [1, 2]
  assert set(table.provenance.source) == {str(path)}
  assert len(table.provenance.sha256[str(path)]) == 64
  assert "column 4 has no name" in notes(table)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.txt"])
def test_delimiters(tmp_path, name):
  sep = "\t" if name == "a.tsv" else ";"
  path = write(tmp_path / name, f"N{sep}loss\n1{sep}2.5\n3{sep}2\n")
  assert read_files(path)["loss"].tolist() == [2.5, 2.0]


def test_integers_cannot_overflow(tmp_path):
  rows = [{"N": 7_000_000_000, "D": 900_000_000_000, "loss": 2, "big": 10**400}]
  path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
  table = read_files(path)
  assert table["big"].dtype.kind == "U"
  assert derive(table, ["C"])["C"][0] == pytest.approx(3.78e22, rel=1e-12)


def test_json_kinds(tmp_path):
  rows = [{"N": 1, "eval": {"loss": 2.5}, "ok": True}, {"N": 2, "run": "b"}]
  want = {"N": [1, 2], "ok": [1, np.nan], "eval/loss": [2.5, np.nan]}
  lines = "".join(json.dumps(row) + "\n\n" for row in rows)
  for name, text in (
    ("a.jsonl", lines),
    ("b.json", json.dumps(rows, indent=2)),
    ("c.json", lines),
    ("d.jsonl", json.dumps(rows)),
  ):
    table = read_files(write(tmp_path / name, text))
    for key, values in want.items():
      np.testing.assert_array_equal(table[key], values)
    assert table["run"].tolist() == ["", "b"]
  for name, data in (
    ("columns", {"N": [1, 2], "loss": [3, None]}),
    ("pandas", {"N": {"0": 1, "1": 2}, "loss": {"0": 3, "1": None}}),
    ("named", {"a": {"N": 1, "loss": 3}, "b": {"N": 2}}),
  ):
    table = read_files(write(tmp_path / f"{name}.json", json.dumps(data)))
    np.testing.assert_array_equal(table["loss"], [3, np.nan])
  assert table["run"].tolist() == ["a", "b"]


def test_nearly_numbers_are_noted(tmp_path):
  cells = "\n".join(["1", "2", "3", "4", "5.O", "6"])
  table = read_files(
    write(tmp_path / "a.csv", "loss,x\n" + cells.replace("\n", ",0\n") + ",0\n")
  )
  assert "column 'loss' is taken as text: row 5 is '5.O'" in notes(table)
  with pytest.raises(UserError, match=r"row 5 of .*a.csv \('5.O'\)"):
    map_columns(table, {"y": "2 * loss"})


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("a.csv", "", "is empty"),
    ("a.csv", "N,loss\n", "a header and no rows"),
    ("a.csv", "N,loss\n1,2\n\n3\n", "line 4 has 1 cells, the header has 2"),
    ("a.csv", "N,loss\n6 Enc, 6 Dec,2\n", "line 2 has 3 cells"),
    ("a.csv", 'N,loss\n1,"2\n', "line 2: unexpected end of data"),
    ("a.csv", "1,2\n3,4\n", "line 1 holds numbers"),
    ("a.csv", "N,loss,N\n1,2,3\n", r"two columns 'N' \(1 and 3\): rename"),
    ("a.jsonl", '{"N": 1}\n{"N": 2\n', "line 2 is not JSON"),
    ("a.jsonl", '{"N": 1}\n3\n', "line 2 is a int, must be an object"),
    ("a.json", '{"N": [1,\n2], "loss": }', "line 2 is not JSON"),
    ("a.json", '{"N": [1, 2], "loss": [1]}', "different lengths"),
    ("a.json", "[1, 2]", "item 1 is a int, must be a list of rows"),
    ("a.json", "[]", "it has no rows"),
    ("a.txt", "hello", "of no known kind, must be a workdir"),
    ("a.npz", "hello", "no whole .npz"),
  ],
)
def test_bad_text(tmp_path, name, text, message):
  path = write(tmp_path / name, text)
  told = complaint(path)
  assert str(path) in told and re.search(message, told), told


def test_bad_files(tmp_path):
  write(tmp_path / "points.csv", "N\n1\n")
  assert "points.csv'?" in complaint(tmp_path / "point.csv")
  assert "no file given" in complaint([])
  assert "neither runs" in complaint(tmp_path)
  for name, data, message in (
    ("a.png", b"\x89PNG\r\n\xff\xfe", "no known kind"),
    ("a.bin", b"a,b\0", "no known kind"),
    ("a.csv", "é".encode("latin-1"), "not UTF-8"),
    ("a.csv.gz", b"\x1f\x8b\x08", "unpack it"),
  ):
    (tmp_path / name).write_bytes(data)
    assert message in complaint(tmp_path / name)


def test_several_files(tmp_path):
  a = write(tmp_path / "a.csv", "N,loss,run\n1,2,x\n2,1,y\n")
  b = write(tmp_path / "b.jsonl", '{"N": 3, "loss": "bad"}\n')
  table = read_files([a, b, a])
  assert table["N"].tolist() == [1, 2, 3]
  assert table["loss"].tolist() == ["2.0", "1.0", "bad"]
  assert table["run"].tolist() == ["x", "y", ""]
  assert table.provenance.row.tolist() == [1, 2, 1]
  assert len(table.provenance.sha256) == 2
  for note in ("given twice", "'run' is blank where", "'loss' is text"):
    assert note in notes(table)
  c = write(tmp_path / "c.csv", a.read_text())
  assert "are the same bytes" in notes(read_files([a, c]))


# ------------------------------------------------------------------- binary


def test_npz(tmp_path):
  path = tmp_path / "a.npz"
  np.savez(path, one=[[1, 2, 3], [3, 2, 1]], two=[[2, 1], [1, 1]])
  table = read_files(path)
  assert table["curve"].tolist() == ["one"] * 3 + ["two"] * 2
  assert table["y"].tolist() == [3, 2, 1, 1, 1]
  assert "1 of 2 curves, 'two' first" in notes(table)
  np.savez(path, N=np.array([1, 2]), loss=np.array([2.0, 1.0]))
  assert read_files(path)["N"].tolist() == [1, 2]
  np.savez(path, good=np.ones((2, 3)), odd=np.ones((3, 2)))
  assert "array 'odd' is float64 (3, 2)" in complaint(path)
  path.write_bytes(path.read_bytes()[:-20])
  assert "no whole .npz" in complaint(path)


def test_parquet(tmp_path):
  pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
  import pyarrow.parquet

  path = tmp_path / "a.parquet"
  data = pa.table({"N": [7 * 10**9, None], "run": ["a", "b"]})
  pyarrow.parquet.write_table(data, path)
  table = read_files(path)
  np.testing.assert_array_equal(table["N"], [7e9, np.nan])
  assert table["run"].tolist() == ["a", "b"]
  path.write_bytes(path.read_bytes()[:-9])
  assert "no whole parquet file" in complaint(path)


@pytest.mark.parametrize("module", ["pyarrow", "tensorboard"])
def test_missing_extra(tmp_path, monkeypatch, module):
  name = {"pyarrow": "a.parquet", "tensorboard": "events.out.tfevents.1"}[
    module
  ]
  extra = {"pyarrow": "parquet"}.get(module, module)
  write(tmp_path / name, "PAR1")
  for loaded in [m for m in sys.modules if m.split(".")[0] == module]:
    monkeypatch.delitem(sys.modules, loaded)
  monkeypatch.setitem(sys.modules, module, None)
  told = complaint(tmp_path / name)
  assert f"pip install 'vitscale[{extra}]'" in told


# ------------------------------------------------------------------ columns

TABLE = {
  "Model Size": np.array([1e8, 2e9]),
  "Training FLOP": np.array([6e18, 1.2e20]),
  "train/loss": np.array([3, 2]),
  "name": np.array(["a", "b"]),
}


def test_map_columns_and_derive():
  table = map_columns(
    TABLE,
    {
      "N": "Model Size",
      "loss": "train/loss",
      "D": "`Training FLOP` / (6 * N)",
      "half": "-(`train/loss` - 4) ** 2 / 2",
      "run": "name",
    },
  )
  np.testing.assert_allclose(table["D"], [1e10, 1e10])
  np.testing.assert_allclose(table["half"], [-0.5, -2])
  assert table["run"].tolist() == ["a", "b"]
  assert "N = Model Size" in table.notes

  mapped = map_columns(TABLE, {"N": "Model Size", "C": "Training FLOP"})
  table = derive(mapped, ["N", "D", "M"])
  np.testing.assert_allclose(table["M"], [100, 5])
  assert "D was not given: D = C / (6 * N) is used" in table.notes
  assert "D" not in mapped
  data = {"N": np.array([7 * 10**9]), "D": np.array([9 * 10**11])}
  assert derive(data, ["C"])["C"][0] == pytest.approx(3.78e22, rel=1e-12)
  other = derive({**data, "C": np.array([5e22])}, ["N", "D"])
  assert "C is 1.32 times 6 N D" in notes(other)


@pytest.mark.parametrize(
  "text, message",
  [
    ("Modle Size", "did you mean 'Model Size'"),
    ("train/los", "did you mean 'train/loss'"),
    ("nmae", "did you mean 'name'"),
    ("Model Size * 2", "in `backticks`"),
    ("log(name)", "nor an expression"),
    ("2 * name", r"'name' is text: rows 1-2 of the data \('a' first\)"),
    ("name[0]", "nor an expression"),
    ("__import__('os')", "nor an expression"),
    ("2 * True", "nor an expression"),
    ("((" * 400, "nor an expression"),
  ],
)
def test_map_columns_complains(text, message):
  with pytest.raises(UserError, match=message) as error:
    map_columns(TABLE, {"N": text})
  assert str(error.value).startswith("N")


def test_derive_complains():
  with pytest.raises(UserError, match=r"map it, or map C, then D = C"):
    derive({"N": np.ones(2)}, ["D"])
  with pytest.raises(UserError, match="no column 'U'"):
    derive({"N": np.ones(2)}, ["U"])
  with pytest.raises(UserError, match="one length"):
    derive({"N": np.ones(2), "C": np.ones(3)}, ["D"])


# -------------------------------------------------------------- public data


def test_public_points():
  if not SHARED.is_dir():
    pytest.skip("../shared/data/laws is not beside this repository")
  gadre = read_files(SHARED / "gadre_models.csv")
  flops = map_columns(gadre, {"C": "6 * params * tokens"})["C"]
  assert np.isfinite(flops).all() and (flops > 0).all()
  assert flops.max() > 2.0**63 / 4  # beyond where integers wrapped
  curves = read_files(SHARED / "nslpfn_colpret.npz")
  assert len(set(curves["curve"])) == 192
  assert "in 16 of 192 curves" in notes(curves)
  lang = read_files(SHARED / "benchmark.lang.csv")
  assert lang.n == 1399 and "6 Enc, 6 Dec" in lang["Model"]
