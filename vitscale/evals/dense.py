"""Held-out segmentation: mean intersection over union, loss, accuracy.

`miou` is the mean over classes of TP / (TP + FP + FN), counted over all pixels
of the split (not per image), as ADE20K does; a class that is in neither labels
nor predictions is left out. Its standard error is a jackknife over 20 parts of
the split, since it is no mean over images.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.evals import classify

PARTS = 20  # of the jackknife


def make(task: Any, model: Any) -> Callable[..., dict[str, jax.Array]]:
  """A jittable `(variables, batch) -> per image` of the real rows.

  Raises:
    UserError: the task has no `target`.
  """
  if not hasattr(task, "target"):
    raise UserError("evals: 'dense' wants task.name 'dense'")

  def each(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    said, weight = task.predict(model, variables, batch), batch["weight"]
    at = jnp.arange(len(weight)) % PARTS
    part = jax.nn.one_hot(at, PARTS) * weight[:, None]
    return {
      **classify.totals(said, batch),
      "confusion": jnp.einsum("bp,bij->pij", part, said["confusion"]),
    }

  return each


def evaluate(
  sums: Callable[..., dict[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`.

  Returns:
    `miou` and its standard error, `nll` (nats a pixel) with its own over
    images, `accuracy` of pixels, `examples`.
  """
  found, seen = [], 0
  for batch in batches:
    found.append((seen, sums(variables, batch)))
    seen += len(batch["weight"])
  # Image i of the split is in part i modulo PARTS, whatever the batches are.
  parts = [
    {**one, "confusion": np.roll(one["confusion"], start % PARTS, 0)}
    for start, one in jax.device_get(found)
  ]
  total = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), 0), *parts)
  whole = total["confusion"].sum(0)
  filled = [one for one in total["confusion"] if one.sum()]
  without = np.array([miou(whole - one) for one in filled])
  share = (len(filled) - 1) / len(filled)
  spread = share * np.square(without - without.mean()).sum()
  return {
    "miou": miou(whole),
    "miou_se": math.sqrt(spread),
    **classify.mean_nll(total),
    "accuracy": float(total["correct"] / total["examples"]),
    "examples": int(total["examples"]),
  }


def miou(confusion: np.ndarray) -> float:
  """Mean intersection over union of (k, k) counts, row the true class."""
  right = np.diag(confusion)
  union = confusion.sum(0) + confusion.sum(1) - right
  there = union > 0
  return float((right[there] / union[there]).mean()) if there.any() else 0.0
