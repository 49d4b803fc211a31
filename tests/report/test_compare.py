"""What is said of runs beside each other."""

import math

import numpy as np
import pytest

from vitscale.report import compare
from vitscale.report.compare import Run
from vitscale.report.figures import Line, Points

SIZES = (1e4, 3e4, 1e5, 3e5, 1e6, 3e6)


def run(name, params=100, *, loss=0.5, steps=3, status="finished", **config):
  """A run whose training loss falls to `loss`, evaluated at its end."""
  rows = [
    {
      "step": step,
      "examples": 32 * step,
      "flops": 1e3 * params * step,
      "train/loss": loss * (1 + (steps - step) / steps),
    }
    for step in range(1, steps + 1)
  ]
  rows[-1] |= {
    "eval/val/accuracy": 0.75,
    "eval/val/accuracy_se": 0.01,
    "eval/val/nll": loss + 0.1,
    "eval/val/nll_se": 0.02,
    "eval/val/examples": 500,
  }
  facts = {
    "status": status,
    "config": {"model": {"width": params}, "optim": {"lr": 0.1}, **config},
    "law_variables": {"params": params},
    "devices": ["cpu", 1],
  }
  return Run(name, facts, rows)


# ------------------------------------------------------------------ final, diff


def test_final_metrics_have_their_errors():
  table = compare.final([run("a"), Run("b", {"status": "failed"}, [])])
  a, b = (dict(zip(table.columns, row)) for row in table.rows)
  assert a["eval/val/nll"] == "0.6000 ± 0.020"
  assert a["train/loss"] == 0.5  # no error is known
  assert (a["step"], a["params"], a["flops"]) == (3, 100, 3e5)
  assert b["status"] == "failed" and b["eval/val/nll"] is None
  assert not any(c.endswith(("_se", "/examples")) for c in table.columns)


def test_only_keys_that_differ():
  trees = [
    {"a": 1, "deep": {"x": [1, 2], "y": 0}},
    {"a": 1, "deep": {"x": [1, 3], "y": 0}, "new": None},
    {"a": 1, "deep": {"x": [1, 2], "y": 0}},
  ]
  assert compare.differing(trees) == [
    ["deep.x", "[1, 2]", "[1, 3]", "[1, 2]"],
    ["new", None, "None", None],  # absent is not None
  ]


def test_what_differs_has_a_column_a_run():
  other = run("b", optim={"lr": 0.2})
  section = compare.differences([run("a"), other])
  (configs,) = section.tables
  assert configs.columns == ["key", "a", "b"]
  assert configs.rows == [["optim.lr", "0.1", "0.2"]]
  assert section.text == "No difference in surroundings."

  moved = Run("c", other.facts | {"devices": ["H100", 8]}, other.rows)
  _, around = compare.differences([run("a"), moved]).tables
  assert around.rows == [["devices", "['cpu', 1]", "['H100', 8]"]]

  alone = compare.differences([run("a")])
  assert not alone.tables and "nothing to differ" in alone.text


# ----------------------------------------------------------------------- curves


def test_curves_by_step_examples_and_flops():
  figure = compare.curves([run("a"), run("b", 200)], "train/loss", "f")
  assert [panel.x.label for panel in figure.panels] == [
    "step", "examples", "FLOPs",
  ]  # fmt: skip
  b = [
    next(mark for mark in panel.marks if mark.group == "b")
    for panel in figure.panels
  ]
  assert [list(mark.x) for mark in b] == [
    [1, 2, 3], [32, 64, 96], [2e5, 4e5, 6e5],
  ]  # fmt: skip
  assert np.allclose(b[0].y, [5 / 6, 4 / 6, 0.5])


def test_scores_have_bars_and_runs_their_colour_everywhere():
  young = run("young")
  young = Run("young", young.facts, young.rows[:-1])  # no evaluation yet
  runs = [young, run("a")]
  scores = compare.curves(runs, "eval/val/nll", "f")
  (bar,) = [m for m in scores.panels[0].marks if isinstance(m, Points)]
  assert np.allclose([bar.low, bar.high], [[0.58], [0.62]])
  assert "standard error" in scores.caption
  losses = compare.curves(runs, "train/loss", "g")
  assert scores.colours() == losses.colours()
  assert compare.curves(runs, "eval/test/nll", "f") is None


def test_axes_follow_the_values():
  steep = compare.curves([run("a"), run("b", loss=0.01)], "train/loss", "f")
  flat = compare.curves([run("a")], "train/loss", "f")
  assert (steep.panels[0].y.scale, flat.panels[0].y.scale) == ("log", "linear")


def test_null_values_and_long_curves():
  gaps = run("a", steps=5)
  gaps.rows[1]["train/loss"] = None
  gaps.rows[2]["flops"] = None
  gaps.rows[0]["flops"] = 0  # none on a logarithmic axis
  figure = compare.curves([gaps], "train/loss", "f")
  assert [list(p.marks[0].x) for p in figure.panels] == [
    [1, 3, 4, 5], [32, 96, 128, 160], [4e5, 5e5],
  ]  # fmt: skip
  long = compare.curves([run("a", steps=3000)], "train/loss", "f")
  x = long.panels[0].marks[0].x
  assert len(x) == compare.SHOWN and (x[0], x[-1]) == (1, 3000)


# -------------------------------------------------------------------------- law


def family(scatter=0.0, **change):
  rng = np.random.default_rng(0)
  return [
    run(
      f"n{n:g}",
      int(n),
      loss=(0.2 + 40 * n**-0.5) * math.exp(scatter * rng.normal()) - 0.1,
      **change,
    )
    for n in SIZES
  ]


def test_law_over_sizes_finds_the_truth():
  section = compare.law(family(0.003))
  found = {row["parameter"]: row for row in section.tables[0].rows}
  for name, true in (("L0", 0.2), ("c", 40.0), ("a", -0.5)):
    row = found[name]
    assert row["low"] <= row["value"] <= row["high"], row
    assert row["value"] == pytest.approx(true, rel=0.1), row
    assert row["low"] < true < row["high"], row
  assert "`eval/val/nll` of 6 finished runs" in section.text
  assert "differ in `model.width`; the law sees N alone" in section.text
  marks = section.figures[0].panels[0].marks
  points = next(mark for mark in marks if isinstance(mark, Points))
  assert sorted(points.x) == list(SIZES)
  assert any(isinstance(mark, Line) for mark in marks)


def test_numbers_that_mean_nothing_are_not_tabled():
  runs = [run(f"n{n}", n) for n in (100, 200, 400, 800)]  # all equal
  section = compare.law(runs)
  assert section.text.startswith("No law: the fit is degenerate.")
  assert "**degenerate: " in section.text and not section.tables
  assert section.figures  # the points


def test_law_over_compute_where_sizes_are_equal():
  runs = [run(f"s{k}", steps=k, loss=0.5 + 1 / k) for k in (2, 4, 4)]
  text = compare.law(runs).text
  assert text.startswith("No law: ") and "different values of C" in text


@pytest.mark.parametrize(
  ("runs", "why"),
  [
    ([run("a"), run("b")], "two or more sizes"),
    ([run("a"), run("b", 200, status="failed")], "two or more sizes"),
    ([run("a"), run("b", 200)], "3 parameters"),
    ([run("a"), run("a2"), run("b", 200)], "3 different values of N"),
    ([run("a", loss=-1.0), run("b", 200, loss=-1.0)], "that is positive"),
  ],
)
def test_no_law_says_why(runs, why):
  section = compare.law(runs)
  assert section.text.startswith("No law: ") and why in section.text
  assert not section.figures and not section.tables


def test_sections_say_what_is_not_drawn():
  runs = [run("a"), run("b")]
  runs[0].rows[-1].update({f"eval/val/top{k}": 0.5 for k in range(9)})
  _, _, curves, _ = compare.sections(runs)
  assert len(curves.figures) == compare.DRAWN
  assert curves.figures[0].title == "train/loss"
  assert curves.text.startswith("Not drawn: `eval/val/top")
  _, _, curves, _ = compare.sections(runs, ["eval/val/nll"])
  assert [figure.title for figure in curves.figures] == ["eval/val/nll"]
