"""The star sweep: how width, depth and MLP size should grow with compute.

Alabdulmohsin et al. 2023 (SoViT, arXiv 2305.13035, section 3) fit one law per
shape dimension x_k, all others held at a large centre,

    L = eps_k + alpha_k x^-a_k + (beta_k x^b_k + xi_k) t^-c,

whose best x_k grows as t^s_k with s_k = c / (a_k + b_k). The exponents need a
star (one dimension at a time, downwards from the centre) instead of a grid; a
small grid then fixes the shape that the exponents scale up jointly.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import data as tables
from vitscale.laws import optima
from vitscale.laws.fit import Fit, fit
from vitscale.laws.joint import sovit
from vitscale.laws.levels import SAME
from vitscale.laws.optima import plain
from vitscale.laws.table import Table

Array = np.ndarray
Shape = dict[str, float]
LAW = sovit()  # one object, so that all arms share what a fit compiles
# What the published shapes share: widths 1968, 608, 1152; MLPs 6144, 928, 4304.
MULTIPLES = {"width": 16, "mlp": 16}


# ---------------------------------------------------------------- the plan


@dataclasses.dataclass(frozen=True)
class Plan:
  """Shapes to train, each at several durations.

  Attributes:
    star: the centre, then one dimension at a time.
    grid: every combination of a few values around a small shape.
    notes: shapes that rounding made equal.
  """

  star: tuple[Shape, ...]
  grid: tuple[Shape, ...]
  notes: tuple[str, ...]


def plan(
  center: Mapping[str, float],
  *,
  steps: int = 6,
  factor: float = 0.8,
  multiples: Mapping[str, int] = MULTIPLES,
  small: Mapping[str, float] | None = None,
  values: int = 3,
) -> Plan:
  """A star sweep downwards from `center`, and the small grid sweep.

  Values are rounded to the nearest multiple, at least one. The multiple of a
  width also decides its heads: with heads of 64, take 64, and every width has a
  whole number of them.

  Args:
    center: the large shape, as width=1968, depth=40, mlp=6144 in the paper.
    steps: shapes below the centre, per dimension.
    factor: from one to the next; about .8 in the paper.
    multiples: per dimension; 1 where none is named.
    small: the middle of the grid; default `steps` steps below the centre in
      every dimension at once.
    values: of each dimension in the grid, `factor` apart.

  Raises:
    UserError: a value that is not positive, or names that do not match.
  """
  if not 0 < factor < 1:
    raise UserError(f"factor is {factor}, must lie between 0 and 1")
  if steps < 1 or values < 1:
    raise UserError(f"steps {steps} and values {values} must be 1 at least")
  small = small or {k: v * factor**steps for k, v in center.items()}
  given = {} if multiples is MULTIPLES else multiples
  for where, names in (("multiples", given), ("small", small)):
    for name in names:
      if name not in center:
        raise UserError(
          f"{where}: no dimension {name!r} in the centre{nearest(name, center)}"
        )
  for name, value in center.items():
    for what in (value, small.get(name, 0), multiples.get(name, 1)):
      if not 0 < what < np.inf:
        raise UserError(f"{name}: {what} in centre, small or multiples")

  def rounded(shape: Mapping[str, float]) -> Shape:
    unit = {k: multiples.get(k, 1) for k in shape}
    return {k: max(round(v / unit[k]), 1) * unit[k] for k, v in shape.items()}

  star = [rounded(center)]
  for name, value in center.items():
    for i in range(1, steps + 1):
      star.append(rounded({**center, name: value * factor**i}))
  offsets = np.arange(values) - (values - 1) / 2
  grid = [
    rounded({k: v * factor**-o for (k, v), o in zip(small.items(), off)})
    for off in itertools.product(offsets, repeat=len(center))
  ]
  notes, out = [], []
  for what, shapes in (("star", star), ("grid", grid)):
    unique = list({tuple(s.values()): s for s in shapes}.values())
    if len(unique) < len(shapes):
      notes.append(
        f"{what}: {len(shapes) - len(unique)} of {len(shapes)} shapes are equal"
        " to another after rounding"
      )
    out.append(tuple(unique))
  return Plan(*out, tuple(notes))


# ----------------------------------------------------------------- the fit


@dataclasses.dataclass(frozen=True)
class Arm:
  """The law along one dimension.

  Attributes:
    s: exponent of the best x over t; `s_ci` 95 %, NaN of a degenerate fit.
    sampled: smallest and largest x.
    law: the fit; None where there is only a `reason`.
  """

  dim: str
  s: float
  s_ci: tuple[float, float]
  sampled: tuple[float, float]
  law: Fit | None
  reason: str

  def best(self, t: float) -> tuple[float, tuple[float, float]]:
    """x*(t) = (alpha a t^c / (beta b))^(1 / (a + b)) and its interval."""
    if self.law is None:
      return float("nan"), optima.NAN2
    x = float(_best(self.law.params, t))
    if self.law.degenerate or not self.law.interval:
      return x, optima.NAN2
    return x, optima.interval(_best(self.law.draws, t), self.law.dof)

  def exponents(self) -> Array:
    """(draws,) resampled s; empty without an interval."""
    if self.law is None or self.law.degenerate or not self.law.interval:
      return np.empty(0)
    return _exponent(self.law.draws)


@dataclasses.dataclass(frozen=True)
class Star:
  """An arm per dimension, and where the joint scaling starts.

  Attributes:
    start, t0: best shape of the grid sweep and its compute; None without one.
    t: largest compute of the star.
  """

  arms: tuple[Arm, ...]
  center: Shape
  start: Shape | None
  t0: float | None
  t: float
  warnings: tuple[str, ...]

  def at(
    self,
    t: float,
    *,
    start: Mapping[str, float] | None = None,
    t0: float | None = None,
  ) -> dict[str, dict[str, Any]]:
    """The joint optimum at compute t: x_k = start_k (t / t0)^s_k.

    Section 3.4: the exponents of the star scale the optimum of the grid. The
    interval is that of s_k alone; the start's own error is not in it.

    Args:
      start, t0: a shape and the compute it is best at; default the grid's.
    """
    start, t0 = start or self.start, t0 or self.t0
    if start is None or t0 is None:
      raise UserError(
        "the joint optimum needs a start: fit_star(grid=...), or start= and t0="
      )
    missing = [a.dim for a in self.arms if a.dim not in start]
    if missing:
      raise UserError(f"start has no {missing[0]!r}")
    out = {}
    for arm in self.arms:
      low, high = sorted((t / t0) ** np.array(arm.s_ci))
      x = float(start[arm.dim])
      out[arm.dim] = plain(
        {"x": x * (t / t0) ** arm.s, "ci95": (x * low, x * high)}
      )
    return out

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types; `joint` is `at` the largest compute of the star."""
    arms = []
    for arm in self.arms:
      x, ci = arm.best(self.t)
      arms.append(
        {
          "dim": arm.dim,
          "s": arm.s,
          "s_ci95": arm.s_ci,
          "best": x,
          "best_ci95": ci,
          "sampled": arm.sampled,
          "law": arm.law and arm.law.card(),
          "reason": arm.reason,
        }
      )
    return plain(
      {
        "arms": arms,
        "center": self.center,
        "t": self.t,
        "start": self.start,
        "t0": self.t0,
        "joint": self.start and self.at(self.t),
        "warnings": self.warnings,
      }
    )


def fit_star(
  data: Any,
  dims: Sequence[str] = ("width", "depth", "mlp"),
  *,
  t: str = "t",
  y: str = "loss",
  center: Mapping[str, float] | None = None,
  grid: Any = None,
  objective: str = "log-mse",
  bootstrap: int = 2000,
  seed: int = 0,
) -> Star:
  """Fits `sovit` along each dimension of a star sweep.

  Measured coverage of nominal 95 % intervals of s and of x* (60 simulations of
  300 draws, .2 % noise, 7 values by 6 durations an arm): .90 to .98.

  Args:
    data: dict of columns, data frame, or list of row dicts; a row is a shape
      trained to a compute.
    dims: columns of the shape.
    t, y: columns of compute (any unit) and loss.
    center: the shape that all arms share; default each column's commonest
      value. Rows off every arm are left out.
    grid: rows of the small grid sweep; its lowest loss at its largest t is the
      start of `Star.at`.
    objective, bootstrap, seed: see `fit`.

  Raises:
    UserError: bad columns, or a centre that no row has. An arm that cannot be
      fitted has a `reason`.
  """
  columns = _columns(data, (*dims, t, y))
  if center is None:
    center = {}
    for k in dims:
      value, count = np.unique(columns[k], return_counts=True)
      center[k] = float(value[count.argmax()])
  missing = [k for k in dims if k not in center]
  if missing:
    raise UserError(f"center has no {missing[0]!r}")
  off = np.stack([np.abs(np.log(columns[k] / center[k])) > SAME for k in dims])
  if off.any(0).all():
    shape = ", ".join(f"{k}={center[k]:g}" for k in dims)
    raise UserError(f"no row has the centre {shape}: pass center=")
  options = {"objective": objective, "bootstrap": bootstrap, "seed": seed}
  arms = []
  for i, k in enumerate(dims):
    rows = ~np.delete(off, i, axis=0).any(0)
    table = {"x": columns[k][rows], "t": columns[t][rows], y: columns[y][rows]}
    arms.append(_arm(k, table, y=y, **options))
  warnings = [f"{a.dim}: {a.reason}" for a in arms if a.reason]
  if (lost := int((off.sum(0) > 1).sum())) > 0:
    warnings.append(f"{lost} of {off.shape[1]} rows lie on no arm: left out")
  largest = float(columns[t].max())
  for arm in arms:
    low, high = arm.sampled
    x, _ = arm.best(largest)
    if np.isfinite(x) and not low <= x <= high:
      warnings.append(
        f"{arm.dim}: the best at t = {largest:.3g} is {x:.3g}, outside of the"
        f" sampled {low:g} to {high:g}"
      )
    warnings += [
      f"{arm.dim}: {w}"
      for w in (arm.law.warnings if arm.law else ())
      if w not in arm.reason
    ]
  decay = {a.dim: a.law.ci()["c"] for a in arms if len(a.exponents())}
  for j, k in itertools.combinations(decay, 2):
    if decay[j][1] < decay[k][0] or decay[k][1] < decay[j][0]:
      warnings.append(f"c of {j} and {k} differ, the paper's law has one c")
  start = t0 = None
  if grid is not None:
    small = _columns(grid, (*dims, t, y))
    last = np.flatnonzero(small[t] >= small[t].max() * (1 - SAME))
    i = last[small[y][last].argmin()]
    start, t0 = {k: float(small[k][i]) for k in dims}, float(small[t][i])
  return Star(
    arms=tuple(arms),
    center={k: float(center[k]) for k in dims},
    start=start,
    t0=t0,
    t=largest,
    warnings=tuple(warnings),
  )


def _arm(dim: str, table: dict[str, Array], **options: Any) -> Arm:
  x = table["x"]
  sampled, nan = (float(x.min()), float(x.max())), float("nan")
  try:
    law = fit(LAW, table, **options)
  except UserError as error:
    return Arm(dim, nan, optima.NAN2, sampled, None, str(error))
  arm = Arm(
    dim=dim,
    s=float(_exponent(law.params)),
    s_ci=optima.NAN2,
    sampled=sampled,
    law=law,
    reason="; ".join(law.degenerate),
  )
  return dataclasses.replace(
    arm, s_ci=optima.interval(arm.exponents(), law.dof)
  )


def _exponent(p: Mapping[str, Any]) -> Array:
  total = np.asarray(p["a"] + p["b"], np.float64)
  return np.where(total > 0, p["c"] / np.where(total > 0, total, 1), np.nan)


def _best(p: Mapping[str, Any], t: float) -> Array:
  """The minimum of the law in x, section 3.2; NaN where it has none."""
  up, down = (
    np.asarray(v, np.float64) for v in (p["alpha"] * p["a"], p["beta"] * p["b"])
  )
  ok = (up > 0) & (down > 0)
  ratio = np.log(np.where(ok, up, 1)) - np.log(np.where(ok, down, 1))
  total = np.where(ok, p["a"] + p["b"], 1)
  return np.where(ok, np.exp((ratio + p["c"] * np.log(t)) / total), np.nan)


def _columns(data: Any, names: Sequence[str]) -> dict[str, Array]:
  table = Table(tables.columns_of(data))
  return {k: optima.positive(table, k) for k in names}
