"""Few-shot: a linear map fitted to a few images of each class.

    evals.NAME = {
      "name": "few_shot", "split": "val", "shots": (1, 5, 10, 25), "seeds": 3,
      "gallery": {"split": "train"},
    }
    vitscale eval CKPT --evals "few_shot(shots=(1, 5))"

The protocol of 2106.04560 (section 2.1) as big_vision has it (`evaluators/
fewshot_lsr.py`): of a shuffled gallery (`train` unless it is named) the first
images of each class, so that five shots hold the one; features standardised by
the shots themselves (deviation + 1e-5), with a constant 100 beside them for a
bias that hardly pays; least squares to targets of -1 and 1 with l2 = 1024.
Where `l2` is several values, images of the gallery that are no shots choose
one for each draw of shots, which uses more labels than the shots.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitscale import evals
from vitscale.core.errors import UserError
from vitscale.evals import Features
from vitscale.evals.linear_probe import accuracy, check_positive, least_squares

SHOTS, SEEDS, L2 = (1, 5, 10, 25), 3, 1024.0
BIAS, LITTLE = 100.0, 1e-5
CHOOSE = 5000  # images of the gallery that choose an l2, at most
OPTIONS = ("shots", "seeds", "l2")
DATA = {"gallery": "train"}  # a group of a config, and the split without it
UNLABELLED = True  # any classes will do


def draw(label: np.ndarray, seed: int) -> list[np.ndarray]:
  """The images of each class that is there, shuffled: indices into `label`."""
  rng = np.random.default_rng(seed)
  return [rng.permutation(np.flatnonzero(label == c)) for c in np.unique(label)]


def fit(shots: Features, classes: int) -> Callable[[float], Callable]:
  """`l2 -> (features (n, d) -> logits (n, classes))`."""
  x = shots.x.astype(np.float64)
  mean, scale = x.mean(0), x.std(0) + LITTLE

  def inputs(x: np.ndarray) -> np.ndarray:
    return np.pad((x - mean) / scale, ((0, 0), (0, 1)), constant_values=BIAS)

  solve = least_squares(inputs(x), 2 * np.eye(classes)[shots.label] - 1)

  def at(l2: float) -> Callable:
    kernel = solve(l2)
    return lambda x: inputs(x) @ kernel

  return at


def correct(
  query: Features,
  gallery: Features,
  *,
  shots: Sequence[int] = SHOTS,
  seeds: int = SEEDS,
  l2: float | Sequence[float] = L2,
) -> dict[int, np.ndarray]:
  """shots -> (seeds, n) 0/1, whether each query is classified rightly.

  Raises:
    UserError: a class of the gallery has fewer images than shots.
  """
  counts = np.bincount(gallery.label)
  least = int(np.where(counts > 0, counts, len(gallery.x)).argmin())
  if counts[least] < max(shots):
    raise UserError(
      f"evals: few_shot: class {least} has {counts[least]} images in the"
      f" gallery, shots={max(shots)} asks for more"
    )
  classes = int(max(query.label.max(), gallery.label.max())) + 1
  grid = sorted(l2 if isinstance(l2, Sequence) else [l2], reverse=True)
  take = lambda at: Features(gallery.x[at], gallery.label[at])
  found = {k: np.zeros((seeds, len(query.x))) for k in shots}
  for seed in range(seeds):
    order = draw(gallery.label, seed)
    for k in shots:
      few = take(np.concatenate([one[:k] for one in order]))
      solve, best = fit(few, classes), grid[0]
      if len(grid) > 1:
        some = take(_others(order, k, seed))
        scores = [accuracy(solve(one)(some.x), some.label) for one in grid]
        best = grid[int(np.argmax(scores))]
      found[k][seed] = solve(best)(query.x).argmax(1) == query.label
  return found


def _others(order: list[np.ndarray], k: int, seed: int) -> np.ndarray:
  """Up to CHOOSE images that are no shots."""
  rest = np.concatenate([one[k:] for one in order])
  if not len(rest):
    raise UserError(
      f"evals: few_shot: {k} shots leave no image of the gallery to choose an"
      " l2: give one number"
    )
  return np.random.default_rng(seed).permutation(rest)[:CHOOSE]


def error(right: np.ndarray) -> float:
  """Standard error of the mean of (seeds, n): of images and of shots.

  The sum of both variances, a little too large: the seeds share the images.
  Of one seed, that of images alone.
  """
  seeds, n = right.shape
  variance = right.mean(0).var() / n
  if seeds > 1:
    variance += right.mean(1).var(ddof=1) / seeds
  return math.sqrt(variance)


# ---------------------------------------------------------------- evaluation


def make(
  task: Any,
  model: Any,
  *,
  shots: Sequence[int] = SHOTS,
  seeds: int = SEEDS,
  l2: float | Sequence[float] = L2,
) -> Callable[..., dict[str, Any]]:
  """A jittable `(variables, batch) -> rows`, see `evals.frozen`.

  Raises:
    UserError: options that make no sense, or a task without images.
  """
  several = isinstance(shots, Sequence) and shots
  if not several or any(type(k) is not int or k < 1 for k in shots):
    raise UserError(f"evals: few_shot shots={shots!r}: write (1, 5) or (1,)")
  if type(seeds) is not int or seeds < 1:
    raise UserError(f"evals: few_shot seeds={seeds!r}: should be 1 or more")
  check_positive("few_shot", "l2", l2)
  return evals.frozen(task, model, "few_shot")


def evaluate(
  rows: Callable[..., Mapping[str, Any]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  gallery: Iterable[Mapping[str, Any]],
  **options: Any,
) -> dict[str, float]:
  """One pass over queries and gallery; options are those of `correct`.

  Returns:
    `shot5` and `shot5_se` by shots, means over seeds; `examples` scored and
    the `gallery`'s size.
  """
  known = evals.seen(rows, variables, gallery, "the gallery")
  query = evals.seen(rows, variables, batches, "queries")
  out: dict[str, float] = {}
  for k, right in correct(query, known, **options).items():
    out |= {f"shot{k}": float(right.mean()), f"shot{k}_se": error(right)}
  return {**out, "examples": len(query.x), "gallery": len(known.x)}
