"""Evolution over mixes within a budget.

As OFA searches its sub-models (1908.09791 section 3.4 and its code): the best
quarter of a population has children, half of them mutated, half crossed over.
A child over the budget loses levels at random places until it fits, and gains
them while there is room: a mix that leaves room is seldom the best.
"""

from collections.abc import Callable, Sequence

import numpy as np

from vitscale.elastic.mixes import Mix
from vitscale.elastic.space import Space

POPULATION, PARENTS, GENERATIONS = 48, 12, 8
MUTATED = 0.15  # of a parent's layers; .1 in OFA's code, for more layers


def best(
  space: Space,
  limit: float,
  losses: Callable[[Sequence[Mix]], list[float]],
  seed: int,
) -> Mix:
  """The mix of least loss that was met.

  Args:
    space: of the run, with levels.
    limit: the most a mix may cost.
    losses: of mixes; asked at most `GENERATIONS` times for `POPULATION`.
    seed: of all that is random.
  """
  rng = np.random.default_rng(seed)
  g, depth = len(space.levels), space.depth
  some = lambda: tuple(int(k) for k in rng.integers(g, size=depth))
  population = [fitted(space, some(), limit, rng) for _ in range(POPULATION)]
  pool: dict[Mix, float] = {}
  for _ in range(GENERATIONS):
    pool |= zip(population, losses(population))
    parents = sorted(pool, key=pool.__getitem__)[:PARENTS]
    population = []
    for i in range(POPULATION):
      one, other = (parents[rng.integers(len(parents))] for _ in range(2))
      take = rng.random(depth) < (MUTATED if i % 2 else 0.5)
      other = some() if i % 2 else other
      child = tuple(b if t else a for a, b, t in zip(one, other, take))
      population.append(fitted(space, child, limit, rng))
  return parents[0]


def fitted(
  space: Space, mix: Mix, limit: float, rng: np.random.Generator
) -> Mix:
  """The mix lowered until it fits, then raised while it does."""
  change = lambda mix, i, by: (*mix[:i], mix[i] + by, *mix[i + 1 :])
  while space.of(mix) > limit and any(mix):
    i = rng.choice([i for i, level in enumerate(mix) if level])
    mix = change(mix, i, -1)
  while True:
    room = [m for m in space.raised(mix) if space.of(m) <= limit]
    if not room:
      return mix
    mix = room[rng.integers(len(room))]
