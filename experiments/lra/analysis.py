"""What the runs of lra show: mixers, self-pretraining, the size rule."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import Results, Runs, difference, finished, interval, judged
from vitscale.core.config import to_dict
from vitscale.core.log import read_json
from vitscale.data import sources
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Panel, Points
from vitscale.report.page import Table

GROUPS = ("batch_size", "data", "model", "task", "train", "optim")
ROOM = 1.1  # parameters of a mixer's model, in those of the base
BEGUN, FAR, NEAR = 0.05, 0.05, -0.03  # of accuracies
ACCURACY = "eval/test/accuracy"


# ------------------------------------------------------------------ readings


def accuracies(runs: Runs) -> dict[str, dict[int, float]]:
  """arm -> seed -> test accuracy; "TASK/masked" has none."""
  found: dict[str, dict[int, float]] = {}
  for (arm, seed), run in runs.items():
    if ACCURACY in run["metrics"]:
      found.setdefault(arm, {})[seed] = run["metrics"][ACCURACY]
  return found


def chance(config: Mapping[str, Any]) -> float:
  """Share of the most frequent label of a run's test data."""
  data = {k: v for k, v in to_dict(config["data"]).items() if k != "source"}
  data |= dict(config["evals"]["test"].get("data") or {})
  found = sources.make(config["data"]["source"], split="test", **data)
  return float(found.counts.max() / len(found))


def chances(runs: Runs, read: Any) -> dict[str, float]:
  """Task -> chance, of its base's config as `read(workdir)` gives it."""
  return {
    arm.partition("/")[0]: chance(read(run["workdir"]))
    for (arm, seed), run in runs.items()
    if arm.endswith("/softmax") and seed == min(s for a, s in runs if a == arm)
  }


def flops(runs: Runs, arm: str, seed: int) -> float:
  """Training FLOPs of a run, of pretraining too."""
  task, _, kind = arm.partition("/")
  own = runs[arm, seed]["law_variables"]["flops"]
  if kind != "spt":
    return own
  return own + runs[f"{task}/masked", seed]["law_variables"]["flops"]


# ------------------------------------------------------------------ verdicts


def begun(found, task: str, base: float) -> Verdict:
  """Whether the base is above chance: nothing else of a task means much."""
  above = [x - base for x in found.get(f"{task}/softmax", {}).values()]
  return judged(
    f"learning has begun on {task}",
    f"accuracy of softmax minus chance above {BEGUN}",
    {"": (above, BEGUN)},
    control=f"chance, the most frequent label, is {base:.3f}",
  )


def compared(
  found, claim: str, one: str, other: str, bar: float, control: str
) -> Verdict:
  """Whether accuracy of `one` minus that of `other` is above a bar."""
  values = difference(found.get(one, {}), found.get(other, {}))
  what = f"{one} minus {other}"
  return judged(
    claim, f"{what} above {bar:g}", {what: (values, bar)}, control=control
  )


def allowed(runs: Runs) -> Verdict:
  """Whether all that classify keep the arena's rule."""
  params = lambda key: runs[key]["law_variables"]["params"]
  base = lambda arm, seed: (f"{arm.partition('/')[0]}/softmax", seed)
  share = {
    key: params(key) / params(base(*key))
    for key in runs
    if base(*key) in runs and not key[0].endswith("/masked")
  }
  worst = max(share, key=share.__getitem__, default=None)
  return Verdict(
    "every model has at most 10 % more parameters than the base",
    "inconclusive" if worst is None
    else "supported" if share[worst] <= ROOM else "not supported",
    f"parameters at most {ROOM:g} times those of softmax",
    "nothing has run" if worst is None
    else f"at most {share[worst]:.3f} ({worst[0]})",
    "counted, not estimated",
    None if worst is None else share[worst],
  )  # fmt: skip


def verdicts(runs: Runs, base: Mapping[str, float]) -> list[Verdict]:
  """The README's claims."""
  found = accuracies(runs)
  return [
    *(begun(found, task, base.get(task, np.nan))
      for task in ("listops", "pathfinder")),
    *(
      compared(
        found, f"self-pretraining pays on {task}", f"{task}/spt",
        f"{task}/softmax", 0.0, "equal total FLOPs, same examples",
      )
      for task in ("listops", "pathfinder")
    ),
    compared(
      found, "softmax beats linear attention on listops", "listops/softmax",
      "listops/linear", FAR, "equal steps; published .20",
    ),
    compared(
      found, "softmax beats local attention on listops", "listops/softmax",
      "listops/window", FAR, "equal steps; published .21",
    ),
    compared(
      found, "linear attention loses nothing on pathfinder",
      "pathfinder/linear", "pathfinder/softmax", NEAR,
      "equal steps; published +.04",
    ),
    allowed(runs),
  ]  # fmt: skip


# -------------------------------------------------------------------- report


def table(runs: Runs, base: Mapping[str, float]) -> Table:
  """Accuracy, parameters and cost of every arm, means over seeds."""
  rows = []
  for arm, by_seed in accuracies(runs).items():
    values, seed = list(by_seed.values()), min(by_seed)
    ci = interval(values)
    task = arm.partition("/")[0]
    unit = runs.get((f"{task}/softmax", seed))
    rows.append(
      {
        "arm": arm,
        "test accuracy": round(float(np.mean(values)), 4),
        "95 %": ci and f"[{ci[0]:.3f}, {ci[1]:.3f}]",
        "chance": round(base.get(task, np.nan), 3),
        "params": runs[arm, seed]["law_variables"]["params"],
        "FLOPs of softmax": unit
        and round(flops(runs, arm, seed) / unit["law_variables"]["flops"], 3),
        "updates": runs[arm, seed]["metrics"]["step"],
      }
    )
  return Table("Test accuracy and training cost, pretraining included", rows)


def figure(runs: Runs) -> Figure:
  """Accuracy against training FLOPs, an arm a colour, a task a panel."""
  found, panels = accuracies(runs), []
  for task in ("listops", "pathfinder"):
    marks = []
    for arm, by_seed in found.items():
      if arm.partition("/")[0] != task:
        continue
      values = list(by_seed.values())
      mean = float(np.mean(values))
      low, high = interval(values) or (mean, mean)
      x = flops(runs, arm, min(by_seed)) / 1e9
      label = arm.partition("/")[2]
      marks.append(Points(label, [x], [mean], [low], [high]))
    if marks:
      axes = Axis("training GFLOPs", "log"), Axis("test accuracy")
      panels.append(Panel(*axes, marks, task))
  return Figure(
    "lra", "Accuracy by token mixer", panels,
    caption="Intervals are 95 % over seeds, not paired.",
  )  # fmt: skip


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  read = lambda workdir: read_json(Path(workdir) / "run.json")["config"]
  base = chances(runs, read)
  return {
    "title": "Token mixers on the Long Range Arena",
    "verdicts": verdicts(runs, base),
    "tables": [table(runs, base)],
    "figures": [figure(runs)],
  }
