"""Toys that the contract tests and the loop tests train.

`BatchNormModel` keeps batch statistics (a mutable collection), `TwoPlayers`
trains two sets of parameters with two losses and two optimizers. Both go
through the one loop with no code of their own there.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitscale.core import axes
from vitscale.tasks import Player, classify


def config(**changes) -> ConfigDict:
  """A small run; `changes` are dotted keys with `__` for dots."""
  made = ConfigDict(
    {
      "seed": 0,
      "batch_size": 16,
      "total_steps": 8,
      "data": {"source": "strokes", "size": 8, "n": 64},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "variant": "mu/4", "width": 16, "mlp_dim": 32,
        "position": "sincos2d",
      },
      "task": {"name": "classify"},
      "optim": {"name": "adamw", "lr": 1e-2},
      "ema": 0.9,
      "evals": {"val": {"split": "val", "every_steps": 4, "batch_size": 24}},
      "log": {"every_steps": 2},
      "checkpoint": {"every_steps": 2, "keep": 2},
    }
  )  # fmt: skip
  for key, value in changes.items():
    *parents, leaf = key.split("__")
    node = made
    for name in parents:
      node = node[name]
    node[leaf] = value
  return made


def everything() -> ConfigDict:
  """`config` with all that draws at random, for tests of resuming."""
  made = config(
    model__dropout=0.2, model__drop_path=0.2, task__mixup=0.3,
  )  # fmt: skip
  made.draws = {"patch_size": {"values": (2, 4), "weights": (1.0, 1.0)}}
  return made


# ------------------------------------------------------------------ BatchNorm


class Model(nn.Module):
  """One convolution with batch normalisation: a family of mutable state."""

  num_classes: int
  width: int = 8

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    c = image.shape[-1]
    kernel = axes.param(
      self, "kernel", "kernel_h kernel_w channel_in -> embed",
      (3, 3, c, self.width), axes.lecun,
    )  # fmt: skip
    x = jax.lax.conv_general_dilated(
      image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = axes.variable(
      self, "batch_stats", "mean", "embed", (self.width,), axes.zeros
    )
    batch_mean = x.mean((0, 1, 2))
    if train and not self.is_initializing():
      mean.value = 0.9 * mean.value + 0.1 * batch_mean
    x = nn.relu(x - (batch_mean if train else mean.value))
    features = x
    head = axes.param(
      self, "head", "embed -> classes", (self.width, self.num_classes),
      axes.lecun,
    )  # fmt: skip
    return x.mean((1, 2)) @ head, {"features": [(features, (2, 2))]}


# ----------------------------------------------------------------- two players


class Pair(nn.Module):
  """A classifier and a critic that scores its logits."""

  num_classes: int
  width: int = 8

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    del train
    b, h, w, c = image.shape
    flat = image.reshape(b, -1)
    first = axes.param(
      self, "student", "patch -> classes", (h * w * c, self.num_classes),
      axes.lecun,
    )  # fmt: skip
    critic = axes.param(
      self, "critic", "classes -> embed", (self.num_classes, 1), axes.lecun
    )
    logits = flat @ first
    return logits, {
      "score": nn.softmax(logits) @ critic,
      "features": [(image, (1, 1))],
    }


@dataclasses.dataclass(frozen=True)
class TwoPlayers(classify.Task):
  """The student classifies; the critic, every other step, predicts 1."""

  players: tuple[Player, ...] = (
    Player("student", "student"),
    Player("critic", "critic", "critic_loss", "critic_optim", every=2),
  )

  def critic_loss(self, model, variables, batch, rngs, draw):
    del rngs, draw
    _, out = model.apply(variables, self.normalise(batch["image"]), train=True)
    loss = jnp.mean((out["score"] - 1.0) ** 2)
    return loss, {"metrics": {"critic_loss": loss}}


def make(config, source) -> TwoPlayers:
  task = TwoPlayers(source.classes, source.mean, source.std)
  if config.get("forget_critic"):
    return dataclasses.replace(task, players=task.players[:1])
  return task
