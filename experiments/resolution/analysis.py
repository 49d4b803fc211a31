"""What the runs of resolution show: loss at every resolution, verdicts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import Results, Runs, difference, finished, judged, spread
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

POSITIONS = ("learned", "sincos2d", "glpe")
MAIN = "glpe"  # ResFormer's
TRAINED = (24, 16, 12)  # pixels a side, those of `multi` and `agree`
TESTED = (8, 12, 16, 20, 24, 28)
LOW, HIGH, UNSEEN = (8, 12, 16), (28,), (8, 20, 28)
FAR, WORSE = 0.1, -0.02  # nats


# ------------------------------------------------------------------ readings


def loss(run: Mapping[str, Any], size: int) -> float:
  return run["metrics"][f"eval/r{size}/nll"]


def at(runs: Runs, arm: str, sizes: Sequence[int]) -> dict[int, float]:
  """seed -> mean test loss of an arm over resolutions."""
  return {
    seed: float(np.mean([loss(run, size) for size in sizes]))
    for (name, seed), run in runs.items()
    if name == arm
  }


def own(runs: Runs) -> dict[int, float]:
  """seed -> mean test loss of the models of one resolution, each at its own."""
  each = [at(runs, f"own-{size}", [size]) for size in TRAINED]
  seeds = set.intersection(*map(set, each))
  return {seed: float(np.mean([x[seed] for x in each])) for seed in seeds}


# ------------------------------------------------------------------ verdicts


def verdicts(runs: Runs) -> list[Verdict]:
  """The README's claims."""

  def minus(one, other, sizes):
    return difference(at(runs, one, sizes), at(runs, other, sizes))

  def by_position(one, other, sizes):
    texts = [
      f"{p} {np.mean(values):.3f}"
      for p in POSITIONS
      if (values := minus(f"{one}-{p}", f"{other}-{p}", sizes))
    ]
    return ", ".join(texts)

  def judge(claim, threshold, values, bar=0.0, control=""):
    return judged(claim, threshold, {"": (values, bar)}, control=control)

  single, multi, agree = (f"{k}-{MAIN}" for k in ("single", "multi", "agree"))
  return [
    judge(
      "several resolutions help below the largest",
      f"single minus multi at 8, 12, 16 px above {FAR}",
      minus(single, multi, LOW), FAR, by_position("single", "multi", LOW),
    ),
    judge(
      "several resolutions help above the largest",
      "single minus multi at 28 px above 0",
      minus(single, multi, HIGH), 0.0, by_position("single", "multi", HIGH),
    ),
    judge(
      "consistency helps", "multi minus agree over all resolutions above 0",
      minus(multi, agree, TESTED), 0.0, by_position("multi", "agree", TESTED),
    ),
    judge(
      "GLPE carries over to resolutions never seen",
      "learned minus glpe, both agree, at 8, 20, 28 px above 0",
      minus("agree-learned", agree, UNSEEN), 0.0,
      "against sincos2d: "
      + _mean(minus("agree-sincos2d", agree, UNSEEN)),
    ),
    judge(
      "one training replaces one per resolution at their FLOPs",
      f"own minus agree at 24, 16, 12 px above {WORSE}",
      difference(own(runs), at(runs, agree, TRAINED)), WORSE,
    ),
  ]  # fmt: skip


def _mean(values: Sequence[float]) -> str:
  return f"{np.mean(values):.3f}" if len(values) else "none"


# -------------------------------------------------------------------- report


def losses(runs: Runs) -> Table:
  """Test loss of every arm at every resolution, and what it cost."""
  rows = []
  unit = [r["metrics"]["flops"] for (a, _), r in runs.items() if "single" in a]
  for arm in dict.fromkeys(arm for arm, _ in runs):
    mine = [run for (name, _), run in runs.items() if name == arm]
    flops = np.mean([run["metrics"]["flops"] for run in mine])
    row = {
      "arm": arm,
      "rate": f"{mine[0]['law_variables']['lr']:g}",
      "updates": mine[0]["metrics"]["step"],
      "FLOPs of single": round(float(flops / np.mean(unit)), 2) if unit else 0,
    }
    for size in TESTED:
      mean = np.mean([loss(run, size) for run in mine])
      row[f"{size} px"] = round(float(mean), 3)
    rows.append(row)
  return Table("Test loss (nats) at each resolution, means over seeds", rows)


def published(expected: Mapping[str, Any]) -> Table:
  """What was printed, for comparison of direction only."""
  rows = [
    {"model": name, **{f"{px} px": v for px, v in top1.items()}}
    for name, top1 in expected["top1"].items()
  ]
  return Table("Published: ImageNet top-1 %", rows, None, expected["source"])


def figures(runs: Runs) -> list[Figure]:
  """Loss against resolution at test, a panel per kind of position."""
  panels = []
  for position in POSITIONS:
    marks = []
    for kind in ("single", "multi", "agree"):
      found = [
        list(at(runs, f"{kind}-{position}", [s]).values()) for s in TESTED
      ]
      if not all(found):
        continue
      y, low, high = spread(found)
      marks += [Line(kind, TESTED, y), Points(kind, TESTED, y, low, high)]
    if marks:
      axes = Axis("pixels a side at test"), Axis("test loss (nats)", "log")
      panels.append(Panel(*axes, marks, position))
  return [
    Figure("resolutions", "One model at other resolutions", panels,
           "Single was trained at 24 px, the others at 24, 16 and 12 px, at"
           " equal FLOPs. Intervals are 95 % over seeds, not paired.",
           share_y=True)
  ] if panels else []  # fmt: skip


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  expected = json.loads(Path(__file__).with_name("expected.json").read_text())
  return {
    "title": "One model at other resolutions",
    "verdicts": verdicts(runs),
    "tables": [losses(runs), published(expected)],
    "figures": figures(runs),
  }
