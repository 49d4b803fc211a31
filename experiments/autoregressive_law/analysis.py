"""What the runs of autoregressive_law show: laws, floors, forecasts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.data import fields
from vitscale.laws import Fit, Verdict
from vitscale.laws.isoflop import IsoFlop, isoflop
from vitscale.report.figures import (
  Axis,
  Band,
  Figure,
  Level,
  Line,
  Panel,
  Points,
)
from vitscale.report.page import Table

SIZE, POWER, LEVELS = 12, 2.5, 16
STEP = 256 / LEVELS / 32  # width of a level, in standard deviations of a pixel
LOSS = "eval/test/nll"
FLOOR = 0.5  # nats that a floor must lie above
WIDE = 1.03  # a forecast of wider interval (high / low) says nothing
PRINTED = (0.64, 0.75)  # exponents of N*(C), Henighan's table 1
MARGIN = 0.05  # nats around the entropy
PF_DAY = 8.64e19  # FLOPs

Rows = list[dict[str, Any]]


def entropy(size: int, power: float = POWER, step: float = STEP):
  """Nats a pixel of a field cut into levels: (a bound from below, estimate).

  The bound is the differential entropy of the field less the log of a level's
  width; the estimate adds the second order in that width.
  """
  value = fields.spectrum(size, power)
  bound = np.log(2 * np.pi * np.e * value).mean() / 2 - math.log(step)
  return float(bound), float(bound + step**2 / 24 * (1 / value).mean())


# -------------------------------------------------------------------- reading


def points(done: Mapping[str, Any], size: int) -> Rows:
  """One row per finished run but pilots: N, D (tokens), C, loss, se."""
  rows = []
  for run in done.values():
    v, m = run["law_variables"], run["metrics"]
    if v["arm"] == "pilot" or run["status"] != "finished" or not m.get(LOSS):
      continue
    rows.append({
      "N": v["params_non_embedding"], "D": m["examples"] * size**2,
      "C": m["flops"], "loss": m[LOSS], "se": m[f"{LOSS}_se"],
      "level": v.get("C"), "arm": v["arm"], "width": v["width"],
      "seed": v["seed"], "lr": v["lr"], "held": v["held"],
    })  # fmt: skip
  return sorted(rows, key=lambda r: (r["C"], r["N"], r["seed"]))


def of_size(rows: Rows) -> Rows:
  return [r for r in rows if r["arm"] == "size"]


def frontier(rows: Rows) -> Rows:
  """Of each budget the runs of the size with the lowest mean loss."""
  out = []
  for level in sorted({r["level"] for r in rows if r["level"]}):
    mine = [r for r in rows if r["level"] == level]
    each = lambda w, mine=mine: [r for r in mine if r["width"] == w]
    mean = lambda w, each=each: np.mean([r["loss"] for r in each(w)])
    out += each(min({r["width"] for r in mine}, key=mean))
  return out


# ------------------------------------------------------------------ forecasts


def forecasts(rows: Rows, x: str) -> dict[str, Any] | None:
  """Laws with and without a floor, fitted to the near rows, at the far ones.

  Args:
    rows: near and held out.
    x: "N" or "C".

  Returns:
    `floor` and `power`, each a fit, its forecast, its error (ln measured -
    ln forecast) and interval; `measured`, `noise` of its log, `runs`. None
    where there are too few runs.
  """
  near = [r for r in rows if not r["held"]]
  far = [r for r in rows if r["held"]]
  if not near or not far:
    return None
  at = float(np.exp(np.mean([math.log(r[x]) for r in far])))
  measured = float(np.exp(np.mean([math.log(r["loss"]) for r in far])))
  found: dict[str, Any] = {"measured": measured, "runs": len(far), "at": at}
  forms = {"floor": laws.henighan(x), "power": laws.power(x)}
  try:
    for name, law in forms.items():
      fit = laws.fit(law, near)
      value, ci = fit.predict(**{x: at}), fit.predict_ci(
        runs=len(far), **{x: at}
      )  # fmt: skip
      error = math.log(measured / value)
      found[name] = {"fit": fit, "value": value, "ci": ci, "error": error}
  except UserError:
    return None
  found["noise"] = found["floor"]["fit"].sigma / math.sqrt(len(far))
  return found


def has_floor(found: Mapping[str, Any] | None, what: str) -> Verdict:
  """Claims 1 and 2."""
  claim = f"loss falls with {what} to a floor, not to 0"
  threshold = (
    f"floor above {FLOOR} nats; without one the held-out mean is missed by"
    " more, by more than 1.96 of its standard error"
  )
  if found is None:
    return Verdict(claim, "inconclusive", threshold, "too few runs")
  fit = found["floor"]["fit"]
  ci = (math.nan, math.nan) if fit.degenerate else fit.ci()["Linf"]
  errors = {name: found[name]["error"] for name in ("floor", "power")}
  excess = abs(errors["power"]) - abs(errors["floor"])
  half = 1.96 * found["noise"]
  parts = {
    "the floor": laws.decide(ci, FLOOR),
    "the forecast": laws.decide((excess - half, excess + half), 0.0),
  }
  answer, why = laws.all_of(parts)
  if answer == "not supported" and len(set(parts.values())) > 1:
    answer = "inconclusive"  # only both the other way refute it
  p = fit.params
  return Verdict(
    claim,
    answer,
    threshold,
    f"Linf = {p['Linf']:.3f} {span(ci)}, alpha = {p['alpha']:.2f}; errors"
    f" {errors['floor']:+.2%} with, {errors['power']:+.2%} without; {why}",
    "a power law without a floor",
    p["Linf"],
    ci,
  )


def foretold(found: Mapping[str, Any] | None, what: str) -> Verdict:
  """Claims 3 and 4."""
  claim = f"smaller runs foretell the largest {what}"
  threshold = f"inside the 95 % interval of its mean, high/low <= {WIDE}"
  if found is None:
    return Verdict(claim, "inconclusive", threshold, "too few runs")
  mine, answer = found["floor"], "inconclusive"
  low, high = mine["ci"]
  if math.isfinite(low) and found["runs"] > 1 and high <= WIDE * low:
    inside = low <= found["measured"] <= high
    answer = "supported" if inside else "not supported"
  return Verdict(
    claim,
    answer,
    threshold,
    f"measured {found['measured']:.4f}, forecast {mine['value']:.4f}"
    f" {span(mine['ci'], 4)} of {found['runs']} runs",
    "the same without a floor:"
    f" {found['power']['value']:.4f} {span(found['power']['ci'], 4)}",
    mine["value"],
    mine["ci"],
  )


# ------------------------------------------------------------- other verdicts


def grows(found: IsoFlop | None) -> Verdict:
  """Claim 5."""
  low, high = PRINTED
  claim = f"the best size grows as C^{low} to C^{high}"
  threshold = "interval of the exponent inside; wholly outside refutes it"
  if found is None or found.n is None:
    return Verdict(claim, "inconclusive", threshold, "fewer than two valleys")
  a, ci = found.n.exponent, found.n.ci()
  answer = "inconclusive"
  if low <= ci[0] <= ci[1] <= high:
    answer = "supported"
  elif ci[1] < low or ci[0] > high:
    answer = "not supported"
  used = sum(not v.why for v in found.levels)
  return Verdict(
    claim,
    answer,
    threshold,
    f"a = {a:.2f} {span(ci, 2)} of {used} of {len(found.levels)} budgets",
    "Henighan et al., table 1",
    a,
    ci,
  )


def is_entropy(fit: Fit | None, size: int) -> Verdict:
  """Claim 6."""
  bound, known = entropy(size)
  claim = "the floor of size and data is the entropy of the data"
  threshold = f"interval of E within {MARGIN} nats of {known:.3f}"
  if fit is None:
    return Verdict(claim, "inconclusive", threshold, "too few runs")
  if fit.degenerate:
    return Verdict(claim, "inconclusive", threshold, fit.degenerate[0])
  e, ci = fit.params["E"], fit.ci()["E"]
  return Verdict(
    claim,
    laws.within((ci[0] - known, ci[1] - known), MARGIN),
    threshold,
    f"E = {e:.3f} {span(ci)}; known {known:.3f}, {bound:.3f} at least;"
    f" alpha = {fit.params['alpha']:.2f}, beta = {fit.params['beta']:.2f},"
    f" lack of fit p = {fit.lack_of_fit:.2g}",
    "the entropy, computed",
    e,
    ci,
  )


def nothing_beats_it(rows: Rows, size: int) -> Verdict:
  """Claim 7."""
  bound, _ = entropy(size)
  claim = "control: no run has less than the entropy"
  threshold = f"lowest loss, less 1.96 of its standard error, above {bound:.3f}"
  if not rows:
    return Verdict(claim, "inconclusive", threshold, "no runs")
  best = min(rows, key=lambda r: r["loss"])
  half = 1.96 * best["se"]
  ci = (best["loss"] - half, best["loss"] + half)
  return Verdict(
    claim, laws.decide(ci, bound), threshold,
    f"{best['loss']:.4f} {span(ci, 4)}, width {best['width']}",
    "a bound from below", best["loss"], ci,
  )  # fmt: skip


def span(ci: Sequence[float], digits: int = 3) -> str:
  show = lambda x: f"{x:.{digits}f}" if math.isfinite(x) else "-"
  return f"[{show(ci[0])}, {show(ci[1])}]"


# ----------------------------------------------------------------- everything


def joint(rows: Rows) -> Fit | None:
  try:
    return laws.fit(laws.chinchilla(), rows)
  except UserError:
    return None


def valleys(rows: Rows) -> IsoFlop | None:
  """Of every budget, the held-out one too: nothing is foretold here."""
  try:
    return isoflop(
      [r for r in rows if r["level"]],
      levels=sorted({r["level"] for r in rows if r["level"]}),
    )
  except UserError:
    return None


def analyse(done: Mapping[str, Any], size: int = SIZE) -> dict[str, Any]:
  """Verdicts, tables and figures."""
  rows = points(done, size)
  sizes, best = of_size(rows), frontier(rows)
  by_n, by_c = forecasts(sizes, "N"), forecasts(best, "C")
  fit, found = joint(rows), valleys(rows)
  named = {"L(N)": by_n, "L(C)": by_c}
  cards = [
    {**said[kind]["fit"].card(), "name": f"{name}, {kind}"}
    for name, said in named.items()
    if said
    for kind in ("floor", "power")
  ]
  if fit:
    cards.append({**fit.card(), "name": "L(N, D), all runs"})
  return {
    "title": "Laws of raster models whose data have a known entropy",
    "laws": cards,
    "verdicts": [
      has_floor(by_n, "size"), has_floor(by_c, "compute"),
      foretold(by_n, "size"), foretold(by_c, "budget"),
      grows(found), is_entropy(fit, size), nothing_beats_it(rows, size),
    ],
    "tables": [Table("Runs, means over seeds", table(rows, best))],
    "figures": figures(rows, sizes, best, named, found, size),
  }  # fmt: skip


def table(rows: Rows, best: Rows) -> list[dict[str, Any]]:
  """A row a cell."""
  cells: dict[tuple, Rows] = {}
  for r in rows:
    cells.setdefault((r["arm"], r["width"]), []).append(r)
  out = []
  for (arm, width), mine in cells.items():
    losses = [r["loss"] for r in mine]
    sd = float(np.std(losses, ddof=1)) if len(mine) > 1 else math.nan
    out.append({
      "arm": arm, "width": width, "N": mine[0]["N"],
      "tokens": round(np.mean([r["D"] for r in mine])), "lr": mine[0]["lr"],
      "C": f"{np.mean([r['C'] for r in mine]):.3g}",
      "loss": round(float(np.mean(losses)), 4),
      "sd": round(sd, 4) if len(mine) > 1 else "-", "seeds": len(mine),
      "held out": "yes" if mine[0]["held"] else "",
      "best of its budget": "yes" if mine[0] in best else "",
    })  # fmt: skip
  return out


def figures(
  rows: Rows,
  sizes: Rows,
  best: Rows,
  named: Mapping[str, Any],
  found: IsoFlop | None,
  size: int,
) -> list[Figure]:
  """Loss against size and compute; the best size of a budget."""
  _, known = entropy(size)
  out, panels = [], []
  axes = {"N": "parameters without embeddings", "C": "training FLOPs"}
  for x, mine in (("N", sizes), ("C", best)):
    said, marks = named[f"L({x})"], [Level(known, "entropy")]
    every = mine if x == "N" else [r for r in rows if r["level"]]
    for held, label in ((False, "runs"), (True, "held out")):
      some = [r for r in every if r["held"] == held]
      if some:
        marks.append(
          Points(label, [r[x] for r in some], [r["loss"] for r in some],
                 faint=x == "C" and not held, hollow=held)
        )  # fmt: skip
    if said:
      grid = np.geomspace(min(r[x] for r in mine), max(r[x] for r in mine), 60)
      for name in ("floor", "power"):
        law = said[name]["fit"]
        marks.append(Line(name, grid, law.predict(**{x: grid})))
        low, high = law.predict_ci(**{x: grid})
        if name == "floor" and np.isfinite(low).all():
          marks.append(Band(name, grid, low, high))
    if len(marks) > 1:
      panels.append(Panel(Axis(axes[x], "log"), Axis("test nats a token"),
                          marks, title=f"L({x})"))  # fmt: skip
  if panels:
    out.append(
      Figure(
        "laws",
        "Loss against size at equal data, and against compute",
        panels,
        "Lines: laws with and without a floor, fitted without the held-out"
        " runs; band: 95 % interval of the curve. L(C) is fitted to the best"
        " size of each budget.",
      )
    )
  used = [v for v in found.levels if not v.why] if found else []
  if found is not None and found.n is not None:
    c = np.geomspace(used[0].c, used[-1].c, 9)
    marks = [
      Points("here", [v.c for v in used], [v.n for v in used]),
      Line("here", c, found.n.at(c)),
    ]
    for name in ("image-8", "image-16", "image-32"):
      law = laws.published(f"henighan/{name}/N(C)")
      marks.append(Line(f"Henighan {name}", c, law(C=c / PF_DAY), dash=True))
    out.append(
      Figure(
        "optimum",
        "The best size of a budget",
        [Panel(Axis("training FLOPs", "log"), Axis(axes["N"], "log"), marks)],
        "Dashed: published laws of photographs, of 8, 16 and 32 px, far below"
        " the compute they were fitted to.",
      )
    )
  return out
