"""Held-out loss and accuracy, exact at uneven ends, with standard errors."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np


def make(task: Any, model: Any) -> Callable[..., dict[str, jax.Array]]:
  """A jittable `(variables, batch) -> sums` over the real rows of a batch."""

  def sums(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    scores = task.predict(model, variables, batch)
    weight, nll = batch["weight"], scores["nll"]
    return {
      "examples": weight.sum(),
      "nll": (weight * nll).sum(),
      "nll_squares": (weight * nll**2).sum(),
      "correct": (weight * scores["correct"]).sum(),
    }

  return sums


def evaluate(
  sums: Callable[..., dict[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`.

  Returns:
    `nll` (nats) and `accuracy` (0..1) with standard errors over examples, and
    the number of `examples`.
  """
  parts = [sums(variables, batch) for batch in batches]  # queued, then read
  total = jax.tree.map(
    lambda *x: float(np.sum(np.asarray(x, np.float64))), *jax.device_get(parts)
  )
  n = total["examples"]
  nll, accuracy = total["nll"] / n, total["correct"] / n
  variance = max(total["nll_squares"] / n - nll**2, 0.0)
  return {
    "nll": nll,
    "nll_se": math.sqrt(variance / n),
    "accuracy": accuracy,
    "accuracy_se": math.sqrt(max(accuracy * (1 - accuracy), 0.0) / n),
    "examples": int(n),
  }
