"""Figures as plotly JSON, written by hand: no plotly import to draw.

The dictionaries follow plotly's figure schema. Only the page needs plotly
itself, and of it the one JavaScript file that ships inside the package.
"""

import dataclasses
from typing import Any

import numpy as np

from vitscale.report import figures as spec
from vitscale.report.figures import Band, Figure, Level, Line, Note

_GAP = 0.09  # of the width, between panels


def draw(figure: Figure) -> dict[str, Any]:
  """A plotly figure: {"data": [...], "layout": {...}} in light colours."""
  data: list[dict] = []
  layout = _layout(figure)
  named: set[str] = set()
  for i, panel in enumerate(figure.panels):
    n = "" if i == 0 else str(i + 1)
    for mark in panel.marks:
      if isinstance(mark, Note):
        layout["annotations"].append(_note(panel, mark, n))
        continue
      if isinstance(mark, Level):
        _level(figure, panel, mark, n, layout)
        continue
      for trace in _traces(figure, panel, mark):
        show = (
          mark.group in figure.legend
          and mark.group not in named
          and not isinstance(mark, Band)
          and trace.get("showlegend", True)
        )
        if show:
          named.add(mark.group)
        data.append(
          {**trace, "xaxis": f"x{n}", "yaxis": f"y{n}", "showlegend": show}
        )
  return {"data": data, "layout": layout}


def dark(figure: Figure) -> dict[str, str]:
  """Light colour -> the colour that stands for it on a dark page."""
  light, night = figure.colours(), figure.colours(dark=True)
  pairs = {light[g]: night[g] for g in light}
  pairs |= {_rgba(light[g]): _rgba(night[g]) for g in light}
  return pairs | {
    spec.INK: spec.INK_DARK,
    spec.MUTED: spec.MUTED_DARK,
    spec.GRID: spec.GRID_DARK,
  }


def _traces(figure: Figure, panel: spec.Panel, mark: spec.Mark) -> list[dict]:
  colour = figure.colours()[mark.group]
  base = {
    "type": "scatter",
    "name": mark.group,
    "legendgroup": mark.group,
    "x": _list(mark.x),
  }
  hover = (
    f"<b>{_escape(mark.group)}</b><br>{_escape(panel.x.label)} %{{x}}"
    f"<br>{_escape(panel.y.label)} %{{y:.4g}}<extra></extra>"
  )
  if isinstance(mark, Band):
    edge = {**base, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": _rgba(colour)}
    return [
      {**edge, "y": _list(mark.low)},
      {**edge, **fill, "y": _list(mark.high)},
    ]
  if isinstance(mark, Line):
    line = {
      "color": colour,
      "width": 1.2 if mark.faint else 2.2,
      "dash": "dash" if mark.dash else "solid",
      "simplify": False,
    }
    return [
      {
        **base,
        "y": _list(mark.y),
        "mode": "lines",
        "line": line,
        "opacity": 0.45 if mark.faint else 1,
        "hovertemplate": hover,
      }
    ]
  symbol = figure.markers()[mark.group]
  trace = {
    **base,
    "y": _list(mark.y),
    "mode": "markers",
    "opacity": 0.4 if mark.faint else 1,
    "hovertemplate": hover,
    "marker": {
      "color": colour,
      "size": 5.5 if mark.faint else 9,
      "symbol": symbol + ("-open" if mark.hollow else ""),
      "line": {"width": 2 if mark.hollow else 0, "color": colour},
    },
  }
  if mark.low is not None and mark.high is not None:
    y = np.asarray(mark.y, float)
    trace["error_y"] = {
      "type": "data",
      "symmetric": False,
      "array": _list(np.asarray(mark.high, float) - y),
      "arrayminus": _list(y - np.asarray(mark.low, float)),
      "color": colour,
      "thickness": 1.5,
      "width": 0,
    }
  return [trace]


def _layout(figure: Figure) -> dict[str, Any]:
  rows, columns = figure.grid
  cell = 430 if columns == 1 else 350
  titled = any(p.title for p in figure.panels)
  layout: dict[str, Any] = {
    "height": cell * rows + 40 + (34 if figure.legend else 0),
    "margin": {"l": 64, "r": 18, "t": 34 if titled else 12, "b": 56},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": spec.INK},
    "hovermode": "closest",
    "showlegend": bool(figure.legend),
    "legend": {
      "orientation": "h",
      "x": 0,
      "y": -(62 / (cell * rows)),
      "yanchor": "top",
      "bgcolor": "rgba(0,0,0,0)",
    },
    "annotations": [],
    "shapes": [],
  }
  wide = (1 - _GAP * (columns - 1)) / columns
  gap = 0.26 if rows == 2 else 0.18
  tall = (1 - gap * (rows - 1)) / rows
  for i, panel in enumerate(figure.panels):
    n = "" if i == 0 else str(i + 1)
    row, column = divmod(i, columns)
    left = column * (wide + _GAP)
    top = 1 - row * (tall + gap)
    limits = figure.y_limits()
    x = spec.values_along(panel, "x")
    y = spec.values_along(panel, "y")
    layout[f"xaxis{n}"] = {
      **_axis(panel.x, x, panel.x.limits),
      "domain": [left, left + wide],
      "anchor": f"y{n}",
    }
    y_axis = panel.y
    if not figure.shows_y_label(i):
      y_axis = dataclasses.replace(y_axis, label="")
    layout[f"yaxis{n}"] = {
      **_axis(y_axis, y, panel.y.limits or limits),
      "domain": [max(top - tall, 0), top],
      "anchor": f"x{n}",
    }
    if panel.title:
      layout["annotations"].append(
        {
          "text": f"<b>{_escape(panel.title)}</b>",
          "x": left,
          "y": top,
          "xref": "paper",
          "yref": "paper",
          "xanchor": "left",
          "yanchor": "bottom",
          "yshift": 6,
          "showarrow": False,
        }
      )
  return layout


def _axis(
  axis: spec.Axis, values: np.ndarray, limits: tuple[float, float] | None
) -> dict[str, Any]:
  out: dict[str, Any] = {
    "title": {"text": _escape(axis.label), "standoff": 10},
    "type": "log" if axis.is_log else "linear",
    "gridcolor": spec.GRID,
    "linecolor": spec.MUTED,
    "tickcolor": spec.MUTED,
    "showline": True,
    "zeroline": False,
    "ticks": "outside",
    "ticklen": 4,
    "automargin": True,
  }
  ticks, labels = spec.tick_labels(axis, values)
  if ticks:
    out |= {"tickmode": "array", "tickvals": ticks}
    out["ticktext"] = [_escape(t) for t in labels]
  elif axis.is_log:
    out |= {"dtick": 1, "exponentformat": "power"}
  if axis.scale == "category" and not limits:
    limits = (-0.5, len(ticks) - 0.5)
  if limits:
    edge = [float(np.log10(v)) if axis.is_log else float(v) for v in limits]
    out["range"] = edge
  return out


def _level(
  figure: Figure, panel: spec.Panel, mark: Level, n: str, layout: dict
) -> None:
  colour = figure.colours().get(mark.group or "", spec.MUTED)
  place = {"xref": f"x{n} domain", "yref": f"y{n}"}
  layout["shapes"].append(
    {
      "type": "line",
      **place,
      "x0": 0,
      "x1": 1,
      "y0": mark.y,
      "y1": mark.y,
      "line": {"color": colour, "width": 1.2, "dash": "dash"},
      "layer": "below",
    }
  )
  if mark.label:
    layout["annotations"].append(
      {
        **place,
        "x": 1,
        # Shapes take data units on a log axis, annotations exponents.
        "y": float(np.log10(mark.y)) if panel.y.is_log else mark.y,
        "text": _escape(mark.label),
        "xanchor": "right",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": colour, "size": 12},
      }
    )


def _note(panel: spec.Panel, mark: Note, n: str) -> dict[str, Any]:
  place = [
    float(np.log10(v)) if axis.is_log else v
    for v, axis in ((mark.x, panel.x), (mark.y, panel.y))
  ]
  return {
    "x": place[0],
    "y": place[1],
    "xref": f"x{n}",
    "yref": f"y{n}",
    "text": _escape(mark.text),
    "showarrow": False,
    "xanchor": "left",
    "yanchor": "bottom",
    "xshift": 7,
    "yshift": 5,
    "font": {"color": spec.MUTED, "size": 12},
  }


def _list(values: spec.Values) -> list[float | None]:
  array = np.asarray(values, float)
  return [float(v) if np.isfinite(v) else None for v in array]


def _rgba(colour: str, alpha: float = 0.15) -> str:
  r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
  return f"rgba({r},{g},{b},{alpha})"


def _escape(text: str) -> str:
  """Plotly reads a little HTML in its labels: a name must not become a tag."""
  return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
