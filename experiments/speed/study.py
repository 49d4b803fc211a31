"""Is a training step as fast as timm's on the same machine? See README.md.

Nothing here trains through the study's runs: contestants must have the machine
to themselves, so `analyse` times them in turns (vitscale/race) and judges.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.laws import Verdict
from vitscale.race import contest
from vitscale.race.contest import Case
from vitscale.report.figures import Axis, Figure, Level, Panel, Points
from vitscale.report.page import Table
from vitscale.study import Run

TINY = Case("tiny", 32, 8, 64, 2, 2, 16, classes=10, steps=2)
TI = Case("Ti/16", 224, 16, 192, 12, 3, 16, steps=2)
ONE = Case("1x1", 28, 1, 64, 4, 2, 8, channels=1, classes=10, steps=2)
GPU = {"dtype": "bfloat16", "device": "gpu", "steps": 20}

# name -> (cases, rounds)
SCALES: dict[str, tuple[tuple[Case, ...], int]] = {
  "smoke": ((TINY,), 3),
  "cpu": ((TI, ONE), 6),
  "gpu": (
    (
      Case("B/16", 224, 16, 768, 12, 12, 256, target=1.1, **GPU),
      Case("L/16", 224, 16, 1024, 24, 16, 128, target=1.15, **GPU),
    ),
    9,
  ),
}


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """None: the contest is part of the analysis."""
  del scale, done
  return []


def analyse(results: Mapping[str, Any], scale: str) -> dict[str, Any]:
  """Times every case; throughput, memory, ratios with intervals."""
  del results
  cases, rounds = SCALES[scale]
  missing = contest.missing_peers()
  names = ["vitscale", "control", "products", *([] if missing else ["timm"])]
  say = lambda text: print(text, file=sys.stderr, flush=True)
  rows, verdicts, panels = [], [], []
  for case in cases:
    entries = {name: (name, case) for name in names}
    found, errors = contest.contest(entries, rounds, say)
    rows += [row(case, name, found, errors) for name in names]
    reason = (
      f"{' and '.join(missing)} not installed: pip install 'vitscale[peers]'"
      if missing
      else errors.get("timm") or errors.get("vitscale", "")
    )
    verdicts.append(verdict(case, found, reason))
    panels.append(panel(case, found))
  return {
    "title": f"Training-step speed ({scale})",
    "text": "Throughput of a whole training step, contestants timed in turns on"
    " the same machine; ratios are of the two times in one round.",
    "verdicts": verdicts,
    "tables": [Table("Contest", rows)],
    "figures": [
      Figure("ratios", "Speed as a multiple of vitscale's own", panels)
    ],
    "files": {"speed.json": {"rows": rows}},
  }


def ratios(found: Mapping[str, Any], name: str) -> np.ndarray:
  """Per round: how much faster vitscale is than `name`."""
  ours, theirs = (
    np.array(found[n]["seconds"], float) for n in ("vitscale", name)
  )
  return theirs / ours


def row(case, name, found, errors) -> dict[str, Any]:
  if name not in found:
    return {"case": case.name, "contestant": name, "images/s": errors[name]}
  about, seconds = found[name]["about"], np.array(found[name]["seconds"])
  line = {
    "case": case.name,
    "contestant": name,
    "images/s": round(case.batch / float(np.median(seconds)), 2),
    "slowest": round(case.batch / float(seconds.max()), 2),
    "fastest": round(case.batch / float(seconds.min()), 2),
    "memory MB": round(about["memory"] / 1e6),
    "params": about["params"],
    "version": about["version"],
  }
  if "vitscale" in found:
    line["vitscale is faster by"] = round(
      float(np.median(ratios(found, name))), 3
    )
  return line


def verdict(case: Case, found: Mapping[str, Any], reason: str) -> Verdict:
  """The median ratio against the target, with its interval over rounds."""
  claim = f"{case.name}: at least {case.target:g} x timm's throughput"
  threshold = f"median ratio, 95 % interval over rounds, above {case.target:g}"
  if "timm" not in found or "vitscale" not in found:
    return Verdict(claim, "inconclusive", threshold, reason)
  each = ratios(found, "timm")
  mean = laws.difference(np.log(each), np.zeros_like(each))
  ci = (float(np.exp(mean.ci[0])), float(np.exp(mean.ci[1])))
  return Verdict(
    claim,
    laws.decide(ci, case.target),
    threshold,
    f"median {np.median(each):.2f} ({each.min():.2f} to {each.max():.2f}) over"
    f" {len(each)} rounds; geometric mean {np.exp(mean.mean):.2f}, 95 %"
    f" [{ci[0]:.2f}, {ci[1]:.2f}]",
    "control: the same step without its tricks",
    float(np.median(each)),
    ci,
  )


def panel(case: Case, found: Mapping[str, Any]) -> Panel:
  """One dot a round for each rival."""
  marks: list[Any] = [Level(1.0, "vitscale")]
  rivals = [name for name in found if name != "vitscale"]
  for at, name in enumerate(rivals):
    if "vitscale" in found:
      each = 1 / ratios(found, name)
      marks.append(Points(name, [at] * len(each), each))
  return Panel(
    Axis("", "category", names=rivals), Axis("speed"), marks, case.name
  )
