"""Forecast checks: fit without the far end, predict it, look.

The only test of a law that its own points cannot fake. The far end is the
smallest x here (the smallest patch); the interval holds the resampled curve
*and* the noise of the runs it is compared with, so a law that is right lands
inside it as often as the level says.
"""

import dataclasses
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import data as tables
from vitscale.laws.fit import Fit, fit
from vitscale.laws.forms import Law

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What the law said, what came.

  Attributes:
    at: the held-out value of the variable.
    value, ci: predicted mean loss of `runs` runs and its interval.
    measured: geometric mean of the held-out runs.
    inside: whether it fell into the interval; None without an interval.
    error: measured / value - 1.
    runs: held-out runs; fit: what was fitted to the rest.
  """

  law: str
  variable: str
  at: float
  value: float
  ci: tuple[float, float]
  measured: float
  inside: bool | None
  error: float
  runs: int
  level: float
  fit: Fit

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types, the fit as its card."""
    out = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name != "fit"
    }
    return {**out, "fit": self.fit.card()}


def forecast(
  law: Law,
  data: Any,
  *,
  y: str = "loss",
  groups: str | None = None,
  hold: float | None = None,
  level: float = 0.95,
  **options,
) -> Forecast:
  """Fits without x = `hold` and checks the prediction there.

  Args:
    law: a law of one variable.
    data, y, groups: as in `fit`; `groups` is a column name.
    hold: value of the variable to leave out; default the smallest.
    options: further arguments of `fit`.
  """
  if len(law.variables) != 1:
    raise UserError(
      f"forecast needs a law of one variable, {law.name!r} has "
      f"{', '.join(law.variables)}"
    )
  (variable,) = law.variables
  table = tables.columns_of(data)
  points = tables.read(law, table, y=y)
  x = points.x[0]
  at = float(x.min() if hold is None else hold)
  held = x == at
  if not held.any():
    values = ", ".join(f"{v:g}" for v in np.unique(x))
    raise UserError(
      f"no rows at {variable} = {at:g} to hold out (has: {values})"
    )
  rest = {k: v[~held] for k, v in table.items()}
  fitted = fit(law, rest, y=y, groups=groups, **options)

  runs = int(held.sum())
  if groups is not None:
    runs = len(set(table[groups][held].tolist()))
  measured = float(np.exp(np.log(points.y[held]).mean()))
  value = fitted.predict(**{variable: at})
  low, high = fitted.predict_ci(level, runs=runs, **{variable: at})
  inside = bool(low <= measured <= high) if np.isfinite(low) else None
  return Forecast(
    law=law.name,
    variable=variable,
    at=at,
    value=float(value),
    ci=(low, high),
    measured=measured,
    inside=inside,
    error=measured / float(value) - 1,
    runs=runs,
    level=level,
    fit=fitted,
  )
