"""Reconstruction: an auto-encoder's pixels, and what its bottleneck costs.

    config.task = {"name": "reconstruct", "weights": {"l2": 1.0, "kl": 1e-3}}

The loss is a weighted sum of means over the batch (ViTok, 2501.09755, section
3.1, stage 1):

    l2 l1 charbonnier   of pixels normalised to about -1..1, means over all
    ssim                1 - SSIM of pixels in 0..1 (metrics/images.py)
    perceptual          of what a network sees, `task.perceptual`
    PENALTY             of the bottleneck, by its name: kl commit codebook ...

One is weighed 0 only by saying so: a penalty without a weight has that of
WEIGHTS. `kl` is a mean over the floats of a latent, as in ViTok's release;
`kl_per="image"` sums them, and a weight of 1e-3 / E then says the same. A KL
term between floats and pixels depends on the unit: what counts is this file's.

A network is one of metrics/networks.py that compare images, and does not learn:
"lpips(path='FILE', net='vgg')" as published, of a user's file, or by default
"random_conv", which knows edges and no objects, and is not LPIPS.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core.errors import UserError, nearest
from vitscale.metrics import features, images, networks
from vitscale.tasks import Player, classify, forward

Batch = Mapping[str, jax.Array]

PIXELS = {
  "l2": jnp.square,
  "l1": jnp.abs,
  # Smooth at 0 (Charbonnier et al. 1994), 1e-3 of half the range wide.
  "charbonnier": lambda x: jnp.sqrt(jnp.square(x) + 1e-6) - 1e-3,
}
WEIGHTS = {"kl": 1e-3, "codebook": 1.0, "commit": 0.25, "entropy": 0.1}
PER = ("float", "image")
PERCEPTUAL, SSIM = "perceptual", "ssim"


@dataclasses.dataclass(frozen=True)
class Task:
  """Reconstruction of normalised images or videos.

  Attributes:
    mean, std: of each channel, pixels in 0..1.
    weights: name -> weight, of PIXELS and of the bottleneck's penalties.
    kl_per: "float" or "image", what `kl` is a mean or a sum over.
    network: of the term `perceptual`, of two (b, h, w, c) in 0..1 -> (b,).
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]
  weights: tuple[tuple[str, float], ...] = (("l2", 1.0),)
  kl_per: str = "float"
  network: networks.Network | None = None
  players: tuple[Player, ...] = (Player(),)
  any_draw = True

  def init(self, model: nn.Module, key: jax.Array, batch: Batch) -> Any:
    """Boxed variables of the model.

    Raises:
      UserError: the model reconstructs nothing.
    """
    image = self.normalise(batch["image"])
    (_, out), boxed = model.init_with_output(key, image)
    if "reconstruction" not in out:
      raise UserError(
        f"task reconstruct: {type(model).__module__} gives no reconstruction:"
        " use model.family='vitok'"
      )
    return boxed

  def normalise(self, image: jax.Array) -> jax.Array:
    """uint8 (..., c) -> float32, about -1..1 by default."""
    return classify.normalised(image, self.mean, self.std)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """Weighted sum; metrics `loss`, `mse` (pixels in 0..1) and every term.

    Args: as of `classify.Task.loss`.
    """
    image = self.normalise(batch["image"])
    own = {"dropout": rngs["dropout"], "latent": rngs["mix"]}
    (made, out), state = forward(model, variables, image, rngs=own, draw=draw)
    terms = self.terms(image, made, out)
    weights = WEIGHTS | dict(self.weights)
    loss = sum(weights[name] * term for name, term in terms.items())
    metrics = {"loss": loss, "mse": self._mse(image, made).mean(), **terms}
    return loss, {"metrics": metrics, "state": state, "out": out}

  def terms(
    self, image: jax.Array, made: jax.Array, out: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    """What is weighed, means over the batch, by name.

    Raises:
      UserError: a weight of nothing that is there, or a penalty without one.
    """
    penalties = {name: x.mean() for name, x in out["penalties"].items()}
    if "kl" in penalties and self.kl_per == "image":
      penalties["kl"] *= math.prod(out["latent"].shape[1:])
    known = [*PIXELS, SSIM, PERCEPTUAL, *penalties]
    for name, _ in self.weights:
      if name not in known:
        hint = nearest(name, known)
        raise UserError(f"task.weights.{name}: no such term{hint}")
    for name in penalties:
      if name not in WEIGHTS | dict(self.weights):
        raise UserError(
          f"task.weights: say what {name!r} weighs, 0 for nothing"
        )
    asked = dict(self.weights)
    far = {
      name: PIXELS[name](made - image).mean()
      for name in asked
      if name in PIXELS
    }
    if SSIM in asked or PERCEPTUAL in asked:
      pair = self._frames(image), self._frames(made)
      if SSIM in asked:
        far[SSIM] = 1 - images.ssim(*pair).mean()
      if PERCEPTUAL in asked:
        networks.check(self.network, pair[0].shape)
        far[PERCEPTUAL] = self.network(*pair).mean()
    return far | penalties

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Batch
  ) -> dict[str, jax.Array]:
    """Per example, nothing drawn.

    Returns:
      `original` and `reconstruction`, float32 in 0..1, the second as 8-bit
      pixels hold it; `mse` (b,) before that; each penalty (b,).
    """
    image = self.normalise(batch["image"])
    made, out = model.apply(variables, image)
    pixels = jnp.clip(jnp.rint(self._grey(made)), 0, 255) / 255
    return {
      "original": batch["image"].astype(jnp.float32) / 255,
      "reconstruction": pixels,
      "mse": self._mse(image, made),
      **out["penalties"],
    }

  def _frames(self, x: jax.Array) -> jax.Array:
    """Normalised images or videos -> images (n, h, w, c) of 0..1."""
    return (self._grey(x) / 255).reshape(-1, *x.shape[-3:])

  def _grey(self, x: jax.Array) -> jax.Array:
    """Normalised -> 0..255."""
    return (x * jnp.asarray(self.std) + jnp.asarray(self.mean)) * 255

  def _mse(self, image: jax.Array, made: jax.Array) -> jax.Array:
    """Of each example (b,), pixels in 0..1."""
    far = (made - image) * jnp.asarray(self.std)
    return jnp.square(far).mean(tuple(range(1, far.ndim)))


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`.

  It has weights, kl_per, perceptual, mean, std.

  Raises:
    UserError: no pixel term, a weight below 0, a wrong number of channels, or
      a network that isn't there or isn't weighed.
  """
  group = config.get("weights") or {"l2": 1.0}
  weights = {name: group[name] for name in group}
  for name, weight in weights.items():
    if type(weight) not in (int, float) or not 0 <= weight < math.inf:
      raise UserError(f"task.weights.{name}={weight!r}: should be 0 or more")
  if not any(weights.get(name) for name in PIXELS):
    raise UserError(
      f"task.weights: no weight on pixels; give one of {', '.join(PIXELS)}"
    )
  kl_per = config.get("kl_per", "float")
  if kl_per not in PER:
    raise UserError(f"task.kl_per {kl_per!r}{nearest(kl_per, PER)}")
  network, text = None, config.get(PERCEPTUAL, features.NAME)
  if PERCEPTUAL in weights:
    try:
      network = networks.distance(str(text))
    except UserError as error:
      raise UserError(f"task.perceptual: {error}") from None
  elif PERCEPTUAL in config:
    raise UserError("task.perceptual: say what it weighs, in task.weights")
  half = (0.5,) * len(source.mean)
  mean, std = classify.statistics(config, half, half)
  if min(std) <= 0:
    raise UserError(f"task.std={std}: should be above 0")
  return Task(mean, std, tuple(weights.items()), kl_per, network)
