"""Held-out loss of an autoregressive task, per token and per image.

`nll` are nats a token with a standard error over images (the tokens of one
image are no independent examples), `accuracy` the share of tokens that were
the likeliest, `nats_per_image` the sum over an image. `bits_per_dim` is there
where it means something: of 8-bit pixels, as they are.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitscale.core import sharding
from vitscale.core.errors import UserError
from vitscale.evals import gather, mean

TRACED = True  # at the start: a task may predict no tokens


def make(task: Any, model: Any) -> Callable[..., dict[str, jax.Array]]:
  """A jittable `(variables, batch) -> rows`, one number an example each.

  Raises:
    UserError: on tracing, the task predicts no tokens.
  """

  def rows(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    vocabulary = getattr(task, "vocabulary", None)
    if vocabulary is None:
      raise UserError("'tokens' wants task.name='next_token' or 'next_scale'")
    said = task.predict(model, variables, batch)
    tokens = math.prod(batch["image"].shape[1:])
    found = {name: said[name] for name in ("nll", "correct")}
    found["nats"] = found["nll"] * tokens
    if getattr(task, "pixels", False) and vocabulary == 256:
      found["bits"] = found["nll"] / jnp.log(2.0)
    return sharding.everywhere({**found, "weight": batch["weight"]})

  return rows


def evaluate(
  rows: Callable[..., dict[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`.

  Returns:
    `nll`, `accuracy`, `nats_per_image` and perhaps `bits_per_dim`, each a mean
    over images with its standard error `..._se`; `examples`.
  """
  seen = gather(rows, variables, batches)
  names = {"nll": "nll", "correct": "accuracy", "nats": "nats_per_image",
           "bits": "bits_per_dim"}  # fmt: skip
  found: dict[str, float] = {}
  for key, name in names.items():
    if key in seen:
      found |= mean(name, seen[key])
  return {**found, "examples": len(seen["nll"])}
