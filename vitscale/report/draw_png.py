"""Figures as PNG and PDF, with matplotlib and no display."""

import functools
import pathlib
from typing import Any

import numpy as np
from matplotlib import font_manager, patheffects, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from vitscale.report import figures as spec
from vitscale.report.figures import Band, Figure, Level, Line, Note, Points

_MARKERS = dict(zip(spec.MARKERS, "osD^P*"))
_SIZES = {"D": 5.2, "*": 8.5, "s": 5.6}
_FONTS = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "DejaVu Sans")


def draw(figure: Figure, folder: str | pathlib.Path, *, dpi: int = 200) -> dict:
  """Writes `NAME.png` and `NAME.pdf`; returns {"png": path, "pdf": path}."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  canvas = render(figure)
  paths = {end: folder / f"{figure.name}.{end}" for end in ("png", "pdf")}
  # Without dates and versions, equal data give equal files.
  canvas.savefig(paths["png"], dpi=dpi, metadata={"Software": None})
  canvas.savefig(paths["pdf"], metadata={"CreationDate": None})
  return paths


def render(figure: Figure) -> Canvas:
  """The matplotlib figure, not touching pyplot's global state."""
  rows, columns = figure.grid
  width = {1: 5.6, 2: 4.1}.get(columns, 3.5)
  height = {1: 3.9, 2: 3.3}.get(columns, 2.9)
  legend = figure.legend
  canvas = Canvas(
    figsize=(width * columns, height * rows + 0.42 + 0.3 * bool(legend)),
    layout="constrained",
    facecolor="white",
  )
  FigureCanvasAgg(canvas)
  canvas.get_layout_engine().set(
    w_pad=0.1, h_pad=0.08, hspace=0.06, wspace=0.04
  )
  canvas.suptitle(
    figure.title,
    x=0.012,
    ha="left",
    color=spec.INK,
    family=_font(),
    fontsize=12.5,
    fontweight="bold",
  )
  axes = canvas.subplots(rows, columns, squeeze=False)
  handles: dict[str, Any] = {}
  for i, ax in enumerate(axes.flat):
    if i >= len(figure.panels):
      ax.set_axis_off()
      continue
    _panel(ax, figure, i, handles)
  if legend:
    canvas.legend(
      [handles[g] for g in legend],
      legend,
      loc="outside lower center",
      ncols=min(len(legend), 3 if columns == 1 else 7),
      frameon=False,
      prop={"family": _font(), "size": 9},
      labelcolor=spec.INK,
      handlelength=1.6,
      columnspacing=1.6,
    )
  return canvas


def _panel(ax: Any, figure: Figure, i: int, handles: dict[str, Any]) -> None:
  panel = figure.panels[i]
  colours, markers = figure.colours(), figure.markers()
  for mark in panel.marks:
    if isinstance(mark, Note):
      _write(ax, mark.text, (mark.x, mark.y), (6, 6), spec.MUTED)
      continue
    colour = colours.get(mark.group or "", spec.MUTED)
    if isinstance(mark, Level):
      ax.axhline(mark.y, color=colour, lw=1, ls=(0, (4, 3)), zorder=1.5)
      place = ("axes fraction", "data")
      _write(ax, mark.label, (1, mark.y), (-3, 3), colour, place, ha="right")
    elif isinstance(mark, Band):
      ax.fill_between(
        mark.x, mark.low, mark.high, color=colour, alpha=0.14, lw=0, zorder=1
      )
    elif isinstance(mark, Line):
      (drawn,) = ax.plot(
        mark.x,
        mark.y,
        color=colour,
        lw=1.0 if mark.faint else 1.8,
        ls=(0, (4, 2)) if mark.dash else "-",
        zorder=2,
        alpha=0.45 if mark.faint else 1,
        solid_capstyle="round",
      )
      handles.setdefault(mark.group, drawn)
    elif isinstance(mark, Points):
      drawn = _points(ax, mark, colour, _MARKERS[markers[mark.group]])
      if not mark.faint and not mark.hollow:
        handles[mark.group] = drawn
      else:
        handles.setdefault(mark.group, drawn)
  _style(ax, figure, i)


def _points(ax: Any, mark: Points, colour: str, marker: str) -> Any:
  size = _SIZES.get(marker, 6.2) * (0.62 if mark.faint else 1)
  error = None
  if mark.low is not None and mark.high is not None:
    y = np.asarray(mark.y, float)
    error = np.abs([y - np.asarray(mark.low), np.asarray(mark.high) - y])
  return ax.errorbar(
    mark.x,
    mark.y,
    error,
    fmt=marker,
    color=colour,
    ms=size,
    mfc="white" if mark.hollow else colour,
    mec=colour if mark.hollow else "white",
    mew=1.5 if mark.hollow else 0 if mark.faint else 0.8,
    elinewidth=1.2,
    capsize=0,
    zorder=2.5 if mark.faint else 3,
    alpha=0.4 if mark.faint else 1,
  )


def _style(ax: Any, figure: Figure, i: int) -> None:
  panel = figure.panels[i]
  ax.set_title(
    panel.title, loc="left", color=spec.INK, fontsize=10, family=_font()
  )
  for axis, side, name in ((panel.x, ax.xaxis, "x"), (panel.y, ax.yaxis, "y")):
    if axis.is_log:
      getattr(ax, f"set_{name}scale")(
        "log", base=2 if axis.scale == "log2" else 10
      )
    values = spec.values_along(panel, name)
    ticks, labels = spec.tick_labels(axis, values)
    if ticks:
      side.set_major_locator(ticker.FixedLocator(ticks))
      side.set_major_formatter(ticker.FixedFormatter(labels))
      side.set_minor_locator(ticker.NullLocator())
    elif axis.is_log:
      side.set_major_formatter(ticker.LogFormatterSciNotation())
    label = axis.label if name == "x" or figure.shows_y_label(i) else ""
    side.set_label_text(label, color=spec.INK, fontsize=9.5, family=_font())
    limits = axis.limits or (figure.y_limits() if name == "y" else None)
    if limits:
      getattr(ax, f"set_{name}lim")(*limits)
    elif axis.scale == "category":
      getattr(ax, f"set_{name}lim")(-0.5, len(ticks) - 0.5)
  for side in ("top", "right"):
    ax.spines[side].set_visible(False)
  for side in ("left", "bottom"):
    ax.spines[side].set_color(spec.MUTED)
    ax.spines[side].set_linewidth(0.8)
  ax.grid(True, which="major", color=spec.GRID, lw=0.7)
  ax.set_axisbelow(True)
  ax.tick_params(
    which="both",
    color=spec.MUTED,
    labelcolor=spec.INK,
    labelsize=8.5,
    width=0.8,
    labelfontfamily=_font(),
  )
  ax.tick_params(which="minor", length=2)


def _write(
  ax: Any,
  text: str,
  at: tuple[float, float],
  shift: tuple[float, float],
  colour: str,
  coordinates: Any = "data",
  **options,
) -> None:
  """Small text with a white rim, so that it reads across a line."""
  ax.annotate(
    text,
    at,
    xycoords=coordinates,
    xytext=shift,
    textcoords="offset points",
    color=colour,
    fontsize=8,
    family=_font(),
    zorder=4,
    path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
    **options,
  )


@functools.cache
def _font() -> str:
  """The first of a few sober fonts that this machine has."""
  known = {f.name for f in font_manager.fontManager.ttflist}
  return next((f for f in _FONTS if f in known), "sans-serif")
