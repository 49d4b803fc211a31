"""Verdicts of the study; thresholds as in README.md."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.laws import Verdict, decide, released
from vitscale.report.page import Table

Array = np.ndarray
CURVES = 92  # of the whole benchmark
LEAST = 50  # control curves that can decide
METHODS = tuple(released.METHODS)


def agrees(value: float, text: str) -> bool:
  """Within 1 % or two units of the last digit that `text` prints."""
  digits, _, exponent = text.partition("e")
  unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
  wanted = float(text)
  return abs(value - wanted) <= max(0.01 * wanted, 2 * unit)


def title(name: str) -> str:
  """The tables' name of a curve: the model, the task, or both."""
  domain, task, model = name.split(" / ")
  return {"IC": f"{task} {model}", "BB": task}.get(domain, model)


def _tally(
  claim: str, threshold: str, misses: Mapping[str, str], seen: int, of: int
) -> Verdict:
  """All agree, some don't, or not all were there to see."""
  answer = "supported" if not misses else "not supported"
  if seen < of and not misses:
    answer = "inconclusive"
  text = f"{seen - len(misses)} of {of} agree"
  if seen < of:
    text += f", {of - seen} curves are not in the data"
  if misses:
    text += ": " + "; ".join(f"{k} {v}" for k, v in list(misses.items())[:4])
  return Verdict(claim, answer, threshold, text)


def printed(
  names: Sequence[str], found: Mapping[str, Array], expected: Mapping[str, Any]
) -> Verdict:
  """M1 to M3 against the paper's tables."""
  at = {title(n): i for i, n in enumerate(names)}
  odd = expected["rows that the released points cannot give"]
  rows = expected["printed RMSE of M1 to M4"]
  rows = {k: v for k, v in rows.items() if k not in odd}
  misses, seen = {}, 0
  for task, texts in rows.items():
    for method, text in zip(METHODS[:3], texts):
      if task in at:
        seen += 1
        value = float(found[method][at[task]])
        if not agrees(value, text):
          misses[f"{method} on {task}"] = f"{value:.3g}, printed {text}"
  return _tally(
    "M1 to M3 give the paper's printed errors",
    f"each of {3 * len(rows)} within 1 % or two units of the last digit;"
    f" {len(odd)} rows excepted beforehand",
    misses,
    seen,
    3 * len(rows),
  )


def rerun(
  names: Sequence[str], found: Mapping[str, Array], expected: Mapping[str, Any]
) -> Verdict:
  """M4 against the released code's output."""
  at = {title(n): i for i, n in enumerate(names)}
  rows = expected["rerun RMSE of M4"]
  here = {k: float(found["M4"][at[k]]) for k in rows if k in at}
  misses = {
    k: f"{v:.4g}, rerun {rows[k]}"
    for k, v in here.items()
    if not agrees(v, rows[k])
  }
  return _tally(
    "M4 behaves as its released code",
    "each error within 1 % or two units of the last digit of the rerun",
    misses,
    len(here),
    len(rows),
  )


def bar(auto: Array, expected: Mapping[str, Any]) -> Verdict:
  """The mean and geometric mean over the whole benchmark."""
  best = expected["best before"]
  each = np.where(np.isnan(auto), 1.0, auto)
  mean, gmean = float(each.mean()), math.exp(float(np.log(each).mean()))
  good = mean < best["mean"] and gmean < best["gmean"]
  answer = "supported" if good else "not supported"
  text = f"mean {mean:.4f}, geometric mean {gmean:.4f} over {len(each)} curves"
  return Verdict(
    "auto predicts the 92 curves better than any method measured before",
    answer if len(each) == CURVES else "inconclusive",
    f"mean < {best['mean']}, geometric mean < {best['gmean']:.4f}, {CURVES}"
    " curves",
    text,
    "auto was chosen with these curves in sight: see the other curves",
    mean,
  )


def better(pair: Any) -> Verdict:
  """The mean difference on the benchmark, families drawn."""
  answer = decide(pair.mean_ci, 0.0, "below")
  return Verdict(
    "auto errs less than M4 on the benchmark",
    answer if pair.curves == CURVES else "inconclusive",
    "95 % interval of the mean difference, families of curves drawn, below 0;"
    f" {CURVES} curves",
    _pair(pair),
    "auto was chosen with these curves in sight: see the other curves",
    pair.mean,
    pair.mean_ci,
  )


def controls(others: Mapping[str, Any]) -> list[Verdict]:
  """Against M4 and one break, on other curves."""
  threshold = (
    "95 % interval of the geometric mean of error ratios below 1 against M4"
    f" and against one break, {LEAST} curves at least"
  )
  if not others:
    return [
      Verdict(
        "auto is better on other curves",
        "inconclusive",
        threshold,
        "neither colpret.npz nor opt.csv is beside the benchmark",
      )
    ]
  out = []
  for name, other in others.items():
    pairs = {k: other["pairs"][k] for k in ("M4", "bnsl1")}
    answers = {decide(p.ratio_ci, 1.0, "below") for p in pairs.values()}
    worst = ("not supported", "inconclusive", "supported")
    answer = next(a for a in worst if a in answers)
    text = "; ".join(
      f"against {k} {interval(p.ratio, p.ratio_ci, '.3f')}"
      for k, p in pairs.items()
    )
    n = pairs["M4"].curves
    out.append(
      Verdict(
        f"auto is better on other curves: {name}",
        answer if n >= LEAST else "inconclusive",
        threshold,
        f"{n} curves: {text}",
        "the benchmark's own curves are left out; only OPT's are unseen",
        pairs["M4"].ratio,
        pairs["M4"].ratio_ci,
      )
    )
  return out


def interval(value: float, ci: tuple[float, float], form: str) -> str:
  """`0.881 [0.741, 1.032]`."""
  return f"{value:{form}} [{ci[0]:{form}}, {ci[1]:{form}}]"


def _pair(p: Any) -> str:
  return (
    f"{interval(p.mean, p.mean_ci, '+.4f')}, ratio"
    f" {interval(p.ratio, p.ratio_ci, '.3f')}, nearer in {100 * p.wins:.0f} %"
    f" of {p.curves} curves, {p.families} families"
  )


def paper_table(
  names: Sequence[str], found: Mapping[str, Array], expected: Mapping[str, Any]
) -> Table:
  """Printed and measured errors side by side."""
  odd = expected["rows that the released points cannot give"]
  again = expected["rerun RMSE of M4"]
  texts = expected["printed RMSE of M1 to M4"]
  rows = []
  for i, name in enumerate(names):
    task = title(name)
    if task not in texts and task not in again:
      continue
    row: dict[str, Any] = {"curve": task}
    for j, method in enumerate(METHODS):
      if task in texts:
        row[f"{method} printed"] = float(texts[task][j])
      row[method] = float(found[method][i])
    if task in again:
      row["M4 rerun"] = float(again[task])
    row["note"] = odd.get(task, "")
    rows.append(row)
  columns = ["curve"]
  for method in METHODS:
    columns += [f"{method} printed", method]
  return Table(
    "Errors printed by the paper and here",
    rows,
    [*columns, "M4 rerun", "note"],
    f"{expected['source']}.",
  )
