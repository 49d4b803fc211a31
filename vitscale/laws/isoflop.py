"""Approach 2: the best size at each FLOP level, and its growth with compute.

Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2) train several sizes at each
of a few budgets, put a parabola in ln N through the losses of each, and power
laws N* = k C^a, D* = k' C^b through the vertices.

A parabola is the wrong curve. Away from alpha = beta its vertex is off by an
amount that grows with the width of the grid of sizes, and where the grid's
centre drifts against the optimum from level to level the *exponent* is off too,
without any noise (Czech et al. 2026, arXiv 2603.22339). `isoflop_bias` gives
that error as a number for the design at hand; no interval contains it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import optima
from vitscale.laws.allocate import golden
from vitscale.laws.fit import fit
from vitscale.laws.joint import chinchilla
from vitscale.laws.levels import Group, Level, group, judge, minimum, resample
from vitscale.laws.optima import Power, plain

Kind = Literal["parabola", "akima"]


@dataclasses.dataclass(frozen=True)
class Bias:
  """Error of the procedure on noise-free losses of a known law.

  Attributes:
    exponent: estimated minus true a; NaN below two usable levels.
    ln_n: per usable level, estimated minus true ln N*.
    c: those levels.
    params: of the law.
  """

  exponent: float
  ln_n: tuple[float, ...]
  c: tuple[float, ...]
  params: dict[str, float]


@dataclasses.dataclass(frozen=True)
class IsoFlop:
  """Levels and the power laws through their optima.

  Attributes:
    n, d: N* and D* over C; None below two usable levels.
    bias: see `isoflop_bias`; None where it could not be had (warned).
    interval: how the intervals were made; empty if there are none.
    notes: what was derived.
  """

  kind: Kind
  levels: tuple[Level, ...]
  n: Power | None
  d: Power | None
  bias: Bias | None
  interval: str
  notes: tuple[str, ...]
  warnings: tuple[str, ...]

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types."""
    return plain(
      {
        "kind": self.kind,
        "levels": [dataclasses.asdict(v) for v in self.levels],
        "n": self.n and self.n.as_dict(),
        "d": self.d and self.d.as_dict(),
        "bias": self.bias and dataclasses.asdict(self.bias),
        "interval": self.interval or None,
        "notes": self.notes,
        "warnings": self.warnings,
      }
    )


def isoflop(
  data: Any,
  *,
  compute: str = "C",
  n: str = "N",
  d: str = "D",
  y: str = "loss",
  levels: Sequence[float] | None = None,
  tolerance: float = 0.1,
  kind: Kind = "parabola",
  per: float = 6.0,
  params: Mapping[str, float] | None = None,
  bootstrap: int = 4000,
  seed: int = 0,
) -> IsoFlop:
  """Best size per FLOP level, power laws through them, and their bias.

  A level counts if its curve has a minimum within the sampled sizes. Two of
  them give an exponent, three an interval; what is drawn for that is said in
  `levels.resample`.

  Args:
    data: dict of columns, data frame, or list of row dicts; a row is a
      finished run. D or C may be missing.
    compute, n, d, y: names of its columns.
    levels: FLOPs that rows are assigned to; None groups equal C.
    tolerance: how far, in ln C, a row may lie from its level.
    kind: "parabola" in ln N, or "akima": a modified Akima interpolant through
      the mean loss at each N, which assumes no shape.
    per: FLOPs a parameter and token, to derive D or C.
    params: E, A, B, alpha, beta that the bias is computed for; None fits them
      to the same points (Approach 3).
    bootstrap: draws; 0 for no intervals.
    seed: of the draws.

  Raises:
    UserError: bad columns, or no level with enough sizes.
  """
  rows = optima.read(data, compute=compute, n=n, d=d, y=y, per=per)
  groups, warnings = group(rows, levels, tolerance, kind)
  found = [judge(g, kind) for g in groups]
  used = [i for i, level in enumerate(found) if not level.why]
  warnings += tuple(f"level {v.c:.3g}: {v.why}" for v in found if v.why)
  good = [groups[i] for i in used]
  drawn, dof, how = resample(good, kind, bootstrap, seed)
  for i, ln_n in zip(used, drawn.T):
    ci = optima.interval(np.exp(ln_n), dof)
    found[i] = dataclasses.replace(found[i], ci=ci)
  if bootstrap and used and not how:
    warnings += ("no interval: no point is left over to see noise in",)
  if len(used) < 3:
    warnings += (f"{len(used)} usable levels: {_MEANS[len(used)]}",)
    drawn = drawn[:0]
  law_n = law_d = None
  if len(used) >= 2:
    c = np.array([g.c for g in good])
    best = np.log([found[i].n for i in used])
    law_n = optima.power(c, best, drawn, dof)
    law_d = optima.power(c, _data(good, best), _data(good, drawn), dof)
    if len(drawn) and not len(law_n.draws):
      warnings += ("no interval: over 5 % of the draws have no two optima",)
  bias, doubt = _bias_of(rows, good, kind, params)
  if doubt:
    warnings += (f"bias unknown: {doubt}",)
  elif law_n and len(law_n.draws):
    low, high = np.quantile(law_n.draws[:, 1], (0.16, 0.84))
    error = (high - low) / 2
    if abs(bias.exponent) > 0.25 * error:
      # The rule of Efron and Tibshirani (1993), section 10.3.
      warnings += (
        f"a is biased by {bias.exponent:+.2g}, over a quarter of its standard"
        f" error {error:.2g}: its interval is off centre",
      )
  return IsoFlop(
    kind, tuple(found), law_n, law_d, bias, how, rows.notes, warnings
  )


_MEANS = (
  "no exponent, 2 are needed",
  "no exponent, 2 are needed",
  "nothing checks the power law, so no interval",
)


def isoflop_bias(
  params: Mapping[str, float],
  design: Any,
  *,
  compute: str = "C",
  n: str = "N",
  d: str = "D",
  levels: Sequence[float] | None = None,
  tolerance: float = 0.1,
  kind: Kind = "parabola",
  per: float = 6.0,
) -> Bias:
  """What Approach 2 gets wrong without noise, for a design of runs.

  The losses of `params` at the design's own N and D go through the procedure;
  the truth is the minimum of the same law along each level's budget (for
  C = 6 N D the closed form of 2203.15556, section 3.3, eq. 4).

  Args:
    params: E, A, B, alpha, beta of `chinchilla`.
    design: table of N and one of C, D (both where compute was counted); no
      losses are needed.

  The other arguments are those of `isoflop`.
  """
  rows = optima.read(design, compute=compute, n=n, d=d, y=None, per=per)
  rows = dataclasses.replace(rows, y=chinchilla()(params, N=rows.n, D=rows.d))
  groups, _ = group(rows, levels, tolerance, kind)
  return _bias(params, [g for g in groups if not judge(g, kind).why], kind)


def _bias_of(
  rows: optima.Budgets,
  good: Sequence[Group],
  kind: str,
  params: Mapping[str, float] | None,
) -> tuple[Bias | None, str]:
  """(bias of the levels in use, or why there is none)."""
  if not params:
    table = {"N": rows.n, "D": rows.d, "loss": rows.y}
    try:
      law = fit(chinchilla(), table, objective="huber:1e-3", bootstrap=0)
    except UserError as error:
      return None, str(error)
    if law.degenerate:
      return None, law.degenerate[0]
    params = law.params
  ideal = [
    dataclasses.replace(g, loss=chinchilla()(params, N=g.n, D=g.d))
    for g in good
  ]
  return _bias(params, ideal, kind), ""


def _bias(
  params: Mapping[str, float], ideal: Sequence[Group], kind: str
) -> Bias:
  """`ideal` are levels whose losses are those of `params`."""
  law = chinchilla()
  got, true = [], []
  for g in ideal:
    loss = lambda ln_n, g=g: law(params, N=np.exp(ln_n), D=np.exp(g.ln_d(ln_n)))
    middle = np.log(g.n).mean()
    true.append(golden(loss, middle - 20.0, middle + 20.0))
    got.append(minimum(g, kind, g.loss[None])[0][0])
  off = np.array(got) - np.array(true)
  ln_c = np.log([g.c for g in ideal])
  slope = np.nan
  if len(ideal) >= 2:
    slope = optima.line(ln_c - ln_c.mean(), off)[1]
  return Bias(
    exponent=float(slope),
    ln_n=tuple(off.tolist()),
    c=tuple(g.c for g in ideal),
    params={k: float(v) for k, v in params.items()},
  )


def _data(groups: Sequence[Group], ln_n: np.ndarray) -> np.ndarray:
  """ln D that goes with ln N (..., levels)."""
  columns = [g.ln_d(ln_n[..., i]) for i, g in enumerate(groups)]
  return np.stack(columns, -1)
