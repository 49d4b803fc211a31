"""Points from files: order of cleaning, what is said, what is refused."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.laws.prepare import Curation, curated, prepare
from vitscale.laws.table import Table, derive


@pytest.fixture
def curves(tmp_path):
  """Four runs of ten steps; one blank loss, one row twice."""
  rows = []
  for i, n in enumerate((1e6, 1e7, 1e8, 1e9)):
    for step in range(100, 1100, 100):
      loss = "" if (i, step) == (1, 300) else 2 + 50 * n**-0.3 + 30 / step
      rows.append(f"r{i},{step},{n:.0f},{loss}")
  path = tmp_path / "curves.csv"
  lines = ["run,step,N,loss", *rows, rows[-1]]
  path.write_text("\n".join(lines) + "\n")
  return path


def clean(path, **options):
  mapping = {"loss": "loss"}
  return prepare([path], "power_constant", {**mapping, "x": "N"}, {},
                 Curation(**options))  # fmt: skip


def test_the_steps_run_in_the_documented_order(curves):
  found = clean(
    curves, final=True, dedup=True, smooth=2, drop_warmup="20%",
    drop_highest=1, outliers="report",
  )  # fmt: skip
  starts = [
    "1 of 41 rows without a loss", "1 of 40 rows dropped, equal in run, step",
    "warm-up: 4 of 39 rows", "loss smoothed", "final points", "the 1 highest",
    "all: 3 usable rows are too few to judge",
  ]  # fmt: skip
  assert len(found.dropped) == len(starts)
  for said, start in zip(found.dropped, starts):
    assert said.startswith(start), said
    assert said in found.table.notes
  assert found.rows_read == 41 and found.table.n == 3
  last = np.array([1e7, 1e8, 1e9])
  want = 2 + 50 * last**-0.3
  ends = np.sqrt((want + 30 / 900) * (want + 30 / 1000))  # two rows, in logs
  np.testing.assert_allclose(found.table["loss"], ends, rtol=1e-12)
  assert found.origin == {"x": "N", "loss": "loss"}


def test_a_step_that_drops_nothing_says_so(curves):
  found = clean(curves, drop_warmup="50", final=True)
  assert "warm-up: no row dropped" in found.dropped
  assert "warm-up: no row dropped" in found.table.notes


def test_outliers_are_reported_or_dropped_with_reasons():
  x = np.geomspace(1, 1e4, 30)
  noise = np.random.default_rng(0).standard_normal(30)
  loss = 3 * x**-0.1 * np.exp(0.002 * noise)
  loss[12] *= 1.2
  table = Table({"x": x, "loss": loss})
  kept, said = curated(table, ["x"], Curation(outliers="report"))
  assert kept.n == 30 and "flagged, not dropped: row 13" in said[0]
  kept, said = curated(table, ["x"], Curation(outliers="drop"))
  assert kept.n == 29 and len(said) == 1
  assert said[0].startswith("outlier dropped: row 13 of the data: loss is")
  assert not any("not dropped" in note for note in kept.notes)
  _, said = curated(kept, ["x"], Curation(outliers="drop"))
  assert said == ["outliers: no row dropped"]


@pytest.mark.parametrize(
  ("columns", "options", "says"),
  [
    (("run",), {"final": True}, "--final needs the column that orders a run"),
    (("step",), {"smooth": 3}, "--smooth needs the column that names a run"),
    (("run", "step"), {"final": True, "run": "rum"}, "did you mean 'run'"),
    (("run", "step"), {"final": True, "x": "stp"}, "did you mean 'step'"),
    (("run", "step"), {"drop_warmup": "ten"}, "neither steps nor a share"),
    (("run", "step"), {"drop_warmup": "100%"}, "neither steps nor a share"),
    (("run", "step"), {"drop_warmup": "0.1"}, "write 10%"),
    (("run", "step"), {"smooth": -1}, "window is -1"),
    ((), {"outliers": "drp"}, "did you mean 'drop'"),
    ((), {"outliers": "drop"}, "--x COLUMN: the law has N, D"),
  ],
)
def test_a_step_without_its_columns_is_refused(columns, options, says):
  n = np.array([1.0, 2.0, 3.0, 4.0])
  table = {"N": n, "D": n, "loss": n}
  table |= {"run": np.array(list("aabb"))} if "run" in columns else {}
  table |= {"step": np.array([1.0, 2, 1, 2])} if "step" in columns else {}
  with pytest.raises(UserError) as error:
    curated(Table(table), ["N", "D"], Curation(**options))
  assert says in str(error.value) and "\n" not in str(error.value)


def test_integers_do_not_overflow(tmp_path):
  big = np.array([10**12, 10**12, 3 * 10**11])
  table = derive(Table({"N": big, "D": big}), ["C", "M"])
  np.testing.assert_allclose(table["C"], 6.0 * (big.astype(float)) ** 2)
  path = tmp_path / "big.csv"
  path.write_text("N,D,loss\n" + "".join(f"{n},{n},2.0\n" for n in big))
  found = prepare([path], "gadre", {"loss": "loss"})
  np.testing.assert_allclose(found.table["C"], table["C"])
  assert found.origin["C"] == "6 * N * D"


def test_files_must_have_the_same_columns(tmp_path):
  for name, column in (("a", "N"), ("b", "params")):
    rows = "".join(f"{n},2.0\n" for n in (1, 2, 3, 4))
    (tmp_path / f"{name}.csv").write_text(f"{column},loss\n{rows}")
  files = [tmp_path / "a.csv", tmp_path / "b.csv"]
  with pytest.raises(UserError, match=r"'x' is blank in every row of .*b.csv"):
    prepare(files, "power_constant", {"loss": "loss", "x": "N"})
