"""A tokenizer's second stage: a discriminator judges what is decoded.

    config.init = {"from": "out/tokenizer", "skip": "discriminator/.*"}
    config.task = {
      "name": "adversarial", "of": {"name": "reconstruct", "weights": ...},
      "weight": 0.05, "freeze": "encoder",
    }
    config.optim_discriminator = {"lr": 2e-5, ...}

Two players in turn (ViTok, 2501.09755, section 3.1 and appendix A.2):

    generator       of + weight mean g(D(y)),  y the reconstruction
    discriminator   mean r(D(x)) + mean f(D(y)) + r1/2 mean |grad_x D(x)|^2

with scores D of images x and y as the task normalises them, and by `loss`

    hinge      r(s) = max(0, 1 - s)   f(s) = max(0, 1 + s)   g(s) = -s
    logistic   r(s) = softplus(-s)    f(s) = softplus(s)     g(s) = r(s)

With `freeze` "encoder" neither the parameters in front of the decoder move,
nor the codebook of a bottleneck that keeps one, and weight decay spares them.

The penalty R1 (Mescheder et al., 1801.04406, section 4.1) is paid at every
`r1_every`-th step, times that (1912.04958, appendix B); a mean over scores
where an image has several. Its metric `r1` is what is paid, over all steps.

The published runs weigh .05 with a learning rate of 2e-5 (1e-5 was worse, 4e-5
unstable) and say 1.0 elsewhere. Left out: a weight adapted to the gradients of
the last layer (2012.09841, eq. 7) and LeCam. The discriminator sees a forward
pass of its own, of the generator as it has just become.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale import plugin
from vitscale.core import draws, tree
from vitscale.core.errors import UserError, nearest
from vitscale.nn import discriminator as discriminator_lib
from vitscale.tasks import Player, with_head

PARAMS = "discriminator"  # where its parameters lie among the model's
R1, HEARD = "r1", "adversarial"  # draws: is the penalty paid, D listened to
# What `models/vitok.py` has in front of the decoder.
FREEZE = {
  "": "",
  "encoder": r"(embed|table|queries|encoder|encoder_norm|scales|neck)(/.*)?",
}

Score = Callable[[jax.Array], jax.Array]
LOSSES: dict[str, tuple[Score, Score, Score]] = {  # r, f, g
  "hinge": (lambda s: nn.relu(1 - s), lambda s: nn.relu(1 + s), lambda s: -s),
  "logistic": (
    lambda s: nn.softplus(-s),
    nn.softplus,
    lambda s: nn.softplus(-s),
  ),
}


@dataclasses.dataclass(frozen=True)
class Task:
  """Reconstruction that has to look real.

  Attributes:
    task: the plain task, with one player, see tasks/reconstruct.py.
    discriminator: module, images -> scores.
    weight: of the generator's adversarial loss.
    loss_name: a key of LOSSES.
    r1: weight of the gradient penalty, 0 for none.
    r1_every: steps from one penalty to the next.
    start: share of the run before the generator listens to D.
    freeze: a key of FREEZE.
  """

  task: Any
  discriminator: nn.Module
  weight: float = 0.05
  loss_name: str = "hinge"
  r1: float = 0.0
  r1_every: int = 16
  start: float = 0.0
  freeze: str = ""

  any_draw = True

  @property
  def mean(self) -> tuple[float, ...]:
    return self.task.mean

  @property
  def std(self) -> tuple[float, ...]:
    return self.task.std

  @property
  def players(self) -> tuple[Player, ...]:
    head = f"{PARAMS}/.*"
    return (
      Player("generator", f"(?!{head}).*", frozen=FREEZE[self.freeze]),
      Player(
        "discriminator", head, "discriminator_loss", "optim_discriminator"
      ),
    )

  @property
  def draws(self) -> tuple[draws.Draws, ...]:
    found: list[draws.Draws] = []
    if self.r1 and self.r1_every > 1:
      found.append(draws.Every(R1, self.r1_every))
    if self.start:
      off, on = (1.0, 0.0), (0.0, 1.0)
      stages = (0.0, off), (self.start, off), (self.start, on), (1.0, on)
      found.append(draws.Ramp(HEARD, (False, True), stages))
    return tuple(found)

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the model, and of the discriminator.

    Raises:
      UserError: the model reconstructs nothing, images don't fit the
        discriminator.
    """
    boxed = self.task.init(model, key, batch)
    image = jax.eval_shape(self.normalise, batch["image"])
    return with_head(boxed, PARAMS, self.discriminator, key, image)

  def normalise(self, image: jax.Array) -> jax.Array:
    return self.task.normalise(image)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The generator's; metrics of the plain task, and `adversarial`."""
    loss, aux = self._plain(model, variables, batch, rngs, draw)
    term = jnp.zeros(())
    if draw.get(HEARD, True):
      *_, fool = LOSSES[self.loss_name]
      made = aux["out"]["reconstruction"]
      term = fool(self._scores(variables, made)).mean()
    loss += self.weight * term
    metrics = {**aux["metrics"], "loss": loss, "adversarial": term}
    state = {} if self.freeze else aux["state"]
    return loss, {**aux, "metrics": metrics, "state": state}

  def discriminator_loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The discriminator's; metrics `discriminator`, `real`, `fake`, `r1`.

    The first is its loss without `r1`; `real` and `fake` are mean scores.
    """
    _, aux = self._plain(model, variables, batch, rngs, draw)
    made = jax.lax.stop_gradient(aux["out"]["reconstruction"])
    image = self.normalise(batch["image"])
    want, refuse, _ = LOSSES[self.loss_name]
    real, fake = (self._scores(variables, x) for x in (image, made))
    loss = want(real).mean() + refuse(fake).mean()
    paid = jnp.zeros(())
    if self.r1 and draw.get(R1, True):
      every = self.r1_every if R1 in draw else 1
      paid = every * self.r1 / 2 * self._slope(variables, image)
    metrics = {"discriminator": loss, "real": real.mean(), "fake": fake.mean()}
    return loss + paid, {"metrics": {**metrics, "r1": paid}}

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """What the plain task predicts."""
    return self.task.predict(model, variables, batch)

  def _plain(self, model, variables, batch, rngs, draw):
    """The plain task's loss, with no gradient of what is frozen."""
    params = {k: v for k, v in variables["params"].items() if k != PARAMS}
    if self.freeze:
      flat = tree.flatten(params)
      still = lambda path: re.fullmatch(FREEZE[self.freeze], path)
      stop = jax.lax.stop_gradient
      flat = {k: stop(x) if still(k) else x for k, x in flat.items()}
      params = tree.like(params, flat)
    own = {k: v for k, v in draw.items() if k not in (R1, HEARD)}
    return self.task.loss(
      model, {**variables, "params": params}, batch, rngs, own
    )

  def _scores(self, variables: Mapping[str, Any], x: jax.Array) -> jax.Array:
    params = variables["params"][PARAMS]
    return self.discriminator.apply({"params": params}, x)

  def _slope(self, variables: Mapping[str, Any], image: jax.Array) -> jax.Array:
    """Mean over images (frames of a video) of |grad_x D(x)|^2."""

    def score(image):  # of each image the mean of its scores
      scores = self._scores(variables, image)
      return scores.reshape(len(scores), -1).mean(1).sum()

    slope = jax.grad(score)(image)
    return jnp.square(slope).sum((-3, -2, -1)).mean()


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`, see the module.

  Raises:
    UserError: an unknown loss, discriminator or part to freeze, a number out
      of range, or a plain task that reconstructs nothing.
  """
  inner = config["of"]
  if inner["name"] != "reconstruct":
    raise UserError(
      f"task.of.name {inner['name']!r}: 'adversarial' wants 'reconstruct'"
    )
  task = plugin.module("tasks", inner["name"]).make(inner, source)
  loss, freeze = config.get("loss", "hinge"), config.get("freeze", "")
  for key, value, known in (("loss", loss, LOSSES), ("freeze", freeze, FREEZE)):
    if value not in known:
      raise UserError(f"task.{key} {value!r}{nearest(value, known)}")
  weight, r1 = config.get("weight", 0.05), config.get("r1", 0.0)
  for key, value in (("weight", weight), ("r1", r1)):
    if type(value) not in (int, float) or not 0 <= value < math.inf:
      raise UserError(f"task.{key}={value!r}: should be 0 or more")
  every, start = config.get("r1_every", 16), config.get("start_percent", 0.0)
  if type(every) is not int or every < 1:
    raise UserError(f"task.r1_every={every!r}: should be 1 step or more")
  if type(start) not in (int, float) or not 0 <= start < 100:
    raise UserError(f"task.start_percent={start!r}: should be in [0, 100)")
  text = config.get("discriminator", "residual")
  judge = discriminator_lib.parse(text)()
  return Task(task, judge, weight, loss, r1, every, start / 100, freeze)
