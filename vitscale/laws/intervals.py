"""Which rows are one run, percentiles, paired differences and trend tests.

Runs are drawn within each x, where each x keeps its own noise; of m runs m - 1
are drawn and re-weighted (Rao and Wu 1988), without which three runs would show
2/3 of their variance. Intervals of few runs are widened from the normal to the
t distribution (the "expanded percentile" of Hesterberg 2015).
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from scipy import special

from vitscale.core.errors import UserError

Array = np.ndarray
_NAN2 = (float("nan"), float("nan"))


# ------------------------------------------------------------ resampling


@dataclasses.dataclass(frozen=True)
class Design:
  """Which rows move together, and among which clusters they are exchanged.

  Attributes:
    cluster: (n,) cluster number of each row.
    stratum: (clusters,) stratum number of each cluster.
  """

  cluster: Array
  stratum: Array

  @property
  def sizes(self) -> Array:
    """Clusters per stratum."""
    return np.bincount(self.stratum)

  @property
  def dof(self) -> int:
    """Degrees of freedom between clusters within strata."""
    return int((self.sizes - 1).sum())


def design(x: Sequence[Array], groups: Array | None) -> Design:
  """Clusters and strata of a table.

  Rows of one group form a cluster (without `groups` each row is one). Clusters
  measured at the same places, i.e. with equal sets of x, form a stratum: final
  losses of several seeds per patch give a stratum per patch, whole curves of
  several seeds give a single one.
  """
  n = len(x[0])
  keys: Sequence[Hashable] = range(n) if groups is None else list(groups)
  order: dict[Hashable, int] = {}
  cluster = np.array([order.setdefault(k, len(order)) for k in keys])
  cells = list(zip(*(v.tolist() for v in x)))
  places: list[list[tuple]] = [[] for _ in order]
  for c, cell in zip(cluster, cells):
    places[c].append(cell)
  strata: dict[tuple, int] = {}
  stratum = [strata.setdefault(tuple(sorted(p)), len(strata)) for p in places]
  return Design(cluster, np.array(stratum))


def cluster_weights(
  plan: Design, draws: int, rng: np.random.Generator
) -> Array:
  """Weights of rows in each draw, (draws, n), mean 1.

  Within a stratum of m clusters, m - 1 are drawn with replacement and counted
  m / (m - 1) times. A stratum of one cluster always keeps weight 1.
  """
  weights = np.ones((draws, len(plan.stratum)))
  for s, m in enumerate(plan.sizes):
    if m > 1:
      counts = rng.multinomial(m - 1, np.full(m, 1 / m), size=draws)
      weights[:, plan.stratum == s] = counts * (m / (m - 1))
  return weights[:, plan.cluster]


def expanded(level: float, dof: float) -> float:
  """The level whose normal quantile equals the t quantile of `level`."""
  if not 0 < level < 1:
    raise UserError(f"level is {level}, must lie between 0 and 1, as 0.95")
  if np.isinf(dof):
    return level
  t = special.stdtrit(max(dof, 1), 0.5 + level / 2)
  return float(2 * special.ndtr(t) - 1)


def percentile(
  draws: Array, level: float, dof: float, axis: int = 0
) -> tuple[Array, Array]:
  """Percentile interval over `axis`, expanded for finite `dof`.

  Plain percentiles are numpy's, as published ones are. Expanded ones
  interpolate ranks so that few draws are not too narrow: 400 draws would cover
  94.5 % instead of 95.
  """
  tail = (1 - expanded(level, dof)) / 2
  method = "linear" if np.isinf(dof) else "weibull"
  low, high = np.quantile(draws, (tail, 1 - tail), axis=axis, method=method)
  return low, high


# ----------------------------------------------------------- differences


@dataclasses.dataclass(frozen=True)
class Difference:
  """Mean of `a - b` over seeds.

  Attributes:
    ci: Student t interval; what verdicts use.
    bootstrap: percentile interval, for comparison; too narrow below about
      ten pairs (three seeds have ten distinct resamples).
    p: two-sided p-value of the t test.
    n: pairs, or the smaller of both sample sizes.
  """

  mean: float
  ci: tuple[float, float]
  bootstrap: tuple[float, float]
  p: float
  n: int
  paired: bool


def difference(
  a: Array,
  b: Array,
  *,
  paired: bool = True,
  level: float = 0.95,
  draws: int = 4000,
  seed: int = 0,
) -> Difference:
  """Compares two arms; entry i of both is seed i when `paired`.

  Unpaired arms get Welch's interval. One seed gives the mean and NaN.
  """
  a, b = (np.atleast_1d(np.asarray(v, float)) for v in (a, b))
  for name, v in (("first", a), ("second", b)):
    bad = np.flatnonzero(~np.isfinite(v))
    if bad.size or not v.size:
      where = f"entry {bad[0]} is {v[bad[0]]}" if bad.size else "it is empty"
      raise UserError(f"difference: {name} arm: {where}")
  if paired and a.size != b.size:
    raise UserError(
      f"paired difference of {a.size} and {b.size} runs: the arms need the "
      "same seeds; use paired=False otherwise"
    )
  arms = [a - b] if paired else [a, b]
  mean = float(a.mean() - b.mean())
  n = min(v.size for v in arms)
  if n < 2:
    return Difference(mean, _NAN2, _NAN2, float("nan"), n, paired)
  parts = [v.var(ddof=1) / v.size for v in arms]
  error = np.sqrt(sum(parts))
  if error > 0:
    dof = sum(parts) ** 2 / sum(
      q**2 / (v.size - 1) for q, v in zip(parts, arms)
    )
    p = float(2 * special.stdtr(dof, -abs(mean) / error))
  else:
    dof, p = n - 1, 1.0 if mean == 0 else 0.0
  half = special.stdtrit(dof, 0.5 + level / 2) * error
  rng = np.random.default_rng(seed)
  means = [v[rng.integers(0, v.size, (draws, v.size))].mean(1) for v in arms]
  resampled = means[0] if paired else means[0] - means[1]
  low, high = np.quantile(resampled, ((1 - level) / 2, (1 + level) / 2))
  return Difference(
    mean,
    (float(mean - half), float(mean + half)),
    (float(low), float(high)),
    p,
    n,
    paired,
  )


# ----------------------------------------------------------------- trends


@dataclasses.dataclass(frozen=True)
class Trend:
  """Evidence against "no order" in favour of the stated order."""

  test: str
  statistic: float
  p: float
  n: int


def page_trend(
  table: Array, *, direction: Literal["increasing", "decreasing"] = "increasing"
) -> Trend:
  """Page's test: rows are seeds, columns levels in the order of the claim.

  One-sided and paired by row; exact null distribution for small tables.
  """
  from scipy import stats  # half a second that only this test needs

  table = np.asarray(table, float)
  if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 3:
    raise UserError(
      f"Page's test needs 2 seeds and 3 levels at least, the table is "
      f"{' x '.join(map(str, table.shape))}"
    )
  bad = np.argwhere(~np.isfinite(table))
  if bad.size:
    i, j = bad[0]
    raise UserError(f"Page's test: row {i}, column {j} is {table[i, j]}")
  if direction == "decreasing":
    table = table[:, ::-1]
  found = stats.page_trend_test(table)
  return Trend("Page", float(found.statistic), float(found.pvalue), len(table))


def jonckheere(
  samples: Sequence[Array],
  *,
  direction: Literal["increasing", "decreasing"] = "increasing",
  permutations: int = 20_000,
  seed: int = 0,
) -> Trend:
  """Jonckheere-Terpstra test: unpaired samples in the order of the claim.

  Sizes may differ (a failed seed leaves a gap that Page's test cannot take).
  The p-value is a permutation count, so ties need no correction.
  """
  samples = [np.atleast_1d(np.asarray(s, float)) for s in samples]
  if len(samples) < 3 or any(s.size == 0 for s in samples):
    raise UserError(
      "Jonckheere's test needs 3 samples at least, none of them empty; sizes "
      f"are {[s.size for s in samples]}"
    )
  values = np.concatenate(samples)
  if not np.isfinite(values).all():
    raise UserError("Jonckheere's test: a value is not finite")
  if direction == "decreasing":
    values = -values
  label = np.repeat(np.arange(len(samples)), [s.size for s in samples])
  later = (label[None, :] > label[:, None]).astype(np.float32)

  rng = np.random.default_rng(seed)
  orders = [np.arange(len(values))]
  orders += [rng.permutation(len(values)) for _ in range(permutations)]
  wins = np.sign(values[None, :] - values[:, None]) * 0.5 + 0.5
  count = np.empty(len(orders))
  for start in range(0, len(orders), 2000):
    rows = np.array(orders[start : start + 2000])
    shuffled = wins[rows[:, :, None], rows[:, None, :]]
    count[start : start + len(rows)] = (shuffled * later).sum((1, 2))
  p = float((count >= count[0] - 1e-6).mean())
  return Trend("Jonckheere", float(count[0]), p, len(values))
