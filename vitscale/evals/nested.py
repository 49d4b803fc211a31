"""Held-out loss and accuracy of every granularity of a nested run.

`evals.NAME = {"name": "nested", ...}` logs those of the whole model under the
names of `classify`, and those of each part below its spec (`ffn=1/4/nll`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from vitscale.core.errors import UserError
from vitscale.evals import classify

Sums = dict[str, dict[str, jax.Array]]


def make(task: Any, model: Any) -> Callable[..., Sums]:
  """A jittable `(variables, batch) -> spec -> sums`, parts being sliced.

  Raises:
    UserError: the task is not nested.
  """
  if not hasattr(task, "granularities"):
    raise UserError("evals: 'nested' wants task.name 'nested', else 'classify'")

  def sums(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> Sums:
    found = {}
    for text in dict.fromkeys(("full", *task.granularities)):
      little, own = task.part(model, variables, batch, text)
      found[text] = classify.make(task.task, little)(own, batch)
    return found

  return sums


def evaluate(
  sums: Callable[..., Sums],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, float]:
  """One pass over `batches`, see `classify.evaluate`."""
  parts = [sums(variables, batch) for batch in batches]
  out: dict[str, float] = {}
  for text in parts[0]:
    own = [part[text] for part in parts]
    scores = classify.evaluate(lambda _, part: part, variables, own)
    label = "" if text == "full" else f"{text}/"
    out |= {f"{label}{name}": value for name, value in scores.items()}
  return out
