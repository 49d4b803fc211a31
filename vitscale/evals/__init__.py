"""Evaluations: one module each, and what several of them do."""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np


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


@functools.cache
def warn(name: str, text: str) -> None:
  """Of an evaluation, once in a process, not at every pass."""
  print(f"warning: evals: {name}: {text}", file=sys.stderr)
