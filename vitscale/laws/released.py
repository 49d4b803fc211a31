"""M1 to M4, the extrapolation baselines, as their released code behaves.

The four one-dimensional estimators of Alabdulmohsin et al. 2022 (arXiv
2209.06640), y a loss that falls with x:

  M1  y = beta x^c
  M2  y = eps_inf + beta x^c
  M3  y = beta (1/x + gamma)^c
  M4  (y - eps_inf) / (eps0 - y)^alpha = beta x^c

They are oracles, so the quirks stay: eps_inf starts at min y - 1e-3 and never
exceeds it; M4 updates eps0, though the paper keeps it fixed, but regresses on
a column ln(eps0 - y) built once from its start. Deviations:

- M4 predicts by bisection, not by the best of 10 000 grid values: its errors
  move by up to .5 %.
- M2 and M4 take up to a million tiny steps a curve. The steps are the same,
  but their slopes come from a Taylor expansion of the objective around a
  centre, renewed when a step leaves RADIUS: O(1) work a step, not O(points).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest

Array = np.ndarray
# Its parameters, and so the fewest points with different x.
METHODS = {
  "M1": ("beta", "c"),
  "M2": ("beta", "c", "eps_inf"),
  "M3": ("beta", "c", "gamma"),
  "M4": ("beta", "c", "eps_inf", "eps0", "alpha"),
}
MARGIN = 1e-3  # between the data and eps_inf or eps0
STOP = 1e-10  # change of beta between two outer steps
LIMIT = 10_000  # outer steps
DESCENT = 100  # of them with gradient descent; damped Newton after that
# Taylor order and largest relative move: slopes good to about 1e-8, and exact
# where it counts, as the moves go to zero with convergence.
ORDER, RADIUS = 4, 0.01
PAD = 72  # curves are padded to multiples: one compilation for almost all
SUBSETS = [s for k in range(4) for s in itertools.combinations(range(3), k)]


@dataclasses.dataclass(frozen=True)
class Released:
  """One fitted estimator; `params` has the names of the module docstring.

  Converged means that beta came to rest in less than 10 000 outer steps.
  """

  name: str
  params: dict[str, float]
  converged: bool
  steps: int

  def predict(self, x: float | Array) -> float | Array:
    """Loss at x > 0, a float or an array of any shape."""
    at = np.asarray(x, np.float64)
    if not (np.isfinite(at) & (at > 0)).all():
      raise UserError(f"{self.name} predicts at positive finite x only")
    p = self.params
    if self.name == "M3":
      y = p["beta"] * (1 / at + p["gamma"]) ** p["c"]
    else:
      y = p["beta"] * at ** p["c"]
      if p.get("alpha", 0) >= 1e-5:
        y = _saturate(y, p["alpha"], p["eps0"] - p["eps_inf"])
      y = y + p.get("eps_inf", 0)
    return float(y) if y.ndim == 0 else y


def fit_released(
  name: str,
  x: Any,
  y: Any,
  *,
  start: float | None = None,
  limit: float | None = None,
) -> Released:
  """Fits one estimator to one curve; of rows with equal x the last counts.

  Args:
    name: M1, M2, M3 or M4.
    x: (n,) positive, in any order.
    y: (n,) positive.
    start: first eps0 of M4, above every y; default max(1, 1.02 max y).
    limit: largest eps0 of M4; default none. The paper's benchmark has start
      and limit 1 and 1.001 for images, 1.001 twice for BIG-bench, 1 and none
      for translation and language models.

  Raises:
    UserError: a bad name, number or bound, or too few points.
  """
  return fit_all([(x, y, {"start": start, "limit": limit})], [name])[0][name]


def fit_all(
  curves: Sequence[tuple[Any, Any, Mapping[str, float | None]]],
  names: Sequence[str] = tuple(METHODS),
) -> list[dict[str, Released]]:
  """Fits many curves at once: (x, y, options of `fit_released`) each.

  One compilation (1 s) serves all; 92 curves take 6 CPU seconds more. They
  run one by one: in a vmap each would wait for the slowest, no quicker in sum.
  Errors are those of `fit_released`, naming the curve if there are several.
  """
  for name in names:
    if name not in METHODS:
      raise UserError(f"no estimator {name!r}{nearest(name, METHODS)}")
  read = []
  for i, curve in enumerate(curves):
    try:
      read.append(_read(*curve, names=names))
    except UserError as error:
      where = f"curve {i}: " if len(curves) > 1 else ""
      raise UserError(f"{where}{error}") from None
  return [{name: _fit(name, *curve) for name in names} for curve in read]


def rmse_log(pred: Any, y: Any) -> float:
  """Root mean square of ln pred - ln y; NaN where a prediction has no log."""
  pred, y = np.asarray(pred, np.float64), np.asarray(y, np.float64)
  if pred.shape != y.shape or not y.size:
    raise UserError(f"{pred.shape} predictions for {y.shape} values")
  with np.errstate(divide="ignore", invalid="ignore"):
    value = np.sqrt(np.mean((np.log(pred) - np.log(y)) ** 2))
  return float(value) if np.isfinite(value) else float("nan")


def win_rates(table: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Share of tasks each method wins, from its `rmse_log` per task.

  The paper's rule: errors are floored to three decimals, NaN counts as 1, and
  a tie is split equally.
  """
  if len(sizes := {len(v) for v in table.values()}) != 1 or 0 in sizes:
    raise UserError("win rates need one error per task from every method")
  errors = np.array([table[k] for k in table], np.float64)  # (method, task)
  errors = np.floor(np.where(np.isnan(errors), 1, errors) * 1000) / 1000
  best = errors == errors.min(0)
  return dict(zip(table, (best / best.sum(0)).mean(1).tolist()))


def _read(
  x: Any, y: Any, options: Mapping[str, float | None], *, names: Sequence[str]
) -> tuple[Array, Array, float, float]:
  """x and y sorted by x without repeats, start and limit of eps0."""
  x, y = _column("x", x), _column("y", y)
  if len(x) != len(y):
    raise UserError(f"{len(x)} values of x, {len(y)} of y")
  x, last = np.unique(x[::-1], return_index=True)
  y = y[::-1][last]
  for name in names:
    if len(x) < (needs := len(METHODS[name])):
      raise UserError(f"{name} needs {needs} different x, not {len(x)}")
  for key in sorted(set(options) - {"start", "limit"}):
    raise UserError(f"no option {key!r}{nearest(key, ('start', 'limit'))}")
  given = options if "M4" in names else {}  # the others have no eps0
  start, limit = given.get("start"), given.get("limit")
  start = max(1.0, 1.02 * y.max()) if start is None else float(start)
  limit = np.inf if limit is None else float(limit)
  if not y.max() < start < np.inf:
    raise UserError(f"start is {start}, must exceed the largest y {y.max()}")
  if not limit >= start:
    raise UserError(f"limit is {limit}, must be start {start} at least")
  return x, y, start, limit


def _column(label: str, values: Any) -> Array:
  try:
    column = np.asarray(values, np.float64)
  except (TypeError, ValueError):
    column = np.zeros(())
  if column.ndim != 1:
    raise UserError(f"{label} must be a list of numbers")
  for i in np.flatnonzero(~(np.isfinite(column) & (column > 0))):
    raise UserError(f"{label}[{i}] is {column[i]}, must be positive and finite")
  return column


def _fit(name: str, x: Array, y: Array, start: float, limit: float) -> Released:
  if name == "M1":
    log_beta, c = _line(np.log(x), np.log(y))
    params = {"beta": float(np.exp(log_beta)), "c": float(c)}
    return Released(name, params, True, 1)
  if name == "M3":
    return _fit_shifted(x, y)
  return _fit_floor(name, x, y, start, limit)


def _line(t: Array, v: Array) -> tuple[float, float]:
  """Intercept and slope of v over t."""
  centred = t - t.mean()
  slope = (centred @ v) / max(centred @ centred, 1e-300)
  return v.mean() - slope * t.mean(), slope


def _fit_shifted(x: Array, y: Array) -> Released:
  """M3: each point proposes the gamma that would fit it; the best is taken."""
  v, gamma, beta, steps, done = np.log(y), 0.0, 1.0, 0, False
  while not done and steps < LIMIT:
    log_beta, slope = _line(np.log(1 / x + gamma), v)
    c, old, beta = max(slope, 0.0), beta, np.exp(log_beta)
    if c:
      with np.errstate(over="ignore"):
        gammas = np.exp((v - log_beta) / c) - 1 / x
      gammas = np.r_[gamma, gammas[np.isfinite(gammas) & (gammas >= 0)]]
      fitted = log_beta + c * np.log(1 / x + gammas[:, None])
      gamma = gammas[((v - fitted) ** 2).sum(1).argmin()]
    steps, done = steps + 1, bool(abs(beta - old) < STOP)
  params = {"beta": float(beta), "c": float(c), "gamma": float(gamma)}
  return Released("M3", params, done, steps)


def _saturate(f: Array, alpha: float, span: float) -> Array:
  """The v in (0, span) with v = f (span - v)^alpha, by bisection."""
  low, high = np.zeros_like(f), np.full_like(f, span)
  for _ in range(80):
    v = (low + high) / 2
    above = v > f * (span - v) ** alpha
    low, high = np.where(above, low, v), np.where(above, v, high)
  return (low + high) / 2


# M2 and M4 alternate a regression in logs and small steps of (eps_inf, eps0);
# M2 is M4 with alpha = 0 and eps0 at rest.
def _fit_floor(name: str, *curve: Any) -> Released:
  import jax

  problem = _problem(*curve, saturates=name == "M4")
  # A loop of tiny operations: the CPU is the right place on any machine.
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    fitted = jax.tree.map(np.asarray, _compiled()(problem))
  eps_inf, eps0, (log_beta, minus_c, alpha), steps, done = fitted
  values = (np.exp(log_beta), -minus_c, eps_inf, eps0, alpha)
  params = {k: float(v) for k, v in zip(METHODS["M4"], values)}
  params = {k: params[k] for k in METHODS[name]}
  return Released(name, params, bool(done), int(steps))


def _problem(
  x: Array, y: Array, start: float, limit: float, *, saturates: bool
) -> dict[str, Any]:
  """The constants of a fit, padded with points of weight 0.

  The columns (1, -ln x, ln(start - y)) = q r never change, so the regression
  is a product with q, then non-negative least squares in three dimensions: a
  pseudo-inverse per set of positive coefficients.
  """
  columns = np.stack([np.ones(len(x)), -np.log(x), np.log(start - y)], 1)
  q, r = np.linalg.qr(columns)
  inverse = np.zeros((len(SUBSETS), 3, 3))
  for i, subset in enumerate(SUBSETS):
    kept = list(subset) if saturates else [0, 1]
    inverse[i, kept] = np.linalg.pinv(r[:, kept]) if kept else 0
  pad = (0, -len(x) % PAD)
  constants = {
    "y": np.pad(y, pad, mode="edge"),
    "weight": np.pad(np.full(len(x), 1 / len(x)), pad),
    "log_x": np.pad(np.log(x), pad),
    "q": np.pad(q, (pad, (0, 0))),
    "r": r,
    "inverse": inverse,
    "signed": not saturates,
    "flat": 1e-5 if saturates else 0.0,  # no Newton step below this curvature
    "lowest_y": y.min(),
    "highest_y": y.max(),
    "highest_inf": y.min() - MARGIN,
    "lowest0": y.max() + MARGIN if saturates else start,
    "highest0": limit,
    "start": start,
  }
  return {k: np.asarray(v) for k, v in constants.items()}  # types: compile once


@functools.cache
def _compiled() -> Callable:
  import jax

  # Optimised whatever XLA_FLAGS say: this runs longer than it compiles.
  options = {"xla_backend_optimization_level": 3}
  options["xla_llvm_disable_expensive_passes"] = False
  return jax.jit(_alternate, compiler_options=options)


def _alternate(problem: dict) -> tuple:
  """The outer steps: (eps_inf, eps0, (ln beta, -c, alpha), steps, done)."""
  import jax
  import jax.numpy as jnp

  def step(state: tuple) -> tuple:
    *eps, old, steps, _ = state
    coef = _regress(problem, eps[0])
    eps = _settle(problem, *eps, coef, steps >= DESCENT)
    change = jnp.abs(jnp.exp(coef[0]) - jnp.exp(old[0]))
    done = (change < STOP) & (steps > DESCENT + 1)
    return *eps, coef, steps + 1, done

  first = (problem["highest_inf"], problem["start"], jnp.zeros(3), 0, False)
  return jax.lax.while_loop(lambda s: (s[3] < LIMIT) & ~s[4], step, first)


def _regress(problem: dict, eps_inf: Any) -> Any:
  """ln(y - eps_inf) on the three columns with coefficients >= 0, (3,)."""
  import jax.numpy as jnp

  target = jnp.log(problem["y"] - eps_inf) @ problem["q"]
  coefs = problem["inverse"] @ target  # (subset, 3)
  error = ((coefs @ problem["r"].T - target) ** 2).sum(1)
  allowed = (coefs >= 0).all(1) | problem["signed"]
  return coefs[jnp.where(allowed, error, jnp.inf).argmin()]


def _settle(
  problem: dict, eps_inf: Any, eps0: Any, coef: Any, newton: Any
) -> tuple[Any, Any]:
  """The inner steps: 1000 of descent or 100 of Newton, each projected."""
  import jax
  import jax.numpy as jnp

  count = jnp.where(newton, 100, 1000)

  def move(value: Any, slope: Any, curvature: Any) -> Any:
    curved = jnp.abs(curvature) > problem["flat"]
    step = 0.1 * slope / jnp.where(curved, curvature, jnp.inf)
    return value - jnp.where(newton, step, 1e-8 * slope)

  def around(state: tuple) -> tuple:
    inf, zero, began = state
    taylor = _expand(problem, inf, zero, coef)
    reach_inf = RADIUS * (problem["lowest_y"] - inf)
    reach0 = RADIUS * (zero - problem["highest_y"])

    def near(s: tuple) -> Any:
      far = jnp.abs(s[0] - inf) >= reach_inf  # not from a NaN: that ends too
      far |= jnp.abs(s[1] - zero) >= reach0
      return (s[2] < count) & ~(far & (s[2] > began))

    def step(s: tuple) -> tuple:
      d_inf, d0 = _slopes(*taylor, s[0] - inf, s[1] - zero)
      a, b = move(s[0], *d_inf), move(s[1], *d0)
      a = jnp.minimum(jnp.maximum(a, 0), problem["highest_inf"])
      b = jnp.minimum(jnp.maximum(b, problem["lowest0"]), problem["highest0"])
      return a, b, s[2] + 1

    return jax.lax.while_loop(near, step, state)

  first = (eps_inf, eps0, 0)
  return jax.lax.while_loop(lambda s: s[2] < count, around, first)[:2]


def _expand(problem: dict, eps_inf: Any, eps0: Any, coef: Any) -> tuple:
  """Taylor coefficients of the objective, without the constant.

  The objective is half the mean square of r = ln(y - eps_inf) - alpha
  ln(eps0 - y) - ln beta - c ln x. With a = 1 / (y - eps_inf), b = 1 / (eps0 -
  y), moves (d, h) add ln(1 - a d) - alpha ln(1 + b h) to r, so all of them are
  mean moments of a^k b^l, r a^k and r b^l; squared logs have harmonic numbers.
  Returns those of d^k and of h^l (order,) and of d^k h^l (order, order).
  """
  import jax.numpy as jnp

  a, b = 1 / (problem["y"] - eps_inf), 1 / (eps0 - problem["y"])
  alpha = coef[2]
  r = -jnp.log(a) + alpha * jnp.log(b) - coef[0] + coef[1] * problem["log_x"]
  left, right = [problem["weight"]], [jnp.ones_like(b)]
  for _ in range(ORDER):
    left.append(left[-1] * a)
    right.append(right[-1] * b)
  left.append(problem["weight"] * r)
  right.append(r)
  moment = jnp.stack(left) @ jnp.stack(right).T  # (order + 2, order + 2)
  k = np.arange(1, ORDER + 1)
  sign, harmonic = (-1.0) ** k, np.cumsum(1 / k) - 1 / k
  of_d = (harmonic * moment[1:-1, 0] - moment[1:-1, -1]) / k
  of_h = alpha * harmonic * moment[0, 1:-1] + moment[-1, 1:-1]
  mixed = -alpha * sign / (k[:, None] * k) * moment[1:-1, 1:-1]
  return of_d, alpha * sign / k * of_h, mixed


def _slopes(of_d: Any, of_h: Any, mixed: Any, d: Any, h: Any) -> list[tuple]:
  """First and second derivative in d, then in h."""
  pairs, orders = [], range(1, ORDER + 1)
  for pure, cross, at, other in ((of_d, mixed, d, h), (of_h, mixed.T, h, d)):
    rows = [[pure[i], *cross[i, : ORDER - 1 - i]] for i in range(ORDER)]
    first = [k * _horner(row, other) for k, row in zip(orders, rows)]
    second = [k * v for k, v in zip(orders, first[1:])]
    pairs.append((_horner(first, at), _horner(second, at)))
  return pairs


def _horner(coefs: list, at: Any) -> Any:
  return functools.reduce(lambda value, c: value * at + c, reversed(coefs))
