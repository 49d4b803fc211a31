"""What the parts of a nested run are worth: accuracy against cost.

`frontier` tables parts as the plain small models they are: held-out scores,
multiply-accumulates, parameters, measured latency, and whether the run trained
them. The rest judges such tables: `pareto_area`, `gaps` to models trained
apart, `agreement` of two models and its `ceiling`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.elastic import cut, latency, ledger
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.cut import Nested
from vitscale.elastic.space import Space, cost
from vitscale.elastic.spec import ElasticSpec
from vitscale.evals import classify, retrieval
from vitscale.evals.retrieval import Features
from vitscale.laws.intervals import Difference, difference

LEAST = 16  # mixes of a table, where the model has so many
Batches = Iterable[Mapping[str, Any]]


def frontier(
  path: str | Path,
  specs: Sequence[str] = (),
  *,
  score_on: str | None = None,
  batch_size: int = 1,
  repeats: int = 30,
  measure: Callable[..., list[float]] = latency.measure,
) -> dict[str, Any]:
  """A table of a nested run's parts.

  Args:
    path: a workdir, its checkpoints/ or a step folder.
    specs: parts; by default those that were trained and `mixes` of them. All
      are in memory at once while they are timed.
    score_on: the entry of the config's `evals`, default "val" or the first
      one. Who chooses by this table should report on another.
    batch_size: images of a call whose latency is measured.
    repeats: calls of each part, whose median counts.
    measure: milliseconds of models, as `latency.measure`.

  Returns:
    `run`, `on`, `platform`, `device`, `batch_size`, `repeats`; `ledger`, see
    `paid`; and `rows`, cheapest first: `spec`, `kind` (of `kind`), what
    `classify` finds, `macs` an image, `params`, `latency` (ms of a call), and
    whether it is `efficient` in accuracy against macs.

  Raises:
    UserError: no nested run, a spec that doesn't fit, nothing to score on.
  """
  if batch_size < 1 or repeats < 1:
    raise UserError(
      f"latency of {batch_size} images, {repeats} times: both 1 or more"
    )
  big = cut.open_run(Path(path), nested=True)
  label = _label(big, score_on)
  chosen = [spec_lib.parse(text) for text in specs] or mixes(big)
  for spec in chosen:
    cut.check_trained(big, spec)
  chosen = list(dict.fromkeys(chosen))
  models = [spec_lib.small(big.bench.model, spec)[0] for spec in chosen]
  image, one = big.image, big.bench.evals[label]
  times = measure(models, image=image, batch=batch_size, repeats=repeats)
  rows = [
    {
      "spec": str(spec),
      "kind": kind(big, spec),
      **scores(big, str(spec), one.batches()),
      "macs": cost("macs", model, image),
      "params": cost("params", model, image),
      "latency": time,
    }
    for spec, model, time in zip(chosen, models, times)
  ]
  best = efficient((row["macs"], row["accuracy"]) for row in rows)
  return {
    "run": str(big.folder),
    "on": label,
    **latency.here(),
    "batch_size": batch_size,
    "repeats": repeats,
    "ledger": paid(big),
    "rows": [
      {**row, "efficient": (row["macs"], row["accuracy"]) in best}
      for row in sorted(rows, key=lambda row: row["macs"])
    ],
  }


# ----------------------------------------------------------------------- parts


def _label(big: Nested, asked: str | None) -> str:
  known = list(big.bench.evals)
  label = asked or ("val" if "val" in known else known[0] if known else "")
  if label not in known:
    raise UserError(
      f"no evals.{label or 'NAME'} to score on{nearest(label, known)}"
    )
  return label


def mixes(big: Nested, least: int = LEAST) -> list[ElasticSpec]:
  """What was trained, and mixes of it that rise over the layers.

  Those of least slope come first (two neighbouring levels, MatFormer
  2310.07707 section 3.3). A shallow model has few of them: steeper ones (over
  three levels, four, ...) follow, all of a steepness, until there are `least`.
  A run that nests more than the FFN has no mixes.
  """
  texts = big.bench.task.granularities
  space = Space(big.bench.model, texts, lambda model: 0)
  found = set(space.shape("least_slope")) if space.levels else set()
  uniform, rise = len(space.levels), 1
  while rise + 1 < uniform and len(found) - uniform < least:
    rise += 1
    found |= {m for m in space.shape("increasing") if m[-1] - m[0] == rise}
  mixed = sorted(mix for mix in found if mix[0] != mix[-1])
  return [*space.specs, *map(space.spec, mixed)]


def kind(big: Nested, spec: ElasticSpec) -> str:
  """Whether a run trained a part.

  Returns:
    "trained"; "mix", of sizes that it trained, in a combination that it
    didn't; "unseen", with a size that no step has seen. Hidden units that
    nobody trained as an end interpolate, widths of the residual stream don't
    (Scala, NeurIPS 2024).
  """
  model = big.bench.model
  texts = big.bench.task.granularities
  trained = [_sizes(model, spec_lib.parse(text)) for text in texts]
  mine = _sizes(model, spec)
  if mine in trained:
    return "trained"
  for key, sizes in mine.items():
    if not set(sizes) <= set().union(*(one[key] for one in trained)):
      return "unseen"
  return "mix"


def _sizes(model: nn.Module, spec: ElasticSpec) -> dict[str, tuple]:
  """What a spec cuts a model to: sizes per layer, and the layers."""
  little, layers = spec_lib.small(model, spec)
  options = spec_lib.options_of(little)
  found: dict[str, tuple] = {"layers": (layers,)}
  for name in sorted(set(spec_lib.OPTIONS.values()) - {"depth"}):
    size = options.get(name)
    many = isinstance(size, tuple) and name != "patch_size"
    found[name] = size if many else (size,) * max(len(layers), 1)
  return found


def part(big: Nested, spec: str) -> tuple[nn.Module, dict[str, Any]]:
  """The plain model of a spec and its weights, averaged if the run did."""
  variables = {
    "params": big.state["ema"] or big.state["params"], **big.state["mutable"],
  }  # fmt: skip
  if not spec_lib.parse(spec).touched():
    return big.bench.model, variables
  batch = big.bench.inputs[1]
  return big.bench.task.part(big.bench.model, variables, batch, spec)


def scores(big: Nested, spec: str, batches: Batches) -> dict[str, float]:
  """What `classify` finds of a part."""
  model, variables = part(big, spec)
  return classify.evaluate(
    _sums(cut.plain_task(big.bench.task), model), variables, batches
  )


def features(big: Nested, spec: str, batches: Batches) -> Features:
  """What a part's head reads, for `retrieval.matrix`."""
  model, variables = part(big, spec)
  return retrieval.collect(
    _pooled(cut.plain_task(big.bench.task), model), variables, batches
  )[""]


# Compiled once per model, whatever run and seed its weights are of.


@functools.lru_cache(64)
def _sums(task: Any, model: nn.Module) -> Callable[..., Any]:
  return jax.jit(classify.make(task, model))


@functools.lru_cache(64)
def _pooled(task: Any, model: nn.Module) -> Callable[..., Any]:
  def found(variables: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    x = retrieval.pooled(task, model, variables, batch["image"])
    rows = {"label": batch["label"], "weight": batch["weight"]}
    return {"features": {"": x}, **rows}

  return jax.jit(found)


def paid(big: Nested) -> dict[str, Any]:
  """The ledger of a nested run (`ledger.compare`), and how many `models`.

  The separate models stand for trainings that were not run: each on as many
  images as this run saw.
  """
  updates, known = int(big.state["step"]), big.bench.facts
  images = updates * big.bench.batch_size
  unique = min(images, known["train_examples"])
  spent = lambda flops: ledger.Cost(flops * images, updates, images, unique)
  texts = big.bench.task.granularities
  each = {
    text: cut.plain(big, spec_lib.parse(text))[1].facts["flops_per_example"]
    for text in texts
  }
  whole = max(each, key=each.__getitem__)
  arms = {text: spent(flops) for text, flops in each.items()}
  mine = spent(known["flops_per_example"])
  rows = ledger.compare({"nested": mine, **arms}, texts, whole)
  return {**rows[0], "models": len(texts)}


# -------------------------------------------------------------------- judgement


def efficient(points: Iterable[tuple[float, float]]) -> list[tuple]:
  """The (cost, score) that no other beats, cheapest first.

  Beaten is what another reaches at no more cost, with a higher score, or with
  the same score at less.
  """
  best: list[tuple] = []
  for price, score in sorted(points, key=lambda p: (p[0], -p[1])):
    if not best or score > best[-1][1]:
      best.append((price, score))
  return best


def pareto_area(
  points: Iterable[tuple[float, float]],
  low: float,
  high: float,
  *,
  how: str = "stairs",
) -> float:
  """Area under score against log cost, over the length of the base.

  The mean score between two costs, all costs' ratios weighing alike:

      integral of S(c) d ln c from low to high, / ln(high / low)

  Args:
    points: (cost, score) of models.
    low, high: costs; one model at least costs `low` or less.
    how: S(c) is, with "stairs", the best score that costs at most c: only
      models that exist count. With "line" it is straight in ln c between
      neighbours of `efficient`, and level after the last.

  Raises:
    UserError: no interval of positive costs, nothing as cheap as `low`.
  """
  if how not in ("stairs", "line"):
    raise UserError(f"area {how!r}{nearest(how, ('stairs', 'line'))}")
  best = efficient(points)
  if not 0 < low < high:
    raise UserError(f"area from {low:g} to {high:g}: want 0 < low < high")
  if not best or best[0][0] > low:
    least = f"the cheapest costs {best[0][0]:g}" if best else "there are none"
    raise UserError(f"area from {low:g} on: no model is that cheap, {least}")
  x = np.log([cost for cost, _ in best])
  y = np.array([score for _, score in best])
  a, b = math.log(low), math.log(high)
  inside = x[(x > a) & (x < b)]
  ends = np.concatenate([[a], inside, [b]])
  if how == "line":
    return float(np.trapezoid(np.interp(ends, x, y), ends) / (b - a))
  at = np.searchsorted(x, ends[:-1] + 1e-12, side="right") - 1
  return float((y[at] * np.diff(ends)).sum() / (b - a))


def gaps(
  nested: Mapping[str, Mapping[int, float]],
  separate: Mapping[str, Mapping[int, float]],
) -> dict[str, Difference]:
  """Nested minus separate at each size, paired by seed.

  Args:
    nested, separate: size -> seed -> score.

  Raises:
    UserError: a size has no seed in both.
  """
  found = {}
  for size in nested:
    pairs = sorted(set(nested[size]) & set(separate.get(size, {})))
    if not pairs:
      raise UserError(f"gap at {size}: no seed was run both ways")
    found[size] = difference(
      *([arm[size][seed] for seed in pairs] for arm in (nested, separate))
    )
  return found


def agreement(logits: np.ndarray, whole: np.ndarray) -> dict[str, float]:
  """How far one model follows another: both (n, k), of the same examples.

  Returns:
    `agreement`, the share of equal predictions, and `kl`, of the first's
    probabilities from the second's, in nats; as `evals/nested` logs them.
  """
  own, full = (np.asarray(x, np.float64) for x in (logits, whole))
  if own.shape != full.shape:
    raise UserError(f"agreement of logits {own.shape} and {full.shape}")
  log = lambda x: x - np.logaddexp.reduce(x, -1, keepdims=True)
  divergence = (np.exp(log(own)) * (log(own) - log(full))).sum(-1)
  same = own.argmax(-1) == full.argmax(-1)
  return {"agreement": float(same.mean()), "kl": float(divergence.mean())}


def ceiling(wholes: Mapping[int, np.ndarray]) -> dict[str, float]:
  """How far models agree that differ by their seed alone.

  What the noise of training leaves of agreement: a part can't be asked to
  follow its whole more than another training of the whole would.

  Args:
    wholes: seed -> logits (n, k), of the same examples.

  Returns:
    Means of `agreement` over all ordered pairs of seeds.

  Raises:
    UserError: fewer than two seeds.
  """
  if len(wholes) < 2:
    raise UserError(f"agreement of two trainings: {len(wholes)} given")
  found = [
    agreement(wholes[a], wholes[b])
    for a, b in itertools.permutations(wholes, 2)
  ]
  return {k: float(np.mean([one[k] for one in found])) for k in found[0]}
