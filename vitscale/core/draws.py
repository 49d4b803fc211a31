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
    text = f"{self.name}/{seed}/{step}".encode()
    bits = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    point = bits / 2**64 * sum(self.weights)
    for value, edge in zip(self.values, itertools.accumulate(self.weights)):
      if point < edge:
        return value
    return self.values[-1]


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


Draws = Draw | Cycle


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
