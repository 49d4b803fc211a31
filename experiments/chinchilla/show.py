"""Tables and figures of the study."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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

NAMES = ("A", "B", "E", "alpha", "beta")
Params = Mapping[str, float]

TEXT = (
  "Hoffmann et al. (2022) printed a law that does not fit the points of their"
  " own figure; Besiroglu et al. (2024) read the points off and fitted them"
  " again. Here are both optima, the replication's bootstrap, its tests, and"
  " the time that all of it takes beside other tools.\n\n"
  "The replication's point estimate minimises absolute deviations (its fitted"
  " scale collapses), while its bootstrap minimises Huber's loss: so its"
  " intervals belong to the second optimum here, its values to the first."
)


# -------------------------------------------------------------------- tables


def optima(fits: Mapping[str, Any], expected: Mapping[str, Any]) -> Table:
  rows = []
  for name, fit in fits.items():
    wanted = expected["optima"][name]
    rows.append({"optimum": name, "": "here", "objective": fit.objective,
                 **{k: fit.params[k] for k in NAMES}})  # fmt: skip
    rows.append({"optimum": name, "": "known", "objective": wanted["objective"],
                 **{k: wanted[k] for k in NAMES}})  # fmt: skip
  digits = lambda v, n: v if isinstance(v, str) else f"{v:.{n}g}"
  for row in rows:
    row["objective"] = digits(row["objective"], 10)
    row |= {k: digits(row[k], 7) for k in NAMES}
  return Table("Both optima", rows)


def intervals(fit: Any, epoch: Mapping[str, Any]) -> Table:
  se, ci = fit.se(), fit.ci()
  rows = [
    {
      "parameter": k,
      "SE": se[k],
      "published SE": epoch["se"][k],
      "low": ci[k][0],
      "published low": epoch["ci95"][k][0],
      "high": ci[k][1],
      "published high": epoch["ci95"][k][1],
    }
    for k in NAMES
  ]
  drawn = len(fit.draws["A"])
  return Table(
    "Bootstrap",
    rows,
    caption=f"{drawn} draws of the points, seed {fit.seed}; 95 % percentiles.",
  )


def sets(
  fits: Mapping[str, Any],
  theirs: Mapping[str, Params],
  points: Mapping[str, Any],
  compute: float,
  oracle: Any,
) -> Table:
  """What each set of parameters makes of the points and of a budget."""
  every = {f"vitscale, {k}": f.params for k, f in fits.items()} | dict(theirs)
  n = len(points["loss"])
  rows = []
  for name, params in every.items():
    deviation = oracle.total(params, points, "lad")
    rows.append(
      {
        "parameters": name,
        "sum |r|": deviation,
        "Huber sum": f"{oracle.total(params, points):.6g}",
        "log likelihood": round(oracle.log_likelihood(deviation, n), 2),
        f"D/N at {compute:.3g}": round(float(oracle.ratio(params, compute)), 2),
      }
    )
  return Table(
    "Sets of parameters on the same points",
    rows,
    caption="r: residual of ln loss. Likelihood of Laplace residuals at their"
    " best scale.",
  )


def race(lines: Sequence[Mapping[str, Any]]) -> Table:
  """Times, ratios to ours by round, and what was reached."""
  ours = {x["entry"].kind: x for x in lines if x["entry"].name == "vitscale"}
  rows = []
  for x in lines:
    entry = x["entry"]
    row: dict[str, Any] = {"who": entry.name, "job": _job(entry)}
    if not x["seconds"]:
      why = x.get("error", "not timed")
      if "No module named 'chinchilla'" in why:
        why = "not installed: pip install chinchilla (see README)"
      rows.append({**row, "note": why})
      continue
    base = np.median(ours[entry.kind]["seconds"] or np.nan)
    middle = float(np.median(x["seconds"]))
    row |= {
      "seconds": middle,
      "least": min(x["seconds"]),
      "most": max(x["seconds"]),
      "first": x["first"],
      "times ours": middle / float(base),
      "excess": f"{x['excess']:.1e}" if "excess" in x else "",
      "note": entry.note,
    }
    if entry.name != "vitscale" and "better" in x:
      row["note"] += f"; ours ends no higher in {100 * x['better']:.1f} %"
    rows.append(row)
  return Table(
    "Race on the same points, in turns",
    rows,
    ["who", "job", "seconds", "least", "most", "first", "times ours", "excess",
     "note"],
    "Excess: of the Huber objective over the lowest seen, relative. First: the"
    " first call, with imports and compilation.",
  )  # fmt: skip


def _job(entry: Any) -> str:
  return f"{entry.of} draws" if entry.kind == "draws" else "one fit"


# ------------------------------------------------------------------- figures


def parameters(
  fit: Any, lad: Any, theirs: Mapping[str, Params], epoch: Mapping[str, Any]
) -> Figure:
  """Each parameter with its interval, beside the published ones."""
  ci = fit.ci()
  names = ["Huber", "LAD", "Epoch", "Hoffmann"]
  panels = []
  for k in NAMES:
    low, high = epoch["ci95"][k]
    marks = [
      Points("vitscale", [0], [fit.params[k]], [ci[k][0]], [ci[k][1]]),
      Points("vitscale", [1], [lad.params[k]], hollow=True),
      Points("Besiroglu et al.", [2], [epoch["value"][k]], [low], [high]),
      Points("Hoffmann et al.", [3], [theirs["Hoffmann"][k]]),
    ]
    scale = "log" if k in ("A", "B") else "linear"
    panels.append(
      Panel(Axis("", "category", names=names), Axis(k, scale), marks)
    )
  return Figure(
    "parameters",
    "The five parameters",
    panels,
    "95 % intervals of the bootstrap. The published point is the LAD optimum.",
  )


def valley(fit: Any, theirs: Params, compute: float, ratio: Any) -> Figure:
  """Loss along a budget, and the best D/N over budgets."""
  budgets = np.geomspace(1e18, 1e26, 60)
  at = ratio({k: v[:, None] for k, v in fit.draws.items()}, budgets)
  low, high = np.quantile(at, (0.025, 0.975), axis=0)
  best = Panel(
    Axis("compute C (FLOP)", "log"),
    Axis("best D/N (tokens a parameter)", "log"),
    [
      Band("these points", budgets, low, high),
      Line("these points", budgets, ratio(fit.params, budgets)),
      Line("Hoffmann et al.", budgets, ratio(theirs, budgets)),
      Points("Chinchilla", [compute], [20]),
    ],
  )
  n = np.geomspace(5e9, 5e11, 80)
  d = compute / 6 / n
  law = fit.law
  curves = law({k: v[:, None] for k, v in fit.draws.items()}, N=n, D=d)
  low, high = np.quantile(curves, (0.025, 0.975), axis=0)
  along = Panel(
    Axis("parameters N", "log"),
    Axis("loss of the law (nats)"),
    [
      Band("these points", n, low, high),
      Line("these points", n, law(fit.params, N=n, D=d)),
      Line("Hoffmann et al.", n, law(theirs, N=n, D=d)),
    ],
    f"C = {compute:.3g}",
  )
  return Figure(
    "valley",
    "What a budget should buy",
    [best, along],
    "The valley is flat in N, so the best N is far less certain than the best"
    " loss. The dot is Chinchilla as trained: 70 billion, 20 tokens for each.",
  )


def residuals(fit: Any, points: Mapping[str, Any]) -> Figure:
  x = {k: points[k] for k in ("N", "D")}
  off = 100 * (points["loss"] / fit.predict(**x) - 1)
  panels = [
    Panel(
      Axis(label, "log"),
      Axis("measured - law (%)"),
      [Level(0.0, "law"), Points("points", x[k], off)],
    )
    for k, label in (("N", "parameters N"), ("D", "tokens D = C / (6 N)"))
  ]
  return Figure(
    "residuals",
    "What the law leaves",
    panels,
    "Losses were read off a colour scale, in steps of about 1 %.",
  )
