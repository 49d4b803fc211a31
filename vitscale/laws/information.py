"""What a run tells about the loss at a target, and which set tells most.

With slopes g of its residual, a run adds g g' to the information on a law's
parameters (in the solver's coordinates); with slope h of ln loss at the target
the variance there is h' (information)^-1 h. Slopes depend on the parameters, so
all of this is done for several of them, and sets compare by mean ln variance.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from vitscale.laws import vertex
from vitscale.laws.fit import Fit
from vitscale.laws.frame import inner

Array = np.ndarray
DRAWS = 16  # of the parameters, beside the estimate
RIDGE = 1e-10  # of the information, relative: keeps a singular one solvable
PACES = (1.0, 2.0, 4.0, math.inf)  # share of the even budget a run may take


@dataclasses.dataclass(frozen=True)
class Information:
  """Information for each of q parameter vectors, the estimate first.

  Attributes:
    now: (q, f, f) of the present points, in units of one run's.
    slope: (q, m, f) of the candidates' residuals.
    aim: (q, f) slope of ln loss at the target.
    noise: standard deviation of ln loss of one run.
    dof: degrees of freedom of the noise at present.
  """

  now: Array
  slope: Array
  aim: Array
  noise: float
  dof: int

  def variance(self, chosen: Sequence[int]) -> Array:
    """(q,) variance of ln loss at the target, in units of one run's."""
    solved = np.linalg.solve(self.matrix(chosen), self.aim[..., None])[..., 0]
    return (self.aim * solved).sum(-1)

  def matrix(self, chosen: Sequence[int]) -> Array:
    g = self.slope[:, list(chosen)]
    return self.now + np.einsum("qmi,qmj->qij", g, g)

  def with_one(self, chosen: Sequence[int]) -> Array:
    """(m,) mean ln variance after each further candidate."""
    inverse = np.linalg.inv(self.matrix(chosen))
    aimed = np.einsum("qij,qj->qi", inverse, self.aim)
    before = (aimed * self.aim).sum(-1)
    across = np.einsum("qmi,qi->qm", self.slope, aimed)
    own = np.einsum("qmi,qij,qmj->qm", self.slope, inverse, self.slope)
    after = before[:, None] - across**2 / (1 + own)
    return np.log(np.maximum(after, 1e-300)).mean(0)

  def score(self, chosen: Sequence[int]) -> float:
    return float(np.log(np.maximum(self.variance(chosen), 1e-300)).mean())


def information(
  fit: Fit, places: dict[str, Array], target: dict[str, float], seed: int
) -> Information:
  near, log = fit.local, fit.goal.log
  law, frame, free = near.law, near.frame, near.free

  def slopes(t: Array, x: Sequence[Array], relative: bool) -> Array:
    x = np.stack([np.atleast_1d(v) for v in x])
    there = dataclasses.replace(frame, x=x, n=x.shape[1])
    found = vertex.slopes(law, there, t, free)
    if not relative:
      params = {k: v[0] for k, v in near.params(t[None]).items()}
      found *= law(params, **dict(zip(law.variables, x)))[:, None]
    return found

  present, new, aim = [], [], []
  for t in _parameters(fit, seed):
    present.append(slopes(t, fit.points.x, log))
    new.append(slopes(t, [places[v] for v in law.variables], log))
    aim.append(slopes(t, [target[v] for v in law.variables], True)[0])
  present = np.stack(present)
  now = np.einsum("n,qni,qnj->qij", fit.weights, present, present)
  # The variance that the fit ascribes to one row, whatever its objective.
  rank = np.linalg.matrix_rank(now[0], hermitian=True)
  noise = math.sqrt(np.trace(near.covariance @ now[0]) / rank)
  size = np.einsum("qii->q", now) * RIDGE
  return Information(
    now + size[:, None, None] * np.eye(len(free)),
    np.stack(new),
    np.stack(aim),
    noise,
    near.dof,
  )


def _parameters(fit: Fit, seed: int) -> Iterable[Array]:
  """Inner parameters (k,): the estimate and some draws."""
  near, rng = fit.local, np.random.default_rng(seed)
  yield near.t
  if fit.interval:
    total = len(next(iter(fit.draws.values())))
    rows = rng.choice(total, min(DRAWS, total), replace=False)
    values = [fit.draws[k][rows] for k in fit.law.names]
    moved = inner(fit.law, near.frame, values)
  else:
    moved = np.repeat(near.t[None], DRAWS, 0)
    zero = np.zeros(len(near.free))
    moved[:, near.free] += rng.multivariate_normal(zero, near.covariance, DRAWS)
    moved = np.clip(moved, near.frame.low, near.frame.high)
  yield from moved[np.isfinite(moved).all(-1)]


# ---------------------------------------------------------------------- search


def search(
  known: Information, price: Array, budget: float, count: int
) -> list[int]:
  """The best of several greedy sets, each improved by exchanges."""
  found = []
  for pace in PACES:
    for by_cost in (False, True):
      start = _greedy(known, price, budget, count, pace, by_cost)
      found.append(_exchange(known, price, budget, count, start))
  return min(found, key=known.score)


def _greedy(
  known: Information,
  price: Array,
  budget: float,
  count: int,
  pace: float,
  by_cost: bool,
) -> list[int]:
  """Takes the run that gains most, or most for its price.

  `pace`: a run may cost so many times the even share of what is left.
  """
  chosen: list[int] = []
  left = budget
  while len(chosen) < count:
    share = left if math.isinf(pace) else pace * left / (count - len(chosen))
    able = price <= min(left, max(share, price.min()))
    if not able.any():
      break
    gain = known.score(chosen) - known.with_one(chosen)
    if by_cost:
      gain = gain / price
    best = int(np.argmax(np.where(able, gain, -np.inf)))
    chosen.append(best)
    left -= price[best]
  return chosen


def _exchange(
  known: Information,
  price: Array,
  budget: float,
  count: int,
  chosen: list[int],
) -> list[int]:
  """Replaces single runs while that helps; adds one where there is room."""
  chosen, best = list(chosen), known.score(chosen)
  for _ in range(20):
    before = best
    for i in range(min(len(chosen) + 1, count)):
      rest = chosen[:i] + chosen[i + 1 :]
      scores = known.with_one(rest)
      left = budget - price[rest].sum()
      scores = np.where(price <= left, scores, np.inf)
      j = int(np.argmin(scores))
      if scores[j] < best - 1e-9:
        chosen, best = [*rest[:i], j, *rest[i:]], float(scores[j])
    if best == before:
      break
  return chosen


def order(known: Information, chosen: list[int]) -> list[int]:
  """The most useful first."""
  rest, out = list(chosen), []
  while rest:
    scores = known.with_one(out)
    best = min(rest, key=lambda c: scores[c])
    rest.remove(best)
    out.append(best)
  return out
