"""Arms of a study over seeds: what has run, differences by seed, verdicts.

A run of a study says in its law variables which `arm` and `seed` it is; pilots
are the arm "pilot", with their `lr`. Intervals are 95 % of Student's t over
seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.laws import intervals
from vitscale.laws.verdict import Answer, Direction, Verdict, all_of, decide

Results = Mapping[str, Mapping[str, Any]]  # of a study, by name
Runs = dict[tuple[str, int], Mapping[str, Any]]  # (arm, seed) -> result
Interval = tuple[float, float]


def best_rate(
  done: Results, metrics: str | Sequence[str] = "eval/val/nll", **facts: Any
) -> float | None:
  """The pilots' rate with the lowest loss; None before they ran.

  Args:
    done: results so far.
    metrics: of the last row, one or several, whose mean counts. A pilot that
      did not finish, or has no finite loss, has no say.
    facts: law variables of the pilots that are meant, for several families.
  """
  names, found = [metrics] if isinstance(metrics, str) else metrics, {}
  for run in done.values():
    mine = run["law_variables"]
    meant = all(mine.get(key) == value for key, value in facts.items())
    if mine.get("arm") != "pilot" or not meant or run["status"] != "finished":
      continue
    losses = [run["metrics"].get(name) for name in names]
    if all(loss is not None and math.isfinite(loss) for loss in losses):
      found[mine["lr"]] = sum(losses) / len(losses)
  return min(found, key=found.__getitem__) if found else None


def finished(done: Results) -> Runs:
  """(arm, seed) -> run, arm by arm; without pilots."""
  found = {
    (run["law_variables"]["arm"], run["law_variables"]["seed"]): run
    for run in done.values()
    if run["status"] == "finished"
    and run["law_variables"]["arm"] != "pilot"
  }  # fmt: skip
  return dict(sorted(found.items()))


def difference(
  one: Mapping[int, float], other: Mapping[int, float]
) -> list[float]:
  """`one` minus `other`, by the seeds that both have."""
  return [one[seed] - other[seed] for seed in sorted(set(one) & set(other))]


def interval(values: Sequence[float]) -> Interval | None:
  """Of the mean over seeds; None of fewer than two."""
  if len(values) < 2:
    return None
  return intervals.difference(list(values), [0.0] * len(values)).ci


def spread(
  cells: Sequence[Sequence[float]],
) -> tuple[list[float], list[float], list[float]]:
  """Means over seeds, and lows and highs of their intervals, for a figure.

  Of one seed low and high are the mean.
  """
  means = [float(np.mean(values)) for values in cells]
  bounds = [interval(v) or (m, m) for v, m in zip(cells, means)]
  return means, [low for low, _ in bounds], [high for _, high in bounds]


def said(name: str, values: Sequence[float], digits: int = 3) -> str:
  """`"S: 0.025 [0.007, 0.043]"`."""
  if not len(values):
    return f"{name} nothing was measured".strip()
  show, ci = lambda x: f"{x:.{digits}f}", interval(values)
  among = f"[{show(ci[0])}, {show(ci[1])}]" if ci else "of one seed"
  return f"{name} {show(np.mean(values))} {among}".strip()


def judged(
  claim: str,
  threshold: str,
  parts: Mapping[str, tuple[Sequence[float], float]],
  *,
  direction: Direction = "above",
  control: str = "",
  more: str = "",
  digits: int = 3,
) -> Verdict:
  """A verdict of values by seed that all have to lie beyond their bars.

  Args:
    claim, threshold, control: see `Verdict`.
    parts: name -> (values by seed, bar); the first is the verdict's value.
    direction: on which side of the bar.
    more: follows what was measured.
    digits: of the numbers said.
  """
  answers: dict[str, Answer] = {
    name: decide(interval(values), bar, direction)
    for name, (values, bar) in parts.items()
  }
  answer, _ = all_of(answers)
  first, _ = next(iter(parts.values()))
  texts = [said(name, values, digits) for name, (values, _) in parts.items()]
  return Verdict(
    claim,
    answer,
    threshold,
    "; ".join(texts) + more,
    control,
    float(np.mean(first)) if len(first) else None,
    interval(first),
  )
