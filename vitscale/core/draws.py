"""Draws: what a run samples per step, declared with a bounded set of values.

    config.draws = {"patch_size": {"values": (2, 4), "weights": (1.0, 3.0)}}

or with probabilities that change over the run, linearly between stages (a
jump is two stages at one share); here patches from large to small:

    config.draws = {
      "patch_size": {
        "values": (4, 2, 1),
        "stages": (
          (0.0, (1, 0, 0)), (0.5, (1, 0, 0)),  # 4 alone, then at once
          (0.5, (0, 1, 0)), (1.0, (0, 0, 1)),  # from 2 gradually to 1
        ),
      }
    }

A draw is chosen from (seed, step) alone, so that every host and every resume
draws the same, and has finitely many values, so that compiles are bounded:
one step function per combination.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

from vitscale.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Draw:
  """One sampled quantity: its values and their probabilities."""

  name: str
  values: tuple[Any, ...]
  weights: tuple[float, ...]

  def at(self, seed: int, step: int) -> Any:
    """The value of this step."""
    return _pick(self.name, self.values, self.weights, seed, step)


@dataclasses.dataclass(frozen=True)
class Cycle:
  """A draw that takes its values in turn."""

  name: str
  values: tuple[Any, ...]

  @property
  def weights(self) -> tuple[float, ...]:
    return (1.0,) * len(self.values)

  def at(self, seed: int, step: int) -> Any:
    """The value of this step; the seed changes nothing."""
    del seed
    return self.values[step % len(self.values)]


@dataclasses.dataclass(frozen=True)
class Every:
  """A draw that is True at every k-th step, the first one included."""

  name: str
  k: int  # 2 or more

  @property
  def values(self) -> tuple[bool, bool]:
    return False, True

  @property
  def weights(self) -> tuple[float, float]:
    return self.k - 1.0, 1.0

  def at(self, seed: int, step: int) -> bool:
    """The value of this step; the seed changes nothing."""
    del seed
    return step % self.k == 0


@dataclasses.dataclass(frozen=True)
class Ramp:
  """A draw whose probabilities change over the run.

  Attributes:
    name, values: as of Draw.
    stages: (share of the run, probabilities), the shares rising from 0 to 1;
      linear between them, a jump is two stages of one share.
    total_steps: of the run, see `over`.
  """

  name: str
  values: tuple[Any, ...]
  stages: tuple[tuple[float, tuple[float, ...]], ...]
  total_steps: int = 0

  @property
  def weights(self) -> tuple[float, ...]:
    """Means over the run."""
    total = [0.0] * len(self.values)
    for (start, a), (end, b) in itertools.pairwise(self.stages):
      for i, (low, high) in enumerate(zip(a, b)):
        total[i] += (end - start) * (low + high) / 2
    return tuple(total)

  def probabilities(self, share: float) -> tuple[float, ...]:
    """At a share of the run in [0, 1]."""
    for (start, a), (end, b) in itertools.pairwise(self.stages):
      if share < end:
        part = (share - start) / (end - start)
        return tuple(x + part * (y - x) for x, y in zip(a, b))
    return self.stages[-1][1]

  def at(self, seed: int, step: int) -> Any:
    """The value of this step."""
    weights = self.probabilities(step / self.total_steps)
    return _pick(self.name, self.values, weights, seed, step)


Draws = Draw | Cycle | Every | Ramp


def _pick(name, values, weights, seed, step) -> Any:
  text = f"{name}/{seed}/{step}".encode()
  bits = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
  point = bits / 2**64 * sum(weights)
  for value, edge in zip(values, itertools.accumulate(weights)):
    if point < edge:
      return value
  return values[-1]


def over(draws: tuple[Draws, ...], total_steps: int) -> tuple[Draws, ...]:
  """The draws of a run of so many steps."""
  return tuple(
    dataclasses.replace(draw, total_steps=total_steps)
    if isinstance(draw, Ramp)
    else draw
    for draw in draws
  )


def make(config: Mapping[str, Any]) -> tuple[Draws, ...]:
  """Draws from a config group `name -> {values, weights | stages}`.

  Raises:
    UserError: no values, or weights or stages that don't fit the values.
  """
  made: list[Draws] = []
  for name in config:
    group = config[name]
    values = tuple(
      tuple(v) if isinstance(v, list) else v for v in group["values"]
    )
    weights, stages = group.get("weights"), group.get("stages")
    if stages is None:
      weights = _weights(name, len(values), weights)
      made.append(Draw(name, values, weights))
    elif weights is None:
      made.append(Ramp(name, values, _stages(name, values, stages)))
    else:
      raise UserError(f"draws.{name}: give weights or stages, not both")
  return tuple(made)


def _weights(name: str, count: int, given: Any) -> tuple[float, ...]:
  weights = tuple(given or [1.0] * count)
  if not count or len(weights) != count or min(weights) <= 0:
    raise UserError(
      f"draws.{name}: {count} values and weights {weights};"
      " give one positive weight per value"
    )
  return weights


def _stages(name: str, values: tuple[Any, ...], given: Any) -> Any:
  """(share, probabilities) of each stage, checked and normalised."""
  where = f"draws.{name}.stages"
  try:
    stages = [(float(s), tuple(float(w) for w in row)) for s, row in given]
  except (TypeError, ValueError):
    raise UserError(
      f"{where}: {given!r}; give pairs (share of the run, weights)"
    ) from None
  shares = [share for share, _ in stages]
  rises = all(a <= b for a, b in itertools.pairwise(shares))
  if len(stages) < 2 or (shares[0], shares[-1]) != (0.0, 1.0) or not rises:
    raise UserError(f"{where}: shares {shares} should rise from 0 to 1")
  for share, row in stages:
    if len(row) != len(values) or min(row) < 0 or not 0 < sum(row) < math.inf:
      raise UserError(
        f"{where}: weights {row} at {share:g}; give one per value"
        f" {values}, none below 0 and not all 0"
      )
  made = tuple((s, tuple(w / sum(row) for w in row)) for s, row in stages)
  for value, weight in zip(values, Ramp(name, values, made).weights):
    if not weight:
      raise UserError(f"{where}: the value {value!r} is never drawn")
  return made


def at(draws: tuple[Draws, ...], seed: int, step: int) -> dict[str, Any]:
  """All draws of a step, by name."""
  return {draw.name: draw.at(seed, step) for draw in draws}


def outcomes(
  draws: tuple[Draws, ...],
) -> list[tuple[float, dict[str, Any]]]:
  """Every combination of values with its share of the steps."""
  found = [(1.0, {})]
  for draw in draws:
    total = sum(draw.weights)
    found = [
      (share * weight / total, {**values, draw.name: value})
      for share, values in found
      for value, weight in zip(draw.values, draw.weights)
    ]
  return found


Drawn = tuple[tuple[str, Any], ...]  # one combination, by name


def drawn(draws: tuple[Draws, ...], seed: int, step: int) -> Drawn:
  """All draws of a step as a key: what one compiled step is made for."""
  return tuple(sorted(at(draws, seed, step).items()))


def mean_of(
  draws: tuple[Draws, ...], costs: Mapping[Drawn, float], seed: int
) -> Callable[[int], float]:
  """`step -> mean cost` of the values really drawn before that step.

  Args:
    draws: of the run.
    costs: of every combination.
    seed: of the run.

  Returns:
    A function of the step alone: it counts on from the last step it was asked
    for, which is only quicker (3 us a step and draw).
  """
  counts: collections.Counter[Drawn] = collections.Counter()
  upto = 0

  def mean(step: int) -> float:
    nonlocal upto
    if len(costs) == 1 or step < 1:
      return sum(costs.values()) / len(costs)
    if step < upto:
      counts.clear()
      upto = 0
    counts.update(drawn(draws, seed, k) for k in range(upto, step))
    upto = step
    total = sum(counts[key] * cost for key, cost in costs.items())
    return total / step

  return mean
