"""Verdicts of the study; thresholds as in README.md."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.laws import Verdict

NAMES = ("A", "B", "E", "alpha", "beta")
FIT, DRAWS = 0.010, 1.5  # seconds, warm, on two cores
P = 1e-6  # below it a set of parameters is rejected


def off(value: float, wanted: float) -> float:
  """Relative distance."""
  return abs(value / wanted - 1)


def verdict(good: bool) -> str:
  return "supported" if good else "not supported"


def optimum(fit: Any, wanted: Mapping[str, float], n: int) -> Verdict:
  """Objective and parameters of one fit against its oracle."""
  objective = off(fit.objective, wanted["objective"])
  worst = max(NAMES, key=lambda k: off(fit.params[k], wanted[k]))
  far = off(fit.params[worst], wanted[worst])
  good = objective <= 1e-9 and far <= 1e-4
  return Verdict(
    f"the {fit.objective_name} optimum of the points is found",
    "inconclusive" if fit.n != n else verdict(good),
    f"objective within 1e-9, parameters within 1e-4, relative; {n} points",
    f"objective {fit.objective:.12g}, off by {objective:.1g}; farthest"
    f" parameter {worst}, off by {far:.1g}; {fit.n} points",
    value=objective,
  )


def replication(fit: Any, epoch: Mapping[str, Any], n: int) -> Verdict:
  """Five standard errors and ten bounds of the bootstrap."""
  se, ci = fit.se(), fit.ci()
  gaps = {f"SE of {k}": off(se[k], epoch["se"][k]) for k in NAMES}
  ends = {
    f"{side} end of {k}": off(ci[k][i], epoch["ci95"][k][i])
    for k in NAMES
    for i, side in enumerate(("lower", "upper"))
  }
  worst, end = max(gaps, key=gaps.get), max(ends, key=ends.get)
  good = gaps[worst] <= 1e-3 and ends[end] <= 4e-3
  whole = fit.n == n and len(fit.draws["A"]) == epoch["draws"]
  return Verdict(
    "the published standard errors and intervals are found",
    verdict(good) if whole else "inconclusive",
    "five SE within .1 %, ten bounds within .4 %;"
    f" {epoch['draws']} draws, {n} points",
    f"worst: {worst}, {100 * gaps[worst]:.2g} %; {end},"
    f" {100 * ends[end]:.2g} %; {len(fit.draws['A'])} draws",
  )


def rejected(
  chi2: tuple[float, float],
  likelihood: tuple[float, float],
  epoch: Mapping[str, Any],
) -> Verdict:
  """Hoffmann et al.'s parameters on their own points, by two tests."""
  good = chi2[1] < P and likelihood[1] < P
  weak = chi2[1] > 0.05 and likelihood[1] > 0.05
  answer = "inconclusive" if not (good or weak) else verdict(good)
  wanted = epoch["chi2"], epoch["likelihood ratio"]
  return Verdict(
    "the parameters that Hoffmann et al. printed do not fit these points",
    answer,
    f"both tests: p < {P:g} (both p > .05: not supported)",
    f"chi2(5) = {chi2[0]:.2f} (p = {chi2[1]:.1e}), published {wanted[0]:.2f};"
    f" likelihood ratio {likelihood[0]:.2f} (p = {likelihood[1]:.1e}),"
    f" published {wanted[1]:.2f}",
    "the TeX source's digits, not the rounded ones",
    likelihood[0],
  )


def twenty(found: Any, hoffmann: float, used: float, compute: float) -> Verdict:
  """D/N of Chinchilla's budget: what was trained in, what was printed out."""
  low, high = found.ci["tokens_per_param"]
  ci = None if math.isnan(low) else (low, high)
  holds = lambda v: ci is not None and low <= v <= high
  if ci is None:
    answer = "inconclusive"
  else:
    answer = verdict(holds(used) and not holds(hoffmann))
  return Verdict(
    f"at C = {compute:.3g} the points agree with the {used:g} tokens a"
    " parameter that Chinchilla was trained with, and not with the printed fit",
    answer,
    f"95 % interval of D/N holds {used:g} and not Hoffmann's {hoffmann:.1f}",
    f"D/N = {found.tokens_per_param:.2f} [{low:.2f}, {high:.2f}]",
    value=found.tokens_per_param,
    ci=ci,
  )


def repeated(
  found: Mapping[str, float] | None, wanted: Mapping[str, Any]
) -> Verdict:
  """Muennighoff et al.'s law at their parameters."""
  claim = "the law of repeated data gives its published R2 and objective"
  threshold = "both within 1e-7; 182 points"
  if found is None:
    text = "datablations_points_cell26.csv is not beside the points"
    return Verdict(claim, "inconclusive", threshold, text)
  good = all(abs(found[k] - wanted[k]) <= 1e-7 for k in ("r2", "huber"))
  text = f"R2 {found['r2']:.7f}, sum {found['huber']:.7f}, {found['n']} points"
  answer = "inconclusive" if found["n"] != 182 else verdict(good)
  return Verdict(claim, answer, threshold, text, value=found["r2"])


def quick(fit: Sequence[float], draws: Sequence[float], of: int) -> Verdict:
  """Seconds by round of one fit and of the draws, against the bars."""
  parts, texts = {}, []
  for name, each, bar in (("fit", fit, FIT), ("draws", draws, DRAWS)):
    ends = (min(each), max(each)) if each else None
    parts[name] = laws.decide(ends, bar, "below")
    if each:
      texts.append(
        f"{name} {np.median(each):.4f} s ({ends[0]:.4f} to {ends[1]:.4f})"
      )
  answer, _ = laws.all_of(parts)
  if of != 4000:
    answer = "inconclusive"
  return Verdict(
    "one fit takes less than 10 ms and 4000 draws less than 1.5 s",
    answer,
    "every round below (warm, `Fit.seconds`, two cores); every round of either"
    " above: not supported",
    f"{', '.join(texts) or 'not timed'}; {of} draws",
  )


def faster(
  name: str,
  theirs: Mapping[str, Any],
  ours: Mapping[str, Any],
  bar: float,
  quality: tuple[bool, str, str],
  *,
  whole: bool,
) -> Verdict:
  """A peer's time over ours, at a result that is no worse.

  Args:
    theirs, ours: lines of the race.
    quality: whether ours is no worse; the rule; what was measured.
    whole: a smaller job than the claim's decides nothing.
  """
  good, rule, seen = quality
  claim = f"{theirs['entry'].kind}: at least {bar:g} x quicker than {name}"
  threshold = (
    f"95 % interval of the ratio of times over rounds above {bar:g}, and {rule}"
  )
  why = theirs.get("error") or ours.get("error")
  if why or not whole:
    reason = why or "not at this scale"
    return Verdict(claim, "inconclusive", threshold, reason)
  middle, ci = ratio(theirs["seconds"], ours["seconds"])
  answer = laws.decide(ci, bar) if good else "not supported"
  return Verdict(
    claim,
    answer,
    threshold,
    f"{middle:.3g} x [{ci[0]:.3g}, {ci[1]:.3g}]; {seen}",
    "same points, same machine, in turns",
    middle,
    ci,
  )


def ratio(
  theirs: Sequence[float], ours: Sequence[float]
) -> tuple[float, tuple[float, float]]:
  """Median and t interval (of logs) of theirs / ours by round.

  A single time of theirs stands for every round.
  """
  n = len(ours) if len(theirs) == 1 else min(len(theirs), len(ours))
  each = np.broadcast_to(theirs[:n], n) / np.asarray(ours[:n])
  mean = laws.difference(np.log(each), np.zeros(n))
  return float(np.median(each)), tuple(float(np.exp(v)) for v in mean.ci)
