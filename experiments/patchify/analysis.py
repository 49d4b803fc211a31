"""What the runs of patchify show: laws, verdicts, tables, figures."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.core.config import load_module
from vitscale.report.figures import Axis, Band, Figure, Line, Panel, Points
from vitscale.report.page import Section, Table
from vitscale.workdir import curve

claims = load_module(Path(__file__).with_name("claims.py"))

ACCURACY = "eval/test/accuracy"
MAIN = ("fashion", "strokes")

Results = Mapping[str, Any]


# -------------------------------------------------------------------- figures


def loss_figure(done: Results, arms: list[str], fits: Mapping) -> Figure:
  panels = []
  for arm in arms:
    found = claims.cells(done, arm)
    if not found:
      continue
    marks, x = [], np.array(sorted(found), float)
    if arm in fits and not fits[arm].degenerate:
      grid = np.geomspace(x.min(), x.max(), 60)
      low, high = fits[arm].predict_ci(p=grid)
      if np.isfinite(low).all():
        marks.append(Band("L0 + c p^a", grid, low, high))
      marks.append(Line("L0 + c p^a", grid, fits[arm].predict(p=grid)))
    rows = claims.points(done, arm)
    mean = [np.mean([r["loss"] for r in rows if r["p"] == p]) for p in x]
    marks.append(
      Points("runs", [r["p"] for r in rows], [r["loss"] for r in rows],
             faint=True)
    )  # fmt: skip
    marks.append(Points("mean over seeds", x, mean))
    panels.append(
      Panel(Axis("patch size p", "log2", ticks=x), Axis("test loss (nats)"),
            marks, arm)
    )  # fmt: skip
  return Figure(
    "loss_by_patch",
    "Test loss against patch size",
    panels,
    "Small dots are single seeds; the band is the 95 % interval of the law.",
  )


def curve_figure(done: Results, arm: str) -> Figure:
  """Validation loss against steps and against FLOPs, one line per patch."""
  panels = []
  for key, label in (("step", "steps"), ("flops", "training FLOPs")):
    marks = []
    for patch, cell in claims.cells(done, arm).items():
      lines = [curve(r["workdir"], "eval/val/nll") for r in cell.values()]
      lines = [c for c in lines if c["step"]]
      if lines:
        mean = np.mean([c["eval/val/nll"] for c in lines], 0)
        marks.append(Line(f"p = {patch}", lines[0][key], mean))
    scale = "linear" if key == "step" else "log"
    panels.append(
      Panel(Axis(label, scale), Axis("validation loss (nats)", "log"), marks)
    )
  return Figure(
    f"curves_{arm}",
    f"{arm}: loss while training",
    panels,
    "Mean over seeds; a smaller patch costs more FLOPs a step. The rate still"
    " decays inside a run, so compare where lines end.",
    palette="sequence",
    share_y=True,
  )


# ----------------------------------------------------------------- everything


def cell_table(done: Results, arms: list[str]) -> Table:
  rows = []
  for arm in arms:
    gain = claims.gains(done, arm)
    for patch, cell in claims.cells(done, arm).items():
      loss = np.array([r["metrics"][claims.LOSS] for r in cell.values()])
      hit = np.array([r["metrics"][ACCURACY] for r in cell.values()])
      first = next(iter(cell.values()))
      g = gain.get(patch)
      state = {True: "yes", False: "no", None: "undecided"}
      flat = state[g.flattened] if g else "-"
      if not claims.begun(dict(enumerate(loss)), arm):
        flat = "not begun"
      rows.append(
        {
          "arm": arm,
          "p": patch,
          "tokens": first["law_variables"]["tokens"],
          "rate": f"{first['law_variables']['lr']:g}",
          "test loss": claims.number(loss.mean()),
          "sd": claims.number(loss.std(ddof=1)) if len(loss) > 1 else "-",
          "accuracy %": claims.number(100 * hit.mean(), 1),
          "seeds": len(loss),
          "TFLOP": claims.number(first["metrics"]["flops"] / 1e12, 2),
          "doubling gains %": claims.number(100 * g.value, 1) if g else "-",
          "flattened": flat,
        }
      )
  return Table(
    "Cells",
    rows,
    caption="Flattened: doubling the steps gains less than 2 %, with its whole"
    " interval. Not begun: the loss is within 5 % of guessing.",
  )


def printed(expected: Mapping[str, Any]) -> Table:
  """What the paper printed, for comparison of direction only."""
  rows = [
    {"model": model, **{f"p = {p}": v for p, v in top1.items()}}
    for model, top1 in expected["top1"].items()
  ]
  return Table("Printed by the paper: ImageNet top-1 %", rows, None,
               f"{expected['source']}. Reproduced here: "
               f"{expected['reproduced_here']}.")  # fmt: skip


def analyse(
  done: Results, scale: str, arms: list[str], expected: Mapping[str, Any]
) -> dict[str, Any]:
  main = [
    arm for arm in MAIN if arm in arms and len(claims.cells(done, arm)) >= 4
  ]
  fits, cards = {}, []
  for arm in main:
    for form in (laws.power_constant, laws.power):
      fit = laws.fit(
        form("p", exponent=(-5, 5)), claims.points(done, arm), groups="run"
      )
      fits.setdefault(arm, fit)
      cards.append({**fit.card(), "name": f"{arm}: {fit.law.name}"})
  verdicts = []
  for arm in main:
    verdicts += [claims.falls(done, arm), claims.law(done, arm, fits[arm])]
    verdicts.append(claims.forecast(done, arm))
  verdicts += [
    claims.longer(done),
    claims.permuted(done),
    claims.upsampled(done),
    claims.learned(done),
  ]
  shown = [arm for arm in arms if len(claims.cells(done, arm)) > 1]
  return {
    "title": f"Patch size and loss ({scale})",
    "text": "Does test loss fall as the patch shrinks? Rates are tuned per"
    " patch on validation images, thresholds are in the study's README, and"
    " every difference is judged over seeds.",
    "laws": cards,
    "verdicts": [v for v in verdicts if v is not None],
    "tables": [cell_table(done, arms), printed(expected)],
    "figures": [loss_figure(done, shown, fits)] if shown else [],
    "sections": [
      Section(
        "Was training long enough?",
        "A short run under-trains small patches. Each line ends where its run"
        " ended.",
        figures=[curve_figure(done, arm) for arm in main],
      )
    ]
    if main
    else [],
  }


def pilots(
  rates: Mapping[str, float], done: Results, scale: str
) -> dict[str, Any]:
  """The table of chosen rates, as rates.json wants it."""
  rows = [
    {
      "cell": f"{r['law_variables']['arm']}/{r['law_variables']['patch_size']}",
      "rate": r["law_variables"]["lr"],
      "seed": r["law_variables"]["seed"],
      "validation loss": claims.number(
        r["metrics"].get("eval/val/nll", math.nan), 4
      ),
    }
    for r in done.values()
  ]
  return {
    "title": f"Learning rates ({scale})",
    "text": "Best mean validation loss per cell.",
    "laws": [],
    "verdicts": [],
    "tables": [
      Table("Chosen", [{"cell": k, "rate": v} for k, v in rates.items()]),
      Table("Pilots", sorted(rows, key=lambda r: (r["cell"], r["rate"]))),
    ],
    "files": {"rates.json": {"quick": {"rates": dict(rates)}}},
  }
