"""Loss, accuracy and calibration by image size and patch size, in one pass.

    evals.NAME = {
      "name": "robustness", "split": "val",
      "size": (160, 224, 288), "patch_size": (8, 16, 32),
    }
    vitscale eval CKPT --evals "robustness(size=(16, 24, 32))"

Every combination is one row, below its name: `size=160 patch_size=8/accuracy`.
Images are those that the evaluation's transform gives, resized on the device
(linear, antialiased, rounded to whole grey levels); patches are a draw of the
model (vit: PI-resize from the canonical kernel, 2212.08013). What is left out
stays as it is.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vitscale import models
from vitscale.core.errors import UserError
from vitscale.evals import At, classify

OPTIONS = ("size", "patch_size")
TRACED = True  # at the start: a patch may not divide a size

Sums = dict[str, dict[str, jax.Array]]


def make(
  task: Any,
  model: Any,
  *,
  size: Sequence[int] = (),
  patch_size: Sequence[int] = (),
) -> Callable[..., Sums]:
  """A jittable `(variables, batch) -> row -> sums`.

  Raises:
    UserError: nothing to vary, no sizes, a model or task of one patch.
  """
  size, patch_size = _several("size", size), _several("patch_size", patch_size)
  if not size and not patch_size:
    raise UserError("evals: robustness: say size=(16, 24) or patch_size=(4, 8)")
  if patch_size:
    models.check_draw(model, ("patch_size",), "evals: robustness")
    if not getattr(task, "any_draw", False):
      raise UserError("evals: robustness: this task is scored at one patch")

  def sums(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> Sums:
    found = {}
    for side, patch in itertools.product(
      size or (None,), patch_size or (None,)
    ):
      image = batch["image"] if side is None else resized(batch["image"], side)
      asked = model if patch is None else At(model, {"patch_size": patch})
      own = {**batch, "image": image}
      said = task.predict(asked, variables, own)
      found[row(side, patch)] = classify.totals(said, own)
    return found

  return sums


def _several(name: str, values: Any) -> tuple[int, ...]:
  found = (values,) if isinstance(values, int) else tuple(values)
  if any(type(value) is not int or value < 1 for value in found):
    raise UserError(f"evals: robustness {name}={values!r}: write (16, 32)")
  return found


def row(size: int | None, patch_size: int | None) -> str:
  """`size=16 patch_size=4`, without what stays as it is."""
  named = {"size": size, "patch_size": patch_size}
  return " ".join(f"{k}={v}" for k, v in named.items() if v is not None)


def resized(image: jax.Array, size: int) -> jax.Array:
  """uint8 (b, h, w, c) -> (b, size, size, c), as the transform `resize`."""
  b, h, w, c = image.shape
  if (h, w) == (size, size):
    return image
  x = jax.image.resize(
    image.astype(jnp.float32), (b, size, size, c), "linear",
    precision="highest",
  )  # fmt: skip
  return jnp.clip(jnp.rint(x), 0, 255).astype(image.dtype)


def evaluate(
  sums: Callable[..., Sums],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  **options: Any,
) -> dict[str, float]:
  """One pass over `batches`, each row as `classify.evaluate`; `examples`."""
  parts = [sums(variables, batch) for batch in batches]
  out: dict[str, float] = {}
  for name in parts[0]:
    own = [part[name] for part in parts]
    scores = classify.evaluate(lambda _, part: part, variables, own)
    out |= {f"{name}/{key}": value for key, value in scores.items()}
  return {**out, "examples": out[f"{name}/examples"]}
