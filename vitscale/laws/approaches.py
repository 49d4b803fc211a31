"""Approaches 1, 2 and 3 side by side, and whether they agree.

Hoffmann et al. 2022 (arXiv 2203.15556, section 3) estimate the compute-optimal
size in three ways: the envelope of training curves, IsoFLOP parabolas, and a
parametric loss. They share the data but not the assumptions, so agreement is
evidence, and a difference asks which assumption fails. An approach that the
data do not allow says so and leaves the others alone.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import optima, verdict
from vitscale.laws.allocate import allocate
from vitscale.laws.envelope import Envelope, envelope
from vitscale.laws.fit import Fit, fit
from vitscale.laws.isoflop import IsoFlop, isoflop
from vitscale.laws.joint import chinchilla
from vitscale.laws.optima import NAN2, plain

Interval = tuple[float, float]
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Answer:
  """What one approach says at the common compute; NaN where it says nothing.

  Attributes:
    a, b: N* grows as C^a, D* as C^b.
    n, d: N* and D* there; `*_ci` 95 % intervals.
    reason: why there is no answer, empty if there is one.
    warnings: of the approach.
  """

  name: str
  a: float = NAN
  a_ci: Interval = NAN2
  b: float = NAN
  b_ci: Interval = NAN2
  n: float = NAN
  n_ci: Interval = NAN2
  d: float = NAN
  d_ci: Interval = NAN2
  reason: str = ""
  warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
  """Difference of a between two approaches.

  Attributes:
    ci: 95 % interval of the difference, from both intervals as if they were
      independent (Zou and Donner 2008); they share data, so it is wide.
    overlap: whether the two intervals overlap.
    verdict: is the difference within the margin?
  """

  first: str
  second: str
  difference: float
  ci: Interval
  overlap: bool | None
  verdict: str


@dataclasses.dataclass(frozen=True)
class Approaches:
  """All three, at one compute.

  Attributes:
    compute: FLOPs at which n and d are compared.
    answers: in the order 1, 2, 3.
    pairs: of the approaches with an interval of a.
    agree: whether all pairs differ by less than `margin` in a.
    why: what decided that.
    envelope, isoflop, parametric: the results in full; None where there is a
      reason instead.
    notes: what was derived or chosen.
  """

  compute: float
  answers: tuple[Answer, ...]
  pairs: tuple[Pair, ...]
  margin: float
  agree: verdict.Answer
  why: str
  envelope: Envelope | None
  isoflop: IsoFlop | None
  parametric: Fit | None
  notes: tuple[str, ...]

  def rows(self) -> list[dict[str, Any]]:
    """A table row per approach: plain numbers, None where there is none."""
    return [
      plain({k: v for k, v in dataclasses.asdict(a).items() if k != "warnings"})
      for a in self.answers
    ]

  def as_dict(self) -> dict[str, Any]:
    """Plain JSON types."""
    return plain(
      {
        "compute": self.compute,
        "approaches": [dataclasses.asdict(a) for a in self.answers],
        "pairs": [dataclasses.asdict(p) for p in self.pairs],
        "margin": self.margin,
        "agree": self.agree,
        "why": self.why,
        "envelope": self.envelope and self.envelope.as_dict(),
        "isoflop": self.isoflop and self.isoflop.as_dict(),
        "parametric": self.parametric and self.parametric.card(),
        "notes": self.notes,
      }
    )


def approaches(
  data: Any,
  *,
  run: str | None = None,
  compute: str = "C",
  n: str = "N",
  d: str = "D",
  y: str = "loss",
  per: float = 6.0,
  levels: Sequence[float] | None = None,
  tolerance: float = 0.1,
  at: float | None = None,
  margin: float = 0.05,
  bootstrap: int = 2000,
  seed: int = 0,
) -> Approaches:
  """Runs the three approaches on the same runs.

  With `run`, Approach 1 reads whole curves, and the others the last row of each
  run. Approach 3 fits `chinchilla` by the Huber loss of log residuals, delta
  1e-3, as published.

  Args:
    data: dict of columns, data frame, or list of row dicts. D or C may be
      missing.
    run: column that says which rows are one run's curve; None takes each row
      as a finished run.
    compute, n, d, y: names of the columns.
    per: FLOPs a parameter and token, to derive D or C.
    levels, tolerance: of Approach 2, see `isoflop`.
    at: FLOPs to compare N* and D* at; default the largest in the data.
    margin: difference in a below which two approaches agree; fix it before
      looking.
    bootstrap: draws of each.
    seed: of the draws.

  Raises:
    UserError: bad columns. What one approach lacks is its `reason`.
  """
  rows = optima.read(data, compute=compute, n=n, d=d, y=y, per=per)
  if run is not None and run not in rows.table:
    raise UserError(f"run: no column {run!r}{nearest(run, rows.table)}")
  if at is not None and not 0 < at < math.inf:
    raise UserError(f"at is {at}, must be positive FLOPs")
  table = {"N": rows.n, "D": rows.d, "C": rows.c, "loss": rows.y}
  notes, ended = list(rows.notes), table
  if run is not None:
    label = rows.table[run].astype(str)
    order = np.argsort(rows.c, kind="stable")
    last = {label[i]: i for i in order}
    ended = {k: v[list(last.values())] for k, v in table.items()}
    table = {**table, "run": label}
    notes.append(f"approaches 2 and 3 see the last row of {len(last)} runs")
  budget = float(at or rows.c.max())
  price = float(np.exp(np.mean(np.log(rows.c / (rows.n * rows.d)))))
  if rows.spread > 0.01:
    notes.append(f"approach 3 counts C = {price:.4g} N D, the mean of the rows")
  draws = {"bootstrap": bootstrap, "seed": seed}

  lowest, one = _try(
    "1 envelope",
    lambda: envelope(table, run=run and "run", **draws),
    lambda found: _from_powers(found, budget),
  )
  law, three = _try(
    "3 parametric",
    lambda: fit(chinchilla(), ended, objective="huber:1e-3", **draws),
    lambda found: _from_law(found, budget, price),
  )
  known = law.params if law and not law.degenerate else None
  iso, two = _try(
    "2 isoflop",
    lambda: isoflop(
      ended, levels=levels, tolerance=tolerance, params=known, **draws
    ),
    lambda found: _from_powers(found, budget),
  )
  answers = (one, two, three)
  pairs = tuple(_compare(answers, margin))
  agree, why = verdict.all_of(
    {f"{p.first} and {p.second}": p.verdict for p in pairs}
  )
  if not pairs:
    why = "fewer than two approaches have an interval of a"
  return Approaches(
    compute=budget,
    answers=answers,
    pairs=pairs,
    margin=margin,
    agree=agree,
    why=why,
    envelope=lowest,
    isoflop=iso,
    parametric=law,
    notes=tuple(notes),
  )


def _try(
  name: str, find: Callable[[], Any], read: Callable[[Any], dict[str, Any]]
) -> tuple[Any, Answer]:
  """(result or None, answer): what data do not allow becomes a reason."""
  try:
    found = find()
  except UserError as error:
    return None, Answer(name, reason=str(error))
  return found, Answer(name, **read(found), warnings=found.warnings)


def _from_powers(found: Envelope | IsoFlop, budget: float) -> dict[str, Any]:
  if found.n is None:
    return {"reason": next(w for w in found.warnings if "no exponent" in w)}
  return {
    "a": found.n.exponent,
    "a_ci": found.n.ci(),
    "b": found.d.exponent,
    "b_ci": found.d.ci(),
    "n": float(found.n.at(budget)),
    "n_ci": found.n.at_ci(budget),
    "d": float(found.d.at(budget)),
    "d_ci": found.d.at_ci(budget),
  }


def _from_law(law: Fit, budget: float, price: float) -> dict[str, Any]:
  if law.degenerate:
    return {"reason": law.degenerate[0]}
  best = allocate(law, budget, per=price)
  low, high = best.ci["exponent"]
  return {
    "a": best.exponent,
    "a_ci": (low, high),
    "b": 1 - best.exponent,
    "b_ci": (1 - high, 1 - low),
    "n": best.n,
    "n_ci": best.ci["n"],
    "d": best.d,
    "d_ci": best.ci["d"],
  }


def _compare(answers: Sequence[Answer], margin: float) -> list[Pair]:
  out = []
  known = [v for v in answers if np.isfinite(v.a_ci).all()]
  for v, w in itertools.combinations(known, 2):
    off = v.a - w.a
    low = off - math.hypot(v.a - v.a_ci[0], w.a_ci[1] - w.a)
    high = off + math.hypot(v.a_ci[1] - v.a, w.a - w.a_ci[0])
    out.append(
      Pair(
        first=v.name,
        second=w.name,
        difference=off,
        ci=(low, high),
        overlap=v.a_ci[0] <= w.a_ci[1] and w.a_ci[0] <= v.a_ci[1],
        verdict=verdict.within((low, high), margin),
      )
    )
  return out
