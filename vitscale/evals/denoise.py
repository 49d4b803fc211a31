"""Held-out loss of a diffusion task, at fixed times and noise.

`loss` is the mean squared error over images and times; `loss_1` and on are
those of each time, from the least noisy to the noisiest. Errors are over
images: their noise is fixed, so two models are compared on the same.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vitscale.core import sharding
from vitscale.core.errors import UserError
from vitscale.evals import gather, mean

PLAIN = True  # asks `task.predict` alone
TRACED = True  # at the start: a task may predict no losses


def make(task: Any, model: Any) -> Callable[..., dict[str, jax.Array]]:
  """A jittable `(variables, batch) -> rows` of `losses` (b, times).

  Raises:
    UserError: on tracing, the task predicts none.
  """

  def rows(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    said = task.predict(model, variables, batch)
    if "losses" not in said:
      raise UserError("'denoise' wants task.name='diffuse'")
    found = {"losses": said["losses"], "weight": batch["weight"]}
    return sharding.everywhere(found)

  return rows


def evaluate(
  rows: Callable[..., dict[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`: `loss`, `loss_se`, `loss_K`, `examples`."""
  losses = gather(rows, variables, batches)["losses"].astype(np.float64)
  found = mean("loss", losses.mean(1))
  for i, value in enumerate(losses.mean(0)):
    found[f"loss_{i + 1}"] = float(value)
  return {**found, "examples": len(losses)}
