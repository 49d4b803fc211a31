"""How fast a tokenizer and a sampler are beside diffusers'. See README.md.

Nothing here trains: `analyse` times contestants in turns (vitscale/race).
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.laws import Verdict
from vitscale.race import contest
from vitscale.race.contest import Generation
from vitscale.report.figures import Axis, Figure, Level, Panel, Points
from vitscale.report.page import Table
from vitscale.study import Run

PEERS = ("torch", "diffusers")
OURS, THEIRS = "vitscale", "diffusers"
WHO = {OURS: "vitscale generation", THEIRS: "diffusers"}
GPU = {"dtype": "bfloat16", "device": "gpu"}

# name -> (cases, rounds)
SCALES: dict[str, tuple[tuple[Generation, ...], int]] = {
  "smoke": (
    (
      Generation("encode", "encode", 32, 1, tokenizer="mu/16"),
      Generation("sample", "sample", 4, 2, 32, 2, 2, denoise=4),
    ),
    3,
  ),
  "cpu": (
    (
      Generation("encode 256 px", "encode", 256, 2),
      Generation("decode 256 px", "decode", 256, 2),
      Generation("sample B/2, 16 x 16 x 4", "sample", 16, 1),
    ),
    3,
  ),
  "gpu": (
    (
      Generation("encode 256 px", "encode", 256, 64, steps=10, **GPU),
      Generation("decode 256 px", "decode", 256, 64, steps=10, **GPU),
      Generation("sample B/2, 32 x 32 x 4", "sample", 32, 32, **GPU),
    ),
    5,
  ),
}


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """None: the contest is part of the analysis."""
  del scale, done
  return []


def analyse(results: Mapping[str, Any], scale: str) -> dict[str, Any]:
  """Times every case; images a second, memory, ratios with intervals."""
  del results
  cases, rounds = SCALES[scale]
  missing = contest.missing_peers(PEERS)
  say = lambda text: print(text, file=sys.stderr, flush=True)
  rows, verdicts, panels = [], [], []
  for case in cases:
    entries = {
      name: (who, case)
      for name, who in WHO.items()
      if name == OURS or not missing
    }
    found, errors = contest.contest(entries, rounds, say)
    rows += [row(case, name, found, errors) for name in entries]
    reason = (
      f"{' and '.join(missing)} not installed: pip install 'vitscale[peers]'"
      if missing
      else "; ".join(errors.values())
    )
    verdicts.append(verdict(case, found, reason))
    if len(found) == len(WHO):
      panels.append(panel(case, found))
  figures = []
  if panels:
    title = "Speed as a multiple of diffusers'"
    figures = [Figure("ratios", title, panels)]
  return {
    "title": f"Speed of tokenizers and samplers ({scale})",
    "text": "Contestants are timed in turns on the same machine, random weights"
    " on both sides; ratios are of the two times in one round.",
    "verdicts": verdicts,
    "tables": [Table("Contest", rows)],
    "figures": figures,
    "files": {"speed.json": {"rows": rows}},
  }


def ratios(found: Mapping[str, Any]) -> np.ndarray:
  """Per round: how much faster vitscale is."""
  ours, theirs = (np.array(found[n]["seconds"]) for n in (OURS, THEIRS))
  return theirs / ours


def row(case, name, found, errors) -> dict[str, Any]:
  if name not in found:
    return {"case": case.name, "contestant": name, "images/s": errors[name]}
  about, seconds = found[name]["about"], np.array(found[name]["seconds"])
  return {
    "case": case.name,
    "contestant": name,
    "images/s": float(f"{case.batch / np.median(seconds):.3g}"),
    "slowest": float(f"{case.batch / seconds.max():.3g}"),
    "fastest": float(f"{case.batch / seconds.min():.3g}"),
    "memory MB": round(about["memory"] / 1e6),
    "params": about["params"],
    "version": about["version"],
  }


def verdict(case: Generation, found: Mapping[str, Any], reason: str) -> Verdict:
  """The geometric mean of the ratio, with its interval over rounds."""
  claim = f"{case.name}: at least {case.target:g} x diffusers' images a second"
  bar = f"ratio, 95 % interval over rounds, above {case.target:g}"
  if any(name not in found for name in WHO):
    return Verdict(claim, "inconclusive", bar, reason)
  each = ratios(found)
  mean = laws.difference(np.log(each), np.zeros_like(each))
  ci = (float(np.exp(mean.ci[0])), float(np.exp(mean.ci[1])))
  value = float(np.exp(mean.mean))
  text = f"{value:.2f} [{ci[0]:.2f}, {ci[1]:.2f}] over {len(each)} rounds"
  judged = laws.decide(ci, case.target)
  return Verdict(claim, judged, bar, text, "", value, ci)


def panel(case: Generation, found: Mapping[str, Any]) -> Panel:
  """One dot a round."""
  each = ratios(found)
  marks = [Level(1.0, THEIRS), Points(OURS, [0] * len(each), each)]
  at = Axis("", "category", names=[OURS])
  return Panel(at, Axis("speed"), marks, case.name)
