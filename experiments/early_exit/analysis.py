"""What the runs of early_exit show: policies at equal mean MACs, verdicts."""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import (
  Results,
  difference,
  finished,
  judged,
  spread,
)
from vitscale.core.config import load_module
from vitscale.laws.verdict import Verdict
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

policies = load_module(Path(__file__).with_name("policies.py"))

EXITS = ("depth=1/6", "depth=1/3", "depth=1/2", "depth=2/3", "full")
PARTS = ("heads=1/2 embed=1/2 ffn=1/2", "full")
DATA_OF_RUNS = {"source": "fashion_mnist", "size": 28, "val": 4000}
IMAGE = (28, 28, 1)
SHARES = (0.25, 0.5, 0.75)  # claims; figures show more
SHOWN = (0.1, 0.25, 0.5, 0.75, 0.9)
STAGED = ("exits", "thinking", "nested")
ALONE = ("depth-2", "large", "depth-6", "small")
GATE, CHOICE = slice(0, None, 2), slice(1, None, 2)  # of held-out images
Found = Mapping[str, Mapping[int, Any]]  # name -> seed -> value


# ------------------------------------------------------------------ readings


@functools.cache
def data(split: str) -> Any:
  from vitscale.data import sources

  options = {k: v for k, v in DATA_OF_RUNS.items() if k != "source"}
  return sources.make(DATA_OF_RUNS["source"], split=split, **options)


@functools.cache
def stages(arm: str, model: Any) -> Any:
  """The stages of an arm's model; they are compiled once for all seeds."""
  from vitscale.elastic import exits
  from vitscale.tasks import nested, thinking

  of, source = {"name": "classify"}, data("test")
  if arm == "thinking":
    return thinking.make({"of": of, "rounds": PARTS}, source).stages(model)
  texts = EXITS if arm == "exits" else PARTS
  task = nested.make({"of": of, "granularities": texts}, source)
  make = exits.by_depth if arm == "exits" else exits.by_part
  return make(task, model, texts)


def said(arm: str, workdir: str) -> dict[str, Any]:
  """All exits of a run: `val`, `test` (`policies.Images`) and `costs`."""
  import vitscale as vs
  from vitscale.elastic import exits

  model, variables = vs.load(workdir)
  made, found = stages(arm, model), {}
  for split in ("val", "test"):
    every = data(split).read(np.arange(len(data(split))))
    logits, pooled = exits.everything(made, variables, every["image"], size=500)
    first = pooled[0] if pooled else None
    found[split] = policies.Images(logits, every["label"], first)
  return {**found, "costs": exits.costs(made, variables, IMAGE)}


def speed(arm: str, workdir: str, threshold: float) -> dict[str, Any]:
  """Images per second of the last part alone, and of the cascade."""
  import vitscale as vs
  from vitscale.elastic import cascade

  model, variables = vs.load(workdir)
  images = data("test").read(np.arange(len(data("test"))))["image"]
  whole = stages("nested", model)[-1:]
  kinds = {"whole": (whole, 0.0), "cascade": (stages(arm, model), threshold)}
  taken: dict[str, list[float]] = {name: [] for name in kinds}
  for _ in range(4):  # the first compiles
    for name, (some, limit) in kinds.items():
      start = time.perf_counter()
      cascade.run(some, variables, images, limit, size=250)
      taken[name].append(time.perf_counter() - start)
  rate = {k: len(images) / float(np.median(v[1:])) for k, v in taken.items()}
  return {
    "arm": arm, "whole": round(rate["whole"]), "cascade": round(rate["cascade"])
  }  # fmt: skip


# ------------------------------------------------------------------ policies


def measured(seen: Mapping[tuple[str, int], Any], alone: Found) -> Found:
  """Policies by seed: lists of `policies.Point` at SHOWN, and single ones.

  Args:
    seen: (arm, seed) -> what `said` returns.
    alone: arm -> seed -> (MACs, accuracy) of the separate models.
  """
  out: dict[str, dict[int, Any]] = {}
  put = lambda name, seed, value: out.setdefault(name, {}).update({seed: value})
  for (arm, seed), one in seen.items():
    costs, held_out, test = one["costs"], one["val"], one["test"]
    choice = held_out.rows(CHOICE)
    if arm == "exits":
      tried, known = costs.tried(), costs.known()
      aim = policies.between(tried[0], tried[-1], SHOWN)
      put("entropy", seed, policies.entropy(choice, test, costs, aim))
      aim = policies.between(known[0], known[-1], SHOWN)
      learned, told = policies.gate(
        held_out.rows(GATE), choice, test, costs, aim
      )
      put("gate", seed, learned)
      put("told", seed, told)
      put("oracle", seed, policies.oracle(test, costs))
      put("exits", seed, list(zip(known, test.correct.mean(0))))
      continue
    # Both arms aim at the same costs. The large part can run by itself where
    # it recycles nothing.
    own = costs.tried()
    if arm == "nested":
      own = np.diff(own, prepend=0)
    aim = policies.between(*_ends(seen, seed), SHOWN)
    made = policies.entropy(choice, test, costs, aim, own)
    put(arm, seed, made)
    put(f"{arm} rounds", seed, list(zip(own, test.correct.mean(0))))
    large = alone.get("large", {}).get(seed)
    if large:
      (point,) = policies.entropy(choice, test, costs, [large[0]], own)
      put(f"{arm} at large", seed, point)
  return out


def _ends(
  seen: Mapping[tuple[str, int], Any], seed: int
) -> tuple[float, float]:
  """MACs of the first round, and of both as the dearer arm has them."""
  both = [
    seen[arm, seed]["costs"].tried()
    for arm in ("thinking", "nested")
    if (arm, seed) in seen
  ]
  return float(both[0][0]), float(max(x[-1] for x in both))


def alone_of(runs: Mapping[tuple[str, int], Any]) -> Found:
  """arm -> seed -> (MACs, accuracy) of separate models."""
  out: dict[str, dict[int, Any]] = {}
  for (arm, seed), run in runs.items():
    if arm in ALONE:
      value = run["law_variables"]["macs"], run["metrics"]["eval/test/accuracy"]
      out.setdefault(arm, {})[seed] = value
  return out


# ------------------------------------------------------------------ verdicts


def claimed(points: Sequence[Any]) -> list[Any]:
  """Of the points at SHOWN those at SHARES."""
  return [points[SHOWN.index(share)] for share in SHARES]


def verdicts(found: Found, alone: Found) -> list[Verdict]:
  """The README's claims."""

  def by_seed(*names: str) -> list[int]:
    every = [set(found.get(name, ())) for name in names]
    return sorted(set.intersection(*every))

  def over(name: str, what: str) -> dict[int, float]:
    return {
      seed: policies.mean(claimed(points), what)
      for seed, points in found.get(name, {}).items()
    }

  def one(claim, threshold, values, bar=0.0, control=""):
    parts = {"": (values, bar)}
    return judged(claim, threshold, parts, control=control, digits=4)

  gain, gate = over("entropy", "gain"), over("gate", "gain")
  exact = over("entropy", "accuracy")
  shares = " ".join(f"{point:.3f}" for point in gain.values())
  return [
    one(
      "an entropy cascade beats static exits at equal mean MACs",
      "accuracy minus the static line above 0", list(gain.values()),
      control=f"by seed {shares}" if shares else "",
    ),
    one(
      "the gate beats its own exits shuffled",
      "accuracy minus shuffled above 0", list(over("gate", "luck").values()),
      control="as many images at each exit, drawn at random",
    ),
    one(
      "the gate beats entropy", "difference of gains above 0",
      difference(gate, gain), control="two-sided",
    ),
    one(
      "there is room above entropy", "oracle minus entropy above .01",
      [found["oracle"][s].accuracy - exact[s] for s in by_seed("oracle")],
      0.01, "leaves at the first exit that is right",
    ),
    one(
      "recycling helps", "thinking minus nested above 0",
      difference(over("thinking", "accuracy"), over("nested", "accuracy")),
      control="same parts, loss, policy and targets",
    ),
    one(
      "thinking beats one look at equal mean MACs",
      "thinking at the MACs of large minus large above 0",
      [
        found["thinking at large"][s].accuracy - alone["large"][s][1]
        for s in by_seed("thinking at large")
      ],
      control="the same for nested: " + _mean([
        found["nested at large"][s].accuracy - alone["large"][s][1]
        for s in by_seed("nested at large")
      ]),
    ),
  ]  # fmt: skip


def _mean(values: Sequence[float]) -> str:
  return f"{np.mean(values):.4f}" if len(values) else "none"


# -------------------------------------------------------------------- report


def analyse(done: Results) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  runs = finished(done)
  seen = {
    (arm, seed): said(arm, run["workdir"])
    for (arm, seed), run in runs.items()
    if arm in STAGED
  }
  alone = alone_of(runs)
  found = measured(seen, alone)
  middle = SHOWN.index(0.5)
  rounds = [arm for arm in ("thinking", "nested") if arm in found]
  setting = lambda arm, seed: found[arm][seed][middle].setting
  first = {arm: min(found[arm]) for arm in rounds}
  return {
    "title": "Stopping early, image by image",
    "verdicts": verdicts(found, alone),
    "tables": [
      Table("Accuracy at mean MACs, means over seeds", table(found, alone)),
      Table(
        "First exit against last, at the middle threshold",
        [
          {"model": arm, "seed": seed, **_round(
            policies.agreement(one["test"], setting(arm, seed)))}
          for (arm, seed), one in seen.items() if arm in rounds
        ],
      ),
      Table("Training", ledger(runs)),
      Table(
        "Images per second here, whole part alone and cascade (seed 0)",
        [
          speed(arm, runs[arm, seed]["workdir"], setting(arm, seed))
          for arm, seed in first.items()
        ],
      ),
    ],
    "figures": figures(found, alone),
  }  # fmt: skip


def _round(row: Mapping[str, float]) -> dict[str, float]:
  return {key: round(value, 4) for key, value in row.items()}


def table(found: Found, alone: Found) -> list[dict[str, Any]]:
  """Means over seeds: policies at SHARES, exits and models by themselves."""
  rows = []

  def add(name: str, pairs: Sequence[tuple[float, float]], more: Any = ()):
    macs, right = np.mean(pairs, 0)
    spread = np.std([p[1] for p in pairs], ddof=1) if len(pairs) > 1 else np.nan
    row = {"policy": name, "MACs": int(macs), "accuracy": round(right, 4)}
    rows.append({**row, "sd": round(float(spread), 4), **dict(more)})

  for name in ("entropy", "gate", "told", "thinking", "nested"):
    each = [claimed(points) for points in found.get(name, {}).values()]
    for share, points in zip(SHARES, zip(*each)):
      keep = ("gain", "luck", "setting")
      more = {k: round(policies.mean(points, k), 4) for k in keep}
      pairs = [(p.macs, p.accuracy) for p in points]
      add(f"{name} {share:g}", pairs, more)
  if "oracle" in found:
    points = found["oracle"].values()
    add("oracle", [(p.macs, p.accuracy) for p in points])
  for name in ("exits", "thinking rounds", "nested rounds"):
    for i, pairs in enumerate(zip(*found.get(name, {}).values())):
      add(f"{name} {i + 1}, static", pairs)
  for name in ALONE:
    if name in alone:
      add(f"{name}, separate", list(alone[name].values()))
  return rows


def ledger(runs: Mapping[tuple[str, int], Any]) -> list[dict[str, Any]]:
  """What each arm cost to train."""
  facts = {arm: (run["law_variables"], run["metrics"]) for (arm, _), run in
           runs.items()}  # fmt: skip
  unit = facts.get("large", next(iter(facts.values())))[0]["flops"]
  return [
    {
      "arm": arm,
      "FLOPs of large": round(variables["flops"] / unit, 2),
      "updates": metrics["step"],
    }
    for arm, (variables, metrics) in facts.items()
  ]


def figures(found: Found, alone: Found) -> list[Figure]:
  """Accuracy against mean MACs, a policy a colour; one figure a network."""

  def curve(label: str, name: str) -> list[Any]:
    each = [
      [p if isinstance(p, tuple) else (p.macs, p.accuracy) for p in points]
      for points in found.get(name, {}).values()
    ]
    if not each:
      return []
    x = np.mean(each, 0)[:, 0] / 1e6
    y, low, high = spread(np.asarray(each)[..., 1].T)
    return [Points(label, x, y, low, high), Line(label, x, y)]

  def points(names: Sequence[str]) -> list[Any]:
    pairs = [np.mean(list(alone[n].values()), 0) for n in names if n in alone]
    if not pairs:
      return []
    x, y = np.transpose(pairs)
    return [Points("separate models", x / 1e6, y)]

  marks = [
    *curve("entropy", "entropy"), *curve("gate", "gate"),
    *curve("static exits", "exits"), *points(("depth-2", "large", "depth-6")),
  ]  # fmt: skip
  rounds = [
    *curve("thinking", "thinking"), *curve("nested", "nested"),
    *points(("small", "large")),
  ]  # fmt: skip
  caption = "Intervals are 95 % over seeds, not paired."
  axes = Axis("mean MACs of an image (millions)"), Axis("test accuracy")
  named = {"exits": "Exits by depth", "rounds": "Rounds by width"}
  return [
    Figure(name, named[name], [Panel(*axes, some)], caption=caption)
    for name, some in (("exits", marks), ("rounds", rounds))
    if some
  ]
