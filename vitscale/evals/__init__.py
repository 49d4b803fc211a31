"""Evaluations: one module each, and what several of them do."""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import sharding
from vitscale.core.errors import UserError


def real_rows(found: Mapping[str, Any]) -> dict[str, Any]:
  """Those of weight above 0, on the host, without `weight` itself."""
  found = dict(jax.device_get(found))
  keep = found.pop("weight") > 0
  return jax.tree.map(lambda x: x[keep], found)


def gather(
  rows: Callable[..., Mapping[str, Any]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
  """The real rows of all batches.

  Args:
    rows: `(variables, batch)` -> a tree of arrays (b, ...), with `weight`.
    variables: of the model.
    batches: one pass over the data.
  """
  parts = [real_rows(rows(variables, batch)) for batch in batches]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


class Features(NamedTuple):
  """Images as an encoder sees them: `x` (n, d), `label` (n,)."""

  x: np.ndarray
  label: np.ndarray


def pooled(task: Any, model: Any, variables: Any, image: jax.Array) -> Any:
  """(b, d) float32: what the head reads, or the mean of the last feature map.

  Args:
    task: normalises.
    model, variables: of a family.
    image: (b, h, w, c) uint8.
  """
  _, out = model.apply(variables, task.normalise(image))
  if "pre_logits" in out:
    return out["pre_logits"].astype(jnp.float32)
  last = out["features"][-1][0]
  return last.mean(tuple(range(1, last.ndim - 1)), dtype=jnp.float32)


def frozen(task: Any, model: Any, name: str) -> Callable[..., dict[str, Any]]:
  """A jittable `(variables, batch) -> rows` of `x` (b, d), `label`, `weight`.

  Raises:
    UserError: the task has no images; `name` is the evaluation's.
  """
  if not hasattr(task, "normalise"):
    raise UserError(f"evals: {name!r} wants a task of images")

  def rows(variables: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    found = {
      "x": pooled(task, model, variables, batch["image"]),
      "label": batch["label"],
      "weight": batch["weight"],
    }
    return sharding.everywhere(found)

  return rows


def seen(
  rows: Callable[..., Mapping[str, Any]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  what: str,
) -> Features:
  """All real rows of what `frozen` gives, on the host.

  Raises:
    UserError: features are not finite; `what` says whose.
  """
  whole = gather(rows, variables, batches)
  if not np.isfinite(whole["x"]).all():
    raise UserError(f"features of {what} are not finite")
  return Features(whole["x"], whole["label"])


class At:
  """A model that is always called with the same draw."""

  def __init__(self, model: Any, draw: Mapping[str, Any]):
    self._model, self._draw = model, draw

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    return self._model.apply(*args, **kwargs, **self._draw)


def share(name: str, p: float, n: int) -> dict[str, float]:
  """`name` and `name_se`: a share p of n examples, its binomial error."""
  return {name: p, f"{name}_se": math.sqrt(max(p * (1 - p), 0.0) / n)}


def mean(name: str, values: np.ndarray) -> dict[str, float]:
  """`name` and `name_se`: the mean of a number per example, its error."""
  values = np.asarray(values, np.float64)
  error = values.std() / math.sqrt(len(values))
  return {name: float(values.mean()), f"{name}_se": float(error)}


@functools.cache
def warn(name: str, text: str) -> None:
  """Of an evaluation, once in a process, not at every pass."""
  print(f"warning: evals: {name}: {text}", file=sys.stderr)
