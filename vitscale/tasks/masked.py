"""Self-pretraining: what is hidden is predicted, from the task's data alone.

    config.task = {"name": "masked", "share": 0.5}          # first, then
    config.init = {"from": WORKDIR, "skip": "head/.*|masked/.*"}

Amos et al., "Never Train from Scratch" (2310.02980): before a model learns
labels, it learns to fill in its inputs, of the same examples. A share of the
tokens is hidden at random and the loss is on those alone:

* a model with a `vocabulary` gets its last token in their place (the data must
  not use it) and predicts the hidden ones, by cross-entropy;
* of any other one whole patches become 0, the mean grey, and their normalised
  pixels are predicted, by half the squared error: the negative log-likelihood
  of a normal of unit variance, without its constant. (Amos et al. take the
  absolute error.)

Padding is never hidden. What fills in is a linear map of the last tokens, and
is no part of the model that starts from the run: `init.skip` leaves it behind
and draws the classifier, which had nothing to learn, anew.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import patch as patch_lib
from vitscale.nn import tokens as tokens_lib
from vitscale.nn.linear import Linear
from vitscale.tasks import classify, fingerprint, forward, with_head

PARAMS = "masked"  # where they lie among the model's


class Filler(nn.Module):
  """The linear map of tokens to what was there.

  Attributes:
    spec: axis names of its kernel.
    features: logits of a token, or pixels of a patch.
  """

  spec: str
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(b, rows, columns, d) -> (b, rows, columns, features) float32."""
    return Linear(self.spec, (self.features,), name="out")(x)


@dataclasses.dataclass(frozen=True)
class Task(classify.Task):
  """Filling in.

  Attributes:
    share: of the tokens that is hidden.
  """

  share: float = 0.5
  any_draw = False
  weighted = True  # a batch's loss is the mean over its hidden tokens

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the model, and of what fills in.

    Raises:
      UserError: a family without patches, or packed images.
    """
    if "segment_ids" in batch:
      raise UserError("task masked wants one image a row, not packed ones")
    boxed = super().init(model, key, batch)
    x = self.normalise(batch["image"])
    hidden = jnp.zeros((len(x), *_grid(model, x, {})), bool)
    features = jax.eval_shape(
      lambda v: _features(model.apply(v, hide(model, x, hidden, {}))[1]),
      axes.unbox(boxed),
    )
    return with_head(boxed, PARAMS, _filler(model, x, {}), key, features)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean loss of the hidden tokens of a batch; `accuracy` see `predict`."""
    x = self.normalise(batch["image"])
    luck = jax.random.uniform(rngs["mix"], (len(x), *_grid(model, x, draw)))
    hidden = self._hidden(model, x, luck)
    shown, own = hide(model, x, hidden, draw), {"dropout": rngs["dropout"]}
    (_, out), state = forward(model, variables, shown, rngs=own, draw=draw)
    nll, right = self._filled(model, variables, x, out, draw)
    total = jnp.maximum(hidden.sum(), 1)
    loss = (nll * hidden).sum() / total
    accuracy = (right * hidden).sum() / total
    return loss, {
      "metrics": {"loss": loss, "accuracy": accuracy},
      "state": state,
      "out": out,
    }

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """Per example, means over what is hidden, which its content decides.

    Returns:
      `nll`; `correct`, the share of tokens filled in right, or of patches
      filled in better than by mean grey.
    """
    x = self.normalise(batch["image"])
    grid = _grid(model, x, {})
    words = fingerprint(batch["image"])
    draw = lambda word: jax.random.uniform(
      jax.random.fold_in(jax.random.key(0), word), grid
    )
    hidden = self._hidden(model, x, jax.vmap(draw)(words))
    _, out = model.apply(variables, hide(model, x, hidden, {}))
    nll, right = self._filled(model, variables, x, out, {})
    total = jnp.maximum(hidden.sum((1, 2)), 1)
    mean = lambda values: (values * hidden).sum((1, 2)) / total
    return {"nll": mean(nll), "correct": mean(right)}

  def _hidden(self, model: nn.Module, x: jax.Array, luck: jax.Array):
    """(b, rows, columns) bool: of the tokens that exist `share`, one at least.

    An example without any would count as one that is filled in perfectly.
    """
    pad = getattr(model, "pad_token", None)
    if pad is not None:
      lengths = tokens_lib.lengths_of(x, pad)
      real = tokens_lib.real(lengths, luck[0].size).reshape(luck.shape)
      luck = jnp.where(real, luck, 2.0)
    first = luck == luck.min((1, 2), keepdims=True)
    return (luck < self.share) | (first & (luck < 2.0))

  def _filled(self, model, variables, x, out, draw):
    """Loss of every token, and how right it is, (b, rows, columns) both."""
    filler = _filler(model, x, draw)
    made = filler.apply(
      {"params": variables["params"][PARAMS]}, _features(out)
    ).astype(jnp.float32)
    if getattr(model, "vocabulary", None) is not None:
      target = jnp.rint(x[..., 0]).astype(jnp.int32)
      nll = optax.softmax_cross_entropy_with_integer_labels(made, target)
      return nll, (made.argmax(-1) == target).astype(jnp.float32)
    target = patch_lib.patchify(x, _patch(model, draw))
    error = jnp.square(made - target).mean(-1)
    better = error < jnp.square(target).mean(-1)
    return error / 2, better.astype(jnp.float32)


def hide(
  model: nn.Module, x: jax.Array, hidden: jax.Array, draw: Mapping[str, Any]
) -> jax.Array:
  """Normalised images without what is hidden, (b, rows, columns) bool."""
  ph, pw = _patch(model, draw)
  hidden = hidden.repeat(ph, 1).repeat(pw, 2)[..., None]
  vocabulary = getattr(model, "vocabulary", None)
  return jnp.where(hidden, 0.0 if vocabulary is None else vocabulary - 1, x)


def _patch(model: nn.Module, draw: Mapping[str, Any]) -> tuple[int, int]:
  if not hasattr(model, "patch_size"):
    raise UserError(f"{type(model).__module__} has no patches to hide")
  return patch_lib.pair(draw.get("patch_size") or model.patch_size)


def _grid(model, x, draw) -> tuple[int, int]:
  return patch_lib.grid_of(x.shape[1:3], _patch(model, draw))


def _features(out: Mapping[str, Any]) -> jax.Array:
  """(b, rows, columns, d), the last ones."""
  return out["features"][-1][0]


def _filler(model: nn.Module, x: jax.Array, draw: Mapping[str, Any]) -> Filler:
  if getattr(model, "vocabulary", None) is not None:
    return Filler("embed -> classes", model.vocabulary)
  ph, pw = _patch(model, draw)
  return Filler("embed -> patch", ph * pw * x.shape[-1])


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`.

  Raises:
    UserError: what `classify.make` refuses, or no share between 0 and 1.
  """
  base = classify.make(config, source)
  for name in ("mixup", "cutmix", "label_smoothing"):
    if getattr(base, name):
      raise UserError(f"task masked has no labels: drop task.{name}")
  share = config.get("share", 0.5)
  if not isinstance(share, int | float) or not 0 < share < 1:
    raise UserError(f"task.share={share!r}: should be between 0 and 1")
  return Task(**vars(base), share=float(share))
