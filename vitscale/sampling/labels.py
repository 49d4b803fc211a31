"""Classes told to a generator: left out at random, and guided to.

A model of `num_classes` classes knows one more, `num_classes` itself: no class
(Ho & Salimans, 2207.12598). 0 is a model that is told none.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError


def check(model: nn.Module, classes: int) -> None:
  """Raises UserError for a model of fewer classes than the data have."""
  if 0 < model.num_classes < classes:
    raise UserError(
      f"model.num_classes={model.num_classes}: the data have {classes}"
      " classes; 0 is for a model that is told none"
    )


def check_share(share: Any) -> None:
  """Raises UserError for a `drop_label` that is no share."""
  if type(share) not in (int, float) or not 0 <= share < 1:
    raise UserError(f"task.drop_label={share!r}: should be in [0, 1)")


def check_draw(draw: Mapping[str, Any], *names: str) -> None:
  """Raises UserError for a draw of what the task draws itself."""
  for name in {"label", *names} & set(draw):
    raise UserError(f"draws.{name}: the task draws it; leave it out")


def dropped(
  model: nn.Module, label: jax.Array, share: float, key: jax.Array
) -> jax.Array | None:
  """Labels (b,), a share of them no class; None if the model is told none."""
  if not model.num_classes:
    return None
  drop = jax.random.bernoulli(key, share, label.shape)
  return jnp.where(drop, model.num_classes, label)


def asked(
  model: nn.Module, label: Any, guidance: float | None, share: float
) -> np.ndarray:
  """Labels (b,) int32 of samples, whether or not the model is told them.

  Args:
    model: a generator.
    label: (b,) classes, `model.num_classes` for none.
    guidance: as of `sample`.
    share: that was left out in training.

  Raises:
    UserError: a class that doesn't exist, guidance of a model without classes,
      or by one that was never left out.
  """
  classes, label = model.num_classes, np.asarray(label, np.int32)
  if guidance is not None and not (classes and share):
    why = (
      "was trained with drop_label=0 and doesn't know what no class is"
      if classes
      else "has no classes to be guided to"
    )
    raise UserError(f"guidance={guidance}: this model {why}; leave it out")
  wrong = label[(label < 0) | (label > classes)]
  if classes and len(wrong):
    raise UserError(
      f"label {wrong[0]}: should be in 0..{classes}, {classes} for no class"
    )
  return label
