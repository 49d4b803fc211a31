"""Goodput: where the wall-clock of a run went, over all its sessions.

A run writes its running totals (`spent`: category -> seconds) with each row of
timing.jsonl, with each start and stop in events.jsonl, and with each
checkpoint. They add up to the time since the run first started, so that the
last of them, of a session that stopped or was killed, says all there is to
know: what passed since then the run was down (after a kill with the seconds
since its last row, whose steps nobody has seen). What was done behind the
checkpoint that a run goes on from is lost.
"""

import datetime
import math
from collections.abc import Iterable, Mapping
from typing import Any

from vitscale.core.ledger import now

Spent = dict[str, float]

CATEGORIES: dict[str, str] = {
  "step": "steps that count: goodput",
  "data": "the devices had nothing to do, as the input was late",
  "evaluation": "held-out passes",
  "checkpoint": "the part of a save that the loop waits for",
  "compile": "tracing and compiling steps",
  "start": "building, restoring, measuring the ceiling",
  "profile": "starting and writing a trace",
  "lost": "work that was done again, dropped or rolled back",
  "down": "between two sessions",
}
WORK = ("step", "data", "evaluation", "checkpoint")  # redone after a kill
_PHASES = {"rollback": "lost"}


def category(phase: str) -> str:
  """Of a phase of the loop: `evaluation val` is "evaluation"."""
  word = phase.split()[0]
  return _PHASES.get(word, word)


def carry(
  rows: Iterable[Mapping[str, Any]],
  kept: Mapping[str, Any] | None,
  running: float,
) -> Spent:
  """Totals of a session that starts now, from what the earlier ones left.

  Args:
    rows: of timing.jsonl and events.jsonl, not yet cut back, and the manifest.
    kept: totals in the checkpoint that the run goes on from; {} when it begins
      anew, None when unknown.
    running: seconds since this session began.
  """
  rows = [row for row in rows if "spent" in row and "time" in row]
  if not rows:
    return dict.fromkeys(CATEGORIES, 0.0)
  last = max(rows, key=lambda row: sum(_complete(row["spent"]).values()))
  spent = _complete(last["spent"])
  parse = datetime.datetime.fromisoformat
  gap = (parse(now()) - parse(last["time"])).total_seconds()
  spent["down"] += max(gap - running, 0.0)
  return spent if kept is None else undo(spent, kept)


def undo(spent: Mapping[str, float], kept: Mapping[str, Any]) -> Spent:
  """`spent`, where the work since `kept` is lost."""
  spent, kept = _complete(spent), _complete(kept)
  for name in WORK:
    lost = max(spent[name] - kept[name], 0.0)
    spent[name] -= lost
    spent["lost"] += lost
  return spent


def _complete(spent: Mapping[str, Any]) -> Spent:
  return {name: float(spent.get(name) or 0.0) for name in CATEGORIES}


def share(spent: Mapping[str, float]) -> float:
  """Of the wall-clock since the first start: what went into steps."""
  return spent.get("step", 0.0) / max(sum(spent.values()), 1e-9)


def report(spent: Mapping[str, float], sessions: int) -> dict[str, Any]:
  """`goodput` of run.json: seconds and shares by category, largest first."""
  total = math.fsum(spent.values())
  by_size = sorted(spent.items(), key=lambda item: -item[1])
  return {
    "share": round(share(spent), 4),
    "sessions": sessions,
    "wall_clock": round(total, 3),
    "seconds": {k: round(v, 3) for k, v in by_size if v > 0},
    "shares": {k: round(v / max(total, 1e-9), 4) for k, v in by_size if v > 0},
  }
