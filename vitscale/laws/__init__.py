"""Scaling laws from points: no model code; jax only inside of a fit.

from vitscale import laws
fit = laws.fit(laws.power_constant("p", exponent=(0, 4)), rows, groups="run")

Where things are:
  the laws     forms, single, joint, granular, registry; yours: expression,
               formula; others' with their numbers: published
  one fit      fit, frame (scaling), starts, solve, vertex, objective, diagnose
  intervals    resampling, intervals, delta, profile; simulate (known truth)
  forecasts    validate, select, mixture, scales, forecast; extrapolate (--law
               auto), released (M1 to M4), curves (has a run flattened?)
  decisions    allocate, star (shapes), next_runs, information, verdict;
               approaches: envelope (1, ladder), isoflop (2, levels), optima
  files        from_files (vitscale fit), prepare, curation, ingest, logs,
               table, extras, report, card, fit_page
"""

from vitscale.laws.allocate import Allocation, allocate, compute_ratio
from vitscale.laws.approaches import Approaches, approaches
from vitscale.laws.curves import Gain, flattened, gain_from_doubling
from vitscale.laws.envelope import Envelope, envelope, pareto
from vitscale.laws.fit import Fit, fit
from vitscale.laws.forecast import Forecast, forecast
from vitscale.laws.forms import Law, Parameter
from vitscale.laws.intervals import (
  Difference,
  Trend,
  difference,
  jonckheere,
  page_trend,
)
from vitscale.laws.isoflop import IsoFlop, isoflop, isoflop_bias
from vitscale.laws.joint import (
  chinchilla,
  elastic,
  gadre,
  ghorbani,
  kaplan,
  muennighoff,
  sovit,
)
from vitscale.laws.next_runs import NextRuns, next_runs
from vitscale.laws.published import PUBLISHED, Published, published
from vitscale.laws.registry import LAWS, named
from vitscale.laws.select import Selection, nested_holdout, select
from vitscale.laws.single import (
  bnsl,
  henighan,
  patch,
  power,
  power_constant,
  saturating,
  shifted,
  tokenizer,
  zhai,
)
from vitscale.laws.star import Star, fit_star
from vitscale.laws.star import plan as star_plan
from vitscale.laws.validate import (
  Holdout,
  Validation,
  holdout,
  leave_one_out,
  rollout,
)
from vitscale.laws.verdict import Verdict, all_of, decide, within

__all__ = [
  "Allocation",
  "allocate",
  "compute_ratio",
  "Approaches",
  "Difference",
  "Envelope",
  "Fit",
  "Forecast",
  "Gain",
  "Holdout",
  "IsoFlop",
  "LAWS",
  "Law",
  "NextRuns",
  "PUBLISHED",
  "Parameter",
  "Published",
  "Selection",
  "Star",
  "Trend",
  "Validation",
  "Verdict",
  "all_of",
  "approaches",
  "bnsl",
  "chinchilla",
  "decide",
  "difference",
  "elastic",
  "envelope",
  "fit",
  "fit_star",
  "flattened",
  "forecast",
  "gadre",
  "gain_from_doubling",
  "ghorbani",
  "henighan",
  "holdout",
  "isoflop",
  "isoflop_bias",
  "jonckheere",
  "kaplan",
  "leave_one_out",
  "muennighoff",
  "named",
  "nested_holdout",
  "next_runs",
  "page_trend",
  "pareto",
  "patch",
  "power",
  "power_constant",
  "published",
  "rollout",
  "saturating",
  "select",
  "shifted",
  "sovit",
  "star_plan",
  "tokenizer",
  "within",
  "zhai",
]
