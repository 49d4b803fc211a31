"""Durations of a config: steps, epochs, examples, percent of a run or FLOPs."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vitscale.core.errors import UserError

UNITS = ("steps", "epochs", "examples", "percent", "flops")


def steps(
  config: Mapping[str, Any],
  prefix: str,
  *,
  batch_size: int,
  epoch_examples: int | None = None,
  total_steps: int | None = None,
  flops_per_example: float | None = None,
  default: int | None = None,
) -> int | None:
  """A duration in steps from exactly one of `{prefix}_{unit}`.

  Args:
    config: group holding the key.
    prefix: "total", "every", "warmup", ...
    batch_size: examples a step.
    epoch_examples: examples an epoch, for `_epochs`.
    total_steps: length of the run, for `_percent`.
    flops_per_example: model FLOPs of one training example, for `_flops`.
    default: what to return when no unit is given.

  Returns:
    Steps, at least 1 (0 stays 0).

  Raises:
    UserError: none or several units, or a unit that can't be converted here.
  """
  given = [u for u in UNITS if config.get(f"{prefix}_{u}") is not None]
  if not given:
    if default is not None:
      return default
    raise UserError(
      f"no duration {prefix}_*: set one of "
      + ", ".join(f"{prefix}_{u}" for u in UNITS)
    )
  if len(given) > 1:
    raise UserError(
      f"{prefix}_{given[0]} and {prefix}_{given[1]} are both set: keep one"
    )
  unit, value = given[0], config[f"{prefix}_{given[0]}"]
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not number or not 0 <= value < math.inf:
    raise UserError(f"{prefix}_{unit}={value!r} is not a duration")
  per_step = {
    "steps": 1,
    "examples": batch_size,
    "epochs": epoch_examples and batch_size / epoch_examples,
    "percent": total_steps and 100 / total_steps,
    "flops": flops_per_example and batch_size * flops_per_example,
  }[unit]
  if not per_step:
    raise UserError(f"{prefix}_{unit} can't be used here")
  return max(round(value / per_step), 1) if value else 0


def window(text: str) -> tuple[int, int]:
  """`steps=20:30` -> (20, 30): the steps from 20 up to 29, counted from 0.

  Raises:
    UserError: anything else.
  """
  found = re.fullmatch(r"steps=(\d+):(\d+)", text)
  if not found:
    raise UserError(f"--profile {text!r}: should be steps=A:B, as steps=20:30")
  first, end = int(found[1]), int(found[2])
  if first >= end:
    raise UserError(
      f"--profile {text!r} holds no step: the second number should be larger"
    )
  return first, end
