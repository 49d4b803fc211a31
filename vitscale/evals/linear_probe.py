"""Linear probe: how much of the classes a linear map reads off the features.

    evals.NAME = {
      "name": "linear_probe", "split": "val", "solver": "logistic",
      "gallery": {"split": "train"},
    }
    vitscale eval CKPT --evals "linear_probe(solver='ridge')"

The map is fitted to the pooled features of a labelled gallery (`train` unless
it is named) and scored on the evaluation's split. Features are standardised by
the gallery. Three solvers:

    ridge     least squares to one-hot targets, in closed form:
              mean |x w + b - y|^2 + l2 |w|^2
    logistic  multinomial logistic regression by L-BFGS, as for CLIP
              (2103.00020, appendix A.3): mean nll + l2 / 2 |w|^2, which is
              scikit-learn's LogisticRegression at C = 1 / (n l2)
    sgd       mean nll by `epochs` of stochastic gradient descent, as DINO
              probes (2104.14294, appendix F.2): momentum .9, cosine to zero,
              no l2. `lr` is for 256 images, and scaled to the batch

The bias pays nothing. Where `l2`, or `lr`, is several values, the best on a
held-out part of the gallery, never of the scored split, is taken and the map
fitted again to all of it. What is probed are the features of whole images as
the evaluation sees them: nothing is augmented.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize

from vitscale import evals
from vitscale.core.errors import UserError, nearest
from vitscale.evals import Features

GRID: dict[str, tuple[float, ...]] = {
  "ridge": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
  "logistic": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
  "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
}
KNOB = {"ridge": "l2", "logistic": "l2", "sgd": "lr"}  # what a grid is of
STEPS = 1000  # of L-BFGS, as CLIP's
EPOCHS, BATCH = 100, 1024  # of sgd; an eighth of small galleries
OPTIONS = ("solver", "l2", "lr", "epochs", "held_out", "seed")
DATA = {"gallery": "train"}  # a group of a config, and the split without it
UNLABELLED = True  # any classes will do

Array = np.ndarray


class Map(NamedTuple):
  """`x -> (x - mean) / scale @ kernel + bias`, (n, d) to (n, classes)."""

  mean: Array
  scale: Array
  kernel: Array
  bias: Array

  def __call__(self, x: Array) -> Array:
    return (x - self.mean) / self.scale @ self.kernel + self.bias


# ------------------------------------------------------------------- solvers


def standardise(x: Array) -> tuple[Array, Array]:
  """Mean and standard deviation (d,); 1 where a feature is constant."""
  mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
  return mean, np.where(std > 1e-6 * max(std.max(), 1e-30), std, 1.0)


def least_squares(x: Array, target: Array) -> Callable[[float], Array]:
  """`l2 -> w` (d, c), the minimiser of |x w - target|^2 + l2 |w|^2.

  Args:
    x: (n, d) float64. One decomposition of the smaller of x'x and xx' serves
      every l2.
    target: (n, c).
  """
  n, d = x.shape
  if n > d:
    values, basis = np.linalg.eigh(x.T @ x)
    out, inner = basis, basis.T @ (x.T @ target)
  else:
    values, basis = np.linalg.eigh(x @ x.T)
    out, inner = x.T @ basis, basis.T @ target
  values = np.maximum(values, 0.0)  # rounding leaves some below
  return lambda l2: out @ (inner / (values + l2)[:, None])


def ridge(gallery: Features, classes: int) -> Callable[[float], Map]:
  """`l2 -> Map`, see the module."""
  mean, scale = standardise(gallery.x)
  x = (gallery.x - mean) / scale
  target = np.eye(classes)[gallery.label]
  bias = target.mean(0)
  solve, n = least_squares(x, target - bias), len(x)
  return lambda l2: Map(mean, scale, solve(n * l2), bias)


def logistic(gallery: Features, classes: int) -> Callable[[float], Map]:
  """`l2 -> Map`, see the module; each fit starts where the last one ended."""
  mean, scale = standardise(gallery.x)
  x = jnp.asarray((gallery.x - mean) / scale, jnp.float32)
  label = jnp.asarray(gallery.label)
  shape = (x.shape[1] + 1, classes)
  last = np.zeros(shape).ravel()

  def solve(l2: float) -> Map:
    nonlocal last

    def objective(w: Array) -> tuple[float, Array]:
      w = jnp.asarray(w.reshape(shape), jnp.float32)
      value, slope = _loss_and_slope(w, x, label, l2)
      return float(value), np.asarray(slope, np.float64).ravel()

    found = scipy.optimize.minimize(
      objective, last, jac=True, method="L-BFGS-B",
      options={"maxiter": STEPS, "gtol": 1e-6, "ftol": 1e-9},
    )  # fmt: skip
    if found.nit >= STEPS:
      evals.warn(
        "linear_probe", f"l2={l2:g} has not converged in {STEPS} steps"
      )
    last = found.x
    w = found.x.reshape(shape)
    return Map(mean, scale, w[:-1], w[-1])

  return solve


@jax.jit
def _loss_and_slope(w, x, label, l2):
  """Of `logistic`; w (d + 1, c), the bias last."""

  def loss(w):
    return _nll(w, x, label) + l2 / 2 * jnp.square(w[:-1]).sum()

  return jax.value_and_grad(loss)(w)


def _nll(w, x, label):
  """Mean over images; w (d + 1, c), the bias last."""
  logits = jnp.matmul(x, w[:-1], precision="highest") + w[-1]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  return losses.mean()


def sgd(
  gallery: Features, classes: int, epochs: int = EPOCHS, seed: int = 0
) -> Callable[[float], Map]:
  """`lr -> Map`, see the module; `seed` is of the order of the images."""
  mean, scale = standardise(gallery.x)
  x = jnp.asarray((gallery.x - mean) / scale, jnp.float32)
  label = jnp.asarray(gallery.label)
  n = len(x)
  batch = min(BATCH, max(n // 8, 1))
  run = jax.jit(functools.partial(_descend, classes, epochs, batch))
  order = jax.random.key(seed)

  def solve(lr: float) -> Map:
    w = np.asarray(run(x, label, order, lr * batch / 256), np.float64)
    return Map(mean, scale, w[:-1], w[-1])

  return solve


def _descend(classes, epochs, batch, x, label, key, lr):
  """w (d + 1, classes) after epochs of n // batch steps each."""
  n, d = x.shape
  steps = n // batch
  rate = optax.cosine_decay_schedule(1.0, epochs * steps)
  rule = optax.chain(
    optax.trace(decay=0.9), optax.scale_by_schedule(rate), optax.scale(-1)
  )

  def step(carry, rows):
    w, state = carry
    grads = jax.grad(_nll)(w, x[rows], label[rows])
    update, state = rule.update(grads, state)
    return (w + lr * update, state), None

  def epoch(carry, i):
    order = jax.random.permutation(jax.random.fold_in(key, i), n)
    rows = order[: steps * batch].reshape(steps, batch)
    return jax.lax.scan(step, carry, rows)

  w = jnp.zeros((d + 1, classes))
  (w, _), _ = jax.lax.scan(epoch, (w, rule.init(w)), jnp.arange(epochs))
  return w


SOLVERS = {"ridge": ridge, "logistic": logistic, "sgd": sgd}


def accuracy(said: Array, label: Array) -> float:
  """Of logits (n, c); of equal ones the lower class."""
  return float((said.argmax(1) == label).mean())


def fit(
  gallery: Features,
  classes: int,
  *,
  solver: str = "logistic",
  l2: float | Sequence[float] | None = None,
  lr: float | Sequence[float] | None = None,
  epochs: int = EPOCHS,
  held_out: float = 0.2,
  seed: int = 0,
) -> tuple[Map, float]:
  """The map fitted to a gallery, and the l2, of `sgd` the rate, it has.

  Args:
    gallery: labelled features.
    classes: how many there are.
    solver: of SOLVERS.
    l2, lr: the solver's KNOB; None for its GRID; of several, of equal accuracy,
      the largest.
    epochs: of `sgd`.
    held_out: part of the gallery that chooses.
    seed: draws that part, and orders images for `sgd`.
  """
  given = l2 if KNOB[solver] == "l2" else lr
  grid = GRID[solver] if given is None else given
  grid = sorted(grid if isinstance(grid, Sequence) else [grid], reverse=True)
  prepare = SOLVERS[solver]
  if solver == "sgd":
    prepare = functools.partial(sgd, epochs=epochs, seed=seed)
  best = grid[0]
  if len(grid) > 1:
    order = np.random.default_rng(seed).permutation(len(gallery.x))
    cut = min(max(round(held_out * len(order)), 1), len(order) - 1)
    some, rest = (
      Features(gallery.x[at], gallery.label[at])
      for at in (order[:cut], order[cut:])
    )
    solve = prepare(rest, classes)
    scores = [accuracy(solve(one)(some.x), some.label) for one in grid]
    best = grid[int(np.argmax(scores))]
    if best in (grid[0], grid[-1]):
      evals.warn(
        "linear_probe",
        f"the best {KNOB[solver]} of {solver}, {best:g}, ends its grid",
      )
  return prepare(gallery, classes)(best), best


# ---------------------------------------------------------------- evaluation


def make(
  task: Any,
  model: Any,
  *,
  solver: str = "logistic",
  l2: float | Sequence[float] | None = None,
  lr: float | Sequence[float] | None = None,
  epochs: int | None = None,
  held_out: float = 0.2,
  seed: int = 0,
) -> Callable[..., dict[str, Any]]:
  """A jittable `(variables, batch) -> rows`, see `evals.frozen`.

  Raises:
    UserError: options that make no sense, or a task without images.
  """
  if solver not in SOLVERS:
    raise UserError(
      f"evals: linear_probe solver {solver!r}{nearest(solver, SOLVERS)}"
    )
  for name, value in (("l2", l2), ("lr", lr), ("epochs", epochs)):
    mine = name == KNOB[solver] or (name == "epochs" and solver == "sgd")
    if value is not None and not mine:
      raise UserError(f"evals: linear_probe: {solver} has no {name}")
    if value is not None and name != "epochs":
      check_positive("linear_probe", name, value)
  if epochs is not None and (type(epochs) is not int or epochs < 1):
    raise UserError(
      f"evals: linear_probe epochs={epochs!r}: should be 1 or more"
    )
  if not isinstance(held_out, float) or not 0 < held_out < 1:
    raise UserError(
      f"evals: linear_probe held_out={held_out!r}: a part, between 0 and 1"
    )
  if type(seed) is not int or seed < 0:
    raise UserError(f"evals: linear_probe seed={seed!r}: a whole number")
  return evals.frozen(task, model, "linear_probe")


def check_positive(name: str, option: str, value: Any) -> None:
  """Raises UserError unless it is a positive number or some of them."""
  several = value if isinstance(value, Sequence) else [value]
  good = [type(one) in (int, float) and one > 0 for one in several]
  if not good or not all(good):
    raise UserError(
      f"evals: {name} {option}={value!r}: a number above 0, or several:"
      " (0.01, 0.1)"
    )


def evaluate(
  rows: Callable[..., Mapping[str, Any]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  gallery: Iterable[Mapping[str, Any]],
  **options: Any,
) -> dict[str, float]:
  """One pass over queries and gallery; options are those of `fit`.

  Returns:
    `probe` and `probe_se`, the accuracy; `probe_l2`, of `sgd` `probe_lr`;
    `examples` scored and the `gallery`'s size.
  """
  known = evals.seen(rows, variables, gallery, "the gallery")
  query = evals.seen(rows, variables, batches, "queries")
  classes = int(max(query.label.max(), known.label.max())) + 1
  found, best = fit(known, classes, **options)
  n = len(query.x)
  knob = KNOB[options.get("solver", "logistic")]
  return {
    **evals.share("probe", accuracy(found(query.x), query.label), n),
    f"probe_{knob}": best,
    "examples": n,
    "gallery": len(known.x),
  }
