"""From the logits of all exits to accuracy at a mean cost. Nothing is run.

A policy is set on held-out images, by their mean cost, and judged on others.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vitscale.elastic import cascade
from vitscale.elastic import gate as gate_lib
from vitscale.elastic.exits import Costs

BETAS = (0.0, *np.geomspace(1e-4, 3.0, 24))  # nats an exit


@dataclasses.dataclass(frozen=True)
class Images:
  """What a model said of some images.

  Attributes:
    logits: (n, exits, classes).
    labels: (n,).
    pooled: (n, d) mean tokens behind the first exit's layer, for a gate.
  """

  logits: np.ndarray
  labels: np.ndarray
  pooled: np.ndarray | None = None

  def rows(self, index: slice) -> "Images":
    pooled = None if self.pooled is None else self.pooled[index]
    return Images(self.logits[index], self.labels[index], pooled)

  @property
  def correct(self) -> np.ndarray:
    """(n, exits) bool."""
    return self.logits.argmax(-1) == self.labels[:, None]


@dataclasses.dataclass(frozen=True)
class Point:
  """One policy on test images.

  Attributes:
    macs: mean over images.
    accuracy: 0..1.
    gain: accuracy above the static line at `macs`.
    luck: above the same number of images at each exit, drawn at random.
    setting: the threshold, or beta.
  """

  macs: float
  accuracy: float
  gain: float
  luck: float
  setting: float


def scored(
  test: Images, exits: np.ndarray, cost: np.ndarray, static: np.ndarray,
  setting: float,
) -> Point:  # fmt: skip
  """A policy's exits; `static` are MACs of exits that all images take."""
  correct = test.correct
  macs, right = cascade.mean_cost(cost, exits), cascade.accuracy(correct, exits)
  line = cascade.static_line(static, correct.mean(0), macs)
  luck = right - cascade.shuffled(correct, exits)
  return Point(macs, right, right - float(line), luck, float(setting))


def entropy(
  held_out: Images, test: Images, costs: Costs, targets: Sequence[float],
  static: np.ndarray | None = None,
) -> list[Point]:  # fmt: skip
  """The cascade of one threshold, set to mean costs.

  Args:
    held_out: to set it on.
    test: to judge it on.
    costs: of the exits.
    targets: MACs.
    static: MACs of exits that all images take; default one head each.
  """
  static = costs.known() if static is None else static
  doubt, cost = cascade.entropy(held_out.logits), costs.tried()
  found = []
  for target in targets:
    limit = cascade.threshold_for(doubt, cost, target)
    exits = cascade.by_threshold(cascade.entropy(test.logits), limit)
    found.append(scored(test, exits, cost, static, limit))
  return found


def gate(
  trained_on: Images, held_out: Images, test: Images, costs: Costs,
  targets: Sequence[float],
) -> tuple[list[Point], list[Point]]:  # fmt: skip
  """The learned gate, and who knows the qualities, each set to mean costs."""
  static = costs.known()
  quality = lambda images: gate_lib.quality(images.logits, images.labels)
  q, q_held, q_test = map(quality, (trained_on, held_out, test))
  gates = [gate_lib.fit(trained_on.pooled, q, beta) for beta in BETAS]
  cost = costs.known(gates[0].macs)
  spent = [
    cascade.mean_cost(cost, gate_lib.choose(one, held_out.pooled))
    for one in gates
  ]
  known = [
    cascade.mean_cost(static, gate_lib.targets(q_held, beta)) for beta in BETAS
  ]
  nearest = lambda found, target: int(
    np.argmin(np.abs(np.subtract(found, target)))
  )
  learned, told = [], []
  for target in targets:
    i = nearest(spent, target)
    exits = gate_lib.choose(gates[i], test.pooled)
    learned.append(scored(test, exits, cost, static, BETAS[i]))
    i = nearest(known, target)
    exits = gate_lib.targets(q_test, BETAS[i])
    told.append(scored(test, exits, static, static, BETAS[i]))
  return learned, told


def oracle(test: Images, costs: Costs) -> Point:
  """Who leaves at the first exit that is right."""
  exits = cascade.cheapest_correct(test.correct)
  return scored(test, exits, costs.known(), costs.known(), 0.0)


def between(low: float, high: float, shares: Sequence[float]) -> list[float]:
  """Mean costs to aim at: shares of the way from low to high."""
  return [low + share * (high - low) for share in shares]


def mean(points: Sequence[Point], name: str) -> float:
  """Of one attribute over settings."""
  return float(np.mean([getattr(point, name) for point in points]))


def agreement(test: Images, setting: float) -> Mapping[str, float]:
  """How far the first exit drafts what the last one says."""
  small, large = test.logits[:, 0], test.logits[:, -1]
  share, bins = cascade.acceptance(small, large)
  kept = cascade.savings(small, large, (setting,))[0]
  return {
    "accepted": share,
    "least sure tenth": bins[0]["accepted"],
    "surest tenth": bins[-1]["accepted"],
    "saved": kept["saved"],
    "disagreement": kept["disagreement"],
  }
