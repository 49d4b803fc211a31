"""Next token: a model learns each integer of an image from those before it.

    config.task = {"name": "next_token", "levels": 16, "drop_label": 0.1}

The integers are 8-bit pixels, read row by row with the channels of a pixel
together (2010.14701, section 2.2), or the codes of a tokenizer. The loss is
the cross-entropy in nats a token, a mean over tokens and images. A share
`drop_label` of the images has no class, for guidance.

`levels` makes pixels coarser: pixel p becomes p levels / 256, rounded down, so
that all levels are equally wide; samples have the middle of each. Losses of
other levels than 256 are of an easier question and are no bits a dimension.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitscale.core.errors import UserError
from vitscale.sampling import categorical, labels
from vitscale.tasks import Player, forward

Batch = Mapping[str, jax.Array]
Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Task:
  """Prediction of integers in raster order.

  Attributes:
    classes: of the data.
    vocabulary: of the integers: levels of pixels, entries of a codebook.
    pixels: the data are 8-bit images, else codes.
    drop_label: share of images without a class in training.
  """

  classes: int
  vocabulary: int = 256
  pixels: bool = True
  drop_label: float = 0.1
  players: tuple[Player, ...] = (Player(),)

  def init(self, model: nn.Module, key: jax.Array, batch: Batch) -> Any:
    """Boxed variables of the model.

    Raises:
      UserError: the model is none that reads in raster order, has another
        vocabulary, or knows fewer classes than the data have.
    """
    if not hasattr(model, "step") or not hasattr(model, "vocabulary"):
      raise UserError(
        f"task next_token: {type(model).__module__} predicts no tokens: use"
        " model.family='raster'"
      )
    if model.vocabulary != self.vocabulary:
      raise UserError(
        f"model.vocabulary={model.vocabulary}: the data have {self.vocabulary}"
        f" {'levels' if self.pixels else 'codes'}; set model.vocabulary="
        f"{self.vocabulary}"
      )
    labels.check(model, self.classes)
    return model.init(key, self.inputs(batch))

  def inputs(self, batch: Batch) -> jax.Array:
    """(b, h, w, c) int32 below `vocabulary`, what the model is called with."""
    image = batch["image"].astype(jnp.int32)
    return image * self.vocabulary // 256 if self.pixels else image

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean nats a token; which labels are dropped is drawn from rngs["mix"].

    Args: as of `classify.Task.loss`.

    Raises:
      UserError: a draw of the class.
    """
    labels.check_draw(draw)
    codes = self.inputs(batch)
    label = labels.dropped(model, batch["label"], self.drop_label, rngs["mix"])
    own = {"dropout": rngs["dropout"]}
    (logits, out), state = forward(
      model, variables, codes, label, rngs=own, draw=draw
    )
    nll, hit = scores(logits, codes)
    loss = nll.mean()
    return loss, {
      "metrics": {"loss": loss, "accuracy": hit.mean()},
      "state": state,
      "out": out,
    }

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Per example, told the true class: means over its tokens.

    Returns:
      `nll` (b,) nats a token; `correct` (b,), the share of tokens that were
      likeliest.
    """
    codes = self.inputs(batch)
    label = batch["label"] if model.num_classes else None
    nll, hit = scores(model.apply(variables, codes, label)[0], codes)
    return {"nll": nll.mean(1), "correct": hit.mean(1)}

  def sample(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    key: jax.Array,
    label: jax.Array,
    shape: Shape,
    *,
    guidance: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
  ) -> jax.Array:
    """Samples as a batch has them, token by token in one compiled program.

    With guidance w the logits are those without class + w (those with class -
    those without), before the temperature; another w compiles nothing anew.

    Args:
      model, variables: trained by this task.
      key: random key.
      label: (b,) classes, `model.num_classes` for none; a model without
        classes isn't told them.
      shape: (h, w, c) of one.
      guidance: w; 1 changes nothing, None asks the model once a token.
      temperature, top_k, top_p: see `sampling.categorical.draw`.

    Returns:
      (b, h, w, c) uint8 pixels, the middles of their levels, or int32 codes.

    Raises:
      UserError: options that mean nothing, a class that does not exist, or
        guidance by one that was never left out in training.
    """
    categorical.check(self.vocabulary, temperature, top_k, top_p)
    label = labels.asked(model, label, guidance, self.drop_label)
    options = (float(temperature), top_k, top_p)
    weight = None if guidance is None else np.float32(guidance)
    codes = _sample(
      variables, key, label, weight, model=model, shape=tuple(shape),
      options=options,
    )  # fmt: skip
    if not self.pixels:
      return codes
    return ((2 * codes + 1) * 128 // self.vocabulary).astype(jnp.uint8)


def scores(logits: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of logits (b, n, v) and codes (b, ...): nats and hits of each (b, n)."""
  codes = codes.reshape(logits.shape[:2])
  logits = logits.astype(jnp.float32)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, codes)
  return nll, (logits.argmax(-1) == codes).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("model", "shape", "options"))
def _sample(variables, key, label, guidance, *, model, shape, options):
  """(b, *shape) int32, see `Task.sample`."""
  single, variables = model.looped(variables)
  b, n = len(label), math.prod(shape)
  told = label if model.num_classes else None
  if guidance is not None:
    told = jnp.concatenate([label, jnp.full_like(label, model.num_classes)])
  asked = b if guidance is None else 2 * b

  def body(carry, at):
    cache, code = carry
    before = code if guidance is None else jnp.tile(code, 2)
    logits, new = single.apply(
      {**variables, "cache": cache}, before, at, told, shape, method="step",
      mutable=["cache"],
    )  # fmt: skip
    if guidance is not None:
      of_class, of_none = jnp.split(logits, 2)
      logits = of_none + guidance * (of_class - of_none)
    code = categorical.draw(jax.random.fold_in(key, at), logits, *options)
    return (new["cache"], code), code

  first = single.cache(asked, n), jnp.zeros(b, jnp.int32)
  _, codes = jax.lax.scan(body, first, jnp.arange(n))
  return codes.T.reshape(b, *shape)


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`: levels (of pixels), drop_label.

  Raises:
    UserError: images that differ in size, levels of codes or outside 2..256,
      or a share outside [0, 1).
  """
  if source.shape is None or len(source.shape) != 3:
    raise UserError("task next_token wants images of one size")
  drop, levels = config.get("drop_label", 0.1), config.get("levels")
  labels.check_share(drop)
  pixels = source.vocabulary is None
  if not pixels and levels is not None:
    raise UserError(f"task.levels={levels!r}: the data are codes; leave it out")
  if pixels and source.tokenizer is not None:
    raise UserError(
      "task next_token wants pixels or codes, these are latents: use a"
      " tokenizer with a codebook, or task.name='diffuse'"
    )
  if not pixels:
    return Task(source.classes, source.vocabulary, False, drop)
  levels = 256 if levels is None else levels
  if type(levels) is not int or not 2 <= levels <= 256:
    raise UserError(f"task.levels={levels!r}: should be in 2..256")
  return Task(source.classes, levels, True, drop)
