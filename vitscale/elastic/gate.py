"""A learned exit: one look at an early layer says how deep an image goes.

ECO-M2F (2404.15244) in its three steps, for classification:

    A  a parent is trained with stochastic exits (elastic/exits.py)
    B  all its exits run on images that it was not trained on (`everything`);
       `quality` keeps q_k, here minus the cross-entropy at exit k
    C  `fit`: the mean over the tokens of a layer that every exit computes
       anyway, one linear map to the exits, and the target argmax q_k - beta k

Another trade-off beta repeats C alone, which never sees the parent. The paper
writes cross-entropy with hard targets, as here. Its code takes a squared error
between softmaxes over the batch, where what an image should do depends on its
neighbours; that is not followed. It runs B on the training images, whose q a
parent has learned by heart: ours are held out. The paper trains C by SGD;
it is convex, so that L-BFGS finds the one solution.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize
from scipy.special import log_softmax, softmax

from vitscale.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gate:
  """A linear map of pooled tokens to exits: kernel (d, k), bias (k,)."""

  kernel: np.ndarray
  bias: np.ndarray

  @property
  def macs(self) -> int:
    """Multiply-accumulates for an image."""
    return self.kernel.size


def quality(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """q (n, k) in nats: minus the cross-entropy of (n, k, c) with (n,)."""
  logp = log_softmax(np.asarray(logits, np.float64), -1)
  return np.take_along_axis(logp, labels[:, None, None], -1)[..., 0]


def targets(quality: np.ndarray, beta: float) -> np.ndarray:
  """(n, k) -> (n,): the exit of the best q_k - beta k, in nats an exit.

  With the qualities of the very images it is the oracle of this trade-off.
  """
  return (quality - beta * np.arange(quality.shape[1])).argmax(1)


def loss(gate: Gate, pooled: np.ndarray, target: np.ndarray) -> np.ndarray:
  """(n,) cross-entropy over the exits, each image by itself.

  Args:
    gate: see `Gate`.
    pooled: (n, d) tokens, averaged.
    target: (n,) exits.
  """
  logp = log_softmax(pooled @ gate.kernel + gate.bias, -1)
  return -logp[np.arange(len(target)), target]


def choose(gate: Gate, pooled: np.ndarray) -> np.ndarray:
  """(n, d) -> (n,): the exit with the largest output."""
  return (pooled @ gate.kernel + gate.bias).argmax(-1)


def fit(
  pooled: np.ndarray, quality: np.ndarray, beta: float, *, decay: float = 1e-2
) -> Gate:
  """Step C.

  Args:
    pooled: (n, d), of images that the parent was not trained on.
    quality: (n, k), of the same.
    beta: nats of quality that one exit more has to bring.
    decay: half the weight of the squared kernel, on features of unit variance.

  Raises:
    UserError: beta is negative, or rows that don't match.
  """
  if not beta >= 0:
    raise UserError(f"beta={beta}: should be 0 or more nats per exit")
  if len(pooled) != len(quality) or not len(pooled):
    raise UserError(
      f"{len(pooled)} pooled images for {len(quality)} qualities: should be"
      " the same images"
    )
  x = np.asarray(pooled, np.float64)
  mean, scale = x.mean(0), x.std(0) + 1e-12
  x = np.column_stack([(x - mean) / scale, np.ones(len(x))])
  exits = quality.shape[1]
  want = np.eye(exits)[targets(quality, beta)]

  def objective(flat: np.ndarray) -> tuple[float, Any]:
    w = flat.reshape(-1, exits)
    y = x @ w
    shrunk = np.vstack([w[:-1], np.zeros(exits)])  # the bias is free
    value = -(want * log_softmax(y, 1)).sum(1).mean()
    slope = x.T @ (softmax(y, 1) - want) / len(x)
    return (
      value + decay / 2 * (shrunk**2).sum(),
      (slope + decay * shrunk).ravel(),
    )

  found = optimize.minimize(
    objective, np.zeros(x.shape[1] * exits), jac=True, method="L-BFGS-B",
    options={"maxiter": 1000},
  )  # fmt: skip
  w = found.x.reshape(-1, exits)
  kernel = w[:-1] / scale[:, None]
  return Gate(kernel, w[-1] - mean @ kernel)
