"""ScaleKV: a cache of keys and values that forgets after every scale of VAR.

    w = softmax(q_window k^T) summed over the window; of each head:
    keep the window and the tokens of the largest max_5(w)

(Li et al., 2505.19602.) The window are centroids of patches of the map that was
just said. How many tokens a layer keeps after a scale is a number of a `Plan`,
so that every shape is static and all scales stay one compiled program.

Roles come from calibration (sampling/scale_kv_roles.py): the drafters of a
scale look around in all scales and keep many tokens, the same number at every
scale. The others, refiners, keep fewer, and fewer with every scale:

    sum_k (N_d B_d + N_r B_r(k)) = B L K,    B_r(k) = B_r(0) - decay k

over the K scales after which anything is evicted, of L layers and a mean budget
of B tokens (`allocate`). As in the release roles are told anew for every scale,
what is kept after a scale follows the roles of the next, which reads it, and
each head keeps tokens of its own. Unlike the release, which sums logits,
attention here is what the layer had: a softmax over all that it saw.

`latest` and `random` select by place and by chance: controls.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.core.log import read_json, write_json
from vitscale.sampling.scales import Keep

PAPER = "Li et al. 2025, arXiv:2505.19602"
FIDELITY = "interpretation"  # which scales share a budget, see `allocate`
WINDOW, KERNEL, START = 16, 5, 121  # as published, of 10,521 tokens
REFINER, DECAY = 600 / 650, 70 / 650  # B_r(0) and decay over B, as published

# ---------------------------------------------------------------- selection


def weights(q: jax.Array, k: jax.Array) -> jax.Array:
  """softmax(q k^T / sqrt(hd)) of (b, w, h, hd) and (b, n, h, hd): (b, h, w, n).

  float32.
  """
  logits = jnp.einsum(
    "bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32
  )
  return jax.nn.softmax(logits * q.shape[-1] ** -0.5, -1)


def centroids(side: int, window: int) -> np.ndarray:
  """Places of an observation window in a map of side x side, row by row.

  The map is cut into g x g patches, g the root of `window` or `side` if that is
  less, and of each the token in the middle is taken, the upper left one of
  several.
  """
  g = min(int(window**0.5), side)
  starts = np.arange(g) * side // g
  ends = (np.arange(g) + 1) * side // g
  middle = (starts + ends - 1) // 2
  return (middle[:, None] * side + middle).ravel()


def attention(
  key: jax.Array,
  q: jax.Array,
  k: jax.Array,
  count: int,
  *,
  window: int,
  kernel: int,
) -> jax.Array:
  """The window, and the tokens that it looks at most.

  Args:
    key: unused.
    q: (b, s^2, h, hd), queries of a scale.
    k: (b, n, h, hd), all keys, of this scale the last s^2.
    count: tokens to keep, static.
    window: see `centroids`.
    kernel: places over which the summed attention's maximum is taken.

  Returns:
    (b, h, count) int32, rising.

  Raises:
    UserError: fewer to keep than the window has.
  """
  del key
  n, side = k.shape[1], int(q.shape[1] ** 0.5)
  seen = centroids(side, window)
  if count < len(seen):
    raise UserError(
      f"cache: {count} tokens are fewer than the window's {len(seen)} at scale"
      f" {side}: use window={int(count**0.5) ** 2}, or a larger budget"
    )
  own = n - side**2 + seen
  score = weights(q[:, seen], k).sum(2).at[..., own].set(0.0)
  score = jax.lax.reduce_window(
    score, -jnp.inf, jax.lax.max, (1, 1, kernel), (1, 1, 1), "SAME"
  )
  return _best(score.at[..., own].set(jnp.inf), count)


def latest(
  key: jax.Array, q: jax.Array, k: jax.Array, count: int, **options: Any
) -> jax.Array:
  """The last tokens, a sliding window; as `attention`."""
  del key, options
  b, n, h, _ = k.shape
  return jnp.broadcast_to(jnp.arange(n - count, n), (b, h, count))


def random(
  key: jax.Array, q: jax.Array, k: jax.Array, count: int, **options: Any
) -> jax.Array:
  """Any tokens, each head others; as `attention`."""
  del q, options
  b, n, h, _ = k.shape
  return _best(jax.random.uniform(key, (b, h, n)), count)


def _best(score: jax.Array, count: int) -> jax.Array:
  """Places of the largest scores (b, h, n) -> (b, h, count), rising."""
  return jnp.sort(jax.lax.top_k(score, count)[1], -1)


SELECTIONS = {f.__name__: f for f in (attention, latest, random)}


# --------------------------------------------------------------------- plans


@dataclasses.dataclass(frozen=True)
class Plan:
  """How many tokens every layer keeps after every scale, and which.

  Attributes:
    capacities: of every scale but the last, of every layer; at least as many
      as there are keep all, and a layer below that is not touched.
    select: which, see `attention`; what `SELECTIONS` has can be written.
    window, kernel: see `attention`.
    start: nothing is evicted from a layer that holds no more tokens.
  """

  capacities: tuple[tuple[int, ...], ...]
  select: Callable[..., jax.Array] = attention
  window: int = WINDOW
  kernel: int = KERNEL
  start: int = START

  def __post_init__(self):
    rows = {len(row) for row in self.capacities}
    if len(rows) > 1 or any(c < 1 for row in self.capacities for c in row):
      raise UserError(
        "cache: capacities are rows of as many layers, each 1 token or more"
      )
    for name, least in (("window", 1), ("kernel", 1), ("start", 0)):
      if (value := getattr(self, name)) < least:
        raise UserError(f"cache: {name}={value}: should be {least} or more")

  def check(self, scales: Sequence[int], depth: int) -> None:
    """Raises UserError for a model of other scales or layers."""
    found = [len(row) for row in self.capacities]
    if found != [depth] * (len(scales) - 1):
      raise UserError(
        f"cache: a plan of {len(found)} scales x {max(found, default=0)} layers"
        f" for a model of {len(scales)} scales and {depth} layers: want"
        f" {len(scales) - 1} x {depth}, the last scale keeps nothing"
      )

  def keep(self, k: int, key: jax.Array) -> Keep | None:
    """What layers keep after scale k; after the last, which nobody reads, all.

    Args:
      k: number of the scale, static.
      key: random key of the sample, of which draws of codes have
        `fold_in(key, k)`.
    """
    if k >= len(self.capacities):
      return None
    key = jax.random.fold_in(key, 2**31 + k)

    def keep(layer, q, keys, values):
      count, n = self.capacities[k][layer], keys.shape[1]
      if n <= max(count, self.start):
        return keys, values
      chosen = self.select(
        jax.random.fold_in(key, layer), q, keys, count,
        window=self.window, kernel=self.kernel,
      )  # fmt: skip
      at = jnp.swapaxes(chosen, 1, 2)[..., None]
      pick = lambda x: jnp.take_along_axis(x, at, 1)
      return pick(keys), pick(values)

    return keep


def save(plan: Plan, path: str | Path) -> None:
  """Writes a plan as JSON.

  Raises:
    UserError: a selection that has no name.
  """
  name = plan.select.__name__
  if SELECTIONS.get(name) is not plan.select:
    raise UserError(f"cache: {name!r} is none of {', '.join(SELECTIONS)}")
  fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
  write_json(Path(path), {**fields, "select": name})


def load(path: str | Path) -> Plan:
  """A plan that `save` wrote.

  Raises:
    UserError: no such file, or it holds no plan.
  """
  found = read_json(Path(path))
  if found is None:
    raise UserError(f"cache: {path} is not there: a plan as JSON is wanted")
  known = {f.name for f in dataclasses.fields(Plan)}
  if not isinstance(found, dict) or set(found) != known:
    raise UserError(f"cache: {path} is no plan: it should hold {sorted(known)}")
  numbers = [found[name] for name in ("window", "kernel", "start")]
  try:
    rows = tuple(tuple(row) for row in found["capacities"])
    numbers += [c for row in rows for c in row]
  except TypeError:
    raise UserError(f"cache: {path}: capacities are a list of lists") from None
  if not all(type(x) is int for x in numbers):
    raise UserError(f"cache: {path}: every number of a plan is an integer")
  name = found["select"]
  if name not in SELECTIONS:
    raise UserError(
      f"cache: {path}: select {name!r}{nearest(name, SELECTIONS)}"
    )
  return Plan(**{**found, "capacities": rows, "select": SELECTIONS[name]})


# ------------------------------------------------------------------- budgets


def carried(scales: Sequence[int]) -> list[int]:
  """Tokens that a full cache holds after each scale but the last."""
  return np.cumsum(np.square(scales))[:-1].tolist()


def allocate(
  scales: Sequence[int],
  drafters: Sequence[Sequence[int]],
  depth: int,
  share: float,
  *,
  refiner: int | None = None,
  decay: int | None = None,
  drafter: int | None = None,
) -> tuple[tuple[int, ...], ...]:
  """Capacities of a `Plan` that spend a share of the full cache.

  B is that share of what a full cache carries into the last scale. After a
  scale up to which there are no more than B tokens nothing is evicted; the
  others share the budget.

  Args:
    scales: sides, of the model.
    drafters: layers that are drafters at each scale, as many at every one.
    depth: L.
    share: in (0, 1]; 1 evicts nothing.
    refiner, decay: B_r(0) and the tokens less with every scale; by default in
      the proportion of the paper.
    drafter: B_d; by default what the rest of the budget pays, rounded down.

  Raises:
    UserError: numbers that don't add up, and what would.
  """
  if not 0 < share <= 1:
    raise UserError(f"cache: a share of {share}: should be in (0, 1]")
  counts = {len(set(row)) for row in drafters}
  wrong = [i for row in drafters for i in row if not 0 <= i < depth]
  if len(drafters) != len(scales) or len(counts) != 1 or wrong:
    raise UserError(
      f"cache: drafters want {len(scales)} rows, one a scale, of equally many"
      f" layers of 0..{depth - 1}"
    )
  few = counts.pop()
  if not 0 < few < depth:
    raise UserError(f"cache: {few} drafters of {depth} layers: leave some each")
  full = carried(scales)
  if share == 1 or not full:
    return tuple((n,) * depth for n in full)
  b = max(round(share * full[-1]), 1)
  turns = [k for k, n in enumerate(full) if n > b]
  refiner = round(REFINER * b) if refiner is None else refiner
  decay = round(DECAY * b) if decay is None else decay
  of_refiners = [refiner - decay * i for i in range(len(turns))]
  if min(of_refiners) < 1:
    most = max((refiner - 1) // max(len(turns) - 1, 1), 0)
    raise UserError(
      f"cache: refiners end with {min(of_refiners)} tokens: use decay={most} or"
      " less"
    )
  left = b * depth * len(turns) - (depth - few) * sum(of_refiners)
  pays = left // (few * len(turns))
  if pays < refiner:
    raise UserError(
      f"cache: {refiner} tokens a refiner leave drafters {pays}: use refiner="
      f"{b} or less of a budget of {b}"
    )
  if drafter not in (None, pays):
    raise UserError(
      f"cache: drafter={drafter} does not add up to {b} tokens a layer and"
      f" scale: use drafter={pays}"
    )
  rows = [(n,) * depth for n in full]
  for k, mine in zip(turns, of_refiners):
    of_next = set(drafters[k + 1])
    rows[k] = tuple(
      min(pays if i in of_next else mine, full[k]) for i in range(depth)
    )
  return tuple(rows)


def even(
  capacities: Sequence[Sequence[int]],
) -> tuple[tuple[int, ...], ...]:
  """As many tokens after each scale, but every layer alike.

  What does not divide goes to the first layers, a token each.
  """
  rows = []
  for row in capacities:
    each, more = divmod(sum(row), len(row))
    rows.append(tuple(each + (i < more) for i in range(len(row))))
  return tuple(rows)
