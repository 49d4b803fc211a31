"""Held-out loss, accuracy and calibration, exact at uneven ends.

Everything is a sum over examples, histograms too, so that padding, the batch
size and the number of devices change nothing.

* `ece`, the expected calibration error (Guo et al., 1706.04599, section 2): the
  confidence of a prediction is its probability; examples are sorted by it into
  15 bins of equal width, ((m - 1)/15, m/15]; the gaps between mean confidence
  and accuracy are averaged, weighted by examples. It is not 0 for a calibrated
  model: a few thousand examples leave about .01 of noise.
* `brier`, the Brier score (1950): squared distance of the probabilities from
  the one-hot label, summed over classes, so 0 to 2 for a softmax.
* `top5`, the share of examples whose label is among the five likeliest classes;
  of more than five classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.evals import share

BINS = 15  # as in the paper's tables
TOP = 5
PLAIN = True  # asks `task.predict` alone: packed batches and draws will do


def make(task: Any, model: Any) -> Callable[..., dict[str, jax.Array]]:
  """A jittable `(variables, batch) -> sums` over the real rows of a batch.

  Calibration is of tasks that predict `probabilities` (..., k).
  """

  def sums(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    return totals(task.predict(model, variables, batch), batch)

  return sums


def totals(
  scores: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Sums over the real rows of a batch of what a task predicts for it.

  Raises:
    UserError: it predicts no `nll`.
  """
  if "nll" not in scores:
    raise UserError(
      "evals: 'classify' wants a task that predicts classes, not"
      f" {', '.join(sorted(scores))}"
    )
  weight, nll = batch["weight"], scores["nll"]
  found = {
    "examples": weight.sum(),
    "nll": (weight * nll).sum(),
    "nll_squares": (weight * nll**2).sum(),
    "correct": (weight * scores["correct"]).sum(),
  }
  if "probabilities" in scores:
    found |= calibration(scores["probabilities"], batch["label"], weight)
    said = scores.get("logits", scores["probabilities"])
    if said.shape[-1] > TOP:
      found["top"] = (weight * among(said, batch["label"], TOP)).sum()
  return found


def among(scores: jax.Array, label: jax.Array, k: int) -> jax.Array:
  """(...) 0/1: whether the label is among the k highest of (..., classes).

  Of equal scores the lower class stands first, as in an argmax.
  """
  own = jnp.take_along_axis(scores, label[..., None], -1)
  earlier = jnp.arange(scores.shape[-1]) < label[..., None]
  ahead = (scores > own) | ((scores == own) & earlier)
  return (ahead.sum(-1) < k).astype(jnp.float32)


def calibration(
  probabilities: jax.Array, label: jax.Array, weight: jax.Array
) -> dict[str, jax.Array]:
  """Sums for `ece` and `brier`.

  Args:
    probabilities: (..., k), of examples or of rows of them.
    label: (...) int32.
    weight: (...), 0 for padding.

  Returns:
    `bins` (3, BINS): examples, their confidence, how many are right;
    `squares`, the Brier score.
  """
  probabilities = probabilities.reshape(-1, probabilities.shape[-1])
  label, weight = label.reshape(-1), weight.reshape(-1)
  confidence = probabilities.max(-1)
  right = (probabilities.argmax(-1) == label).astype(jnp.float32)
  at = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1)
  one_hot = jax.nn.one_hot(at, BINS) * weight[:, None]  # (b, BINS)
  rows = jnp.stack([jnp.ones_like(right), confidence, right])
  target = jax.nn.one_hot(label, probabilities.shape[-1])
  squares = jnp.square(probabilities - target).sum(-1)
  return {
    "bins": (rows[:, :, None] * one_hot).sum(1),
    "squares": (weight * squares).sum(),
  }


def evaluate(
  sums: Callable[..., dict[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`.

  Returns:
    `nll` (nats), `accuracy` and `top5` (0..1) with standard errors over
    examples; `ece` and `brier` where the task predicts probabilities;
    `examples`.
  """
  parts = [sums(variables, batch) for batch in batches]  # queued, then read
  total = jax.tree.map(
    lambda *x: np.sum(np.asarray(x, np.float64), 0), *jax.device_get(parts)
  )
  n = total["examples"]
  found = mean_nll(total) | share("accuracy", float(total["correct"] / n), n)
  if "top" in total:
    found |= share(f"top{TOP}", float(total["top"] / n), n)
  if "bins" in total:
    _, confidence, right = total["bins"]
    found["ece"] = float(np.abs(right - confidence).sum() / n)
    found["brier"] = float(total["squares"] / n)
  return {**found, "examples": int(n)}


def mean_nll(total: Mapping[str, Any]) -> dict[str, float]:
  """`nll` and its standard error over examples, from sums of `totals`."""
  n, nll = total["examples"], float(total["nll"] / total["examples"])
  variance = max(float(total["nll_squares"] / n) - nll**2, 0.0)
  return {"nll": nll, "nll_se": math.sqrt(variance / n)}
