"""Diffusion: a model learns to take noise away.

    config.task = {"name": "diffuse", "process": "flow", "drop_label": 0.1}

An image is noised at a random time (sampling/process.py), the model is shown
it, the time and the class, and predicts velocity (`flow`) or noise (`ddpm`).
The loss is the squared error, a mean over all numbers of an image and all
images. A share `drop_label` of the images has no class, for guidance
(Ho & Salimans, 2207.12598). `shift` moves flow's times towards noise;
"dim" is the shift of 2510.11690, sqrt(numbers of an image / 4096). `times`
"logit_normal" trains more in the middle (2403.03206, section 3.1).

A model with `learn_sigma` learns the variance of ddpm's steps back too, from
the variational bound, which is added as in the release of DiT; the sampler
"ancestral" uses it.

Images may be latents of a tokenizer (data/latents.py). Those are normalised
channel by channel to mean 0 and variance 1 of the training data, unless mean
and std are given; raw latents are mean 0 and std 1/255.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError, nearest
from vitscale.sampling import labels, samplers
from vitscale.sampling import process as process_lib
from vitscale.sampling.process import Process
from vitscale.tasks import Player, classify, fingerprint, forward

Batch = Mapping[str, jax.Array]

HELD_OUT = 8  # times of `predict`
TIMES = {
  "uniform": jax.random.uniform,
  "logit_normal": lambda key, shape: jax.nn.sigmoid(
    jax.random.normal(key, shape)
  ),
}


@dataclasses.dataclass(frozen=True)
class Task:
  """Denoising of normalised images.

  Attributes:
    classes: of the data.
    mean, std: of each channel, pixels in 0..1.
    process: what noises.
    drop_label: share of images without a class in training.
    times: one of TIMES, how often a time of flow is trained.
    pixels: the data are 8-bit images, else latents.
  """

  classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  process: Process
  drop_label: float = 0.1
  times: str = "uniform"
  pixels: bool = True
  players: tuple[Player, ...] = (Player(),)

  def init(self, model: nn.Module, key: jax.Array, batch: Batch) -> Any:
    """Boxed variables of the model.

    Raises:
      UserError: the model takes no time, learns a variance that flow has not,
        or knows fewer classes than the data have.
    """
    family = type(model).__module__
    if "time" not in inspect.signature(model.__call__).parameters:
      raise UserError(
        f"task diffuse: {family} takes no time: use model.family='dit'"
      )
    if _learns(model) and self.process.kind != "ddpm":
      raise UserError(
        "task diffuse: flow has no variance to learn: set"
        " model.learn_sigma=False, or task.process='ddpm'"
      )
    labels.check(model, self.classes)
    return model.init(key, self.normalise(batch["image"]))

  def normalise(self, image: jax.Array) -> jax.Array:
    """uint8 (b, h, w, c) -> float32, about -1..1 by default."""
    return classify.normalised(image, self.mean, self.std)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Mean squared error at random times; all is drawn from rngs["mix"].

    Metrics are `loss`, that error, and `bound` if a variance is learned.

    Args: as of `classify.Task.loss`.

    Raises:
      UserError: a draw of the time or the class.
    """
    labels.check_draw(draw, "time")
    x = self.normalise(batch["image"])
    for_time, for_noise, for_label = jax.random.split(rngs["mix"], 3)
    u = TIMES[self.times](for_time, (len(x),))
    t = process_lib.times(self.process, u)
    noise = jax.random.normal(for_noise, x.shape)
    label = labels.dropped(model, batch["label"], self.drop_label, for_label)
    shown, target = process_lib.noised(self.process, x, noise, t)
    own = {"dropout": rngs["dropout"]}
    (made, out), state = forward(
      model, variables, shown, t, label, rngs=own, draw=draw
    )
    loss = jnp.square(made - target).mean()
    metrics = {"loss": loss}
    if _learns(model):
      said = out["variance"]
      bound = process_lib.bound(self.process, x, shown, t, made, said).mean()
      metrics, loss = {**metrics, "bound": bound}, loss + bound
    return loss, {"metrics": metrics, "state": state, "out": out}

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Per example, nothing drawn: noise is decided by an image's content.

    Returns:
      `losses` (b, HELD_OUT), squared error at times in the middle of as many
      equal parts of training's; `loss` (b,), their mean. With the true class.
    """
    image = batch["image"]
    x = self.normalise(image)
    label = batch["label"] if model.num_classes else None
    u = (jnp.arange(HELD_OUT) + 0.5) / HELD_OUT
    words = fingerprint(image)

    def at(i):
      noise = jax.vmap(
        lambda word: jax.random.normal(
          jax.random.fold_in(jax.random.fold_in(jax.random.key(0), word), i),
          x.shape[1:],
        )
      )(words)
      t = jnp.full(len(x), process_lib.times(self.process, u[i]))
      shown, target = process_lib.noised(self.process, x, noise, t)
      made, _ = model.apply(variables, shown, t, label)
      return jnp.square(made - target).mean(tuple(range(1, x.ndim)))

    losses = jax.lax.map(at, jnp.arange(HELD_OUT)).T
    return {"loss": losses.mean(1), "losses": losses}

  def sample(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    key: jax.Array,
    label: jax.Array,
    shape: tuple[int, int, int],
    *,
    guidance: float | None = None,
    sampler: str = "",
    steps: int = 50,
    interval: tuple[float, float] = (0.0, 1.0),
  ) -> jax.Array:
    """Samples as a batch has them: uint8 pixels, or float32 latents.

    Args:
      model, variables: trained by this task.
      key: random key of the noise.
      label: (b,) classes, `model.num_classes` for none; a model without
        classes isn't told them.
      shape: (h, w, c) of one.
      guidance, steps, interval: see `sampling.samplers.generate`.
      sampler: one of `samplers.SAMPLERS`, by default heun of flow, ddim of
        ddpm.

    Raises:
      UserError: see `generate`, or guidance by a class that was never left
        out in training.
    """
    label = labels.asked(model, label, guidance, self.drop_label)
    for_noise, for_steps = jax.random.split(key)
    noise = jax.random.normal(for_noise, (len(label), *shape))
    label = label if model.num_classes else None
    sampler = sampler or {"flow": "heun", "ddpm": "ddim"}[self.process.kind]
    x = samplers.generate(
      model, variables, noise, label, process=self.process, sampler=sampler,
      steps=steps, guidance=guidance, interval=interval, key=for_steps,
    )  # fmt: skip
    x = classify.pixels(x, self.mean, self.std)
    if self.pixels:
      x = jnp.clip(jnp.rint(x), 0, 255).astype(jnp.uint8)
    return x


def _learns(model: nn.Module) -> bool:
  """Whether a model says the variance of a step back."""
  return getattr(model, "learn_sigma", False)


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`.

  Keys: process, schedule, shift (a number or "dim"), drop_label, times, mean,
  std.

  Raises:
    UserError: an unknown process or schedule, a shift that is none, a share
      outside [0, 1), or a wrong number of channels.
  """
  shift = config.get("shift", 1.0)
  if shift == "dim":
    if source.shape is None:
      raise UserError("task.shift='dim' wants images of one size")
    shift = process_lib.shift_of(source.shape)
  try:
    process = Process(
      config.get("process", "flow"), config.get("schedule", "linear"), shift
    )
  except UserError as error:
    raise UserError(f"task.{error}") from None
  drop = config.get("drop_label", 0.1)
  labels.check_share(drop)
  if source.vocabulary is not None:
    raise UserError(
      "task diffuse wants pixels or latents, these are codes: use"
      " task.name='next_token' or 'next_scale'"
    )
  times = config.get("times", "uniform")
  if times not in TIMES:
    raise UserError(f"task.times {times!r}{nearest(times, TIMES)}")
  if times != "uniform" and config.get("process", "flow") != "flow":
    raise UserError(f"task.times {times!r} are flow's: process='flow'")
  pixels, half = source.tokenizer is None, (0.5,) * len(source.mean)
  known = (half, half) if pixels else (source.mean, source.std)
  mean, std = classify.statistics(config, *known)
  if min(std) <= 0:
    raise UserError(f"task.std={std}: should be above 0")
  return Task(source.classes, mean, std, process, drop, times, pixels)
