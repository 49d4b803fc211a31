"""Held-out loss and accuracy of every round of a thinking run.

`evals.NAME = {"name": "rounds", ...}` logs those of the last round under the
names of `classify`, and those of the rounds before as `round_1/nll` and so on,
as if every image went through all of them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from vitscale.core.errors import UserError
from vitscale.evals import classify

Sums = list[dict[str, jax.Array]]


def make(task: Any, model: Any) -> Callable[..., Sums]:
  """A jittable `(variables, batch) -> sums` of each round.

  Raises:
    UserError: the task has no rounds.
  """
  if not hasattr(task, "rounds"):
    raise UserError("evals: 'rounds' wants task.name 'thinking'")

  def sums(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> Sums:
    said = task.predictions(model, variables, batch)
    return [classify.totals(scores, batch) for scores in said]

  return sums


def evaluate(
  sums: Callable[..., Sums],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`, see `classify.evaluate`."""
  parts = [sums(variables, batch) for batch in batches]
  out: dict[str, float] = {}
  for i, own in enumerate(zip(*parts)):
    label = "" if i + 1 == len(parts[0]) else f"round_{i + 1}/"
    scores = classify.evaluate(lambda _, part: part, variables, own)
    out |= {f"{label}{name}": value for name, value in scores.items()}
  return out
