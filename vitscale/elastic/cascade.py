"""When to stop thinking about an image: exits, what they cost, what they miss.

A policy is a pure function from what the exits of an image said to the exit
it takes. Here are the thresholds of an entropy cascade (ThinkingViT,
2507.10800; before it BranchyNet, 1709.01686), the controls that any policy
has to beat (`shuffled`, `static_line`) and those that none can
(`cheapest_correct`), `run`, which really stops, and how far a small part
drafts what a large one says. The learned gate is in gate.py.

Arrays are NumPy's: images n, exits k from the cheapest on, classes c. A
threshold is to be chosen on other images than it is judged on.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import log_softmax, softmax

from vitscale.core.errors import UserError, nearest
from vitscale.elastic.exits import Stage, chunks

# ------------------------------------------------------------------ policies


def entropy(logits: np.ndarray) -> np.ndarray:
  """(..., c) -> (...): entropy over log c, 0 certain and 1 uniform.

  ThinkingViT's code takes the ten largest probabilities only, in nats.
  """
  x = np.asarray(logits, np.float64)
  return -(softmax(x, -1) * log_softmax(x, -1)).sum(-1) / np.log(x.shape[-1])


def margin(logits: np.ndarray) -> np.ndarray:
  """(..., c) -> (...): 1 minus the lead of the first class over the second."""
  p = np.sort(softmax(np.asarray(logits, np.float64), -1), -1)
  return 1 - (p[..., -1] - p[..., -2])


def max_prob(logits: np.ndarray) -> np.ndarray:
  """(..., c) -> (...): 1 minus the largest probability."""
  return 1 - softmax(np.asarray(logits, np.float64), -1).max(-1)


# How much an exit doubts, 0 to 1.
DOUBTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "entropy": entropy,
  "margin": margin,
  "max_prob": max_prob,
}


def by_threshold(
  doubt: np.ndarray, thresholds: float | Sequence[float]
) -> np.ndarray:
  """The first exit that doubts less than its threshold, else the last.

  Args:
    doubt: (n, k) of every exit.
    thresholds: one for all exits, or one for each but the last. 0 goes to
      the last exit, above 1 takes the first.

  Returns:
    (n,) exits.

  Raises:
    UserError: another number of thresholds.
  """
  limits = _thresholds(thresholds, doubt.shape[1])
  sure = doubt < np.append(limits, np.inf)
  return sure.argmax(1)


def _thresholds(given: float | Sequence[float], exits: int) -> np.ndarray:
  limits = np.asarray(given, np.float64)
  if limits.ndim and limits.shape != (exits - 1,):
    raise UserError(
      f"{limits.size} thresholds for {exits} exits: give one, or {exits - 1}"
    )
  return np.broadcast_to(limits, (exits - 1,))


def threshold_for(doubt: np.ndarray, cost: np.ndarray, target: float) -> float:
  """The one threshold whose mean cost on these images is nearest `target`.

  Args:
    doubt: (n, k).
    cost: (k,) of leaving at each exit, rising.
    target: in the same units.
  """
  values = np.append(np.unique(doubt[:, :-1]), np.inf)
  spent = lambda i: mean_cost(cost, by_threshold(doubt, values[i]))
  low, high = 0, len(values) - 1  # a higher threshold costs less
  while low < high:
    middle = (low + high) // 2
    if spent(middle) <= target:
      high = middle
    else:
      low = middle + 1
  near = [i for i in (low - 1, low) if i >= 0]
  best = min(near, key=lambda i: abs(spent(i) - target))
  return float(min(values[best], 1.01))


# ------------------------------------------------------------------ controls


def cheapest_correct(correct: np.ndarray) -> np.ndarray:
  """(n, k) -> (n,): who knows the label leaves at the first right exit.

  Where no exit is right, at the first: no policy is more often right, none
  as often for less.
  """
  return correct.astype(bool).argmax(1)


def shuffled(correct: np.ndarray, exits: np.ndarray) -> float:
  """Expected accuracy of as many images at each exit, drawn at random.

  Its mean cost is that of `exits` exactly.

  Args:
    correct: (n, k) 0 or 1.
    exits: (n,) of a policy.
  """
  share = np.bincount(exits, minlength=correct.shape[1]) / len(exits)
  return float(share @ correct.mean(0))


def static_line(
  cost: np.ndarray, accuracy: np.ndarray, at: float | np.ndarray
) -> Any:
  """What static exits reach at a mean cost, mixed at random in pairs.

  The upper hull of the exits, with the points of other models if they are
  among the arguments; flat above the best of them.

  Args:
    cost, accuracy: (k,) of exits that all images take.
    at: mean costs, not below the cheapest.
  """
  hull: list[tuple[float, float]] = []
  for x, y in sorted(zip(cost, accuracy)):
    while hull and (
      (x == hull[-1][0] and y >= hull[-1][1]) or _below(hull, x, y)
    ):
      hull.pop()
    if not hull or x > hull[-1][0]:
      hull.append((float(x), float(y)))
  top = max(range(len(hull)), key=lambda i: hull[i][1])
  xs, ys = zip(*hull[: top + 1])
  return np.interp(at, xs, ys)


def _below(hull: list[tuple[float, float]], x: float, y: float) -> bool:
  """Whether the last point of a hull lies under the line to (x, y)."""
  if len(hull) < 2:
    return False
  (x0, y0), (x1, y1) = hull[-2:]
  return (y1 - y0) * (x - x0) <= (y - y0) * (x1 - x0)


# -------------------------------------------------------------------- scores


def accuracy(correct: np.ndarray, exits: np.ndarray) -> float:
  """Of a policy: (n, k) 0 or 1 and (n,) exits -> 0..1."""
  return float(correct[np.arange(len(exits)), exits].mean())


def mean_cost(cost: np.ndarray, exits: np.ndarray) -> float:
  """Of a policy: (k,) of leaving at each exit and (n,) exits."""
  return float(np.asarray(cost, np.float64)[exits].mean())


# ------------------------------------------------------------------ for real


@dataclasses.dataclass(frozen=True)
class Ran:
  """What a cascade did.

  Attributes:
    logits: (n, c) of the exit that each image took.
    exits: (n,).
    images: (k,) rows that each stage ran, those that fill a batch included.
  """

  logits: np.ndarray
  exits: np.ndarray
  images: np.ndarray


def run(
  stages: Sequence[Stage],
  variables: Any,
  images: np.ndarray,
  thresholds: float | Sequence[float],
  *,
  doubt: str = "entropy",
  size: int = 256,
) -> Ran:
  """Runs a cascade so that an image which has left costs nothing more.

  After a stage the undecided images are gathered on the host into full
  batches for the next one, all of one shape: a stage compiles once. Masks,
  as in ThinkingViT's released evaluation, would run every stage on all.

  Args:
    stages: of exits.py or a task.
    variables: of their model.
    images: (n, h, w, c) uint8.
    thresholds: see `by_threshold`.
    doubt: a key of DOUBTS.
    size: images at once.

  Raises:
    UserError: unknown doubt, or another number of thresholds.
  """
  if doubt not in DOUBTS:
    raise UserError(f"doubt {doubt!r}{nearest(doubt, DOUBTS)}")
  limits = np.append(_thresholds(thresholds, len(stages)), np.inf)
  rows, carry = np.arange(len(images)), {"image": images}
  exits, ran = np.zeros(len(images), int), np.zeros(len(stages), int)
  logits: Any = None
  for k, stage in enumerate(stages):
    if not len(rows):
      break
    queued = [
      stage(variables, {key: x[part] for key, x in carry.items()})
      for part in chunks(np.arange(len(rows)), size)
    ]
    ran[k] = size * len(queued)
    y, carry = jax.tree.map(
      lambda *parts: np.concatenate(parts), *jax.device_get(queued)
    )
    y = y[: len(rows)]
    stop = DOUBTS[doubt](y) < limits[k]
    logits = np.zeros((len(images), y.shape[1])) if logits is None else logits
    logits[rows[stop]], exits[rows[stop]] = y[stop], k
    rows = rows[~stop]
    carry = {key: x[: len(stop)][~stop] for key, x in carry.items()}
  return Ran(logits, exits, ran)


# ----------------------------------------------------------------- agreement


def acceptance(
  draft: np.ndarray, large: np.ndarray, bins: int = 10
) -> tuple[float, list[dict[str, float]]]:
  """How often a large part accepts the label that a small one drafts.

  The part of speculative decoding (MatFormer, 2310.07707 table 2) that a
  classifier has: one draft, one check.

  Args:
    draft, large: (n, c) logits.
    bins: of the draft's largest probability, as many images in each.

  Returns:
    The share accepted, and per bin `confidence` (mean), `images` (share) and
    `accepted` (share of the bin), from the least sure on.
  """
  same = draft.argmax(-1) == large.argmax(-1)
  sure = 1 - max_prob(draft)
  parts = [x for x in np.array_split(np.argsort(sure), bins) if len(x)]
  rows = [
    {
      "confidence": float(sure[part].mean()),
      "images": len(part) / len(sure),
      "accepted": float(same[part].mean()),
    }
    for part in parts
  ]
  return float(same.mean()), rows


def savings(
  draft: np.ndarray,
  large: np.ndarray,
  thresholds: Sequence[float],
  doubt: str = "entropy",
) -> list[Mapping[str, float]]:
  """What keeping the drafts below a threshold saves, and what it changes.

  Args:
    draft, large: (n, c) logits.
    thresholds: of the draft's doubt.
    doubt: a key of DOUBTS.

  Returns:
    Per threshold `threshold`, `saved` (share of images that the large part
    never sees) and `disagreement` (share of all images whose label is not
    the large part's).
  """
  other = draft.argmax(-1) != large.argmax(-1)
  unsure = DOUBTS[doubt](draft)
  return [
    {
      "threshold": float(limit),
      "saved": float((unsure < limit).mean()),
      "disagreement": float(((unsure < limit) & other).mean()),
    }
    for limit in thresholds
  ]
