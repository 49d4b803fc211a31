"""What the runs of matformer show: losses by size, agreement, verdicts."""

import functools
import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from vitscale.arms import (
  Results,
  difference,
  finished,
  judged,
  said,
  spread,
)
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

SIZES = {"S": "ffn=1/8", "M": "ffn=1/4", "L": "ffn=1/2", "XL": "full"}
PARTS = {
  "S": Fraction(1, 8), "M": Fraction(1, 4), "L": Fraction(1, 2),
  "XL": Fraction(1),
}  # fmt: skip
NESTED = ("sampled", "sampled-x", "joint", "heavy", "joint-kd")
TAUGHT = ("S-kd", "M-kd", "L-kd")  # separate, the XL of the seed teaches
Losses = Mapping[str, Mapping[str, Mapping[int, float]]]  # arm, size, seed


# ------------------------------------------------------------------ readings


def losses(
  runs: Mapping[tuple[str, int], Any], outputs: Mapping[tuple, Any]
) -> Losses:
  """Test loss by arm, size and seed.

  `separate`, `separate-kd` and `truncated` are arms.
  """
  out: dict[str, dict[str, dict[int, float]]] = {}
  put = lambda arm, size, seed, value: (
    out.setdefault(arm, {}).setdefault(size, {}).setdefault(seed, value)
  )
  for (arm, seed), run in runs.items():
    metrics = run["metrics"]
    if arm in SIZES:
      put("separate", arm, seed, metrics["eval/test/nll"])
      continue
    if arm in TAUGHT:
      size = arm.removesuffix("-kd")
      put("separate-kd", size, seed, metrics["eval/test/nll"])
      continue
    for size, spec in SIZES.items():
      label = "" if spec == "full" else f"{spec}/"
      put(arm, size, seed, metrics[f"eval/test/{label}nll"])
  for (arm, seed, size), found in outputs.items():
    if arm == "XL":
      put("truncated", size, seed, found["nll"])
  return out


def outputs(runs: Mapping[tuple[str, int], Any]) -> dict[tuple, Any]:
  """(arm, seed, size) -> test predictions, from the checkpoints.

  Separate models at their own size, the separate XL also cut to the others,
  and `sampled` at S and XL.
  """
  found = {}
  for (arm, seed), run in runs.items():
    if arm == "XL":
      wanted = SIZES
    elif arm == "sampled":
      wanted = {"S": SIZES["S"], "XL": SIZES["XL"]}
    elif arm == "S":
      wanted = {"S": "full"}
    else:
      continue
    for size, spec in wanted.items():
      found[arm, seed, size] = predictions(run["workdir"], spec)
  return found


def predictions(workdir: str, spec: str) -> dict[str, Any]:
  """`labels` (n,) that a part of a trained model predicts, and its `nll`."""
  import vitscale as vs
  from vitscale.data import pipeline

  model, variables = vs.load(workdir)
  labels, nll = [], []
  for batch in pipeline.eval_batches(test_data(), batch_size=500):
    real = batch["weight"] > 0
    found = _predict(model, spec)(variables, batch)
    labels.append(np.asarray(found["logits"])[real].argmax(-1))
    nll.append(np.asarray(found["nll"], np.float64)[real])
  return {
    "labels": np.concatenate(labels),
    "nll": float(np.concatenate(nll).mean()),
  }


@functools.cache
def test_data() -> Any:
  from vitscale.data import sources

  return sources.make("fashion_mnist", split="test", size=28)


@functools.cache
def _predict(model: Any, spec: str) -> Any:
  """`(variables, batch) -> nll, logits` of a part, compiled once a model."""
  import jax

  from vitscale.tasks import nested

  config = {"of": {"name": "classify"}, "granularities": tuple(SIZES.values())}
  task = nested.make(config, test_data())

  def predict(variables: Any, batch: Any) -> dict[str, Any]:
    part = task.part(model, variables, batch, spec)
    return task.task.predict(*part, batch)

  return jax.jit(predict)


# ------------------------------------------------------------------ verdicts


def verdicts(found: Losses, agree: Mapping[str, list[float]]) -> list[Verdict]:
  """The README's claims, those whose arms have run."""
  gap = lambda a, b, size: difference(found[a][size], found[b][size])
  s, xl = gap("separate", "sampled", "S"), gap("separate", "sampled", "XL")
  mean = lambda arm: {
    seed: float(np.mean([found[arm][size][seed] for size in SIZES]))
    for seed in found[arm]["S"]
  }
  two = agree["two XL runs"]
  return [
    judged(
      "a part that was not trained is no model",
      "truncated S minus sampled S above .1 nats",
      {"S:": (gap("truncated", "sampled", "S"), 0.1)},
    ),
    judged(
      "nesting lowers the loss of the smallest most",
      "separate minus sampled: S above 0, and above that of XL",
      {
        "S:": (s, 0.0),
        "S minus XL:": ([a - b for a, b in zip(s, xl)], 0.0),
      },
      control="separate runs of equal total FLOPs",
    ),
    judged(
      "S and XL of a nested model agree more than separate ones",
      "difference of agreement above .02",
      {"more by": (agree["sampled minus separate"], 0.02)},
      control=f"two separate XL runs agree on {np.mean(two):.3f}"
      if two
      else "",
    ),
    judged(
      "sampling beats the joint sum at about equal FLOPs",
      "mean loss of joint minus sampled above 0",
      {"joint minus sampled": (difference(mean("joint"), mean("sampled")), 0)},
      control="4 times the updates for sampled",
    ),
    judged(
      "probabilities trade the largest for the smallest",
      "XL: sampled minus heavy above 0; S: heavy minus sampled above 0",
      {
        "XL:": (gap("sampled", "heavy", "XL"), 0.0),
        "S:": (gap("heavy", "sampled", "S"), 0.0),
      },
    ),
    *taught(found),
  ]


def taught(found: Losses) -> list[Verdict]:
  """Nested and separate models with one teacher, where they have run."""
  if "joint-kd" not in found or "separate-kd" not in found:
    return []
  gap = lambda a, b: difference(found[a]["S"], found[b]["S"])
  return [
    judged(
      "a frozen teacher lowers the loss of S, nested or separate",
      "S without minus S with the teacher above 0, for both",
      {
        "nested (joint):": (gap("joint", "joint-kd"), 0.0),
        "separate:": (gap("separate", "separate-kd"), 0.0),
      },
      control=said("taught alike, separate minus nested S:",
                   gap("separate-kd", "joint-kd")),
    )
  ]  # fmt: skip


def agreement(outputs: Mapping[tuple, Any]) -> dict[str, list[float]]:
  """Shares of test images on which two models predict the same, by seed."""
  seeds = sorted({seed for _, seed, _ in outputs})
  same = lambda a, b: float(
    np.mean(outputs[a]["labels"] == outputs[b]["labels"])
  )
  out: dict[str, list[float]] = {
    "two XL runs": [
      same(("XL", seed, "XL"), ("XL", after, "XL"))
      for seed, after in itertools.pairwise(seeds)
    ],
    "separate": [],
    "sampled": [],
  }
  for seed in seeds:
    out["separate"].append(same(("S", seed, "S"), ("XL", seed, "XL")))
    out["sampled"].append(same(("sampled", seed, "S"), ("sampled", seed, "XL")))
  out["sampled minus separate"] = [
    a - b for a, b in zip(out["sampled"], out["separate"])
  ]
  return out


# -------------------------------------------------------------------- report


def ledger(runs: Mapping[tuple[str, int], Any]) -> Table:
  """What each arm cost, in FLOPs, updates and images."""
  from vitscale.elastic import ledger as costs

  first = {}
  for arm in (*SIZES, *NESTED, *TAUGHT):
    same = [run for (name, _), run in runs.items() if name == arm]
    if same:
      first[arm] = costs.cost({"workdir": same[0]["workdir"]})
  rows = [
    {
      "arm": row["arm"],
      "of one XL": round(row["of one whole"], 2),
      "of four separate": round(row["of all separate"], 2),
      "updates": row["updates"],
      "images": row["images"],
      "unique": row["unique"],
    }
    for row in costs.compare(first, tuple(SIZES), "XL")
  ]
  return Table("Training FLOPs and updates", rows)


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  seen = outputs(runs)
  found, agree = losses(runs, seen), agreement(seen)
  rows = []
  for arm in ("separate", *NESTED, "separate-kd", "truncated"):
    row: dict[str, Any] = {"arm": arm}
    for size in found.get(arm, ()):
      values = list(found[arm][size].values())
      row[size] = round(float(np.mean(values)), 4)
      spread = np.std(values, ddof=1) if len(values) > 1 else math.nan
      row[f"{size} sd"] = round(float(spread), 4)
    rows.append(row)
  return {
    "title": "One nested training against four separate ones",
    "verdicts": verdicts(found, agree),
    "tables": [
      Table("Test loss (nats), mean over seeds", rows),
      Table(
        "Agreement of S and XL",
        [
          {"models": name, "share": round(float(np.mean(values)), 4)}
          for name, values in agree.items()
          if values
        ],
      ),
      ledger(runs),
    ],
    "figures": [figure(found)],
  }


def figure(found: Losses) -> Figure:
  """Loss against the share of hidden units, an arm a colour."""
  x = [float(part) for part in PARTS.values()]
  marks: list[Any] = []
  for arm in ("separate", "sampled", "joint", "heavy"):
    values = [list(found[arm][size].values()) for size in SIZES]
    mean, low, high = spread(values)
    marks += [Points(arm, x, mean, low, high), Line(arm, x, mean)]
  return Figure(
    "losses", "Nested and separate models",
    [Panel(Axis("share of hidden units", "log2", ticks=x),
           Axis("test loss (nats)"), marks)],
    caption="Intervals are 95 % over seeds, not paired.",
  )  # fmt: skip
