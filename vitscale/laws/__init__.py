"""Scaling laws from points: numpy and scipy only, no model code, no jax.

from vitscale import laws
fit = laws.fit(laws.power_constant("p", exponent=(0, 4)), rows, groups="run")
"""

from vitscale.laws.curves import Gain, flattened, gain_from_doubling
from vitscale.laws.fit import Fit, fit
from vitscale.laws.forecast import Forecast, forecast
from vitscale.laws.forms import Law, Parameter, power, power_constant
from vitscale.laws.intervals import (
  Difference,
  Trend,
  difference,
  jonckheere,
  page_trend,
)
from vitscale.laws.verdict import Verdict, all_of, decide, within

__all__ = [
  "Difference",
  "Fit",
  "Forecast",
  "Gain",
  "Law",
  "Parameter",
  "Trend",
  "Verdict",
  "all_of",
  "decide",
  "difference",
  "fit",
  "flattened",
  "forecast",
  "gain_from_doubling",
  "jonckheere",
  "page_trend",
  "power",
  "power_constant",
  "within",
]
