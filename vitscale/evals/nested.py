"""Held-out loss and accuracy of every granularity of a nested run.

`evals.NAME = {"name": "nested", ...}` logs those of the whole model under the
names of `classify`, and those of each part below its spec (`ffn=1/4/nll`), with
how far it follows the whole (MatFormer, 2310.07707 section 3.4): `agreement`,
the share of examples on which both predict the same, and `kl`, the divergence
of its prediction from the whole one's, in nats.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

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
    whole = task.predict(model, variables, batch)
    found = {"full": classify.totals(whole, batch)}
    for text in task.granularities:
      if text == "full":
        continue
      part = task.part(model, variables, batch, text)
      scores = task.task.predict(*part, batch)
      found[text] = classify.totals(scores, batch)
      if "logits" in whole:
        follows = _follows(scores["logits"], whole["logits"], batch["weight"])
        found[text] |= follows
    return found

  return sums


def _follows(
  logits: jax.Array, whole: jax.Array, weight: jax.Array
) -> dict[str, jax.Array]:
  """Sums of `agreement` and `kl` over the real rows."""
  own, full = jax.nn.log_softmax(logits), jax.nn.log_softmax(whole)
  kl = (jnp.exp(own) * (own - full)).sum(-1)
  same = (logits.argmax(-1) == whole.argmax(-1)).astype(jnp.float32)
  return {"agreement": (weight * same).sum(), "kl": (weight * kl).sum()}


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
    for name in ("agreement", "kl"):
      if name in own[0]:
        total = sum(float(part[name]) for part in own)
        scores[name] = total / scores["examples"]
    label = "" if text == "full" else f"{text}/"
    out |= {f"{label}{name}": value for name, value in scores.items()}
  return out
