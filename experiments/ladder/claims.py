"""The claims of ladder's README, each judged from the runs alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws import Verdict
from vitscale.laws.envelope import Envelope
from vitscale.laws.isoflop import IsoFlop

LOSS = "eval/test/nll"
WIDE = 1.15  # a forecast of wider interval (high / low) says nothing
SURE = 0.5  # and so an exponent of wider interval
FIT_P, ORDER_P = 0.01, 0.05
SHUFFLES = 200
INTERIOR = 0.75  # share of levels whose valley must be bracketed

Results = Mapping[str, Any]
Rows = list[dict[str, Any]]


# -------------------------------------------------------------------- reading


def points(done: Results, *, held: bool = False) -> Rows:
  """One row per finished run, without pilots, in order of compute and size.

  N counts parameters without embeddings, D images, C the FLOPs that the bench
  counted; `level` is the C that was asked for, `curve` joins the runs of one
  size and seed.
  """
  rows = []
  for result in done.values():
    v, m = result["law_variables"], result["metrics"]
    if v["pilot"] or v["held"] != held or result["status"] != "finished":
      continue
    if m.get(LOSS):
      rows.append({
        "N": v["params_non_embedding"], "D": m["examples"], "C": m["flops"],
        "loss": m[LOSS], "level": v["C"], "width": v["width"], "lr": v["lr"],
        "seed": v["seed"], "curve": f"{v['width']}-{v['seed']}",
      })  # fmt: skip
  return sorted(rows, key=lambda r: (r["level"], r["N"], r["seed"]))


def price(rows: Sequence[Mapping[str, Any]]) -> float:
  """Counted FLOPs a parameter and image, geometric mean over runs."""
  logs = [math.log(r["C"] / r["N"] / r["D"]) for r in rows]
  return math.exp(np.mean(logs))


def number(x: float, digits: int = 3) -> str:
  return "-" if x is None or not math.isfinite(x) else f"{x:.{digits}f}"


def span(ci: tuple[float, float], digits: int = 3) -> str:
  return f"[{number(ci[0], digits)}, {number(ci[1], digits)}]"


# ----------------------------------------------------------------------- laws

LAW = "E + A/N^alpha + B/D^beta"
# Laws that should do worse: without a floor, of one variable alone.
RIVALS = {
  "without E": laws.chinchilla().pin(E=0.0),
  "N alone": laws.power_constant("N"),
  "D alone": laws.power_constant("D"),
  "C alone": laws.power_constant("C"),
}


def fits(rows: Rows) -> dict[str, laws.Fit]:
  """The law and its rivals, fitted to the same runs.

  Raises:
    UserError: too few runs for the law; rivals that can't be had are left out.
  """
  found = {LAW: laws.fit(laws.chinchilla(), rows)}
  for name, law in RIVALS.items():
    try:
      found[name] = laws.fit(law, rows, bootstrap=1000)
    except UserError:
      continue
  return found


def forecasts(found: Mapping[str, laws.Fit], held: Rows) -> Rows:
  """What each fit says about the held-out runs, and what came."""
  if not held:
    return []
  mean = {k: float(np.mean([r[k] for r in held])) for k in "NDC"}
  measured = float(np.exp(np.mean([np.log(r["loss"]) for r in held])))
  out = []
  for name, fit in found.items():
    at = {v: mean[v] for v in fit.law.variables}
    value = fit.predict(**at)
    ci = fit.predict_ci(runs=len(held), **at)
    inside = bool(ci[0] <= measured <= ci[1]) if np.isfinite(ci[0]) else None
    out.append({
      "law": name, "value": value, "ci": ci, "measured": measured,
      "error": math.log(measured / value), "inside": inside,
      "runs": len(held),
      "noise": fit.sigma / math.sqrt(len(held)), "rmse": fit.rmse_log,
    })  # fmt: skip
  return out


# ------------------------------------------------------------------- verdicts


def both(fit: laws.Fit) -> Verdict:
  """Claim 1."""
  ci = fit.ci()
  lows = {k: ci[k][0] for k in ("alpha", "beta")}
  if fit.degenerate or not all(map(math.isfinite, lows.values())):
    answer, why = "inconclusive", "; ".join(fit.degenerate) or "no interval"
  else:
    parts = {k: laws.decide(ci[k], 0.05) for k in lows}
    answer, why = laws.all_of(parts)
    if not math.isnan(fit.lack_of_fit) and fit.lack_of_fit <= FIT_P:
      answer = "inconclusive" if answer == "supported" else answer
      why += "; seeds scatter less than the runs do around the law"
  p = fit.params
  seen = "E = {:.3f} {}, alpha = {:.2f} {}, beta = {:.2f} {}".format(
    p["E"], span(ci["E"]), p["alpha"], span(ci["alpha"], 2), p["beta"],
    span(ci["beta"], 2),
  )  # fmt: skip
  return Verdict(
    f"loss falls with size and with data as {LAW}",
    answer,
    f"not degenerate, alpha and beta above .05, lack of fit p > {FIT_P}",
    f"{seen}; lack of fit p = {fit.lack_of_fit:.2g}; {why}",
    "losses shuffled within a level",
    p["alpha"],
    ci["alpha"],
  )


def shuffled(rows: Rows, fit: laws.Fit, seed: int = 0) -> Verdict:
  """Claim 2: does it matter which size a level's losses belong to?

  Whole cells change places within their level, all seeds of one together.
  """
  rng = np.random.default_rng(seed)
  level = np.array([r["level"] for r in rows])
  size = np.array([r["N"] for r in rows])
  ln_y = np.log([r["loss"] for r in rows])
  base = fit.rmse_log
  better = 0
  for _ in range(SHUFFLES):
    loss = ln_y.copy()
    for c in np.unique(level):
      here = np.unique(size[level == c])
      for n, other in zip(here, rng.permutation(here)):
        into = np.flatnonzero((level == c) & (size == n))
        source = ln_y[(level == c) & (size == other)]
        loss[into] = np.resize(source, len(into))
    table = [{**r, "loss": y} for r, y in zip(rows, np.exp(loss))]
    again = laws.fit(laws.chinchilla(), table, bootstrap=0)
    better += again.rmse_log <= base
  p = (1 + better) / (1 + SHUFFLES)
  return Verdict(
    "control: a law of shuffled sizes fits worse",
    "supported" if p < ORDER_P else "not supported",
    f"p < {ORDER_P} over {SHUFFLES} shuffles of the cells of each level",
    f"p = {p:.3f}; root mean square of ln residuals {base:.4f}",
    "the law on the runs as they are",
    p,
  )


def forecast(said: Rows) -> Verdict | None:
  """Claim 3."""
  mine = next((f for f in said if f["law"] == LAW), None)
  if mine is None:
    return None
  low, high = mine["ci"]
  answer = "inconclusive"
  if mine["inside"] is not None and mine["runs"] > 1 and high <= WIDE * low:
    answer = "supported" if mine["inside"] else "not supported"
  return Verdict(
    "the smaller runs forecast the largest",
    answer,
    f"inside the 95 % interval for the mean of its runs, high/low <= {WIDE}",
    f"measured {mine['measured']:.4f}, forecast {mine['value']:.4f}"
    f" {span(mine['ci'], 4)}, {math.expm1(mine['error']):+.1%}",
    "laws without E, of N, of D, of C alone",
    mine["value"],
    mine["ci"],
  )


def rivals(said: Rows) -> list[Verdict]:
  """Claim 4: laws that leave something out forecast worse."""
  mine = next((f for f in said if f["law"] == LAW), None)
  out = []
  for other in said if mine else ():
    if other is mine:
      continue
    excess = abs(other["error"]) - abs(mine["error"])
    half = 1.96 * mine["noise"]  # of the mean both are compared with
    ci = (excess - half, excess + half)
    answer = laws.decide(ci, 0.0)
    if answer == "supported" and other["inside"]:
      answer = "inconclusive"
    out.append(
      Verdict(
        f"control: a law {other['law']} forecasts worse",
        answer,
        "larger |ln error| by more than the noise of the mean, and outside of"
        " its own interval",
        f"{math.expm1(other['error']):+.1%} against"
        f" {math.expm1(mine['error']):+.1%}; own interval"
        f" {span(other['ci'], 4)}",
        LAW,
        excess,
        ci,
      )
    )
  return out


def valleys(found: IsoFlop | None) -> Verdict:
  """Claim 5."""
  claim = "each budget has a best size inside of the ladder"
  threshold = (
    f"parabola with its vertex inside at {INTERIOR:.0%} of levels or more"
  )
  if found is None or len(found.levels) < 3:
    return Verdict(claim, "inconclusive", threshold, "needs 3 levels")
  used = [v for v in found.levels if not v.why]
  share = len(used) / len(found.levels)
  seen = f"{len(used)} of {len(found.levels)} levels"
  seen += "".join(f"; {v.c:.3g}: {v.why}" for v in found.levels if v.why)
  answer = "supported" if share >= INTERIOR else "not supported"
  return Verdict(claim, answer, threshold, seen, "", share)


def exponents(
  one: Envelope | None, two: IsoFlop | None, three: laws.Fit
) -> dict[str, tuple[float, tuple[float, float]]]:
  """a of N* ~ C^a by each approach that gave one, with its interval."""
  out = {}
  for name, found in (("1 envelope", one), ("2 IsoFLOP", two)):
    if found is not None and found.n is not None:
      out[name] = found.n.exponent, found.n.ci()
  nan2 = (math.nan, math.nan)
  if "a" in three.derived:
    ci = nan2
    if three.interval and not three.degenerate:
      alpha, beta = three.draws["alpha"], three.draws["beta"]
      low, high = laws.intervals.percentile(
        beta / (alpha + beta), 0.95, three.dof
      )
      ci = float(low), float(high)
    out["3 L(N, D)"] = three.derived["a"], ci
  return out


def agree(found: Mapping[str, tuple[float, tuple[float, float]]]) -> Verdict:
  """Claim 6."""
  sure = {k: ci for k, (_, ci) in found.items() if 0 <= ci[1] - ci[0] <= SURE}
  apart = [
    f"{p} and {q}"
    for p in sure
    for q in sure
    if p < q and not (sure[p][0] <= sure[q][1] and sure[q][0] <= sure[p][1])
  ]
  answer = "not supported" if apart else "inconclusive"
  if not apart and len(sure) == 3:
    answer = "supported"
  seen = "; ".join(f"{k}: a = {a:.2f} {span(ci, 2)}"
                   for k, (a, ci) in found.items())  # fmt: skip
  if apart:
    seen += f"; apart: {', '.join(apart)}"
  return Verdict(
    "Approaches 1 to 3 agree on the exponent of N*(C)",
    answer,
    f"three intervals, none wider than {SURE}, every two overlap",
    seen or "no exponent",
  )
