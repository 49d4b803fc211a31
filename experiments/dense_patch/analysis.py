"""What the runs of dense_patch show: mIoU by head and patch, verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitscale import laws
from vitscale.arms import (
  Results,
  difference,
  finished,
  interval,
  judged,
  said,
)
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

METRIC = "eval/test/miou"
EQUAL = 0.01

Scores = Mapping[int, float]  # seed -> mIoU


def scores(done: Results, head: str, patch: int) -> dict[int, float]:
  """By seed; without runs, nothing."""
  return {
    seed: run["metrics"][METRIC]
    for (arm, seed), run in finished(done).items()
    if arm == f"{head}-p{patch}" and METRIC in run["metrics"]
  }


def gain(done: Results, patch: int) -> dict[int, float]:
  """By seed: mIoU with the decoder minus without."""
  with_, without = (scores(done, h, patch) for h in ("decoder", "linear"))
  return {s: with_[s] - without[s] for s in sorted(set(with_) & set(without))}


def verdicts(done: Results, patches: Sequence[int]) -> list[Verdict]:
  """The README's claims; `patches` from large to small."""
  large, small = patches[0], patches[-1]
  of = lambda head, patch: scores(done, head, patch)
  means = [np.mean(list(of("linear", p).values()) or [np.nan]) for p in patches]
  rising = bool((np.diff(means) > 0).all())
  better = judged(
    "without a decoder, smaller patches segment better",
    "smallest minus largest patch above 0, and every halving raises the mean",
    {
      f"p = {small} minus p = {large}": (
        difference(of("linear", small), of("linear", large)), 0.0
      )
    },
    more=f"; means {', '.join(f'{m:.3f}' for m in means)}",
  )  # fmt: skip
  if better.verdict == "supported" and not rising:
    better = Verdict(
      better.claim, "inconclusive", better.threshold,
      f"{better.measured}: not every halving raises it", "", better.value,
      better.ci,
    )  # fmt: skip
  less = judged(
    "the decoder matters less as the patch shrinks",
    "its gain at the largest minus at the smallest patch above 0",
    {
      "difference of gains": (
        difference(gain(done, large), gain(done, small)), 0.0
      )
    },
    more=f"; {said(f'gain at p = {large}', list(gain(done, large).values()))}",
  )  # fmt: skip
  last = list(gain(done, small).values())
  ci = interval(last)
  return [
    better,
    less,
    Verdict(
      f"at p = {small} the decoder is superfluous",
      laws.decide(ci, EQUAL, "below"),
      f"its gain below {EQUAL} with the whole interval",
      said("gain", last),
      "the decoder at the same patch",
      float(np.mean(last)) if last else None,
      ci,
    ),
    judged(
      f"a linear head at p = {small} beats a decoder at p = {large}",
      "difference of mIoU above 0",
      {"linear minus decoder": (
        difference(of("linear", small), of("decoder", large)), 0.0
      )},
    ),
  ]  # fmt: skip


def table(done: Results, patches: Sequence[int]) -> Table:
  rows = []
  for patch in patches:
    for head in ("linear", "decoder"):
      found = [
        run
        for (arm, _), run in finished(done).items()
        if arm == f"{head}-p{patch}"
      ]
      if not found:
        continue
      each, hit = (
        [run["metrics"][name] for run in found]
        for name in (METRIC, "eval/test/accuracy")
      )
      first = found[0]
      rows.append(
        {
          "patch": patch,
          "tokens": (16 // patch) ** 2,
          "head": head,
          "mIoU": f"{np.mean(each):.3f}",
          "sd": f"{np.std(each, ddof=1):.3f}" if len(each) > 1 else "-",
          "pixel accuracy": f"{np.mean(hit):.3f}",
          "parameters": first["law_variables"]["params"],
          "MFLOP an image": round(
            first["metrics"]["flops"] / first["metrics"]["examples"] / 1e6, 2
          ),
          "rate": f"{first['law_variables']['lr']:g}",
          "seeds": len(each),
        }
      )  # fmt: skip
  return Table("Cells", rows, caption="FLOPs of a training step, head included")


def figure(done: Results, patches: Sequence[int]) -> Figure:
  marks: list[Any] = []
  for head in ("linear", "decoder"):
    cells = {p: list(scores(done, head, p).values()) for p in patches}
    cells = {p: v for p, v in cells.items() if v}
    each = [(p, x) for p, values in cells.items() for x in values]
    marks.append(
      Points(head, [p for p, _ in each], [x for _, x in each], faint=True)
    )
    mean = [float(np.mean(v)) for v in cells.values()]
    marks += [Points(head, list(cells), mean), Line(head, list(cells), mean)]
  axis = Axis("patch size p", "log2", ticks=np.array(sorted(patches), float))
  return Figure(
    "miou_by_patch",
    "Segmentation with and without a decoder",
    [Panel(axis, Axis("test mIoU"), marks)],
    "Small dots are single seeds.",
  )


def analyse(
  done: Results, patches: Sequence[int], scale: str
) -> dict[str, Any]:
  """Verdicts, the table of cells, the figure."""
  return {
    "title": f"Patches and decoders ({scale})",
    "text": "Segmentation of generated scenes by a ViT, with a linear map a"
    " token or a convolutional decoder.",
    "verdicts": verdicts(done, patches),
    "tables": [table(done, patches)],
    "figures": [figure(done, patches)],
  }
