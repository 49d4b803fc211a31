"""What the ladder's runs show: laws, forecasts, verdicts, tables, figures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.core.config import load_module
from vitscale.core.errors import UserError
from vitscale.laws.envelope import Envelope, envelope
from vitscale.laws.isoflop import IsoFlop, isoflop
from vitscale.report.figures import Axis, Band, Figure, Line, Panel, Points
from vitscale.report.page import Table

claims = load_module(Path(__file__).with_name("claims.py"))
LOSS = claims.LOSS

Results = Mapping[str, Any]
number, span = claims.number, claims.span


# -------------------------------------------------------------------- figures


def compute_figure(
  rows: claims.Rows, held: claims.Rows, fit: laws.Fit, said: claims.Rows
) -> Figure:
  """Loss against compute, a line per size, and the held-out runs."""
  marks = []
  every = rows + held
  top = max(r["C"] for r in every)
  for width in sorted({r["width"] for r in every}):
    mine = [r for r in every if r["width"] == width]
    seen = [r for r in mine if r in rows]
    c = np.geomspace(min(r["C"] for r in mine), top, 60)
    n, flops = mine[0]["N"], mine[0]["C"] / mine[0]["D"]
    name = f"width {width}"
    marks.append(Line(name, c, fit.predict(N=n, D=c / flops)))
    marks.append(
      Points(name, [r["C"] for r in seen], [r["loss"] for r in seen])
    )
  for f in said:
    if f["law"] == claims.LAW:
      c = held[0]["C"]
      marks.append(
        Points("forecast", [c], [f["value"]], [f["ci"][0]], [f["ci"][1]])
      )
      marks.append(
        Points("held out", [r["C"] for r in held], [r["loss"] for r in held],
               hollow=True)
      )  # fmt: skip
  return Figure(
    "loss_by_compute",
    "The law of the smaller runs, and the largest",
    [Panel(Axis("training FLOPs", "log"), Axis("test loss (nats)", "log"),
           marks)],
    "Every point is a finished run with a schedule of its own. Lines: the law"
    " fitted without the held-out runs; bar: its 95 % interval for their mean.",
    palette="sequence",
  )  # fmt: skip


def valley_figure(rows: claims.Rows, found: IsoFlop, fit: laws.Fit) -> Figure:
  """Loss against size at equal compute: parabolas and the law."""
  marks = []
  for level in sorted({r["level"] for r in rows}):
    mine = [r for r in rows if r["level"] == level]
    n = np.array([r["N"] for r in mine], float)
    loss = np.array([r["loss"] for r in mine])
    name = f"{level:.0e}".replace("e+", "e") + " FLOPs"
    grid = np.geomspace(n.min(), n.max(), 50)
    if len(set(n)) >= 3:
      fall = np.polynomial.Polynomial.fit(np.log(n), loss, 2)
      marks.append(Line(name, grid, fall(np.log(grid))))
    flops = np.array([r["C"] / r["N"] / r["D"] for r in mine]).mean()
    marks.append(
      Line(name, grid, fit.predict(N=grid, D=level / flops / grid), dash=True)
    )
    marks.append(Points(name, n, loss))
  best = [v for v in found.levels if not v.why]
  marks.append(
    Points("vertex", [v.n for v in best], [v.loss for v in best], hollow=True)
  )
  return Figure(
    "isoflop",
    "Valleys of equal compute",
    [Panel(Axis("parameters without embeddings", "log"),
           Axis("test loss (nats)", "log"), marks)],
    "Full lines: a parabola for each budget (Approach 2). Dashed: the law of"
    " all runs (Approach 3).",
    palette="sequence",
  )  # fmt: skip


def optimum_figure(
  rows: claims.Rows, one: Envelope | None, two: IsoFlop | None, fit: laws.Fit
) -> Figure:
  """N* over compute by the three approaches."""
  c = np.geomspace(min(r["C"] for r in rows), max(r["C"] for r in rows), 9)
  marks = []
  if one is not None:
    used = [s for s in one.stretches if not s.why]
    middle = [math.sqrt(s.low * s.high) for s in used]
    marks.append(Points("1 envelope", middle, [s.n for s in used]))
    if one.n is not None:
      marks.append(Line("1 envelope", c, one.n.at(c), dash=True))
  if two is not None:
    used = [v for v in two.levels if not v.why]
    low, high = ([v.ci[i] for v in used] for i in (0, 1))
    bars = (low, high) if np.isfinite(low + high).all() else (None, None)
    marks.append(
      Points("2 IsoFLOP", [v.c for v in used], [v.n for v in used], *bars)
    )
    if two.n is not None:
      marks.append(Line("2 IsoFLOP", c, two.n.at(c), dash=True))
  best = [laws.allocate(fit, x, per=claims.price(rows)) for x in c]
  low, high = (np.array([b.ci["n"][i] for b in best]) for i in (0, 1))
  if np.isfinite(low + high).all():
    marks.append(Band("3 L(N, D)", c, low, high))
  marks.append(Line("3 L(N, D)", c, [b.n for b in best]))
  return Figure(
    "optimum",
    "The best size of a budget",
    [Panel(Axis("training FLOPs", "log"),
           Axis("best parameters without embeddings", "log"), marks)],
    "Bars and band: 95 % intervals over runs.",
  )  # fmt: skip


# --------------------------------------------------------------------- tables


def cell_table(rows: claims.Rows, held: claims.Rows, fit: laws.Fit) -> Table:
  out, groups = [], {}
  for r in rows + held:
    groups.setdefault((r in held, r["level"], r["N"]), []).append(r)
  for (is_held, level, n), mine in groups.items():
    loss = np.array([r["loss"] for r in mine])
    first = mine[0]
    law = fit.predict(N=n, D=first["D"])
    out.append({
      "FLOPs": f"{level:.3g}", "width": first["width"], "N": n,
      "images": round(first["D"]), "rate": f"{first['lr']:g}",
      "seeds": len(mine),
      "test loss": number(loss.mean(), 4),
      "sd": number(loss.std(ddof=1), 4) if len(mine) > 1 else "-",
      "law": number(law, 4),
      "off %": number(100 * math.log(np.exp(np.log(loss).mean()) / law), 1),
      "held out": "yes" if is_held else "",
    })  # fmt: skip
  return Table("Cells", out, caption="Law: fitted without the held-out runs.")


def forecast_table(said: claims.Rows) -> Table:
  return Table(
    "Forecasts of the held-out runs",
    [
      {
        "law": f["law"], "forecast": number(f["value"], 4),
        "95 %": span(f["ci"], 4), "measured": number(f["measured"], 4),
        "error %": number(100 * math.expm1(f["error"]), 1),
        "inside": {True: "yes", False: "no", None: "-"}[f["inside"]],
        "rms of ln residuals": number(f["rmse"], 4),
      }
      for f in said
    ],
  )  # fmt: skip


def approach_table(
  found: Mapping, one: Envelope | None, two: IsoFlop | None
) -> Table:
  notes = {
    "1 envelope": " ".join(one.warnings) if one else "",
    "2 IsoFLOP": " ".join(two.warnings) if two else "",
  }
  rows = [
    {
      "approach": name, "a": number(a, 2), "95 %": span(ci, 2),
      "warnings": notes.get(name, ""),
    }
    for name, (a, ci) in found.items()
  ]  # fmt: skip
  bias = two.bias.exponent if two and two.bias else math.nan
  return Table(
    "N* = k C^a",
    rows,
    caption="Approach 1 reads curves that join the finished runs of one size"
    " and seed over budgets, not points inside a run: no rate has still to"
    " decay, whatever its warning says. Approach 2 would err by"
    f" {number(bias, 3)} in a on noise-free losses of the law.",
  )


# ----------------------------------------------------------------- everything


def analyse(done: Results, scale: str) -> dict[str, Any]:
  rows, held = claims.points(done), claims.points(done, held=True)
  text = (
    "Small ViTs trained on generated images that never repeat, several sizes"
    " at each of several budgets. The law is fitted to the smaller budgets and"
    " has to foretell the largest; thresholds are in the study's README."
  )
  try:
    found = claims.fits(rows)
  except UserError as error:
    return {"title": f"Size and data ({scale})", "text": f"{text} {error}"}
  fit = found[claims.LAW]
  said = claims.forecasts(found, held)
  one, two, trouble = None, None, []
  try:
    one = envelope(rows, run="curve")
    two = isoflop(rows, params=None if fit.degenerate else fit.params)
  except UserError as error:
    trouble.append(str(error))
  a = claims.exponents(one, two, fit)
  verdicts = [
    claims.both(fit),
    claims.shuffled(rows, fit),
    claims.forecast(said),
    *claims.rivals(said),
    claims.valleys(two),
    claims.agree(a),
  ]
  figures = [compute_figure(rows, held, fit, said)]
  if two is not None:
    figures.append(valley_figure(rows, two, fit))
  if not fit.degenerate:
    figures.append(optimum_figure(rows, one, two, fit))
  return {
    "title": f"Size and data ({scale})",
    "text": " ".join([text, *trouble]),
    "laws": [{**f.card(), "name": name} for name, f in found.items()],
    "verdicts": [v for v in verdicts if v is not None],
    "tables": [
      forecast_table(said), approach_table(a, one, two),
      cell_table(rows, held, fit),
    ],
    "figures": figures,
  }  # fmt: skip
