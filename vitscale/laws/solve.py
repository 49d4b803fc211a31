"""The one fitter: many starts, or many draws, polished side by side.

Every lane minimises the objective over the free parameters of a law: first
re-weighted Gauss-Newton steps (Levenberg-Marquardt damping, Jacobian by
automatic differentiation), which come near from afar, then Newton steps with
the exact Hessian, which end quickly where Huber's re-weighting crawls. A step
counts only if the true objective falls; parameters stay inside their bounds.

float64 throughout, inside `jax.enable_x64` scopes: the global flag is left
alone. jax is imported at the first fit.
"""

import concurrent.futures
import dataclasses
import functools
import time
from typing import Any, NamedTuple

import numpy as np

from vitscale.launch import machine
from vitscale.laws.forms import Law
from vitscale.laws.frame import Frame, frame, outer
from vitscale.laws.objective import Objective

Array = np.ndarray
LANES = 8  # that one call polishes: their arrays stay in cache
STEPS = (60, 60)  # of the two phases, at most; a point fit has four times
GAIN = (1e-4, 1e-14)  # relative gain that ends a phase


# ------------------------------------------------------------------- polishing


def polish(
  law: Law,
  frame: Frame,
  goal: Objective,
  start: Array,
  y: Array,
  weights: Array,
  *,
  patience: int = 1,
  sharp: float = 1e-6,
) -> tuple[Array, Array, Array]:
  """Minimises in every lane.

  Args:
    law, frame, goal: what is minimised.
    start: (lanes, k) inner parameters, or (1, k) for all.
    y, weights: (lanes, n) or (1, n).
    patience: multiplies the number of steps.
    sharp: `lad` only, Huber's delta at which the smooth steps end. At 1e-6
      draws lie off their vertex by 4e-4 standard errors in the median, by
      .03 at most (240 points of Chinchilla's law).

  Returns:
    (lanes, k) inner parameters, (lanes,) objective, (lanes,) whether it
    converged.
  """
  lanes = max(len(start), len(y), len(weights))
  chunks = [range(s, min(s + LANES, lanes)) for s in range(0, lanes, LANES)]
  program = _program(law, goal, frame.x.shape)  # compiles, before threads
  pad = len(frame.mask) - frame.n
  wide = lambda v, rows: v[np.minimum(rows, len(v) - 1)] if len(v) > 1 else v
  rows_of = lambda c: np.r_[np.array(c), np.full(LANES - len(c), c[-1])]

  def one(chunk):
    rows = rows_of(chunk)
    full = lambda v: np.broadcast_to(wide(v, rows), (LANES, v.shape[-1]))
    yy = np.pad(full(y), ((0, 0), (0, pad)), constant_values=1.0)
    ww = np.pad(full(weights), ((0, 0), (0, pad)))
    t = np.array(full(start))
    return _run(program, frame, goal, t, yy, ww, len(chunk), patience, sharp)

  if len(chunks) == 1:
    parts = [one(chunks[0])]
  else:
    threads = len(machine.cores())
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      parts = list(pool.map(one, chunks))
  return tuple(np.concatenate(v) for v in zip(*parts))


def _run(program, frame, goal, t, y, w, count, patience, sharp):
  import jax

  deltas = [min(goal.delta, 1e300)]
  if goal.name == "lad":  # come from smooth to sharp
    deltas = [10.0**-i for i in range(2, 11) if 10.0**-i > sharp] + [sharp]
  level = np.float64(frame.level)
  data = (frame.x, frame.mask, frame.middle, level, frame.unit)
  ends = (frame.low, frame.high, frame.fixed)
  with jax.enable_x64(True):
    for delta in deltas:
      last = (np.float64(delta), np.int64(patience))
      t, value, ok = program(t, y, w, *data, *ends, *last)
    t, value, ok = (np.asarray(v)[:count] for v in (t, value, ok))
  if goal.name == "lad":
    value = value / sharp  # Huber's sum is delta times that of |r|
  return t, value, ok


@functools.lru_cache(maxsize=256)
def _program(law: Law, goal: Objective, shape: tuple[int, int]):
  """The compiled polish of LANES lanes over x of a shape (v, n)."""
  import jax
  import jax.numpy as jnp

  pinned = np.array([p.name in dict(law.pinned) for p in law.parameters])

  def lane(
    t, y, w, x, mask, middle, level, unit, low, high, fixed, delta, patience
  ):  # fmt: skip
    where = _Traced(middle, level, unit, fixed, pinned)
    rows = list(x)

    def residual(t):
      values = outer(law, where, t)
      predicted = law.at(rows, values)
      return jnp.where(mask > 0, goal.residual(predicted, y), 0.0)

    total = lambda t: (w * goal.rho(residual(t), delta)).sum()

    def near(t):
      r, jacobian = residual(t), jax.jacfwd(residual)(t)
      pulled = (w * goal.pull(r, delta))[:, None] * jacobian
      return jacobian.T @ pulled, pulled.T @ r

    def exact(t):
      return jax.hessian(total)(t), jax.grad(total)(t)

    def phase(model, steps, tolerance, t):
      def body(state):
        t, value, damping, i, _ = state
        matrix, slope = model(t)
        stuck = ((t <= low) & (slope > 0)) | ((t >= high) & (slope < 0))
        free = ~(stuck | pinned)
        slope = jnp.where(free, slope, 0.0)
        both = free[:, None] & free[None, :]
        size = jnp.maximum(jnp.abs(jnp.diagonal(matrix)), 1e-30)
        matrix = jnp.where(both, matrix, 0.0) + jnp.diag(
          jnp.where(free, damping * size, 1.0)
        )
        root, ok = _cholesky(matrix, len(t))
        step = _substitute(root, -slope, len(t))
        new = jnp.clip(t + step, low, high)
        found = total(new)
        better = ok & (found < value)
        gain = (value - found) / jnp.maximum(value, 1e-300)
        # What the model still promises: below rounding nothing can be gained.
        promise = -(slope * step).sum()
        # A short step gains little anywhere: only long ones tell.
        free_step = damping <= 1e-2
        ended = better & free_step & (gain < tolerance)
        ended |= ok & free_step & (promise < 0.1 * tolerance * value)
        damping = jnp.where(better, damping * 0.1, damping * 8)
        ended |= ~better & (damping > 1e10)
        return (
          jnp.where(better, new, t),
          jnp.where(better, found, value),
          jnp.clip(damping, 1e-14, 1e12),
          i + 1,
          ended,
        )

      go = lambda s: (s[3] < steps * patience) & ~s[4] & (s[1] > 0)
      start = (t, total(t), jnp.asarray(1e-3), 0, jnp.asarray(False))
      return jax.lax.while_loop(go, body, start)

    t = phase(near, STEPS[0], GAIN[0], t)[0]
    t, value, _, _, ended = phase(exact, STEPS[1], GAIN[1], t)
    return t, value, ended | (value <= 0)

  k, (v, n) = len(law.parameters), shape
  sizes = [(LANES, k), (LANES, n), (LANES, n), shape, (n,), (v,), (), (k,)]
  sizes += [(k,), (k,), (k,), ()]
  with jax.enable_x64(True):
    given = [jax.ShapeDtypeStruct(size, "float64") for size in sizes]
    given.append(jax.ShapeDtypeStruct((), "int64"))
    lanes = jax.vmap(lane, in_axes=(0, 0, 0) + (None,) * 10)
    return jax.jit(lanes).lower(*given).compile()


class _Traced(NamedTuple):
  """A `Frame` inside a traced program; which are pinned is static."""

  middle: Any
  level: Any
  unit: Any
  fixed: Any
  pinned: Array


def _cholesky(matrix, k):
  """Columns of the lower factor, written out: LAPACK would go lane by lane."""
  import jax.numpy as jnp

  root = [[None] * k for _ in range(k)]
  ok = jnp.asarray(True)
  for j in range(k):
    d = matrix[j, j] - sum(root[j][m] ** 2 for m in range(j))
    ok &= d > 0
    root[j][j] = jnp.sqrt(jnp.where(d > 0, d, 1.0))
    for i in range(j + 1, k):
      inside = sum(root[i][m] * root[j][m] for m in range(j))
      root[i][j] = (matrix[i, j] - inside) / root[j][j]
  return root, ok


def _substitute(root, right, k):
  import jax.numpy as jnp

  z = []
  for i in range(k):
    z.append((right[i] - sum(root[i][m] * z[m] for m in range(i))) / root[i][i])
  out = [None] * k
  for i in reversed(range(k)):
    inside = sum(root[m][i] * out[m] for m in range(i + 1, k))
    out[i] = (z[i] - inside) / root[i][i]
  return jnp.stack(out)


# ---------------------------------------------------------------------- best


@dataclasses.dataclass(frozen=True)
class Best:
  """The best of many starts.

  Attributes:
    frame: how the data are scaled.
    t: (k,) inner parameters; `params` the physical ones, in order.
    value: the objective, a sum.
    converged: the winner ended by itself.
    starts: starts polished; `agree` the share that came to the same value.
    start_gap: relative distance of the best start's objective from `value`.
    compile: seconds of compiling; the draws run the same program.
    seconds: of fitting.
  """

  frame: Frame
  t: Array
  params: tuple[float, ...]
  value: float
  converged: bool
  starts: int
  agree: float
  start_gap: float
  compile: float
  seconds: float


def best(
  law: Law,
  points: Any,
  goal: Objective,
  weights: Array,
  *,
  starts: int = 8,
  size: int = 0,
) -> Best:
  """The global fit as far as `starts` polished starts can tell.

  `size`: see `frame`.
  """
  from vitscale.laws.starts import candidates

  where = frame(law, points.x, points.y, size=size)
  y, w = points.y[None], weights[None]
  begin = time.perf_counter()
  _program(law, goal, where.x.shape)
  compiled = time.perf_counter()
  t, first = candidates(law, where, goal, points, weights, starts)
  # The last of least absolute deviations is exact, from near by.
  ends, values, ok = polish(law, where, goal, t, y, w, patience=4, sharp=1e-4)
  i = int(np.nanargmin(values))
  value = float(values[i])
  if goal.name == "lad":
    from vitscale.laws import vertex

    ends = ends.copy()
    ends[i], value = vertex.descend(law, where, ends[i], points.y, weights)
  # The smooth fits of `lad` end this near to the vertex, the others exactly.
  near = 1e-4 if goal.name == "lad" else 1e-8
  same = values <= value + near * abs(value) + 1e-24
  return Best(
    frame=where,
    t=ends[i],
    params=tuple(float(v) for v in outer(law, where, ends[i])),
    value=value,
    converged=bool(ok[i]),
    starts=len(t),
    agree=float(same.mean()),
    start_gap=float((first.min() - value) / max(value, 1e-300)),
    compile=compiled - begin,
    seconds=time.perf_counter() - compiled,
  )
