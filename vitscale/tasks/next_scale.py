"""Next-scale prediction: a generator learns a tokenizer's codes, all scales.

    config.task = {"name": "next_scale", "drop_label": 0.1}
    config.data = {"source": "latents", "path": "out/codes"}

An image is its codes, N of all scales in one row (data/latents.py). What the
model is shown is made of them by the tokenizer's codebook and convolutions
(nn/bottlenecks/residual_vq.py), a frozen collection `teacher` of the state that
is read from the tokenizer's run when this one begins. The loss is the
cross-entropy of all codes, a mean in nats a token (VAR, 2404.02905, section
3.2). A share `drop_label` of the images has no class, for guidance.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vitscale.core.errors import UserError
from vitscale.nn import bottlenecks
from vitscale.nn.bottlenecks import residual_vq
from vitscale.parent import TEACHER, Parent
from vitscale.sampling import labels, scale_kv
from vitscale.sampling import scales as scales_lib
from vitscale.tasks import Player, forward

Batch = Mapping[str, jax.Array]


class Neck(Parent):
  """The bottleneck of a tokenizer's run."""

  @property
  def weights(self) -> str:
    return f"{super().weights}/neck"


@dataclasses.dataclass(frozen=True)
class Task:
  """Cross-entropy of codes, scale after scale.

  Attributes:
    classes: of the data.
    neck: the tokenizer's `residual_vq`.
    parent: the run that has its weights.
    drop_label: share of images without a class in training.
  """

  classes: int
  neck: residual_vq.Bottleneck
  parent: Neck = dataclasses.field(hash=False, compare=False)
  drop_label: float = 0.1
  players: tuple[Player, ...] = (Player(),)

  frozen = (TEACHER,)

  @property
  def vocabulary(self) -> int:
    return self.neck.entries

  @property
  def teachers(self) -> dict[str, Parent]:
    return {TEACHER: self.parent}

  def init(self, model: nn.Module, key: jax.Array, batch: Batch) -> Any:
    """Boxed variables of the model, and the tokenizer's as zeros.

    Raises:
      UserError: the model says no scales, others than the tokenizer's, codes
        of another size, or knows fewer classes than the data have.
    """
    if not hasattr(model, "scales"):
      raise UserError(
        f"task next_scale: {type(model).__module__} knows no scales: use"
        " model.family='var'"
      )
    neck = self.neck
    for name, of_neck in (
      ("scales", neck.scales),
      ("vocabulary", neck.entries),
      ("channels", neck.code),
    ):
      if (own := getattr(model, name)) != of_neck:
        raise UserError(
          f"model.{name}={own}: the tokenizer's codes are of {of_neck}: set"
          f" model.{name}={of_neck}"
        )
    labels.check(model, self.classes)
    width = self.parent.shapes()["project"]["kernel"].shape[0]
    x = jax.ShapeDtypeStruct((1, neck.side**2, width), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: neck.init(k, x, train=False), key, x)
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    own = jax.tree.map(zeros, shapes["params"])
    return {**model.init(key, self.inputs(batch)), TEACHER: own}

  def normalise(self, image: jax.Array) -> jax.Array:
    """Nothing: codes are no numbers.

    Raises:
      UserError: always.
    """
    raise UserError("task next_scale: codes of a tokenizer are no pixels")

  def inputs(self, batch: Batch) -> jax.Array:
    """What the model is called with, (b, N - first, c), in shape alone.

    Values need the tokenizer's weights, which `loss` and `predict` get.
    """
    count = self._codes(batch).shape[1] - self.neck.scales[0] ** 2
    return jnp.zeros((len(batch["image"]), count, self.neck.code))

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean nats a token; labels are dropped by rngs["mix"].

    Metrics: `loss`, `loss_last` of the last scale alone, `accuracy`.

    Args: as of `classify.Task.loss`.

    Raises:
      UserError: a draw of the class.
    """
    labels.check_draw(draw)
    codes = self._codes(batch)
    label = labels.dropped(model, batch["label"], self.drop_label, rngs["mix"])
    rest, shown = self._shown(variables, codes)
    own = {"dropout": rngs["dropout"]}
    (logits, out), state = forward(
      model, rest, shown, label, rngs=own, draw=draw
    )
    nll = cross_entropy(logits, codes)
    loss = nll.mean()
    metrics = {
      "loss": loss,
      "loss_last": self._by_scale(nll)[:, -1].mean(),
      "accuracy": (logits.argmax(-1) == codes).mean(),
    }
    return loss, {"metrics": metrics, "state": state, "out": out}

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Per example, with the true class.

    Returns:
      `nll` (b,), mean nats a token; `losses` (b, scales), those of each
      scale; `correct` (b,), the share of tokens that were likeliest.
    """
    codes = self._codes(batch)
    label = batch["label"] if model.num_classes else None
    rest, shown = self._shown(variables, codes)
    logits, _ = model.apply(rest, shown, label)
    nll = cross_entropy(logits, codes)
    correct = (logits.argmax(-1) == codes).mean(1)
    losses = self._by_scale(nll)
    return {"nll": nll.mean(1), "losses": losses, "correct": correct}

  def sample(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    key: jax.Array,
    label: Any,
    shape: tuple[int, int, int],
    *,
    guidance: float | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cache: str | None = None,
  ) -> jax.Array:
    """Codes as a batch has them, (b, 1, N, 1) int32.

    Args:
      model, variables: trained by this task.
      key: random key of the draws.
      label: (b,) classes, `model.num_classes` for none; a model without
        classes isn't told them.
      shape: (1, N, 1).
      guidance, temperature, top_k, top_p: see `sampling.scales.generate`.
      cache: file of a plan of `sampling.scale_kv`, which tokens are kept; None
        for all.

    Raises:
      UserError: see `generate`, `scale_kv.load`; another shape; or guidance by
        a class that was never left out in training.
    """
    tokens = sum(scale**2 for scale in model.scales)
    if tuple(shape) != (1, tokens, 1):
      raise UserError(
        f"samples of shape {tuple(shape)}: scales {model.scales} make"
        f" {(1, tokens, 1)}"
      )
    label = labels.asked(model, label, guidance, self.drop_label)
    codes = scales_lib.generate(
      model, variables, self.neck, variables[TEACHER], key, len(label),
      label if model.num_classes else None,
      guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p,
      evict=None if cache is None else scale_kv.load(cache),
    )  # fmt: skip
    return codes[:, None, :, None]

  def _codes(self, batch: Batch) -> jax.Array:
    """(b, N) of images (b, 1, N, 1)."""
    return batch["image"].reshape(len(batch["image"]), -1)

  def _shown(self, variables, codes):
    """The model's own variables, and its inputs."""
    rest = dict(variables)
    own = {"params": rest.pop(TEACHER)}
    shown = self.neck.apply(own, codes, method="inputs")
    return rest, jax.lax.stop_gradient(shown)

  def _by_scale(self, nll):
    """(b, N) -> (b, scales), means."""
    parts = residual_vq.split(nll, self.neck.scales)
    return jnp.stack([part.mean(1) for part in parts], 1)


def cross_entropy(logits: jax.Array, codes: jax.Array) -> jax.Array:
  """-ln p of each code, (b, N, v) and (b, N) -> (b, N)."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, codes)


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`: drop_label.

  Raises:
    UserError: data that are no codes of all scales, a tokenizer that isn't
      there or has other weights than those that made them, or a share outside
      [0, 1).
  """
  if source.vocabulary is None or source.tokenizer is None:
    raise UserError(
      "task next_scale wants codes of a tokenizer: data.source='latents' of one"
      " with model.bottleneck='residual_vq(...)'"
    )
  drop = config.get("drop_label", 0.1)
  labels.check_share(drop)
  origin = source.tokenizer
  parent = Neck(origin.path)
  text = str(parent.config["model"].get("bottleneck", "kl(16)"))
  neck = bottlenecks.parse(text)()
  if not isinstance(neck, residual_vq.Bottleneck):
    raise UserError(
      f"task next_scale: the tokenizer {origin.path} has {text!r}, one scale:"
      " want 'residual_vq(...)', or another task"
    )
  if parent.facts["digest"] != origin.fingerprint:
    raise UserError(
      f"{origin.path} is not the tokenizer of these codes: its weights are"
      f" {parent.facts['digest']}, theirs {origin.fingerprint}"
    )
  tokens = sum(scale**2 for scale in neck.scales)
  if source.shape != (1, tokens, 1):
    raise UserError(
      f"codes of shape {source.shape}: {text!r} makes {(1, tokens, 1)}"
    )
  return Task(source.classes, neck, parent, drop)
