"""What the runs of growth show: losses around each growth, costs, verdicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import Results, Runs, finished, interval, judged, said
from vitscale.core.log import read_json
from vitscale.laws.verdict import Answer, Verdict, all_of, decide
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

EXACT = ("grown", "grown-carry", "net2net", "hypercloning")
TOLERANCE, JUMP = 1e-4, 0.01  # nats
Growths = Mapping[tuple[str, int], tuple[float, float]]  # loss before, after


# ------------------------------------------------------------------ readings


def loss(run: Mapping[str, Any]) -> float:
  return run["metrics"]["eval/test/nll"]


def ancestry(runs: Runs, arm: str, seed: int) -> list[tuple[str, int]]:
  """The stages up to and including `arm`, first to last."""
  line = []
  while arm:
    line.insert(0, (arm, seed))
    arm = runs[arm, seed]["law_variables"]["parent"]
  return line


def flops(runs: Runs, arm: str, seed: int) -> float:
  """Training FLOPs of a stage and all before it."""
  return sum(
    runs[key]["law_variables"]["flops"] for key in ancestry(runs, arm, seed)
  )


def growths(runs: Runs) -> Growths:
  """(stage, seed) -> test loss of its parent, and its own before step 1."""
  found = {}
  for (arm, seed), run in sorted(runs.items()):
    if parent := run["law_variables"]["parent"]:
      before = runs[parent, seed]
      after = at_birth(run["workdir"], before["workdir"])
      found[arm, seed] = loss(before), after
  return found


def at_birth(workdir: str, parent: str) -> float:
  """Test loss of a grown run before its first step, from its parent."""
  from vitscale import train, warm_start

  config = read_json(Path(workdir) / "run.json")["config"]
  config["init"]["from"] = parent
  bench = train.reuse(config)
  return bench.evals["test"].run(warm_start.begin(bench))["nll"]


# ------------------------------------------------------------------ verdicts


def difference(runs: Runs, one: str, other: str) -> list[float]:
  """Test loss of `one` minus that of `other`, seed by seed."""
  seeds = sorted(s for arm, s in runs if arm == one and (other, s) in runs)
  return [loss(runs[one, s]) - loss(runs[other, s]) for s in seeds]


def compared(
  runs: Runs, claim: str, one: str, other: str, control: str
) -> Verdict:
  """Whether `one` minus `other` is above 0."""
  name = f"{one} minus {other}"
  parts = {name: (difference(runs, one, other), 0.0)}
  return judged(claim, f"{name} above 0", parts, control=control)


def kept(found: Growths) -> Verdict:
  """Whether exact growths change nothing and the rescaled one does."""
  gaps = {key: abs(after - before) for key, (before, after) in found.items()}
  exact = [gap for (arm, _), gap in gaps.items() if stem(arm) in EXACT]
  jumps = [gap for (arm, _), gap in gaps.items() if arm == "unfrozen-2"]
  ci = interval(jumps)
  answers: dict[str, Answer] = {"control": decide(ci, JUMP)}
  if exact:
    small = max(exact) <= TOLERANCE
    answers["exact"] = "supported" if small else "not supported"
  answer, _ = all_of(answers) if exact else ("inconclusive", "")
  return Verdict(
    "growing keeps the function",
    answer,
    f"|after - before| at most {TOLERANCE:g} nats in every exact growth, above"
    f" {JUMP:g} in the first of `unfrozen`",
    f"at most {max(exact):.1e} in {len(exact)} growths" if exact else "nothing",
    said("root of the current count:", jumps),
    max(exact, default=None),
  )


def stem(arm: str) -> str:
  """The arm a stage belongs to."""
  return arm.removesuffix("-2").removesuffix("-small")


def verdicts(runs: Runs, found: Growths) -> list[Verdict]:
  """The README's claims."""
  equal = "equal total FLOPs"
  return [
    kept(found),
    compared(
      runs, "growing beats training at size", "scratch", "grown", equal
    ),
    compared(
      runs, "the first stages are worth something", "scratch-short", "grown",
      "equal FLOPs of the last stage",
    ),
    compared(
      runs, "carrying the moments along is better", "grown", "grown-carry",
      "same batches and draws",
    ),
    compared(
      runs, "growing exactly is better", "unfrozen", "grown",
      "same batches and draws",
    ),
    compared(
      runs, "Net2Net beats training at size", "net2net-scratch", "net2net",
      equal,
    ),
    compared(
      runs, "HyperCloning beats training at size", "hypercloning-scratch",
      "hypercloning", equal,
    ),
  ]  # fmt: skip


# -------------------------------------------------------------------- report


def by_arm(runs: Runs) -> dict[str, list[int]]:
  """Stage -> seeds, in the order of the runs."""
  out: dict[str, list[int]] = {}
  for arm, seed in runs:
    out.setdefault(arm, []).append(seed)
  return out


def losses(runs: Runs) -> Table:
  """Loss and cost of every stage; FLOPs with all that came before."""
  arms = by_arm(runs)
  unit = flops(runs, "scratch", arms["scratch"][0]) if "scratch" in arms else 1
  rows = []
  for arm, seeds in arms.items():
    values = [loss(runs[arm, seed]) for seed in seeds]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    line = ancestry(runs, arm, seeds[0])
    rows.append(
      {
        "arm": arm,
        "test loss": round(float(np.mean(values)), 4),
        "sd": spread and round(spread, 4),
        "params": runs[arm, seeds[0]]["law_variables"]["params"],
        "GFLOPs": round(flops(runs, arm, seeds[0]) / 1e9, 2),
        "of scratch": round(flops(runs, arm, seeds[0]) / unit, 3),
        "updates": sum(runs[key]["metrics"]["step"] for key in line),
      }
    )
  return Table(
    "Test loss (nats) and training cost, stages before it included", rows
  )


def births(found: Growths) -> Table:
  """Loss around each growth, over seeds."""
  rows = []
  for arm in dict.fromkeys(arm for arm, _ in found):
    pairs = [pair for (name, _), pair in found.items() if name == arm]
    rows.append(
      {
        "stage": arm,
        "before": round(float(np.mean([a for a, _ in pairs])), 5),
        "after": round(float(np.mean([b for _, b in pairs])), 5),
        "largest gap": f"{max(abs(b - a) for a, b in pairs):.1e}",
      }
    )
  return Table("Test loss before and after growing", rows)


def figure(runs: Runs, found: Growths) -> Figure:
  """Loss against all FLOPs spent so far, an arm a colour."""
  arms, panels = by_arm(runs), []
  shown = {
    "Pattention": ("grown", "grown-carry", "unfrozen", "scratch",
                   "scratch-short"),
    "ViT": ("net2net", "net2net-scratch", "hypercloning",
            "hypercloning-scratch"),
  }  # fmt: skip
  mean = lambda values: float(np.mean(list(values)))
  for title, names in shown.items():
    marks: list[Any] = []
    for arm in names:
      if arm not in arms:
        continue
      seeds, x, y = arms[arm], [], []
      for stage, _ in ancestry(runs, arm, seeds[0]):
        if born := [found[stage, s][1] for s in seeds if (stage, s) in found]:
          x.append(x[-1])
          y.append(mean(born))
        x.append(flops(runs, stage, seeds[0]) / 1e9)
        y.append(mean(loss(runs[stage, s]) for s in seeds))
      ends = [loss(runs[arm, s]) for s in seeds]
      low, high = interval(ends) or (y[-1], y[-1])
      marks += [Line(arm, x, y), Points(arm, x[-1:], y[-1:], [low], [high])]
    if marks:
      axes = Axis("training GFLOPs so far", "log"), Axis("test loss (nats)")
      panels.append(Panel(*axes, marks, title))
  return Figure(
    "growth", "Grown and trained from scratch", panels,
    caption="Vertical: the loss jumps where a model grows. Intervals are 95 %"
    " over seeds, not paired.",
  )  # fmt: skip


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  found = growths(runs)
  return {
    "title": "Growing a model against training it at its size",
    "verdicts": verdicts(runs, found),
    "tables": [losses(runs), births(found)],
    "figures": [figure(runs, found)],
  }
