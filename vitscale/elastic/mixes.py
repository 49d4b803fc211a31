"""Shapes of mixes: which level each layer has, over depth.

A mix gives each of L layers one of g levels, written here as level numbers,
0 the smallest: (0, 0, 1) is "a quarter, a quarter, a half". MatFormer
(2310.07707 section 3.3, appendix D.1) compares shapes that are monotone over
depth and recommends the one that rises with the least slope.

    least_slope            rises over at most two neighbouring levels
    increasing             never falls with depth; C(L + g - 1, g - 1) of them
    decreasing             never rises
    increasing_decreasing  never falls up to some layer, never rises after it
    decreasing_increasing  the other way round
    all                    every mix, g^L
"""

import itertools
import math
from collections.abc import Callable, Iterator

from vitscale.core.errors import UserError, nearest

Mix = tuple[int, ...]
MOST = 20_000  # mixes of a shape that are listed


def shape(name: str, levels: int, depth: int) -> list[Mix]:
  """Every mix of a shape, each once, in rising order.

  Args:
    name: a key of `SHAPES`.
    levels: g, how many there are.
    depth: L, layers.

  Raises:
    UserError: unknown name, or more than `MOST` of them.
  """
  if name not in SHAPES:
    raise UserError(f"shape {name!r}{nearest(name, SHAPES)}")
  total = count(name, levels, depth)
  if total > MOST:
    raise UserError(
      f"{levels} levels in {depth} layers are {total} mixes of shape {name},"
      f" {MOST} at most are listed: use least_slope, increasing or sensitivity"
    )
  return sorted(set(SHAPES[name][0](levels, depth)))


def count(name: str, levels: int, depth: int) -> int:
  """How many mixes `shape` has, without listing them."""
  return SHAPES[name][1](levels, depth)


def _least_slope(g: int, depth: int) -> Iterator[Mix]:
  for low in range(g):
    yield (low,) * depth
  for low in range(g - 1):
    for first in range(1, depth):
      yield (low,) * first + (low + 1,) * (depth - first)


def _increasing(g: int, depth: int) -> Iterator[Mix]:
  return itertools.combinations_with_replacement(range(g), depth)


def _decreasing(g: int, depth: int) -> Iterator[Mix]:
  return (mix[::-1] for mix in _increasing(g, depth))


def _increasing_decreasing(g: int, depth: int) -> Iterator[Mix]:
  for top in range(1, depth + 1):
    for up in _increasing(g, top):
      for down in _increasing(up[-1] + 1, depth - top):
        yield up + down[::-1]


def _decreasing_increasing(g: int, depth: int) -> Iterator[Mix]:
  for mix in _increasing_decreasing(g, depth):
    yield tuple(g - 1 - level for level in mix)


def _all(g: int, depth: int) -> Iterator[Mix]:
  return itertools.product(range(g), repeat=depth)


def _count_monotone(g: int, depth: int) -> int:
  return math.comb(depth + g - 1, g - 1)


def _count_peaked(g: int, depth: int) -> int:
  """With p levels below the peak: a composition of L - 1 into 2 p + 1 parts."""
  return sum(math.comb(depth - 1 + 2 * p, 2 * p) for p in range(g))


# Name -> (mixes of g levels and L layers, how many).
SHAPES: dict[
  str, tuple[Callable[[int, int], Iterator[Mix]], Callable[[int, int], int]]
] = {
  "least_slope": (_least_slope, lambda g, depth: (g - 1) * (depth - 1) + g),
  "increasing": (_increasing, _count_monotone),
  "decreasing": (_decreasing, _count_monotone),
  "increasing_decreasing": (_increasing_decreasing, _count_peaked),
  "decreasing_increasing": (_decreasing_increasing, _count_peaked),
  "all": (_all, lambda g, depth: g**depth),
}
