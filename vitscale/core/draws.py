"""Draws: what a run samples per step, declared with a bounded set of values.

    config.draws = {"patch_size": {"values": (2, 4), "weights": (1.0, 3.0)}}

A draw is chosen from (seed, step) alone, so that every host and every resume
draws the same, and has finitely many values, so that compiles are bounded:
one step function per combination.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
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


Draws = Draw | Cycle | Ramp


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


def make(config: Mapping[str, Any]) -> tuple[Draw, ...]:
  """Draws from a config group `name -> {values, weights}`.

  Raises:
    UserError: no values, or weights that don't fit the values.
  """
  draws = []
  for name in config:
    group = config[name]
    values = tuple(group["values"])
    weights = tuple(group.get("weights") or [1.0] * len(values))
    if not values or len(weights) != len(values) or min(weights) <= 0:
      raise UserError(
        f"draws.{name}: {len(values)} values and weights {weights};"
        " give one positive weight per value"
      )
    draws.append(Draw(name, values, weights))
  return tuple(draws)


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
