"""Distillation: a plain task that a trained run teaches, frozen.

    config.task = {
      "name": "distil", "of": {"name": "classify", "mixup": 0.5},
      "teacher": "out/big",           # workdir of a run of the same classes
      "weight": 1.0, "temperature": 1.0, "hidden": 0.0,
    }

The teacher sees the images that the student sees, mixed alike, and adds the
cross-entropy with its softened probabilities (Hinton et al., 1503.02531
section 2). Nested training may ask it of every part: `name` nested, `of` this.
Its weights are a collection `teacher` of the state, read when the run begins;
a resumed run needs the teacher's run.json only.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale import models, plugin
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.parent import TEACHER, Parent
from vitscale.tasks import Player

LOGITS, TOKENS = "taught_logits", "taught_tokens"  # of a prepared batch


@dataclasses.dataclass(frozen=True)
class Task:
  """A plain task with a teacher.

  Attributes:
    task: the plain task, with one player.
    model: the teacher's.
    parent: the run that has its weights.
    weight: of the teacher's targets beside the labels.
    temperature: divides both logits; the gradient is scaled back by its square.
    hidden: weight of the mean squared error between the last tokens of both,
      each normalised to unit variance (DynaBERT's and TinyBERT's kind); the
      student's width may be a prefix of the teacher's.
  """

  task: Any
  model: nn.Module
  parent: Parent = dataclasses.field(hash=False, compare=False)
  weight: float = 1.0
  temperature: float = 1.0
  hidden: float = 0.0

  frozen = (TEACHER,)

  @property
  def players(self) -> tuple[Player, ...]:
    return self.task.players

  @property
  def teachers(self) -> dict[str, Parent]:
    return {TEACHER: self.parent}

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the student, and the teacher's as zeros."""
    image = self.task.normalise(batch["image"])
    shapes = jax.eval_shape(lambda k: self.model.init(k, image), key)
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    params = jax.tree.map(zeros, shapes["params"])
    return {**self.task.init(model, key, batch), TEACHER: params}

  def normalise(self, image: jax.Array) -> jax.Array:
    return self.task.normalise(image)

  def probabilities(self, logits: jax.Array) -> jax.Array:
    return self.task.probabilities(logits)

  def nll(self, logits: jax.Array, target: jax.Array) -> jax.Array:
    return self.task.nll(logits, target)

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The plain loss and what the teacher adds, logged as `taught`.

    Raises:
      UserError: hidden states that can't be compared.
    """
    student, _ = self._split(variables)
    if LOGITS not in batch:
      batch = self.prepare(variables, batch, rngs)
    loss, aux = self.task.loss(model, student, batch, rngs, draw)
    t = self.temperature
    soft = self.task.probabilities(batch[LOGITS] / t)
    taught = t**2 * self.task.nll(aux["logits"] / t, soft).mean()
    total = loss + self.weight * taught
    if self.hidden:
      tokens = aux["out"]["features"][-1][0]
      total += self.hidden * _apart(tokens, batch[TOKENS])
    metrics = {**aux["metrics"], "taught": taught}
    return total, {**aux, "metrics": metrics}

  def prepare(
    self,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
  ) -> dict[str, jax.Array]:
    """The batch with what the teacher says of it, once for all students."""
    _, teacher = self._split(variables)
    image = self.task.normalise(batch["image"])
    target = jax.nn.one_hot(batch["label"], self.task.classes)
    image, _ = self.task.mix(image, target, rngs["mix"])
    found = self.model.apply({"params": teacher}, image)
    logits, out = jax.lax.stop_gradient(found)
    return {**batch, LOGITS: logits, TOKENS: out["features"][-1][0]}

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    """What the student predicts."""
    return self.task.predict(model, self._split(variables)[0], batch)

  def _split(self, variables: Mapping[str, Any]) -> tuple[dict, Any]:
    rest = dict(variables)
    return rest, rest.pop(TEACHER, None)


def _apart(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared error of normalised tokens (b, h, w, d), prefix of widths."""
  if student.shape[:-1] != teacher.shape[:-1] or (
    student.shape[-1] > teacher.shape[-1]
  ):
    raise UserError(
      f"task.hidden: tokens {student.shape[1:]} of the student are no prefix"
      f" of the teacher's {teacher.shape[1:]}"
    )
  teacher = teacher[..., : student.shape[-1]]
  norm = lambda x: nn.standardize(x.astype(jnp.float32), epsilon=1e-6)
  return jnp.mean((norm(student) - norm(teacher)) ** 2)


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`, see the module.

  Raises:
    UserError: no teacher there, a plain task without soft targets, a value out
      of range.
  """
  inner = config["of"]
  task = plugin.module("tasks", inner["name"]).make(inner, source)
  if len(task.players) != 1 or not hasattr(task, "probabilities"):
    raise UserError(f"task.of {inner['name']!r} has no soft targets to teach")
  if getattr(task, "frozen", ()):
    raise UserError("task.of 'distil': one teacher is enough")
  if not isinstance(config["teacher"], str):
    raise UserError("task.teacher: should be the workdir of a run")
  parent = Parent(config["teacher"])
  model, _ = models.make(Reader(parent.config["model"]), source)
  numbers = {
    key: config[key]
    for key in ("weight", "temperature", "hidden")
    if key in config
  }
  for key, value in numbers.items():
    if type(value) not in (int, float):
      raise UserError(f"task.{key}={value!r}: should be a number")
  made = Task(task, model, parent, **numbers)
  if made.temperature <= 0 or made.weight < 0 or made.hidden < 0:
    raise UserError(
      f"task: temperature {made.temperature} is above 0, weight {made.weight}"
      f" and hidden {made.hidden} are 0 or more"
    )
  return made
