"""One declaration of a figure, two renderings that look alike.

    Figure("law", "Loss falls with the patch", [Panel(
      Axis("patch size p", "log2"), Axis("test loss"),
      [Points("Fashion-MNIST", p, mean, low, high),
       Line("Fashion-MNIST", grid, curve), Band("Fashion-MNIST", grid, lo, hi)],
    )])

`draw_png.py` makes PNG and PDF with matplotlib, `draw_html.py` an interactive
plot. Marks that share a `group` share colour and legend entry, in every panel
and in both renderings, so a fitted curve needs no name of its own.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Values = Sequence[float] | np.ndarray

# Okabe and Ito (2008), distinguishable with any colour vision; the yellow is
# left out as it vanishes on white. Second row: the same hues for dark pages.
CATEGORY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CATEGORY_DARK = (
  "#4BA3DB",
  "#F0803C",
  "#2FC49A",
  "#E29CC3",
  "#F2BC4B",
  "#8ED0F5",
)
# Ordered groups (patch sizes, widths): after viridis, without its pale end.
_SEQUENCE = ("#4B0C6B", "#3B5BA9", "#2A8A8E", "#2FAF78", "#86C440")
_SEQUENCE_DARK = (
  "#9A6FC9",
  "#7F8BD9",
  "#4FA6BD",
  "#35C99E",
  "#B9E769",
)
INK, INK_DARK = "#22262B", "#E7E9EC"
MUTED, MUTED_DARK = "#767C85", "#9AA1AB"
GRID, GRID_DARK = "#E6E8EB", "#2C3138"
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


@dataclasses.dataclass(frozen=True)
class Axis:
  """Label and scale; `log2` shows plain integers at powers of two.

  Attributes:
    ticks: where to put ticks; default a sensible choice. On `log2` usually the
      measured values themselves.
    limits: in data units.
    names: labels at 0, 1, 2, ... for `category`.
  """

  label: str
  scale: Literal["linear", "log", "log2", "category"] = "linear"
  ticks: Sequence[float] | None = None
  limits: tuple[float, float] | None = None
  names: Sequence[str] | None = None

  @property
  def is_log(self) -> bool:
    return self.scale in ("log", "log2")


@dataclasses.dataclass(frozen=True)
class Points:
  """Markers with optional error bars from `low` to `high` (absolute)."""

  group: str
  x: Values
  y: Values
  low: Values | None = None
  high: Values | None = None
  faint: bool = False  # single runs behind their mean
  hollow: bool = False  # held out


@dataclasses.dataclass(frozen=True)
class Line:
  """A curve."""

  group: str
  x: Values
  y: Values
  dash: bool = False
  faint: bool = False


@dataclasses.dataclass(frozen=True)
class Band:
  """The area between two curves."""

  group: str
  x: Values
  low: Values
  high: Values


@dataclasses.dataclass(frozen=True)
class Level:
  """A horizontal line across the panel, as a floor or a threshold."""

  y: float
  label: str = ""
  group: str | None = None


@dataclasses.dataclass(frozen=True)
class Note:
  """A short text at a place in data units."""

  x: float
  y: float
  text: str


Mark = Points | Line | Band | Level | Note


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes."""

  x: Axis
  y: Axis
  marks: Sequence[Mark]
  title: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
  """Panels side by side under one title.

  Attributes:
    name: file name without ending, unique on a page.
    caption: what to see, one or two sentences.
    palette: `category`, or `sequence` for groups that have an order.
    columns: panels per row; default up to three.
    share_y: equal y limits in all panels.
  """

  name: str
  title: str
  panels: Sequence[Panel]
  caption: str = ""
  palette: Literal["category", "sequence"] = "category"
  columns: int | None = None
  share_y: bool = False

  def __post_init__(self):
    if not self.panels:
      raise ValueError(f"figure {self.name!r} has no panels")
    bad = set(self.name) - set(
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    )
    if bad or not self.name:
      raise ValueError(
        f"figure name {self.name!r} becomes a file name: letters, digits, - _"
      )
    for panel in self.panels:
      for mark in panel.marks:
        _check(self.name, mark)

  @property
  def groups(self) -> list[str]:
    """Names in order of first appearance; they decide the colours."""
    marks = [m for panel in self.panels for m in panel.marks]
    names = [getattr(m, "group", None) for m in marks]
    return list(dict.fromkeys(n for n in names if n is not None))

  @property
  def legend(self) -> list[str]:
    """Groups to explain; one alone needs no legend."""
    marks = [m for panel in self.panels for m in panel.marks]
    drawn = {m.group for m in marks if isinstance(m, (Points, Line))}
    named = [g for g in self.groups if g in drawn]
    return named if len(named) > 1 else []

  @property
  def grid(self) -> tuple[int, int]:
    """(rows, columns)."""
    n = len(self.panels)
    columns = min(self.columns or (2 if n == 4 else 3), n)
    return -(-n // columns), columns

  def shows_y_label(self, i: int) -> bool:
    """Panels with a common y axis say it once per row."""
    same = len({p.y.label for p in self.panels}) == 1
    return not (self.share_y and same and i % self.grid[1])

  def colours(self, dark: bool = False) -> dict[str, str]:
    """Hex colour of each group."""
    groups = self.groups
    if self.palette == "sequence":
      stops = _SEQUENCE_DARK if dark else _SEQUENCE
      return dict(zip(groups, _ramp(stops, len(groups))))
    palette = CATEGORY_DARK if dark else CATEGORY
    return {g: palette[i % len(palette)] for i, g in enumerate(groups)}

  def markers(self) -> dict[str, str]:
    """Marker of each group: a second cue beside the colour."""
    return {g: MARKERS[i % len(MARKERS)] for i, g in enumerate(self.groups)}

  def y_limits(self) -> tuple[float, float] | None:
    """Common limits in data units where the panels share them."""
    if not self.share_y:
      return None
    flat = np.concatenate([values_along(p, "y") for p in self.panels])
    flat = flat[np.isfinite(flat)]
    if not flat.size:
      return None
    if self.panels[0].y.is_log:
      pad = (flat.max() / flat.min()) ** 0.06
      return float(flat.min() / pad), float(flat.max() * pad)
    pad = 0.06 * (float(np.ptp(flat)) or 1.0)
    return float(flat.min() - pad), float(flat.max() + pad)


def values_along(panel: Panel, axis: Literal["x", "y"]) -> np.ndarray:
  """Everything a panel shows along one axis."""
  names = ("x",) if axis == "x" else ("y", "low", "high")
  found = [getattr(m, n, None) for m in panel.marks for n in names]
  flat = [np.ravel(np.asarray(v, float)) for v in found if v is not None]
  return np.concatenate(flat) if flat else np.empty(0)


def tick_labels(axis: Axis, values: Values) -> tuple[list[float], list[str]]:
  """Ticks of an axis that needs its own, ([], []) to leave it to the backend.

  Args:
    values: all data along the axis, for the default ticks of `log2`.
  """
  if axis.scale == "category":
    names = list(axis.names or [])
    return [float(i) for i in range(len(names))], names
  ticks = axis.ticks
  if ticks is None and axis.is_log:
    values = np.asarray(values, float)
    values = values[np.isfinite(values) & (values > 0)]
    if axis.limits or values.size:
      low, high = axis.limits or (values.min(), values.max())
      own = _powers_of_two if axis.scale == "log2" else _nice
      ticks = own(low, high)
  ticks = [] if ticks is None else [float(t) for t in ticks]
  return ticks, [_plain(t) for t in ticks]


def _powers_of_two(low: float, high: float) -> list[float]:
  first = math.ceil(math.log2(low) - 1e-9)
  last = math.floor(math.log2(high) + 1e-9)
  step = max(1, math.ceil((last - first) / 9))
  return [2.0**e for e in range(first, last + 1, step)]


def _nice(low: float, high: float) -> list[float]:
  """Readable ticks where powers of ten alone would be one or two labels."""
  decades = math.log10(high / low)
  if decades > 3:
    return []
  steps = (1, 2, 5) if decades > 1.2 else (1, 1.5, 2, 3, 4, 5, 7)
  if decades < 0.25:
    steps = tuple(np.arange(10, 100, 2 if decades > 0.1 else 1) / 10)
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  every = [s * 10.0**e for e in range(first, last + 1) for s in steps]
  # One step beyond the data, which the margins of the axis may show.
  return [t for t in every if low / 1.3 <= t <= high * 1.3]


def _plain(value: float) -> str:
  if value >= 1e6 or value < 1e-4:
    return f"{value:.3g}"
  return f"{value:,.6g}".replace(",", "\u2009" if value >= 1e4 else "")


def _ramp(stops: Sequence[str], n: int) -> list[str]:
  """n colours evenly along the stops."""
  rgb = np.array([[int(s[i : i + 2], 16) for i in (1, 3, 5)] for s in stops])
  at = np.linspace(0, len(stops) - 1, n) if n > 1 else np.array([1.0])
  mixed = [np.interp(at, np.arange(len(stops)), c) for c in rgb.T]
  return [
    "#" + "".join(f"{round(v):02X}" for v in colour) for colour in zip(*mixed)
  ]


def _check(figure: str, mark: Mark) -> None:
  if isinstance(mark, (Level, Note)):
    return
  lengths = {
    name: len(value)
    for name in ("x", "y", "low", "high")
    if (value := getattr(mark, name, None)) is not None
  }
  if len(set(lengths.values())) > 1:
    raise ValueError(
      f"figure {figure!r}, group {mark.group!r}: lengths differ: {lengths}"
    )
