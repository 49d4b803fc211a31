"""What the runs of hieratok show: gaps by seed, speeds, verdicts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import Results, difference, finished, judged, spread
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Line, Mark, Panel, Points
from vitscale.report.page import Table

Curve = Sequence[tuple[int, float]]  # (step, validation error), in order

METRICS: dict[str, Callable[[Mapping[str, Any]], float]] = {
  "PSNR": lambda m: m["eval/test/psnr"],
  "log2 rFD": lambda m: math.log2(max(m["eval/test/rfd_random_conv"], 1e-9)),
}


def of_arm(done: Results, arm: str, metric: str) -> dict[int, float]:
  """seed -> a metric."""
  return {
    seed: METRICS[metric](run["metrics"])
    for (name, seed), run in finished(done).items()
    if name == arm
  }


def gap(done: Results, one: str, other: str, metric: str) -> list[float]:
  """A metric of `one` minus that of `other`, by seed."""
  read = lambda arm: of_arm(done, arm, metric)
  return difference(read(one), read(other))


# ----------------------------------------------------------------------- speed


def reached(curve: Curve, level: float) -> float | None:
  """The first step at which an error is at most `level`, or None.

  Between two steps its logarithm is a straight line.
  """
  before = None
  for step, error in curve:
    if error <= level:
      if before is None or before[1] <= error:
        return float(step)
      start, high = before
      share = math.log(high / level) / math.log(high / error)
      return start + share * (step - start)
    before = step, error
  return None


def log_speed(treated: Curve, control: Curve) -> float:
  """ln(steps / steps that the treated run needs for the control's last error).

  Where it never gets there, minus the same with their roles exchanged.
  """
  (steps, last), (_, own) = control[-1], treated[-1]
  step = reached(treated, last)
  if step is not None:
    return math.log(steps / step)
  return -math.log(steps / reached(control, own))


def speeds(done: Results, treated: str, control: str) -> list[float]:
  """`log_speed` by the seeds that both have."""
  runs = finished(done)
  seeds = [
    {seed for arm, seed in runs if arm == name} for name in (treated, control)
  ]
  return [
    log_speed(runs[treated, seed]["curve"], runs[control, seed]["curve"])
    for seed in sorted(seeds[0] & seeds[1])
  ]


# -------------------------------------------------------------------- verdicts


def verdicts(done: Results) -> list[Verdict]:
  """The README's claims."""
  psnr = lambda other: gap(done, "causal", other, "PSNR")
  fast = speeds(done, "causal", "finest")
  times = f"; {math.exp(np.mean(fast)):.2f} x" if fast else ""
  return [
    judged(
      "scales reconstruct better at equal E",
      "PSNR of causal minus finest, log2 rFD of finest minus causal above 0",
      {
        "PSNR": (psnr("finest"), 0.0),
        "log2 rFD": (gap(done, "finest", "causal", "log2 rFD"), 0.0),
      },
      control="as many blocks on the finest scale alone",
    ),
    judged(
      "scales converge faster",
      "ln of the speed of causal against finest above 0",
      {"ln speed": (fast, 0.0)},
      control="as many blocks on the finest scale alone",
      more=times,
    ),
    judged(
      "it is the order",
      "PSNR of causal minus full above 0",
      {"PSNR": (psnr("full"), 0.0)},
      control="the same scales with a full mask",
    ),
    judged(
      "control: it is not the FLOPs",
      "PSNR of causal minus deeper above 0",
      {"PSNR": (psnr("deeper"), 0.0)},
      control="one block more on the finest scale alone",
    ),
  ]


# ---------------------------------------------------------------------- report


def scores(done: Results) -> Table:
  """Every arm's scores, means over seeds."""
  rows, runs = [], finished(done)
  for arm in dict.fromkeys(name for name, _ in runs):
    mine = [run for (name, _), run in runs.items() if name == arm]
    mean = lambda key, mine=mine: float(
      np.mean([run["metrics"][key] for run in mine])
    )
    rows.append({
      "arm": arm, "rate": f"{mine[0]['law_variables']['lr']:g}",
      "seeds": len(mine), "PSNR": round(mean("eval/test/psnr"), 3),
      "SSIM": round(mean("eval/test/ssim"), 4),
      "rFD": round(mean("eval/test/rfd_random_conv"), 4),
      "rFD floor": round(mean("eval/test/rfd_random_conv_floor"), 4),
      "training TFLOPs": round(mean("flops") / 1e12, 3),
    })  # fmt: skip
  return Table(
    "Test scores, means over seeds",
    rows,
    None,
    "rFD is a Frechet distance in fixed random convolutions, no FID; its floor"
    " is that of two random halves of the originals.",
  )


def figures(done: Results) -> list[Figure]:
  """Validation error against steps, a line an arm."""
  marks: list[Mark] = []
  runs = finished(done)
  for arm in dict.fromkeys(name for name, _ in runs):
    curves = [run["curve"] for (name, _), run in runs.items() if name == arm]
    if not all(curves):
      continue
    x = [step for step, _ in curves[0]]
    cells = [[curve[i][1] for curve in curves] for i in range(len(x))]
    y, low, high = spread(cells)
    marks += [Line(arm, x, y), Points(arm, x[-1:], y[-1:], low[-1:], high[-1:])]
  if not marks:
    return []
  panel = Panel(Axis("step"), Axis("error on val", "log"), marks)
  text = "Means over seeds; intervals of the last step are 95 %, not paired."
  return [Figure("curves", "How fast errors fall", [panel], text)]


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`; runs have their `curve`."""
  expected = json.loads(Path(__file__).with_name("expected.json").read_text())
  published = Table("Published", expected["rows"], None, expected["source"])
  return {
    "title": "HieraTok: do coarse copies of the map make a better tokenizer?",
    "verdicts": verdicts(done),
    "tables": [scores(done), published],
    "figures": figures(done),
  }
