"""The page of `vitscale fit`: the curve, what it leaves, what it forecasts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.log import write_json
from vitscale.laws.fit import Fit
from vitscale.report import page
from vitscale.report.figures import (
  Axis,
  Band,
  Figure,
  Level,
  Line,
  Panel,
  Points,
)

POINTS = 60  # of a drawn curve
FLOPS = 6.0  # a parameter and token


def write(out: Path, fitted: Fit, card: Mapping[str, Any]) -> Path:
  """Writes card.json and report.html with its figures.

  Args:
    out: folder.
    fitted: what is drawn.
    card: of `report.card`, with `forecast` where one was asked for.

  Returns:
    Path of the page.
  """
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / "card.json", card)
  said = [*card["notes"], *(f"**{w}**" for w in card["warnings"])]
  return page.write(
    out / "report.html",
    title=f"{fitted.law.name}: {fitted.law.formula}",
    intro="\n\n".join([fitted.law.source, *said]),
    tables=[parameters(card)],
    figures=[
      Figure("fit", "Law and points", [against_law(fitted)]),
      Figure("residuals", "What the law leaves", residuals(fitted)),
      forecast(fitted, card.get("forecast")),
    ],
    sections=[
      page.Section(title, tables=[page.Table(title, rows(card[key]))])
      for title, key in (
        ("Hypothesis", "hypothesis"),
        ("Training", "training"),
        ("Data", "data"),
        ("Conventions", "conventions"),
        ("Method", "method"),
      )
    ],
    meta={
      "n": fitted.n,
      "objective": fitted.objective_name,
      "interval": fitted.interval or "none",
      "data": fitted.points.digest,
      "seed": fitted.seed,
    },
    data={"card": card},
  )


# -------------------------------------------------------------------- tables


def parameters(card: Mapping[str, Any]) -> page.Table:
  """Values to full precision: what is printed gives the same curve."""
  lines = []
  for name, value in card["params"].items():
    low, high = card["ci95"][name] or (None, None)
    lines.append(
      {
        "parameter": name,
        "value": value,
        "se": card["se"][name],
        "low": low,
        "high": high,
        "full precision": repr(value),
      }
    )
  return page.Table("Parameters, 95 % intervals", lines)


def rows(section: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
  """A section of the card, one line per entry, nested ones as `a: b`."""
  out = []
  for key, value in section.items():
    if isinstance(value, Mapping) and value:
      out += rows(value, f"{prefix}{key}: ")
    elif isinstance(value, list | tuple) and value:
      text = "; ".join(map(str, value))
      out.append({"what": prefix + key, "value": text})
    else:
      empty = value is None or value in ([], {}, ())
      out.append(
        {"what": prefix + key, "value": "none" if empty else str(value)}
      )
  return out


# ------------------------------------------------------------------- figures


def against_law(fitted: Fit) -> Panel:
  """Measured against predicted loss."""
  y, predicted = fitted.points.y, fitted.predict(**_x(fitted))
  both = np.concatenate([y, predicted])
  ends = np.array([both.min(), both.max()])
  return Panel(
    Axis("loss of the law", "log"),
    Axis("measured loss", "log"),
    [Line("equal", ends, ends), Points("points", predicted, y)],
  )


def residuals(fitted: Fit) -> list[Panel]:
  """Relative residuals against each variable."""
  off = 100 * (fitted.points.y / fitted.predict(**_x(fitted)) - 1)
  return [
    Panel(
      Axis(name, "log"),
      Axis("measured - law (%)"),
      [Level(0.0, "law"), Points("points", values, off)],
    )
    for name, values in _x(fitted).items()
  ]


def forecast(fitted: Fit, asked: Mapping[str, Any] | None) -> Figure:
  """Loss along one axis, the curve with its band, and a forecast.

  For laws of N and D the axis is compute, 6 N D, and the curve keeps the D / N
  of the data (geometric mean), or of the forecast; for others it is each
  variable, with the rest at the geometric mean of the data or the forecast.
  """
  at = dict(asked["at"]) if asked else {}
  x = _x(fitted)
  if {"N", "D"} <= set(x):
    panels = [_along_compute(fitted, x, at, asked)]
    how = "at the D / N of the forecast" if asked else "at the mean D / N"
  else:
    panels = [_along(fitted, x, v, at, asked) for v in x]
    rest = "the forecast" if asked else "the mean of the data"
    how = f"with the other variables at {rest}" if len(x) > 1 else ""
  drawn = any(isinstance(m, Band) for p in panels for m in p.marks)
  said = ["Band: 95 %." if drawn else "No band: there is no interval."]
  return Figure(
    "forecast",
    "Forecast",
    panels,
    caption=" ".join([*([f"The law {how}."] if how else []), *said]),
  )


def _along_compute(fitted, x, at, asked) -> Panel:
  mean = {k: float(np.exp(np.log(v).mean())) for k, v in x.items()} | at
  ratio = mean["D"] / mean["N"]
  flops = FLOPS * x["N"] * x["D"]
  places = [*flops, *([FLOPS * at["N"] * at["D"]] if asked else [])]
  grid = np.geomspace(min(places), max(places), POINTS)
  n = np.sqrt(grid / FLOPS / ratio)
  fixed = {k: np.full(POINTS, v) for k, v in mean.items()}
  curve = {**fixed, "N": n, "D": ratio * n}
  marks = _marks(fitted, flops, grid, curve)
  if asked:
    marks.append(_point(asked, places[-1]))
  return Panel(Axis("compute 6 N D (FLOP)", "log"), Axis("loss", "log"), marks)


def _along(fitted, x, name, at, asked) -> Panel:
  mean = {k: float(np.exp(np.log(v).mean())) for k, v in x.items()} | at
  places = [*x[name], *([at[name]] if asked else [])]
  grid = np.geomspace(min(places), max(places), POINTS)
  curve = {k: np.full(POINTS, v) for k, v in mean.items()} | {name: grid}
  marks = _marks(fitted, x[name], grid, curve)
  if asked:
    marks.append(_point(asked, at[name]))
  return Panel(Axis(name, "log"), Axis("loss", "log"), marks)


def _marks(fitted, places, grid, curve) -> list[Any]:
  marks: list[Any] = [
    Points("points", places, fitted.points.y),
    Line("law", grid, fitted.predict(**curve)),
  ]
  low, high = fitted.predict_ci(**curve)
  if np.isfinite([low, high]).all() and not fitted.degenerate:
    marks.append(Band("law", grid, low, high))
  return marks


def _point(asked: Mapping[str, Any], place: float) -> Points:
  ends: Sequence[Any] = asked["ci95"] or (None, None)
  low, high = (None if v is None else [v] for v in ends)
  return Points("forecast", [place], [asked["value"]], low, high, hollow=True)


def _x(fitted: Fit) -> dict[str, Any]:
  return dict(zip(fitted.law.variables, fitted.points.x))
