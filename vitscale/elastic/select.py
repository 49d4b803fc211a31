"""Which nested model for a budget: one function a selector.

    least_slope  the costliest mix that rises by one level with depth; nothing
                 is measured (MatFormer, 2310.07707 section 3.3)
    increasing, decreasing, increasing_decreasing, decreasing_increasing
                 the best of all mixes of a shape (mixes.py)
    sensitivity  each layer alone is set to each level and scored; the mix with
                 the least sum of what that cost, by dynamic programming
    evolutionary the best that evolution meets (evolve.py)
    router       a small network learns budget -> levels (router.py)
    exhaustive   the best of all mixes, for spaces of at most 4096

Shapes and exhaustive search score the mixes that leave no room to raise a
layer within their set. All but least_slope look at held-out images. Of a run
whose levels don't mix the granularities it trained are the candidates, of
least_slope and exhaustive.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from vitscale.core.errors import UserError, nearest
from vitscale.elastic import evolve
from vitscale.elastic import router as router_lib
from vitscale.elastic.mixes import Mix
from vitscale.elastic.score import Judge
from vitscale.elastic.space import MOST, Budget, Space
from vitscale.elastic.spec import ElasticSpec


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a selector chose.

  Attributes:
    spec: of the model.
    scored: how many models it scored on held-out images.
    detail: what else it spent.
  """

  spec: ElasticSpec
  scored: int = 0
  detail: dict[str, Any] = dataclasses.field(default_factory=dict)


Selector = Callable[[Space, float, Judge, int], Choice]


def choose(
  space: Space,
  asked: Budget,
  how: str,
  judge: Judge | None = None,
  seed: int = 0,
) -> Choice:
  """The candidate for a budget.

  Args:
    space: of the run.
    asked: in the units of the space's price.
    how: a key of `SELECTORS`.
    judge: losses of mixes (of specs, where nothing mixes) on held-out images.
    seed: of evolution and router.

  Raises:
    UserError: unknown `how`, nothing to score on, a budget out of range, a
      selector that this run can't have, or too many models to score.
  """
  check(how)
  space.check(asked)
  if judge is None:
    if how != "least_slope":
      raise UserError(f"{how} scores on held-out images: there are none")
    judge = Judge(lambda _: [])
  before = judge.scored
  chosen = SELECTORS[how](space, asked.limit, judge, seed)
  return dataclasses.replace(chosen, scored=judge.scored - before)


def check(how: str) -> None:
  """Raises UserError of an unknown selector."""
  if how not in SELECTORS:
    raise UserError(f"selector {how!r}{nearest(how, SELECTORS)}")


# ----------------------------------------------------------------- selectors


def least_slope(space: Space, limit: float, judge: Judge, seed: int) -> Choice:
  """The costliest that fits; of equal ones the first."""
  del judge, seed
  if not space.levels:
    fit = [spec for spec in space.specs if space.cost(spec) <= limit]
    return Choice(max(fit, key=space.cost))
  fit = space.fitting(space.shape("least_slope"), limit)
  return Choice(space.spec(max(fit, key=space.of)))


def of_shape(
  space: Space, limit: float, judge: Judge, seed: int, *, shape: str
) -> Choice:
  """The best of a shape."""
  del seed
  found = space.fullest(space.shape(shape), limit)
  return _best(space, shape, found, judge)


def exhaustive(space: Space, limit: float, judge: Judge, seed: int) -> Choice:
  """The best of all."""
  del seed
  if not space.levels:
    fit = [spec for spec in space.specs if space.cost(spec) <= limit]
    return Choice(fit[_argmin(judge(fit))])
  count = len(space.levels) ** space.depth
  if count > MOST:
    raise UserError(
      f"{len(space.levels)} levels in {space.depth} layers are {count} models,"
      f" exhaustive search takes {MOST} at most: use sensitivity or increasing"
    )
  found = space.fullest(space.shape("all"), limit)
  return _best(space, "exhaustive", found, judge)


def _best(
  space: Space, what: str, found: Sequence[Mix], judge: Judge
) -> Choice:
  if len(found) > MOST:
    raise UserError(
      f"{len(found)} mixes of shape {what} fit the budget, {MOST} at most are"
      " scored: use sensitivity or increasing"
    )
  return Choice(space.spec(found[_argmin(judge(found))]))


def _argmin(losses: Sequence[float]) -> int:
  return min(range(len(losses)), key=losses.__getitem__)


def sensitivity(space: Space, limit: float, judge: Judge, seed: int) -> Choice:
  """The mix within `limit` whose layers, changed one at a time, cost least.

  Exact for losses that add up over layers. Scores L (levels - 1) + 1 models.
  """
  del seed
  space.check_mixed("sensitivity")
  top = len(space.levels) - 1
  whole = (top,) * space.depth
  alone = {
    (i, k): (*whole[:i], k, *whole[i + 1 :])
    for i in range(space.depth)
    for k in range(top + 1)
  }
  losses = dict(zip(alone, judge(list(alone.values()))))
  table = [
    [losses[i, k] - losses[i, top] for k in range(top + 1)]
    for i in range(space.depth)
  ]
  return Choice(space.spec(space.least(table, limit)))


def evolutionary(space: Space, limit: float, judge: Judge, seed: int) -> Choice:
  """The best that evolution meets."""
  space.check_mixed("evolutionary")
  return Choice(space.spec(evolve.best(space, limit, judge, seed)))


def router(space: Space, limit: float, judge: Judge, seed: int) -> Choice:
  """What a router learns; `detail` has its steps."""
  space.check_mixed("router")
  if judge.soft is None:
    raise UserError("a router trains on the model: scores alone don't do")
  found = router_lib.train(space, judge.soft, seed)
  return Choice(space.spec(found.pick(limit)), 0, {"steps": found.steps})


SELECTORS: dict[str, Selector] = {
  "least_slope": least_slope,
  **{
    shape: functools.partial(of_shape, shape=shape)
    for shape in (
      "increasing", "decreasing", "increasing_decreasing",
      "decreasing_increasing",
    )
  },
  "sensitivity": sensitivity,
  "evolutionary": evolutionary,
  "router": router,
  "exhaustive": exhaustive,
}  # fmt: skip
