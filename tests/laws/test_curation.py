"""Cleaning drops what it says, and says what it drops."""

from pathlib import Path

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws import curation
from vitscale.laws.ingest import read_files

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "laws"


def curves():
  """Two runs of 10 and 5 rows, unsorted."""
  step = np.array([*range(10), *range(5)], float)
  run = np.array(["a"] * 10 + ["b"] * 5)
  loss = np.exp(-step / 10) + (run == "b")
  order = np.random.default_rng(0).permutation(15)
  data = {"run": run, "step": step, "loss": loss, "N": np.ones(15)}
  return {k: v[order] for k, v in data.items()}


def test_drop_warmup():
  table, said = curation.drop_warmup(curves(), fraction=0.5)
  assert sorted(table["step"][table["run"] == "a"]) == [5, 6, 7, 8, 9]
  assert sorted(table["step"][table["run"] == "b"]) == [2, 3, 4]
  assert said[0].startswith("warm-up: 7 of 15 rows with step below 0.5 of")
  assert table.notes == said

  table, said = curation.drop_warmup(curves(), steps=7)
  assert sorted(table["step"]) == [7, 8, 9]
  assert said[0] == "run b is dropped: it ends before step 7"
  assert table.provenance.row.tolist() == sorted(table.provenance.row)

  alone = {"step": np.arange(4.0), "loss": np.ones(4)}
  table, said = curation.drop_warmup(alone, steps=1)
  assert said[0] == "no column 'run': all rows are taken as one run"
  assert said[1].endswith("dropped: row 1 of the data")
  same, said = curation.drop_warmup(alone, steps=0, run=None)
  assert (same.n, said) == (4, [])


@pytest.mark.parametrize("kind", ["mean", "ema"])
def test_smooth(kind):
  data = curves()
  data["loss"] = data["loss"].copy()
  hole = int(np.flatnonzero((data["run"] == "a") & (data["step"] == 4))[0])
  data["loss"][hole] = np.nan
  table, said = curation.smooth(data, 3, kind=kind)
  assert table.n == 15 and "in each of 2 runs; no row dropped" in said[0]
  assert np.isnan(table["loss"][hole])
  mine = (data["run"] == "a") & ~np.isnan(data["loss"])
  order = np.argsort(data["step"][mine])
  raw = np.log(data["loss"][mine][order])
  got = np.log(table["loss"][mine][order])
  for i in range(len(raw)):
    if kind == "mean":
      want = raw[max(0, i - 2) : i + 1].mean()
    else:
      weight = 0.5 ** np.arange(i, -1, -1)
      want = (weight * raw[: i + 1]).sum() / weight.sum()
    assert got[i] == pytest.approx(want, abs=1e-12)
  # No row sees a later one, so a hold-out stays held out.
  data["loss"][data["step"] > 6] *= 2
  again, _ = curation.smooth(data, 3, kind=kind)
  early = data["step"] <= 6
  np.testing.assert_array_equal(again["loss"][early], table["loss"][early])


def test_final_points():
  table, said = curation.final_points(curves())
  assert dict(zip(table["run"], table["step"])) == {"a": 9, "b": 4}
  assert "13 of 15 rows dropped" in said[0]

  data = curves()
  data["loss"] = np.where(data["step"] == 9, np.nan, data["loss"])
  table, said = curation.final_points(data, 6)
  a, b = (int(np.flatnonzero(table["run"] == r)[0]) for r in "ab")
  assert table["step"][a] == 8  # the last that has a loss
  want = np.exp(-np.arange(3, 9) / 10).mean()
  assert table["loss"][a] == pytest.approx(want, rel=1e-12)
  assert table["step"][b] == 4
  assert said[-1] == "runs with fewer than 6 rows: b (5)"

  data["loss"] = np.where(data["run"] == "b", np.nan, data["loss"])
  table, said = curation.final_points(data)
  assert table["run"].tolist() == ["a"]
  assert said[0] == "run b is dropped: no row has a finite loss"


def test_dedup():
  data = {
    "x": np.array([1.0, 1, 2, np.nan, np.nan]),
    "g": np.array(["a", "a", "a", "a", "a"]),
    "y": np.array([3.0, 4, 5, 6, 6]),
  }
  table, said = curation.dedup(data, ["x", "g"])
  assert table["y"].tolist() == [3, 5, 6]
  assert said == [
    "2 of 5 rows dropped, equal in x, g to an earlier one: rows 2, 5 of the"
    " data",
    "1 of the dropped rows differ in 'y' from the one kept: row 2 of the data",
  ]
  assert curation.dedup(table, "x")[1] == []


def test_drop_highest():
  data = {"loss": np.array([5.0, 1, 4, 4, 3])}
  table, said = curation.drop_highest(data, 1)
  assert table["loss"].tolist() == [1, 4, 4, 3]
  table, said = curation.drop_highest(data, 2)
  assert table["loss"].tolist() == [1, 3]
  assert said == [
    "the 2 highest (1 more by ties): 3 of 5 rows with loss at or above 4"
    " dropped: rows 1, 3-4 of the data"
  ]
  assert curation.drop_highest(data, 0)[0].n == 5


def test_outliers_flags_and_keeps():
  rng = np.random.default_rng(0)
  x = np.geomspace(1, 1e6, 200)
  y = (0.5 + 3 * x**-0.3) * np.exp(0.01 * rng.standard_normal(200))
  y[[50, 120]] *= [1.3, 0.8]
  y[7] = -1
  shuffled = rng.permutation(200)
  table, said = curation.outliers(
    {"x": x[shuffled], "y": y[shuffled]}, "x", "y"
  )
  flagged = np.flatnonzero(table["outlier"] != "")
  assert table.n == 200
  assert set(shuffled[flagged]) == {7, 50, 120}
  text = "; ".join(said)
  assert "y is not positive" in text
  assert "above the trend in x" in text and "below the trend in x" in text


def test_outliers_of_smooth_and_short_curves():
  x = np.geomspace(1, 1e6, 60)
  data = {
    "x": np.concatenate([x, x, [1.0, 2]]),
    "y": np.concatenate([0.5 + 3 * x**-0.3, 9 + x**-0.5, [1.0, 2]]),
    "run": np.array(["a"] * 60 + ["b"] * 60 + ["c"] * 2),
  }
  table, said = curation.outliers(data, "x", "y", run="run")
  assert said == ["c: 2 usable rows are too few to judge"]
  same = {"x": np.ones(8), "y": np.array([1.0] * 7 + [2])}
  table, said = curation.outliers(same, "x", "y")
  assert np.flatnonzero(table["outlier"] != "").tolist() == [7]


def test_false_alarms_are_rare():
  rng = np.random.default_rng(1)
  x = np.geomspace(1, 1e4, 2000)
  y = x**-0.2 * np.exp(0.02 * rng.standard_normal(2000))
  assert len(curation.outliers({"x": x, "y": y}, "x", "y")[1]) <= 2


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda t: curation.drop_warmup(t), "either fraction or steps"),
    (lambda t: curation.drop_warmup(t, fraction=1.5), "fraction is 1.5"),
    (lambda t: curation.drop_warmup(t, steps=99), "nothing would stay"),
    (lambda t: curation.drop_warmup(t, steps=1, step="stpe"), "mean 'step'"),
    (lambda t: curation.drop_warmup(t, steps=1, run="rnu"), "mean 'run'"),
    (lambda t: curation.smooth(t, 0), "window is 0"),
    (lambda t: curation.smooth(t, 3, kind="men"), "mean 'mean'"),
    (lambda t: curation.smooth(t, 3, y="zero"), "is 0 in row 1 of the data"),
    (lambda t: curation.smooth(t, 3, y="run"), "'run' is text"),
    (lambda t: curation.final_points(t, 0), "last is 0"),
    (lambda t: curation.final_points(t, y="lsos"), "mean 'loss'"),
    (lambda t: curation.dedup(t, []), "needs the columns"),
    (lambda t: curation.dedup(t, ["rnu"]), "mean 'run'"),
    (lambda t: curation.drop_highest(t, 15), "from 0 to 14"),
    (lambda t: curation.drop_highest(t, 2, y="N"), "all 15 rows have N 1"),
    (lambda t: curation.drop_highest(t, 1, y="hole"), "is nan in row 2 of"),
    (lambda t: curation.outliers(t, "setp"), "mean 'step'"),
  ],
)
def test_complaints(call, message):
  data = curves()
  data["zero"] = np.array([0.0] + [1.0] * 14)
  data["hole"] = np.array([1.0, np.nan] + [1.0] * 13)
  with pytest.raises(UserError, match=message) as error:
    call(data)
  assert "\n" not in str(error.value)


def test_rows_keep_their_origin(tmp_path):
  for name in "ab":
    (tmp_path / f"{name}.csv").write_text("loss\n1\n2\n3\n4\n")
  table = read_files([tmp_path / "a.csv", tmp_path / "b.csv"])
  table, _ = curation.drop_highest(table, 2)
  table, said = curation.drop_highest(table, 2)
  assert said[0].endswith(
    f"row 3 of {tmp_path}/a.csv; row 3 of {tmp_path}/b.csv"
  )
  assert len(table.notes) == 3  # equal bytes, and two cleanings


def test_public_points():
  if not SHARED.is_dir():
    pytest.skip("../shared/data/laws is not beside this repository")
  table = read_files(SHARED / "epoch_chinchilla_svg_extracted_data.csv")
  kept, said = curation.drop_highest(table, 5)
  assert (table.n, kept.n) == (245, 240)
  assert "at or above 3.44699543" in said[0]
