"""Runs beside each other: final metrics, a law, curves, what differs.

Pure: what runs left behind (`Run`) -> sections of a page.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.report import plain
from vitscale.report.figures import CATEGORY, Axis, Figure, Line, Panel, Points
from vitscale.report.page import Section, Table

PLACES = (("step", "linear"), ("examples", "linear"), ("flops", "log"))
DRAWN = 6  # figures of curves, unless metrics are named
SHOWN = 400  # points of one drawn curve
SIZES = {"params": "N", "flops": "C"}  # of a law, as in vitscale.laws
# What a law with a floor can be of, the first that all runs have: it falls
# with size, and zero is the best.
LOSSES = ("nll", "loss", "mse", "error")
# What a run depends on beside its config.
SURROUNDINGS = (
  "git_commit", "versions", "devices", "processes", "mesh", "compute_dtype",
  "data_fingerprint", "train_examples", "parents",
)  # fmt: skip


class Run(NamedTuple):
  """`name`, run.json as `facts`, and the `rows` of metrics.jsonl."""

  name: str
  facts: Mapping[str, Any]
  rows: Sequence[Mapping[str, Any]]

  @property
  def last(self) -> dict[str, Any]:
    """Law variables and the last row of the metrics, which wins."""
    end = self.rows[-1] if self.rows else {}
    return {**self.facts.get("law_variables", {}), **end}


def sections(
  runs: Sequence[Run], drawn: Sequence[str] | None = None
) -> list[Section]:
  """All of the page: final metrics, law, curves, what differs.

  Args:
    drawn: metrics with curves; by default the first of those there are.
  """
  every = metrics(row for run in runs for row in run.rows)
  shown = every[:DRAWN] if drawn is None else list(drawn)
  left = [name for name in every if name not in shown]
  figures = [curves(runs, name, f"curve-{i}") for i, name in enumerate(shown)]
  return [
    Section("At the end", tables=[final(runs)]),
    law(runs),
    Section(
      "Curves",
      f"Not drawn: {', '.join(f'`{name}`' for name in left)}." if left else "",
      figures=[figure for figure in figures if figure],
    ),
    differences(runs),
  ]


# ---------------------------------------------------------------------- numbers


def metrics(
  rows: Iterable[Mapping[str, Any]], among: Sequence[str] | None = None
) -> list[str]:
  """Names of the metrics: the training loss, evaluations, the rest.

  Standard errors and counts are none.

  Args:
    among: only these, in their order.
  """
  found = dict.fromkeys(
    key
    for row in rows
    for key in row
    if key.startswith(("train/", "eval/"))
    and not key.endswith(("_se", "/examples"))
  )
  if among is not None:
    return [key for key in among if key in found]

  def place(key: str) -> tuple[bool, bool]:
    return key != "train/loss", not key.startswith("eval/")

  return sorted(found, key=place)


def final(runs: Sequence[Run]) -> Table:
  """One row a run: its last row of metrics, `value ± standard error`."""
  names = metrics(run.last for run in runs)
  rows = [
    [
      run.name,
      run.facts.get("status"),
      *(run.last.get(key) for key in ("step", "params", "examples", "flops")),
      *(_with_error(run.last, name) for name in names),
    ]
    for run in runs
  ]
  columns = ["run", "status", "step", "params", "examples", "flops", *names]
  return Table(
    "Metrics",
    rows,
    columns,
    "The last row that each run logged; ± one standard error, over the images"
    " of the evaluation, where it is known.",
  )


def _with_error(row: Mapping[str, Any], name: str) -> Any:
  value, error = row.get(name), row.get(f"{name}_se")
  if value is None or error is None:
    return value
  return f"{plain.number(value)} ± {plain.number(error, 2)}"


# ----------------------------------------------------------------------- curves


def curves(runs: Sequence[Run], metric: str, name: str) -> Figure | None:
  """A metric by step, by examples and by FLOPs; None if no run has it.

  Args:
    name: file name of the figure.
  """
  values = [
    row[metric] for run in runs for row in run.rows if _has(row, metric)
  ]
  if not values:
    return None
  wide = min(values) > 0 and max(values) > 10 * min(values)
  y = Axis(metric, "log" if wide else "linear")
  panels = [
    Panel(
      Axis("FLOPs" if key == "flops" else key, scale),
      y,
      [mark for run in runs for mark in _curve(run, key, metric)],
    )
    for key, scale in PLACES
  ]
  panels = [panel for panel in panels if any(len(m.x) for m in panel.marks)]
  if not panels:
    return None
  spread = any(
    isinstance(mark, Points) and mark.low is not None
    for mark in panels[0].marks
  )
  return Figure(
    name,
    metric,
    panels,
    "Bars: one standard error over the images." if spread else "",
    palette="category" if len(runs) <= len(CATEGORY) else "sequence",
    share_y=True,
  )


def _curve(run: Run, key: str, metric: str) -> list[Line | Points]:
  rows = [row for row in run.rows if _has(row, metric) and _has(row, key)]
  if key == "flops":
    rows = [row for row in rows if row[key] > 0]  # a logarithmic axis
  rows = _thinned(rows)
  x, y = [row[key] for row in rows], [row[metric] for row in rows]
  # Without rows too: a run has one colour in all figures.
  marks: list[Line | Points] = [Line(run.name, x, y)]
  errors = [row.get(f"{metric}_se") for row in rows]
  if rows and None not in errors:
    low = [value - error for value, error in zip(y, errors)]
    high = [value + error for value, error in zip(y, errors)]
    marks.append(Points(run.name, x, y, low, high))
  elif len(rows) == 1:
    marks.append(Points(run.name, x, y))
  return marks


def _thinned(rows: Sequence[Any]) -> list[Any]:
  """At most `SHOWN` of them, evenly, with both ends."""
  if len(rows) <= SHOWN:
    return list(rows)
  step = (len(rows) - 1) / (SHOWN - 1)
  return [rows[round(i * step)] for i in range(SHOWN)]


def _has(row: Mapping[str, Any], key: str) -> bool:
  value = row.get(key)
  return isinstance(value, int | float) and math.isfinite(value)


# ---------------------------------------------------------------- what differs


def differences(runs: Sequence[Run]) -> Section:
  """Tables of what differs between the configs, and around them."""
  names = [run.name for run in runs]
  configs = [run.facts.get("config", {}) for run in runs]
  around = [
    {key: run.facts[key] for key in SURROUNDINGS if key in run.facts}
    for run in runs
  ]
  found = [
    (title, differing(what))
    for title, what in (("Configs", configs), ("Surroundings", around))
  ]
  same = [title.lower() for title, rows in found if not rows]
  text = f"No difference in {' and '.join(same)}." if same else ""
  return Section(
    "What differs",
    text if len(runs) > 1 else "One run has nothing to differ from.",
    tables=[
      Table(title, rows, ["key", *names]) for title, rows in found if rows
    ],
  )


def differing(trees: Sequence[Mapping[str, Any]]) -> list[list[str | None]]:
  """`[key, value, value, ...]` of every leaf that isn't the same in all.

  Keys have dots, as on the command line; None where a tree lacks the key.
  """
  leaves = [config_lib.flat(config_lib.to_dict(tree)) for tree in trees]
  keys = sorted({key for flat in leaves for key in flat})
  rows = [
    [key, *(str(flat[key]) if key in flat else None for flat in leaves)]
    for key in keys
  ]
  return [row for row in rows if len(set(row[1:])) > 1]


# -------------------------------------------------------------------------- law


def law(runs: Sequence[Run]) -> Section:
  """A power law with a constant over size, or why there is none.

  `L = L0 + c N^a` with `a <= 0`, N parameters, or C training FLOPs where the
  parameters don't differ; of the finished runs; 95 % intervals of `laws.fit`.
  """
  from vitscale import laws
  from vitscale.laws import fit_page

  ended = [run for run in runs if run.facts.get("status") == "finished"]
  size = next((key for key in SIZES if _several(ended, key)), None)
  if size is None:
    return _no_law(
      "finished runs of two or more sizes (parameters or training FLOPs) are"
      " needed"
    )
  loss = next(iter(_losses(ended)), None)
  if loss is None:
    return _no_law("no loss that all finished runs have and that is positive")
  x = SIZES[size]
  points = [{x: run.last.get(size), "loss": run.last[loss]} for run in ended]
  try:
    fitted = laws.fit(laws.power_constant(x, exponent=(-4.0, 0.0)), points)
  except UserError as error:
    return _no_law(str(error))
  ends = fitted.ci()
  rows = [
    {
      "parameter": key,
      "value": value,
      "low": ends[key][0],
      "high": ends[key][1],
    }
    for key, value in fitted.params.items()
  ]
  drawn = fit_page.forecast(fitted, None)
  others = [
    row[0]
    for row in differing([run.facts.get("config", {}) for run in ended])
    if row[0] != "seed"
  ]
  caution = (
    f"Their configs differ in {', '.join(f'`{key}`' for key in others)}; the"
    f" law sees {x} alone."
  )
  warned = list(dict.fromkeys([*fitted.degenerate, *fitted.warnings]))
  return Section(
    "Law",
    "\n\n".join(
      [
        *(["No law: the fit is degenerate."] if fitted.degenerate else []),
        f"`{loss}` of {len(ended)} finished runs: {fitted.law.formula}, {x}"
        f" is `{size}`.",
        *([caution] if others else []),
        *(f"**{text}**" for text in warned),
      ]
    ),
    figures=[dataclasses.replace(drawn, name="law", title=f"{loss} by {size}")],
    tables=[]
    if fitted.degenerate
    else [Table("Parameters, 95 % intervals", rows)],
  )


def _no_law(why: str) -> Section:
  return Section("Law", f"No law: {why}.")


def _several(runs: Sequence[Run], key: str) -> bool:
  return len({run.last[key] for run in runs if _has(run.last, key)}) > 1


def _losses(runs: Sequence[Run]) -> list[str]:
  """Losses that all runs have, those of evaluations first."""
  shared = [
    name
    for name in metrics(run.last for run in runs)
    if all(_has(run.last, name) and run.last[name] > 0 for run in runs)
    and re.split("[/_]", name)[-1] in LOSSES
  ]

  def place(name: str) -> tuple[bool, int]:
    return not name.startswith("eval/"), LOSSES.index(
      re.split("[/_]", name)[-1]
    )

  return sorted(shared, key=place)
