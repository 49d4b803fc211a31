"""What the runs of retrieval show: who finds whom, what is in between.

Scores of what was trained are read from the runs; features, and the scores of
what was not, are computed from their checkpoints.
"""

import functools
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import (
  Results,
  Runs,
  difference,
  finished,
  interval,
  judged,
  said,
)
from vitscale.laws.verdict import Verdict, within
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

SIZES = {"S": "ffn=1/8", "M": "ffn=1/4", "L": "ffn=1/2", "XL": "full"}
PARTS = {
  "S": Fraction(1, 8), "M": Fraction(1, 4), "L": Fraction(1, 2),
  "XL": Fraction(1),
}  # fmt: skip


def wide(part: str) -> str:
  """A spec that cuts every width alike, as Scala does."""
  return "full" if part == "1" else f"ffn={part} heads={part} embed={part}"


def deep(part: str) -> str:
  """A spec that cuts hidden units alone."""
  return "full" if part == "1" else f"ffn={part}"


WIDTHS = tuple(map(wide, ("1/4", "1/2", "3/4", "1")))
# Arm -> share of the width -> what its scores are called; these were trained.
TRAINED = {
  "nested": {str(share): size for size, share in PARTS.items()},
  "widths": {part: part for part in ("1/4", "1/2", "3/4", "1")},
}
# Arm -> what was not trained, each with the next smaller that was.
UNSEEN = {
  "nested": (("3/16", "1/8"), ("3/8", "1/4"), ("3/4", "1/2")),
  "widths": (("3/8", "1/4"), ("5/8", "1/2"), ("7/8", "3/4")),
}
SPEC = {"nested": deep, "widths": wide}
K = (1, 20)

Scores = Mapping[str, Mapping[str, Mapping[int, Mapping[str, float]]]]
Found = Mapping[str, Mapping[int, Mapping[tuple[str, str], Any]]]


# ------------------------------------------------------------------ readings


def read(runs: Runs) -> tuple[Scores, Found, dict[str, int]]:
  """Everything the judgement needs.

  Returns:
    Scores on `test` by arm, size (of SIZES, or share of the width) and seed;
    retrieval by arm, seed and (query, gallery); MACs by size.
  """
  scores: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
  encoders: dict[tuple[str, int], dict[str, Any]] = {}
  macs: dict[str, int] = {}
  put = lambda arm, size, seed, one: (
    scores.setdefault(arm, {}).setdefault(size, {}).setdefault(seed, one)
  )
  for (arm, seed), run in runs.items():
    big = opened(run["workdir"])
    if arm in SIZES:
      put("separate", arm, seed, logged(run["metrics"], ""))
      known = encoders.setdefault(("separate", seed), {})
      known[arm] = encoded(big, "full")
      continue
    for part, size in TRAINED[arm].items():
      spec = SPEC[arm](part)
      label = "" if spec == "full" else f"{spec}/"
      put(arm, size, seed, logged(run["metrics"], label))
    for part, _ in UNSEEN[arm]:
      put(arm, part, seed, scored(big, SPEC[arm](part)))
    if arm == "nested":
      encoders[arm, seed] = {s: encoded(big, spec) for s, spec in SIZES.items()}
      macs = {size: cost(big, spec) for size, spec in SIZES.items()}
  found: dict[str, dict[int, Any]] = {}
  for (arm, seed), sides in encoders.items():
    found.setdefault(arm, {})[seed] = matrix(sides)
  return scores, found, macs


def logged(metrics: Mapping[str, float], label: str) -> dict[str, float]:
  names = ("accuracy", "nll", "ece", "brier")
  return {name: metrics[f"eval/test/{label}{name}"] for name in names}


def opened(workdir: str) -> Any:
  """A run restored, in the bench of its arm."""
  from vitscale.core.checkpoint import CheckpointStore
  from vitscale.core.log import read_json
  from vitscale.elastic import cut
  from vitscale.train import reuse

  folder = Path(workdir)
  run = read_json(folder / "run.json")
  bench = reuse(run["config"])
  state, _ = CheckpointStore(folder / "checkpoints").restore(bench.abstract)
  return cut.Nested(folder, run, bench, state)


def scored(big: Any, spec: str) -> dict[str, float]:
  from vitscale.elastic import evaluate

  return evaluate.scores(big, spec, big.bench.evals["test"].batches())


def encoded(big: Any, spec: str) -> tuple[Any, Any]:
  """Features of queries (`test`) and of the gallery (`train`)."""
  from vitscale.data import pipeline
  from vitscale.elastic import evaluate

  asked = big.bench.evals["test"].batches()
  gallery = pipeline.eval_batches(gallery_data(), batch_size=500)
  return (
    evaluate.features(big, spec, asked), evaluate.features(big, spec, gallery),
  )  # fmt: skip


@functools.cache
def gallery_data() -> Any:
  from vitscale.data import sources

  return sources.make("fashion_mnist", split="train", size=28, limit=5000)


def cost(big: Any, spec: str) -> int:
  from vitscale.elastic import evaluate, space

  return space.cost("macs", evaluate.part(big, spec)[0], big.image)


def matrix(sides: Mapping[str, tuple[Any, Any]]) -> dict[tuple[str, str], Any]:
  """(query size, gallery size) -> accuracy by k."""
  from vitscale.evals import retrieval

  queries = {size: one[0] for size, one in sides.items()}
  return retrieval.matrix(
    queries, {size: one[1] for size, one in sides.items()}, k=K
  )


# ------------------------------------------------------------------ verdicts


def at(found: Found, arm: str, query: str, gallery: str) -> dict[int, float]:
  """seed -> accuracy at k = 1."""
  return {seed: one[query, gallery][1] for seed, one in found[arm].items()}


def accuracy(scores: Scores, arm: str, size: str) -> dict[int, float]:
  return {seed: one["accuracy"] for seed, one in scores[arm][size].items()}


def verdicts(
  scores: Scores, found: Found, macs: Mapping[str, int]
) -> list[Verdict]:
  """The README's claims."""
  both = lambda *pair: difference(
    at(found, "nested", *pair), at(found, "separate", *pair)
  )
  controls = []
  for size in ("S", "XL"):
    close = within(interval(both(size, size)), 0.05)
    name = f"{size} in {size}, nested minus separate:"
    controls.append(f"{said(name, both(size, size))}, within .05 {close}")
  apart = np.mean(list(at(found, "separate", "S", "XL").values()))
  controls.append(f"separate S in XL {apart:.3f}, chance .1")
  below = lambda arm, bar: {
    f"{part}:": (
      difference(
        accuracy(scores, arm, part), accuracy(scores, arm, TRAINED[arm][lower])
      ),
      bar,
    )
    for part, lower in UNSEEN[arm]
  }
  loss = difference(
    at(found, "nested", "XL", "XL"), at(found, "nested", "S", "XL")
  )
  share = macs["S"] / macs["XL"]
  return [
    judged(
      "parts of a nested model share a space, separate models don't",
      "S queries in the XL gallery: nested minus separate above .3",
      {"S in XL:": (both("S", "XL"), 0.3)}, control="; ".join(controls),
    ),
    judged(
      "small queries find what large ones do",
      "in the XL gallery, XL minus S queries below .02",
      {"XL minus S:": (loss, 0.02)}, direction="below",
      more=f"; S has {share:.2f} of the MACs of XL",
    ),
    judged(
      "hidden units that nobody trained interpolate",
      "each unseen part minus the next smaller trained one above -.01",
      below("nested", -0.01),
    ),
    judged(
      "widths that nobody trained don't",
      "each unseen part minus the next smaller trained one below -.02",
      below("widths", -0.02), direction="below",
    ),
  ]  # fmt: skip


# -------------------------------------------------------------------- report


def mean(values: Mapping[int, float]) -> float:
  return round(float(np.mean(list(values.values()))), 4)


def tables(
  scores: Scores, found: Found, macs: Mapping[str, int]
) -> list[Table]:  # fmt: skip
  """Matrices, sizes, what is between."""
  from vitscale.elastic import evaluate

  matrices = [
    {"arm": arm, "k": k, "query": query}
    | {
      f"in {gallery}": mean(
        {seed: one[query, gallery][k] for seed, one in found[arm].items()}
      )
      for gallery in SIZES
    }
    for k in K
    for arm in ("nested", "separate")
    for query in SIZES
  ]
  by_size = [
    {"arm": arm, "size": size, "MACs of XL": round(macs[size] / macs["XL"], 3)}
    | {
      name: mean({s: one[name] for s, one in scores[arm][size].items()})
      for name in ("accuracy", "nll", "ece", "brier")
    }
    for arm in ("nested", "separate")
    for size in SIZES
  ]
  curve = lambda arm: {
    seed: evaluate.pareto_area(
      [(macs[z], scores[arm][z][seed]["accuracy"]) for z in SIZES],
      macs["S"], macs["XL"],
    )
    for seed in scores[arm]["S"]
  }  # fmt: skip
  values = {
    arm: {size: accuracy(scores, arm, size) for size in SIZES}
    | {"area, S to XL": curve(arm)}
    for arm in ("nested", "separate")
  }
  gaps = [
    {
      "accuracy of": size, "nested minus separate": round(gap.mean, 4),
      "low": round(gap.ci[0], 4), "high": round(gap.ci[1], 4),
      "seeds": gap.n,
    }
    for size, gap in evaluate.gaps(values["nested"], values["separate"]).items()
  ]  # fmt: skip
  between = [
    {"arm": arm, "part": part, "trained": trained}
    | {
      name: mean({s: one[name] for s, one in scores[arm][size].items()})
      for name in ("accuracy", "nll", "ece")
    }
    for arm in UNSEEN
    for part, size, trained in ladder(arm)
  ]
  return [
    Table("Nearest neighbours: queries of a size in galleries of a size",
          matrices),
    Table("Trained sizes on test, mean over seeds", by_size),
    Table("Gaps to separate models, 95 % over seeds", gaps),
    Table("Between what was trained", between),
  ]  # fmt: skip


def ladder(arm: str) -> list[tuple[str, str, bool]]:
  """(share, name in `Scores`, whether trained), rising."""
  unseen = {part: part for part, _ in UNSEEN[arm]}
  both = TRAINED[arm] | unseen
  return [
    (part, both[part], part in TRAINED[arm])
    for part in sorted(both, key=Fraction)
  ]


def costs(runs: Runs) -> Table:
  """The three ledgers of every arm, from its first seed."""
  from vitscale.elastic import ledger

  first: dict[str, Any] = {}
  for arm in (*SIZES, *TRAINED):
    run = next(run for (name, _), run in runs.items() if name == arm)
    first[arm] = ledger.cost({"workdir": run["workdir"]})
  rows = ledger.compare(first, tuple(SIZES), "XL")
  short = lambda v: round(v, 2) if isinstance(v, float) else v
  return Table(
    "What training cost",
    [{key: short(value) for key, value in row.items()} for row in rows],
  )


def figure(
  scores: Scores, found: Found, macs: Mapping[str, int]
) -> Figure:  # fmt: skip
  """Queries against their cost; accuracy at every width, trained or not."""
  marks: list[Any] = []
  x = [macs[size] / macs["XL"] for size in SIZES]
  for arm in ("nested", "separate"):
    y = [mean(at(found, arm, size, "XL")) for size in SIZES]
    marks += [Points(arm, x, y), Line(arm, x, y)]
  left = Panel(
    Axis("MACs of a query / MACs of XL", "log2", ticks=[0.5, 0.7, 1.0]),
    Axis("1-NN accuracy in the XL gallery", limits=(0, 1)), marks,
  )  # fmt: skip
  marks = []
  for arm in UNSEEN:
    for trained in (True, False):
      some = [(p, s) for p, s, known in ladder(arm) if known == trained]
      shares = [float(Fraction(part)) for part, _ in some]
      y = [mean(accuracy(scores, arm, size)) for _, size in some]
      marks.append(Points(arm, shares, y, hollow=not trained))
      if trained:
        marks.append(Line(arm, shares, y))
  right = Panel(
    Axis("share of the hidden units, or of every width", "log2",
         ticks=[0.125, 0.25, 0.5, 1.0]),
    Axis("test accuracy"), marks,
  )  # fmt: skip
  return Figure(
    "spaces", "One space, and what is between", [left, right],
    caption="Left: small queries in a gallery embedded by the largest model."
    " Right: hollow parts were never trained.",
  )  # fmt: skip


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  scores, found, macs = read(runs)
  return {
    "title": "Do the parts of a nested model share a space?",
    "verdicts": verdicts(scores, found, macs),
    "tables": [*tables(scores, found, macs), costs(runs)],
    "figures": [figure(scores, found, macs)],
  }
