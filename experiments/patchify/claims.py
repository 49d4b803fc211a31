"""The claims of patchify's README, each judged from the runs alone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.laws import Verdict

LOSS = "eval/test/nll"
FLAT, EQUAL, WIDE = 0.02, 0.05, 1.5
CHANCE = {"fashion": math.log(10), "upsampled": math.log(10)}  # else 4 classes

Results = Mapping[str, Any]


# -------------------------------------------------------------------- reading


def cells(done: Results, arm: str, *, half: bool = False) -> dict[int, dict]:
  """patch -> {seed: result} of the finished runs of an arm, largest first."""
  found: dict[int, dict] = {}
  for result in done.values():
    v = result["law_variables"]
    if v["arm"] != arm or v["pilot"] or v["half"] != half:
      continue
    if result["status"] == "finished" and result["metrics"].get(LOSS):
      found.setdefault(v["patch_size"], {})[v["seed"]] = result
  return dict(sorted(found.items(), reverse=True))


def losses(done: Results, arm: str, patch: int, *, half: bool = False):
  """{seed: test loss} of one cell."""
  cell = cells(done, arm, half=half).get(patch, {})
  return {seed: r["metrics"][LOSS] for seed, r in cell.items()}


def log_ratio(a: Mapping[int, float], b: Mapping[int, float]):
  """Difference of log losses a - b over the seeds both have; None if none."""
  seeds = sorted(set(a) & set(b))
  if not seeds:
    return None
  both = ([math.log(x[s]) for s in seeds] for x in (a, b))
  return laws.difference(*map(np.array, both))


def points(done: Results, arm: str) -> list[dict[str, Any]]:
  return [
    {"p": patch, "loss": r["metrics"][LOSS], "run": r["name"]}
    for patch, cell in cells(done, arm).items()
    for r in cell.values()
  ]


def number(x: float, digits: int = 3) -> str:
  return "-" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def span(ci: tuple[float, float], digits: int = 3) -> str:
  return f"[{number(ci[0], digits)}, {number(ci[1], digits)}]"


# ----------------------------------------------------------- laws and verdicts


def gains(done: Results, arm: str) -> dict[int, Any]:
  """patch -> what doubling the steps gained (claim 2)."""
  found = {}
  for patch in cells(done, arm):
    full, half = losses(done, arm, patch), losses(done, arm, patch, half=True)
    seeds = sorted(set(full) & set(half))
    if seeds:
      gain = laws.gain_from_doubling(
        np.array([half[s] for s in seeds]),
        np.array([full[s] for s in seeds]),
        tolerance=FLAT,
      )
      if not begun(full, arm):
        gain = dataclasses.replace(gain, flattened=False)
      found[patch] = gain
  return found


def begun(found: Mapping[int, float], arm: str) -> bool:
  """Whether a cell has left the loss of guessing, by 5 % at least.

  A plateau at chance is a run that has not begun to learn, not one that has
  learnt what it can.
  """
  chance = CHANCE.get(arm, math.log(4))
  return bool(np.mean(list(found.values())) < (1 - EQUAL) * chance)


def all_flat(done: Results, arm: str) -> bool:
  """Whether every patch of an arm has flattened (claim 2)."""
  found = gains(done, arm)
  return bool(found) and all(g.flattened for g in found.values())


def falls(done: Results, arm: str) -> Verdict:
  """Claim 1."""
  by_patch = {p: losses(done, arm, p) for p in cells(done, arm)}
  threshold = "Page p < .05 and ln L(largest) - ln L(smallest) above 0"
  claim = f"{arm}: test loss falls as the patch shrinks"
  seeds = sorted(set.intersection(*(set(v) for v in by_patch.values())))
  if len(seeds) < 2 or len(by_patch) < 3:
    return Verdict(claim, "inconclusive", threshold, "needs 2 seeds, 3 patches")
  table = np.array([[by_patch[p][s] for p in by_patch] for s in seeds])
  trend = laws.page_trend(table, direction="decreasing")
  ends = log_ratio(by_patch[max(by_patch)], by_patch[min(by_patch)])
  gain = gains(done, arm).get(min(by_patch))
  flat = gain is not None and gain.flattened
  if trend.p < 0.05 and laws.decide(ends.ci, 0.0) == "supported":
    answer = "supported"
  else:
    answer = "not supported" if flat else "inconclusive"
  seen = f"Page p = {trend.p:.2g}; difference {ends.mean:.3f} {span(ends.ci)}"
  if gain is not None and not flat:
    seen += f"; p = {min(by_patch)} still gains {gain.value:.1%} from doubling"
  return Verdict(
    claim, answer, threshold, seen, "longer, permuted", ends.mean, ends.ci
  )


def law(done: Results, arm: str, fit: laws.Fit) -> Verdict:
  """Claim 3."""
  low, high = fit.ci()["a"]
  trained = all_flat(done, arm)
  misfit, fits = fit.lack_of_fit <= 0.01, fit.lack_of_fit > 0.01  # or NaN
  if not fit.degenerate and low > 0 and fits:
    answer = "supported"
  elif trained and (high < 0 or misfit):
    answer = "not supported"
  else:
    answer = "inconclusive"
  p = fit.params
  seen = (
    f"L0 = {p['L0']:.3f}, c = {p['c']:.3g}, a = {p['a']:.2f}"
    f" {span((low, high), 2)}; lack of fit p = {fit.lack_of_fit:.2g}"
  )
  if fit.degenerate:
    seen += f"; {fit.degenerate[0]}"
  return Verdict(
    f"{arm}: L = L0 + c p^a describes the losses",
    answer,
    "not degenerate, a > 0, lack of fit p > .01",
    seen,
    "pure power law",
    p["a"],
    (low, high),
  )


def forecast(done: Results, arm: str) -> Verdict | None:
  """Claim 4."""
  rows = points(done, arm)
  if len({r["p"] for r in rows}) < 4:
    return None
  check = laws.forecast(
    laws.power_constant("p", exponent=(-5, 5)), rows, groups="run"
  )
  low, high = check.ci
  answer = "inconclusive"  # one run says nothing about run-to-run noise
  if check.runs > 1 and check.inside is not None and high <= WIDE * low:
    trained = all_flat(done, arm)
    answer = "supported" if check.inside else "not supported"
    if not check.inside and not trained:
      answer = "inconclusive"
  return Verdict(
    f"{arm}: larger patches forecast p = {check.at:g}",
    answer,
    "inside the 95 % prediction interval, at most a factor 1.5 wide",
    f"measured {check.measured:.3f}, forecast {check.value:.3f}"
    f" {span(check.ci)}, {check.error:+.1%}",
    "",
    check.value,
    check.ci,
  )


def gain(arm_a, arm_b):
  """{seed: ln L(a) - ln L(b)}: what going from cell a to cell b gains."""
  return {
    seed: math.log(arm_a[seed] / arm_b[seed]) for seed in arm_a if seed in arm_b
  }


def share(part, whole, limit: float, direction: str):
  """Is `part` below (above) `limit` x `whole`? Judged without a ratio.

  Nothing is a share of a gain that isn't there: unless the interval of `whole`
  lies above 0, the answer is inconclusive.

  Returns:
    (answer, difference part - limit x whole, means of both as text), or None
    without seeds in common.
  """
  seeds = sorted(set(part) & set(whole))
  if not seeds:
    return None
  part, whole = (np.array([x[s] for s in seeds]) for x in (part, whole))
  excess = laws.difference(part, limit * whole)
  there = laws.difference(whole, np.zeros_like(whole))
  answer = "inconclusive"
  if laws.decide(there.ci, 0.0) == "supported":
    answer = laws.decide(excess.ci, 0.0, direction)
  text = f"{part.mean():+.3f} against {whole.mean():+.3f} in ln L"
  return answer, excess, text


def longer(done: Results) -> Verdict | None:
  """Claim 5: what tiling gains, as a share of what the patch gains."""
  patch = max(cells(done, "longer"), default=None)
  if patch is None:
    return None
  base = losses(done, "strokes", patch)
  judged = share(
    gain(base, losses(done, "longer", patch)),
    gain(base, losses(done, "strokes", patch // 2)),
    0.25,
    "below",
  )
  if judged is None:
    return None
  answer, excess, text = judged
  return Verdict(
    "control: a longer sequence at the same patch does not do it",
    answer,
    "gains less than a quarter of the smaller patch at equal tokens",
    f"p = {patch} tiled {text} for p = {patch // 2}; excess over a quarter"
    f" {span(excess.ci)}",
    f"strokes, p = {patch} and {patch // 2}",
    excess.mean,
    excess.ci,
  )


def permuted(done: Results) -> Verdict | None:
  """Claim 6."""
  found = cells(done, "permuted")
  if len(found) < 2:
    return None
  large, small = max(found), min(found)
  of = lambda arm, p: losses(done, arm, p)
  same = log_ratio(of("permuted", large), of("strokes", large))
  judged = share(
    gain(of("permuted", large), of("permuted", small)),
    gain(of("strokes", large), of("strokes", small)),
    0.5,
    "below",
  )
  if same is None or judged is None:
    return None
  less, excess, text = judged
  parts = {
    "unchanged at one token": laws.within(same.ci, EQUAL),
    "gains less than half": less,
  }
  answer, why = laws.all_of(parts)
  return Verdict(
    "control: the gain needs neighbourhoods (pixels permuted)",
    answer,
    "one token within 5 %, gain of the smaller patch less than half",
    f"p = {large}: {same.mean:+.3f} {span(same.ci)} in ln L; to p = {small}"
    f" gains {text} in order; {why}",
    "strokes in order",
    excess.mean,
    excess.ci,
  )


def upsampled(done: Results) -> Verdict | None:
  """Claim 7."""
  change = log_ratio(losses(done, "upsampled", 2), losses(done, "upsampled", 1))
  if change is None:
    return None
  answer = laws.within(change.ci, EQUAL)
  flat = gains(done, "upsampled")
  trained = all(p in flat and flat[p].flattened for p in (2, 1))
  if answer == "not supported" and not trained:
    answer = "inconclusive"  # the difference may be one of training
  return Verdict(
    "control: no detail below 2 px, no gain below p = 2 (upsampled)",
    answer,
    "ln L(p=2) - ln L(p=1) within 5 %",
    f"{change.mean:+.3f} {span(change.ci)}; both flattened: {trained}",
    "fashion at its own resolution",
    change.mean,
    change.ci,
  )


def learned(done: Results) -> Verdict | None:
  """Claim 8."""
  both = sorted(set(cells(done, "learned")) & set(cells(done, "strokes")))
  if len(both) < 2:
    return None
  each = lambda arm: gain(
    losses(done, arm, both[-1]), losses(done, arm, both[0])
  )
  judged = share(each("strokes"), each("learned"), 0.8, "above")
  if judged is None:
    return None
  answer, excess, text = judged
  return Verdict(
    "control: the gain is not bought by position parameters",
    answer,
    "gain with sines at least 80 % of the gain with a learned table",
    f"sines {text} for the table, from p = {both[-1]} to {both[0]}",
    "learned positions",
    excess.mean,
    excess.ci,
  )
