"""What the runs of flexible_patch show: loss at every patch, verdicts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import Results, Runs, difference, finished, judged, spread
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table
from vitscale.workdir import curve

ONE, ALL = "flexi", "flexi-total"
WORSE, EQUAL_STEPS, BROKEN = -0.01, -0.05, 0.1  # nats

# ------------------------------------------------------------------ readings


def loss(run: Mapping[str, Any], patch: int) -> float:
  return run["metrics"][f"eval/p{patch}/nll"]


def at(
  runs: Runs, arm: str, patches: Sequence[int], own: bool = False
) -> dict[int, float]:
  """seed -> mean test loss over patches, of an arm or of each patch's `own`."""
  seeds = {}
  for seed in sorted({seed for _, seed in runs}):
    keys = [(f"p{p}" if own else arm, seed) for p in patches]
    if all(key in runs for key in keys):
      each = [loss(runs[key], p) for key, p in zip(keys, patches)]
      seeds[seed] = float(np.mean(each))
  return seeds


def transferred(runs: Runs, patches: Sequence[int]) -> dict[int, float]:
  """seed -> how much worse plain models are at patches that are not theirs.

  Test loss minus that of `flexi` at the same patch, mean over all pairs.
  """
  found = {}
  for seed in sorted({seed for _, seed in runs}):
    pairs = [(p, q) for p in patches for q in patches if p != q]
    if all((arm, seed) in runs for arm in [f"p{p}" for p in patches] + [ONE]):
      found[seed] = float(np.mean([
        loss(runs[f"p{p}", seed], q) - loss(runs[ONE, seed], q)
        for p, q in pairs
      ]))  # fmt: skip
  return found


# ------------------------------------------------------------------ verdicts


def verdicts(runs: Runs, patches: Sequence[int]) -> list[Verdict]:
  """The README's claims."""
  own, last = at(runs, "", patches, own=True), patches[-1:]
  end = {arm: at(runs, arm, last) for arm in ("curriculum", "mixed")}
  scratch = at(runs, f"p{last[0]}", last)
  each = [
    np.mean(difference(at(runs, f"p{p}", [p]), at(runs, ALL, [p])) or [np.nan])
    for p in patches
  ]
  by_patch = ", ".join(f"{p}: {v:.3f}" for p, v in zip(patches, each))

  def one(claim, threshold, values, bar=0.0, control=""):
    return judged(claim, threshold, {"": (values, bar)}, control=control)

  return [
    one(
      "one training replaces one per patch at their FLOPs",
      f"loss of the separate minus flexi-total above {WORSE}",
      difference(own, at(runs, ALL, patches)), WORSE,
      f"by patch {by_patch}",
    ),
    one(
      "at equal steps a model of all patches is nearly as good at each",
      f"loss of the separate minus flexi above {EQUAL_STEPS}",
      difference(own, at(runs, ONE, patches)), EQUAL_STEPS,
      "each patch has a fifth of the updates",
    ),
    one(
      "a model of one patch fails at others",
      f"loss of the resized minus flexi above {BROKEN}",
      list(transferred(runs, patches).values()), BROKEN,
      "the same kernels, PI-resized",
    ),
    one(
      "large to small beats the smallest from scratch",
      f"p{last[0]} minus curriculum above 0, at equal FLOPs",
      difference(scratch, end["curriculum"]),
    ),
    one(
      "it is the order that helps", "mixed minus curriculum above 0",
      difference(end["mixed"], end["curriculum"]),
      control="the same patches as often, in random order; two-sided",
    ),
  ]  # fmt: skip


# -------------------------------------------------------------------- report


def by_arm(runs: Runs, patches: Sequence[int]) -> dict[str, list[int]]:
  """Arm -> seeds, those that ran: plain models from large to small first."""
  names = [*(f"p{p}" for p in patches), ONE, ALL, "curriculum", "mixed"]
  seeds = {arm: sorted(s for a, s in runs if a == arm) for arm in names}
  return {arm: some for arm, some in seeds.items() if some}


def losses(runs: Runs, patches: Sequence[int]) -> Table:
  """Test loss of every arm at every patch, and what it cost."""
  rows, smallest = [], f"p{patches[-1]}"
  unit = [r["metrics"]["flops"] for (a, _), r in runs.items() if a == smallest]
  for arm, seeds in by_arm(runs, patches).items():
    mine = [runs[arm, seed] for seed in seeds]
    flops = float(np.mean([run["metrics"]["flops"] for run in mine]))
    row = {
      "arm": arm,
      "rate": f"{mine[0]['law_variables']['lr']:g}",
      "updates": mine[0]["metrics"]["step"],
      f"FLOPs of {smallest}": round(flops / np.mean(unit), 2) if unit else None,
    }
    for p in patches:
      row[f"at {p}"] = round(float(np.mean([loss(r, p) for r in mine])), 3)
    rows.append(row)
  return Table("Test loss (nats) at each patch, means over seeds", rows)


def published(expected: Mapping[str, Any]) -> Table:
  """What was printed elsewhere, for comparison of direction only."""
  rows = [
    {"model": name, **{f"p = {p}": v for p, v in top1.items()}}
    for name, top1 in expected["top1"].items()
  ]
  return Table("Published: ImageNet top-1 %", rows, None, expected["source"])


def figures(runs: Runs, patches: Sequence[int]) -> list[Figure]:
  """Loss at each patch; loss against FLOPs on the way to the smallest."""
  arms, marks = by_arm(runs, patches), []
  shown = {
    "one per patch": None, "all, equal steps": ONE, "all, total": ALL,
    "one at other patches": f"p{patches[len(patches) // 2]}",
  }  # fmt: skip
  for label, arm in shown.items():
    found = [
      list(at(runs, arm or "", [p], own=arm is None).values()) for p in patches
    ]
    if not all(found):
      continue
    y, low, high = spread(found)
    marks += [Line(label, patches, y), Points(label, patches, y, low, high)]
  made = []
  if marks:
    axes = (
      Axis("patch at test", "log2", ticks=patches),
      Axis("test loss (nats)"),
    )
    made.append(
      Figure("patches", "One model for every patch", [Panel(*axes, marks)],
             "Intervals are 95 % over seeds, not paired.")
    )  # fmt: skip
  key, lines = f"eval/p{patches[-1]}/nll", []
  for arm in (f"p{patches[-1]}", "curriculum", "mixed"):
    curves = [curve(runs[arm, s]["workdir"], key) for s in arms.get(arm, [])]
    if curves := [c for c in curves if c["step"]]:
      x = np.mean([c["flops"] for c in curves], 0)
      lines.append(Line(arm, x, np.mean([c[key] for c in curves], 0)))
  if lines:
    axes = Axis("training FLOPs"), Axis(f"test loss at {patches[-1]} px", "log")
    made.append(
      Figure("curriculum", "Large to small, and the smallest from scratch",
             [Panel(*axes, lines)],
             "FLOPs are of the patches really drawn; means over seeds. Only"
             " the ends are compared: rates still decay before.")
    )  # fmt: skip
  return made


def analyse(done: Results, patches: Sequence[int]) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  expected = json.loads(Path(__file__).with_name("expected.json").read_text())
  return {
    "title": "One model for every patch size",
    "verdicts": verdicts(runs, patches),
    "tables": [losses(runs, patches), published(expected)],
    "figures": figures(runs, patches),
  }
