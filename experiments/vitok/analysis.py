"""What the runs of vitok show: shares of variance, gaps in dB, verdicts."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import (
  Interval,
  Results,
  difference,
  finished,
  interval,
  said,
  spread,
)
from vitscale.core.config import load_module
from vitscale.laws.verdict import Answer, Verdict, all_of, decide, within
from vitscale.report.figures import Axis, Figure, Line, Mark, Panel, Points
from vitscale.report.page import Table

yardsticks = load_module(Path(__file__).with_name("yardsticks.py"))

E_BAR, P_BAR = 0.9, 0.05  # partial R2
GAP = 0.3  # dB between patches at equal E; also what shuffling must exceed
POWER = 0.14  # dB a doubling, the widest interval of a verdict on the grid
UNTRAINED = "; training may limit as much as E, see the last control"

Linear = Mapping[tuple[int, int], float]  # (patch, E) -> PSNR
Part = tuple[float, Interval | None]  # a number, and between which it lies

METRICS: dict[str, Callable[[Mapping[str, Any]], float]] = {
  "PSNR": lambda m: m["eval/scored/psnr"],
  "SSIM": lambda m: m["eval/scored/ssim"],
  "log2 rFD": lambda m: math.log2(max(m["eval/scored/rfd_random_conv"], 1e-9)),
}

# ------------------------------------------------------------------ readings


def of_kind(done: Results, kind: str) -> list[dict[str, Any]]:
  """A row a run: its law variables, and METRICS."""
  return [
    run["law_variables"]
    | {name: read(run["metrics"]) for name, read in METRICS.items()}
    for run in finished(done).values()
    if run["law_variables"]["kind"] == kind
  ]


def psnr(rows: Sequence[Mapping[str, Any]], **facts: Any) -> dict[int, float]:
  """seed -> PSNR of the arm that has these facts."""
  return {
    row["seed"]: row["PSNR"]
    for row in rows
    if all(row[key] == value for key, value in facts.items())
  }


def levels(rows: Sequence[Mapping[str, Any]], key: str) -> list[int]:
  return sorted({row[key] for row in rows})


# ------------------------------------------------------------------- verdicts


def ruled(
  claim: str,
  threshold: str,
  parts: Mapping[str, Part],
  rule: Callable[[Interval | None], Answer],
  control: str = "",
  digits: int = 3,
) -> Verdict:
  """A verdict of parts that all have to pass; the first gives the numbers."""
  answer, _ = all_of({name: rule(ci) for name, (_, ci) in parts.items()})
  if not parts:
    none = "nothing was measured at this scale"
    return Verdict(claim, answer, threshold, none, control)
  texts = []
  for name, (value, ci) in parts.items():
    among = (
      f"[{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]" if ci else "without interval"
    )
    texts.append(f"{name} {value:.{digits}f} {among}".strip())
  value, ci = next(iter(parts.values()))
  known = None if math.isnan(value) else float(value)
  return Verdict(claim, answer, threshold, "; ".join(texts), control, known, ci)


def over_seeds(values: Sequence[float]) -> Part:
  mean = float(np.mean(values)) if len(values) else math.nan
  return mean, interval(values)


def gaps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Part]:
  """PSNR of the largest patch minus that of each other, at each E."""
  found, patches = {}, levels(rows, "patch")
  for floats, small in itertools.product(levels(rows, "floats"), patches[:-1]):
    at = lambda p, e=floats: psnr(rows, patch=p, floats=e)
    values = difference(at(patches[-1]), at(small))
    if values:
      found[f"E {floats}, p {patches[-1]} - {small}"] = over_seeds(values)
  return found


def effects(
  rows: Sequence[Mapping[str, Any]],
) -> tuple[list[float], list[float]]:
  """Of encoder and of decoder, dB a doubling of its layers, by seed.

  Main effects of a 2 x 2 grid: each the mean over both sizes of the other half.
  """
  sizes = levels(rows, "encoder")
  if len(sizes) != 2:
    return [], []
  at = {
    (i, j): psnr(rows, encoder=a, decoder=b)
    for (i, a), (j, b) in itertools.product(enumerate(sizes), repeat=2)
  }
  seeds = sorted(set.intersection(*map(set, at.values())))
  doublings = math.log2(sizes[1] / sizes[0])
  found = [
    [
      sum((1 if cell[half] else -1) * at[cell][seed] for cell in at)
      / (2 * doublings)
      for seed in seeds
    ]
    for half in range(2)
  ]
  return found[0], found[1]


def decoder_rule(ci: Interval | None) -> Answer:
  """Above 0, and narrow enough to mean something."""
  if ci is None or ci[1] - ci[0] > POWER:
    return "inconclusive"
  return decide(ci, 0.0)


def shuffled_gaps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Part]:
  """PSNR of the largest patch minus the smallest, of shuffled pixels."""
  patches = levels(rows, "patch")
  if len(patches) < 2:
    return {}
  return {
    f"E {e}": over_seeds(
      difference(
        psnr(rows, patch=patches[-1], floats=e),
        psnr(rows, patch=patches[0], floats=e),
      )
    )
    for e in levels(rows, "floats")
  }


def beyond_linear(
  rows: Sequence[Mapping[str, Any]], linear: Linear
) -> dict[str, Part]:
  """PSNR minus that of PCA of the same patches with as many floats."""
  return {
    f"E {e}, p {p}": over_seeds(
      [v - linear[p, e] for v in psnr(rows, patch=p, floats=e).values()]
    )
    for p, e in itertools.product(levels(rows, "patch"), levels(rows, "floats"))
    if psnr(rows, patch=p, floats=e)
  }


def verdicts(done: Results, linear: Linear) -> list[Verdict]:
  """The README's claims."""
  cells, grid = of_kind(done, "cell"), of_kind(done, "grid")
  fits = {name: yardsticks.bootstrapped(cells, name) for name in METRICS}
  take = lambda key, names=tuple(METRICS): {
    name: fits[name][key] for name in names if fits[name]
  }
  encoder, decoder = effects(grid)
  sizes = f"{said('decoder', decoder)}, {said('encoder', encoder)}"
  noise = f"; standard deviation over seeds {_noise(grid):.3f} dB"
  apart = [d - e for d, e in zip(decoder, encoder)]
  whole = ", ".join(
    f"{name} {value:.3f}" for name, (value, _) in take("p of all").items()
  )
  trained = ruled(
    "control: the models are trained enough for E to be what limits them",
    "PSNR above that of PCA of the same patches, at equal E, in every cell",
    beyond_linear(cells, linear),
    lambda ci: decide(ci, 0.0),
  )
  # What the claims about E rest on.
  rest = "" if trained.verdict == "supported" else UNTRAINED
  return [
    ruled(
      "E predicts reconstruction",
      f"partial R2 of log2 E and its square, given p, above {E_BAR} for each",
      take("E"), lambda ci: decide(ci, E_BAR), rest[2:],
    ),
    ruled(
      "given E, the patch says nothing",
      f"partial R2 of p, given log2 E and its square, below {P_BAR} for each",
      take("p"), lambda ci: decide(ci, P_BAR, "below"),
      f"as a share of all variance: {whole or 'unknown'}{rest}",
    ),
    ruled(
      "at equal E the patches are equally good",
      f"PSNR of the largest minus any other within {GAP} dB at each E",
      gaps(cells), lambda ci: within(ci, GAP), rest[2:],
    ),
    ruled(
      "PSNR is curved in log2 E", "coefficient of the square above 0",
      take("curve", ("PSNR",)), lambda ci: decide(ci, 0.0),
      f"dB a squared doubling, p as a factor{rest}",
    ),
    ruled(
      "the decoder matters more than the encoder",
      "dB a doubling of the decoder minus that of the encoder above 0, of an"
      f" interval no wider than {POWER}",
      {"": over_seeds(apart)} if apart else {}, decoder_rule, sizes + noise,
    ),
    ruled(
      "control: where neighbours are strangers the patch counts",
      f"pixels shuffled, PSNR of the largest patch minus the smallest above"
      f" {GAP} dB at each E",
      shuffled_gaps(of_kind(done, "shuffled")), lambda ci: decide(ci, GAP),
    ),
    trained,
  ]  # fmt: skip


def _noise(rows: Sequence[Mapping[str, Any]]) -> float:
  """Standard deviation of PSNR over seeds, pooled over arms; NaN of one."""
  arms: dict[str, list[float]] = {}
  for row in rows:
    arms.setdefault(row["arm"], []).append(row["PSNR"])
  parts = [np.var(v, ddof=1) for v in arms.values() if len(v) > 1]
  return float(np.sqrt(np.mean(parts))) if parts else math.nan


# --------------------------------------------------------------------- report


def scores(done: Results, linear: Linear) -> Table:
  """Every arm's scores beside those of PCA."""
  rows = []
  for arm in dict.fromkeys(name for name, _ in finished(done)):
    mine = [run for (a, _), run in finished(done).items() if a == arm]
    facts, at = mine[0]["law_variables"], [run["metrics"] for run in mine]
    key = facts["patch"], facts["floats"]
    own = linear.get(key) if facts["kind"] == "cell" else None
    mean = lambda name, at=at: float(np.mean([m[name] for m in at]))
    rows.append({
      "arm": arm, "E": key[1], "patch": key[0],
      "layers": f"{facts['encoder']} + {facts['decoder']}",
      "rate": f"{facts['lr']:g}", "seeds": len(mine),
      "PSNR": round(mean("eval/scored/psnr"), 2),
      "PCA of patches": round(own, 2) if own is not None else None,
      "SSIM": round(mean("eval/scored/ssim"), 4),
      "rFD": round(mean("eval/scored/rfd_random_conv"), 4),
      "rFD floor": round(mean("eval/scored/rfd_random_conv_floor"), 4),
      "training TFLOPs": round(mean("flops") / 1e12, 1),
    })  # fmt: skip
  return Table(
    "Test scores, means over seeds",
    rows,
    None,
    "PSNR (dB) and SSIM are means over images as 8-bit pixels; rFD is a Frechet"
    " distance in fixed random convolutions, no FID, its floor that of two"
    " random halves of the originals.",
  )


def variances(done: Results) -> Table:
  """What E and p explain of each metric."""
  rows, cells = [], of_kind(done, "cell")
  for name in METRICS:
    row: dict[str, Any] = {"metric": name}
    for key, (value, ci) in yardsticks.bootstrapped(cells, name).items():
      among = f" [{ci[0]:.3f}, {ci[1]:.3f}]" if ci else ""
      row[key] = f"{value:.3f}{among}"
    rows.append(row)
  return Table(
    "Partial R2 of E given p, of p given E; what p adds of all; the square",
    rows,
    None,
    "Least squares on log2 E, its square and p as a factor; intervals are 95 %,"
    " runs drawn within cells.",
  )


def refit(expected: Mapping[str, Any]) -> Table:
  """The published sweep through the same fit."""
  sweep = expected["sweep"]
  points = [dict(zip(sweep["columns"], row)) for row in sweep["rows"]]
  rows = []
  for which, some in (
    ("all 15", points),
    ("p = 8 and 16", [x for x in points if x["patch"] < 32]),
  ):
    floats = np.array([x["E"] for x in some], float)
    patch = np.array([x["patch"] for x in some])
    for name in ("PSNR", "SSIM", "rFID"):
      y = np.array([x[name] for x in some])
      y, label = (np.log2(y), "log2 rFID") if name == "rFID" else (y, name)
      found = yardsticks.shares(y, floats, patch, np.ones(len(y)))
      rounded = {key: round(float(v), 3) for key, v in found.items()}
      rows.append({"points": which, "metric": label, **rounded})
  return Table(
    "Published: the same fit of ViTok's own sweep (our computation)",
    rows,
    None,
    expected["source"],
  )


def published(expected: Mapping[str, Any]) -> list[Table]:
  """ViTok's numbers, for comparison of direction only."""
  grid = expected["grid"]
  not_run = Table(
    "Published findings that this study cannot run, at any scale",
    expected["not run"],
    ["finding", "why not"],
  )
  return [
    refit(expected),
    Table(f"Published: encoders and decoders, {grid['cell']}", grid["rows"],
          grid["columns"], expected["source"]),
    not_run,
  ]  # fmt: skip


def figures(done: Results, linear: Linear) -> list[Figure]:
  """Every metric against E, a line a patch; the grid."""
  cells, panels = of_kind(done, "cell"), []
  floats = levels(cells, "floats")
  for name in METRICS:
    marks: list[Mark] = []
    for patch in levels(cells, "patch"):
      found = [
        [r[name] for r in cells if (r["patch"], r["floats"]) == (patch, e)]
        for e in floats
      ]
      if not all(found):
        continue
      y, low, high = spread(found)
      label = f"p = {patch}"
      marks += [Line(label, floats, y), Points(label, floats, y, low, high)]
      if name == "PSNR":
        own = [linear[patch, e] for e in floats]
        marks.append(Line(label, floats, own, dash=True))
    if marks:
      axes = Axis("E, floats of an image", "log2", ticks=floats), Axis(name)
      panels.append(Panel(*axes, marks))
  made = [
    Figure("floats", "Reconstruction against the floats of an image", panels,
           "Dashed: PCA of patches of that size. Intervals are 95 % over seeds,"
           " not paired.")
  ] if panels else []  # fmt: skip
  grid, lines = of_kind(done, "grid"), []
  sizes = levels(grid, "decoder")
  for a in levels(grid, "encoder"):
    found = [list(psnr(grid, encoder=a, decoder=b).values()) for b in sizes]
    if all(found):
      y, low, high = spread(found)
      label = f"encoder of {a}"
      lines += [Line(label, sizes, y), Points(label, sizes, y, low, high)]
  if lines:
    axes = Axis("layers of the decoder", "log2", ticks=sizes), Axis("PSNR (dB)")
    made.append(
      Figure("grid", "Encoders and decoders", [Panel(*axes, lines)],
             "Intervals are 95 % over seeds, not paired.")
    )  # fmt: skip
  return made


def analyse(done: Results, linear: Linear) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  expected = json.loads(Path(__file__).with_name("expected.json").read_text())
  tables = [scores(done, linear), variances(done), *published(expected)]
  return {
    "title": "ViTok: do the floats of a latent say how well images come back?",
    "verdicts": verdicts(done, linear),
    "tables": tables,
    "figures": figures(done, linear),
  }
