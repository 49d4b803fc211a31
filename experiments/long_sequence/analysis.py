"""Growth of time and memory with the number of tokens, and verdicts."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.core import accounting
from vitscale.laws import Verdict, expression
from vitscale.race.contest import Case
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

GROWTH, STEEP, TENTH, DEARER = 4.9, 8.0, 0.1, 1.25
WIDE = "heads of 128"  # arms that end so, against timm's heads of 64
WIDE_TARGETS = {50_176: 1.65}
FROM = 784  # tokens from which memory is the step's and not the program's
MFU, GIGABYTES = 0.45, 20e9


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a contest at one number of tokens found.

  Attributes:
    case: of all its contestants, up to what their arms change.
    times: by arm `seconds` per step and round, and `about`.
    errors: of those that failed.
  """

  case: Case
  times: Mapping[str, Mapping[str, Any]]
  errors: Mapping[str, str]

  def memory(self, arm: str) -> float:
    """Peak bytes per image."""
    return self.times[arm]["about"]["memory"] / self.case.batch

  def seconds(self, arm: str) -> np.ndarray:
    """(rounds,) per image."""
    return np.array(self.times[arm]["seconds"], float) / self.case.batch


Found = Mapping[int, Seen]  # by tokens


def ran(found: Found, *arms: str) -> list[int]:
  """Numbers of tokens at which all of these arms ran, rising."""
  return [n for n in sorted(found) if all(a in found[n].times for a in arms)]


def ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, tuple]:
  """Geometric mean over rounds of over / under, and its 95 % interval."""
  mean = laws.difference(np.log(over), np.log(under))
  low, high = (float(np.exp(x)) for x in mean.ci)
  return float(np.exp(mean.mean)), (low, high)


def judged(claim, threshold, over, under, bar, direction, more="") -> Verdict:
  """A ratio of times against a bar."""
  value, ci = ratio(over, under)
  return Verdict(
    claim,
    laws.decide(ci, bar, direction),
    threshold,
    f"{value:.3f} [{ci[0]:.3f}, {ci[1]:.3f}] over {len(over)} rounds{more}",
    "",
    value,
    ci,
  )


# --------------------------------------------------------------------- claims


def linear(found: Found) -> Verdict:
  """Claim 1."""
  claim = "memory of chunked attention is linear in the number of tokens"
  threshold = (
    f"each fourfold N at most {GROWTH} x from {FROM} tokens on; reference"
    f" more than {STEEP:g} x at its last"
  )

  def growths(arm):
    """(N, how often the memory of a quarter of N, to a fourfold N)."""
    at = [n for n in ran(found, arm) if n >= FROM]
    return {
      large: found[large].memory(arm) / found[small].memory(arm)
      for small, large in itertools.pairwise(at)
      if large == 4 * small
    }

  ours, control = growths("chunked"), growths("reference")
  if not ours or not control:
    return Verdict(claim, "inconclusive", threshold, "too few lengths ran")
  flat = max(ours.values()) <= GROWTH
  steep = control[max(control)] > STEEP
  say = lambda g: ", ".join(f"{x:.2f} to {n:,}" for n, x in g.items())
  return Verdict(
    claim,
    "not supported" if not flat else "supported" if steep else "inconclusive",
    threshold,
    f"chunked {say(ours)}; reference {say(control)}",
    "reference",
    max(ours.values()),
  )


def tenth(found: Found) -> Verdict:
  """Claim 2."""
  claim = "chunked attention needs a tenth of the memory of stored logits"
  threshold = "at the largest N that both ran"
  both = ran(found, "chunked", "reference")
  if not both or both[-1] < FROM:
    return Verdict(claim, "inconclusive", threshold, "no length was long")
  last = found[both[-1]]
  share = last.memory("chunked") / last.memory("reference")
  return Verdict(
    claim,
    "supported" if share <= TENTH else "not supported",
    threshold,
    f"{share:.3f} at {both[-1]:,} tokens"
    f" ({last.memory('chunked') / 1e6:.0f} MB an image)",
    "reference",
    share,
  )


def keeping(found: Found) -> Verdict:
  """Claim 3."""
  claim = "keeping attention is quicker than recomputing everything"
  threshold = f"ratio below 1, memory at most {DEARER} x, at the largest N"
  both = ran(found, "save_attention", "full")
  if not both:
    return Verdict(claim, "inconclusive", threshold, "nothing ran")
  last = found[both[-1]]
  dearer = last.memory("save_attention") / last.memory("full")
  found_ = judged(
    claim, threshold, last.seconds("save_attention"), last.seconds("full"),
    1.0, "below", f"; memory {dearer:.2f} x, at {both[-1]:,} tokens",
  )  # fmt: skip
  if found_.verdict == "supported" and dearer > DEARER:
    return dataclasses.replace(found_, verdict="not supported")
  return found_


def against_timm(found: Found, missing: list[str]) -> list[Verdict]:
  """Claim 4: one verdict a length, and one more for heads of 128."""
  verdicts = []
  for n in sorted(found):
    seen = found[n]
    ours = {a: seen.seconds(a) for a in seen.times if a != "timm"}
    wide = {a: each for a, each in ours.items() if a.endswith(WIDE)}
    same = {a: each for a, each in ours.items() if a not in wide}
    kinds = [(same, seen.case.target, "")]
    if wide:
      target = WIDE_TARGETS.get(n, seen.case.target)
      kinds.append((wide, target, f" with {WIDE}"))
    for arms, target, how in kinds:
      verdicts.append(_against(seen, n, arms, target, how, missing))
  return verdicts


def _against(seen, n, arms, target, how, missing) -> Verdict:
  claim = f"{n:,} tokens{how}: at least {target:g} x timm's images/s"
  threshold = f"95 % interval over rounds above {target:g}"
  nothing = lambda why: Verdict(claim, "inconclusive", threshold, why)
  if "timm" not in seen.times or not arms:
    why = f"{' and '.join(missing)} not installed" if missing else ""
    return nothing(why or seen.errors.get("timm", "nothing to compare"))
  # Picked on the first half of the rounds, judged on the others.
  half = len(seen.seconds("timm")) // 2
  if half < 1 or len(seen.seconds("timm")) - half < 2:
    return nothing("too few rounds to pick an arm and to judge it")
  best = min(arms, key=lambda a: np.median(arms[a][:half]))
  return judged(
    claim, threshold, seen.seconds("timm")[half:], arms[best][half:], target,
    "above", f", arm {best}",
  )  # fmt: skip


def on_gpus(found: Found) -> Verdict | None:
  """Claim 5."""
  seen = found.get(50_176)
  if seen is None or seen.case.device != "gpu":
    return None
  arms = [arm for arm in seen.times if arm != "timm"]
  claim, threshold = "pixels of 224 px run at 45 % MFU in 20 GB", "batch 2"
  if not arms:
    return Verdict(claim, "inconclusive", threshold, "nothing ran")
  best = min(arms, key=lambda arm: np.median(seen.seconds(arm)))
  about = seen.times[best]["about"]
  peak = accounting.peak_flops(about["device"])
  if peak is None:
    return Verdict(claim, "inconclusive", threshold, about["device"])
  used = about["flops"] / float(np.median(seen.seconds(best))) / peak
  good = used >= MFU and about["memory"] <= GIGABYTES
  return Verdict(
    claim,
    "supported" if good else "not supported",
    threshold,
    f"{best}: MFU {used:.1%}, {about['memory'] / 1e9:.1f} GB",
    "",
    used,
  )


# --------------------------------------------------------------------- report


def fitted(found: Found, arm: str) -> laws.Fit | None:
  """t = a N + b N^2 of an arm's seconds per image."""
  rows = [
    {"N": n, "loss": t} for n in ran(found, arm) for t in found[n].seconds(arm)
  ]
  if len({row["N"] for row in rows}) < 3:
    return None
  return laws.fit(expression.law("a*N + b*N^2", ("N",)), rows)


def table(found: Found) -> Table:
  rows = []
  for n in sorted(found):
    seen = found[n]
    for arm, one in seen.times.items():
      each, about = seen.seconds(arm), one["about"]
      rows.append(
        {
          "tokens": n,
          "arm": arm,
          "attention": ", ".join(about.get("attention", {})) or "-",
          "ms an image": round(1e3 * float(np.median(each)), 2),
          "tokens/s": round(n / float(np.median(each))),
          "MB an image": round(seen.memory(arm) / 1e6, 1),
          "batch": seen.case.batch,
          "version": about["version"],
        }
      )
    rows += [
      {"tokens": n, "arm": arm, "attention": text}
      for arm, text in seen.errors.items()
    ]
  return Table("Steps", rows)


def laws_table(found: Found, arms: list[str]) -> Table | None:
  """Where attention takes half of the time, and of the FLOPs."""
  rows = []
  for arm in arms:
    if (fit := fitted(found, arm)) is None:
      continue
    a, b = fit.params["a"], fit.params["b"]
    width = next(iter(found.values())).case.width
    half = a / b if a > 0 and b > 0 else math.nan
    rows.append(
      {
        "arm": arm, "a (us a token)": f"{1e6 * a:.3g}",
        "b (ns a pair)": f"{1e9 * b:.3g}",
        "half of the time": f"{half:,.0f}" if math.isfinite(half) else "-",
        "half of the FLOPs": f"{6 * width:,}",
      }
    )  # fmt: skip
  return Table("t = a N + b N^2", rows) if rows else None


def figure(found: Found, arms: list[str]) -> Figure:
  panels = []
  measures = (
    ("seconds an image", lambda s, arm: float(np.median(s.seconds(arm)))),
    ("peak bytes an image", lambda s, arm: s.memory(arm)),
  )
  for label, of in measures:
    marks: list[Any] = []
    for arm in arms:
      at = ran(found, arm)
      values = [of(found[n], arm) for n in at]
      marks += [Points(arm, at, values), Line(arm, at, values)]
    panels.append(Panel(Axis("tokens", "log"), Axis(label, "log"), marks))
  return Figure("growth", "Time and memory against tokens", panels)


def analyse(found: Found, scale: str, missing: list[str]) -> dict[str, Any]:
  """Verdicts, tables and the figure."""
  arms = list(dict.fromkeys(a for n in sorted(found) for a in found[n].times))
  verdicts = [linear(found), tenth(found), keeping(found)]
  verdicts += [*against_timm(found, missing), on_gpus(found)]
  raw = {
    str(n): {"times": dict(s.times), "errors": dict(s.errors)}
    for n, s in found.items()
  }
  tables = [table(found), laws_table(found, arms)]
  return {
    "title": f"Long sequences ({scale})",
    "text": "A training step on 1 x 1 patches, contestants timed in turns.",
    "verdicts": [v for v in verdicts if v is not None],
    "tables": [t for t in tables if t is not None],
    "figures": [figure(found, arms)],
    "files": {"times.json": raw},
  }
