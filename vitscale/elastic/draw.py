"""Which granularities a step trains: strategies as declared draws.

A strategy turns granularities, smallest first, into a draw whose values are
the granularities of one step. The draw has finitely many values, so compiles
are bounded, and is a function of seed and step alone.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from vitscale.core import draws
from vitscale.core.errors import UserError

NAME = "nest"
MOST = 64  # values of a draw, each of which compiles a step


def sampled(
  granularities: Sequence[str], weights: Sequence[float] = ()
) -> draws.Draw:
  """One granularity a step (MatFormer, 2310.07707 equation 2; HydraViT).

  Args:
    granularities: spec texts.
    weights: relative probability of each; uniform by default.
  """
  if not isinstance(weights, tuple | list):
    raise UserError(f"task.weights={weights!r}: should be a list of numbers")
  weights = tuple(weights) or (1.0,) * len(granularities)
  if len(weights) != len(granularities) or min(weights) <= 0:
    raise UserError(
      f"task.weights {weights}: give one positive weight to each of the"
      f" {len(granularities)} granularities"
    )
  return draws.Draw(NAME, tuple((one,) for one in granularities), weights)


def curriculum(
  granularities: Sequence[str], stages: Sequence[Any] = ()
) -> draws.Ramp:
  """`sampled` with weights that change over the run.

  Uniform to XL-heavy (as Nemotron Elastic's second stage favours the large
  model), widening (EA-ViT), largest first (progressive shrinking, 1908.09791).

  Args:
    granularities: spec texts.
    stages: (percent of the run, one weight per granularity), percents rising
      from 0 to 100; linear between them, twice the same percent is a jump. A
      weight may be 0.

  Raises:
    UserError: percents that don't rise from 0 to 100, or bad weights.
  """
  example = "((0, (1, 1, 1, 1)), (100, (1, 1, 2, 4)))"
  try:
    shares = [float(percent) / 100 for percent, _ in stages]
    weights = [tuple(float(w) for w in one) for _, one in stages]
  except (TypeError, ValueError) as error:
    raise UserError(f"task.stages {stages}: write {example}") from error
  rising = all(a <= b for a, b in itertools.pairwise(shares))
  if not rising or len(shares) < 2 or (shares[0], shares[-1]) != (0, 1):
    raise UserError(
      f"task.stages: percents {[100 * s for s in shares]} should rise from 0"
      f" to 100, for example {example}"
    )
  for one in weights:
    if len(one) != len(granularities) or min(one) < 0 or not sum(one):
      raise UserError(
        f"task.stages: weights {one}, give each of the {len(granularities)}"
        " granularities one, 0 or more and not all 0"
      )
  parts = [tuple(w / sum(one) for w in one) for one in weights]
  values = tuple((one,) for one in granularities)
  return draws.Ramp(NAME, values, tuple(zip(shares, parts)))


def joint(granularities: Sequence[str]) -> draws.Draw:
  """All of them in every step (MatViT's released code; Matryoshka)."""
  return draws.Draw(NAME, (tuple(granularities),), (1.0,))


def sandwich(granularities: Sequence[str], middle: int = 2) -> draws.Draw:
  """Smallest, largest and `middle` others (US-Net, 1903.05134 section 3.3).

  Raises:
    UserError: fewer others than that, or too many choices of them.
  """
  first, *others, last = granularities
  count = math.comb(len(others), middle) if middle >= 0 else 0
  if not 0 < count <= MOST:
    raise UserError(
      f"task.middle={middle} of {len(others)} granularities between the"
      f" smallest and the largest: {count} choices, each compiles a step, 1 to"
      f" {MOST} are fine"
    )
  values = [
    (first, *some, last) for some in itertools.combinations(others, middle)
  ]
  return draws.Draw(NAME, tuple(values), (1.0,) * count)


def round_robin(granularities: Sequence[str]) -> draws.Cycle:
  """One after another, largest last."""
  return draws.Cycle(NAME, tuple((one,) for one in granularities))


# Name -> (strategy, what it takes besides the granularities).
STRATEGIES: dict[str, tuple[Callable[..., draws.Draws], tuple[str, ...]]] = {
  "sampled": (sampled, ("weights",)),
  "curriculum": (curriculum, ("stages",)),
  "joint": (joint, ()),
  "sandwich": (sandwich, ("middle",)),
  "round_robin": (round_robin, ()),
}
