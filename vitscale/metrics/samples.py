"""Two sets of images, compared by their features in one pass over each.

Features stream by: what is kept of a set are the moments of GROUPS random
groups of it and KEPT random rows, so that memory grows with the width d of
the features (GROUPS d^2 numbers of 8 bytes) and not with the number of images.
"""

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data.random import Rng
from vitscale.metrics import kernels, moments
from vitscale.metrics.moments import Moments
from vitscale.metrics.networks import Network

GROUPS = 20  # of the jackknife
REPEATS = 4  # random halves of the floor
KEPT = 10_000  # rows for kernels and neighbours
FLUSH = 256  # rows of a group that wait for their moments
BLOCKS, NEIGHBOURS = 10, 3  # of kernels.kid, kernels.precision_recall
KERNELS = 2 * BLOCKS  # samples that those need


def minimum(dim: int) -> int:
  """Samples that a Frechet distance of `dim` features and its errors need.

  Half of the groups but one, the floor's smallest part, still has a
  covariance.
  """
  return GROUPS * -(-(dim + 1) // (GROUPS // 2 - 1))


class Samples:
  """What is kept of one set; every image falls into a group at random.

  Of 20 images that come one after another each group gets one, so that groups
  are equal and no order of the data matters. Which, and which rows are kept,
  depends on an image's place alone: sets whose images are pairs have paired
  groups and rows.

  Attributes:
    n: images so far.
    rows: (up to KEPT, d) float32, a random part of them.
  """

  def __init__(self, dim: int):
    self.n = 0
    self.rows = np.zeros((0, dim), np.float32)
    self._keys = np.zeros(0)
    self._groups: list[Moments] = []
    self._waiting: list[np.ndarray] = []
    self._held = 0

  def add(self, x: np.ndarray) -> None:
    """Features (b, d) of the next images."""
    x = np.asarray(x, np.float32)
    if not np.isfinite(x).all():
      raise UserError("features hold values that are not finite")
    keys = Rng(1, 0, self.n + np.arange(len(x))).uniform("kept")[:, 0]
    rows, keys = np.concatenate((self.rows, x)), np.append(self._keys, keys)
    if len(rows) > KEPT:
      best = np.sort(np.argpartition(keys, KEPT)[:KEPT])
      rows, keys = rows[best], keys[best]
    self.rows, self._keys = rows, keys
    self.n += len(x)
    self._waiting.append(x)
    self._held += len(x)
    if self._held >= FLUSH * GROUPS:
      self._flush()

  def groups(self) -> list[Moments]:
    """Of GROUPS equal groups; up to GROUPS - 1 images are in none."""
    self._flush()
    return self._groups

  def total(self) -> Moments:
    """Of all images."""
    groups = self.groups()
    rest = [moments.of(x) for x in self._waiting if len(x)]
    return moments.merged([*groups, *rest])

  def _flush(self) -> None:
    x = np.concatenate(self._waiting) if self._waiting else self.rows[:0]
    rounds, first = len(x) // GROUPS, (self.n - len(x)) // GROUPS
    self._waiting, self._held = [x[rounds * GROUPS :]], len(x) % GROUPS
    if not rounds:
      return
    turns = Rng(0, 0, first + np.arange(rounds))
    order = turns.choose("group", GROUPS, GROUPS)
    x = x[: rounds * GROUPS].reshape(rounds, GROUPS, -1)
    x = np.take_along_axis(x, order[:, :, None], 1)
    found = [moments.of(x[:, i]) for i in range(GROUPS)]
    pairs = zip(self._groups, found)
    self._groups = [moments.merge(*p) for p in pairs] or found


def distance(
  real: Samples, made: Samples, name: str, *, paired: bool = False
) -> dict[str, float]:
  """The Frechet distance `name`, `name_floor`, and their errors `..._se`.

  The floor is what random halves of the real images measure, at n/2 a side,
  the mean of REPEATS. Errors are jackknifes over the groups; that of the
  floor is of one split, so that the mean has at most that.

  Args:
    real, made: of `minimum` images each, or more.
    name: of the distance.
    paired: image i of `made` was made of image i of `real`.
  """
  originals, others = real.groups(), made.groups()
  halves = []
  for i in range(REPEATS):
    order = Rng(0, i, 0).choose("halves", GROUPS, GROUPS)[0]
    sides = np.split(order, 2)
    halves.append([[originals[j] for j in side] for side in sides])
  floors = [moments.frechet(*map(moments.merged, pair)) for pair in halves]
  return {
    name: moments.frechet(real.total(), made.total()),
    f"{name}_se": moments.standard_error(originals, others, paired=paired),
    f"{name}_floor": float(np.mean(floors)),
    f"{name}_floor_se": moments.standard_error(*halves[0]),
  }


def likeness(real: Samples, made: Samples, net: str) -> dict[str, float]:
  """`kid_NET`, `precision_NET`, `recall_NET` and their errors `..._se`.

  See metrics/kernels.py; of the rows that are kept, KERNELS or more. The
  error of a share p of n samples is sqrt(p (1 - p) / n): the other side's
  manifold is taken as it is.
  """
  x, y = real.rows, made.rows
  kid, error = kernels.kid(x, y, blocks=BLOCKS)
  precision, recall = kernels.precision_recall(x, y, k=NEIGHBOURS)
  found = {f"kid_{net}": kid, f"kid_{net}_se": error}
  for name, p, n in (("precision", precision, len(y)),
                     ("recall", recall, len(x))):  # fmt: skip
    found[f"{name}_{net}"] = p
    found[f"{name}_{net}_se"] = (p * (1 - p) / n) ** 0.5
  return found


def compared(
  real: Samples,
  made: Samples,
  net: Network,
  *,
  prefix: str = "",
  frechet: bool = True,
  kid: bool = True,
  paired: bool = False,
) -> tuple[dict[str, float], list[str]]:
  """`distance` and `likeness`, and why what is not there is left out.

  Args:
    real, made: of images that `net` saw.
    net: names the numbers.
    prefix: of the distance's name.
    frechet, kid: which are asked for.
    paired: see `distance`.
  """
  n, name = min(real.n, made.n), f"{prefix}{net.frechet}"
  found, missed = {}, []
  for asked, what, least, scores in (
    (frechet, name, minimum(net.dim),
     lambda: distance(real, made, name, paired=paired)),
    (kid, f"kid_{net.name}", KERNELS, lambda: likeness(real, made, net.name)),
  ):  # fmt: skip
    if asked and n >= least:
      found |= scores()
    elif asked:
      missed.append(f"{what} is left out: {n} images, it needs {least}")
  return found, missed


def require(
  n: int, net: Network, where: str, *, prefix: str = "", frechet: bool = True,
  kid: bool = True,
) -> None:  # fmt: skip
  """Raises UserError where n images are too few, see `compared`.

  Args:
    n: images.
    net, prefix, frechet, kid: as of `compared`.
    where: ends the message, how to do without.
  """
  least, what = KERNELS if kid else 0, f"kid_{net.name}"
  if frechet:
    least, what = minimum(net.dim), f"{prefix}{net.frechet}"
  if n < least:
    raise UserError(
      f"{what} needs {least} images, there are {n}: take more, or {where}"
    )
