"""LoRA: a trained run adapted by low-rank pairs, itself frozen.

    config.init = {"from": "out/big", "skip": "(head|lora)/.*"}
    config.task = {
      "name": "lora", "of": {"name": "classify"}, "rank": 8,
      "kernels": ".*/attention/(qkv|out)/kernel", "train": "head/.*",
    }

Hu et al., 2106.09685, section 4.1: a kernel W (in, out) acts as W + alpha /
rank * a b, a (in, rank) drawn, b (rank, out) zero at the start, so that the run
begins where its parent ended. The published runs adapt attention's q and v;
here a regex of parameter names says which, and one `a` serves q, k and v, that
are one kernel. Nothing moves but the pairs and what `train` names (a new head).

Pairs are parameters of their own, `lora/PATH/a` and `lora/PATH/b`, of any
family: the wrapped task sees the sum. Evaluations and whoever loads the run see
merged weights, in the tree of the plain model; a checkpoint keeps both, and
averaged weights are merged after averaging. A run that starts from an adapted
one starts from merged weights too, with pairs of its own if it is adapted.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale import plugin
from vitscale.core import axes as axes_lib
from vitscale.core import tree
from vitscale.core.axes import Axes, Named
from vitscale.core.errors import UserError
from vitscale.tasks import Player

PARAMS = "lora"  # where the pairs lie among the model's parameters
RANK = 8
KERNELS = r".*/attention/(qkv|out)/kernel"
STRANGE = ("granularities", "touched", "part")  # of tasks that slice parameters


@dataclasses.dataclass(frozen=True)
class Task:
  """A plain task, whose model is adapted.

  Attributes:
    task: the plain task, with one player.
    rank: inner width of the pairs.
    alpha: strength; a pair is scaled by alpha / rank.
    kernels: regex of the parameters that get a pair.
    train: regex of further parameters that move; "" for none.
  """

  task: Any
  rank: int = RANK
  alpha: float = RANK
  kernels: str = KERNELS
  train: str = "head/.*"

  def __getattr__(self, name: str) -> Any:
    """What the plain task offers besides (inputs, draws, nll, ...)."""
    if name == "task" or name.startswith("__"):
      raise AttributeError(name)
    return getattr(self.task, name)

  @property
  def players(self) -> tuple[Player, ...]:
    (player,) = self.task.players
    moves = f"{PARAMS}/.*" + (f"|{self.train}" if self.train else "")
    return (dataclasses.replace(player, frozen=f"(?!(?:{moves})$).*"),)

  def init(self, model: nn.Module, key: jax.Array, batch: Any) -> Any:
    """Boxed variables of the model, and the pairs among its parameters.

    Raises:
      UserError: a regex that fits nothing, or what is no kernel.
    """
    boxed = self.task.init(model, key, batch)
    flat = _flat(boxed["params"])
    if self.train and not any(re.fullmatch(self.train, path) for path in flat):
      raise UserError(f"task.train={self.train!r} fits no parameter")
    chosen = [path for path in flat if re.fullmatch(self.kernels, path)]
    if not chosen:
      raise UserError(f"task.kernels={self.kernels!r} fits no parameter")
    pairs, key = {}, jax.random.fold_in(key, 0x70A)
    for i, path in enumerate(chosen):
      a, b = pair(flat[path], self.rank, jax.random.fold_in(key, i), path)
      pairs |= {f"{path}/a": a, f"{path}/b": b}
    params = {**boxed["params"], PARAMS: tree.unflatten(pairs)}
    return {**boxed, "params": params}

  def loss(
    self,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Mapping[str, jax.Array],
    rngs: Mapping[str, jax.Array],
    draw: Mapping[str, Any],
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The plain task's, of the merged model; no gradient of what is frozen."""
    (player,) = self.players
    still = re.compile(player.frozen)
    flat = tree.flatten(variables["params"])
    stop = jax.lax.stop_gradient
    params = tree.like(
      variables["params"],
      {k: stop(x) if still.fullmatch(k) else x for k, x in flat.items()},
    )
    merged = self.merged({**variables, "params": params})
    return self.task.loss(model, merged, batch, rngs, draw)

  def predict(
    self, model: nn.Module, variables: Mapping[str, Any], batch: Any
  ) -> dict[str, jax.Array]:
    return self.task.predict(model, self.merged(variables), batch)

  def merged(self, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the plain model; merged ones stay as they are."""
    params = merge(variables["params"], self.alpha / self.rank)
    return {**variables, "params": params}


def merge(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """Parameters with their pairs added in, without `lora`.

  Args:
    params: of a run of this task.
    scale: alpha / rank.
  """
  if PARAMS not in params:
    return dict(params)
  plain = {k: x for k, x in params.items() if k != PARAMS}
  flat, pairs = tree.flatten(plain), tree.flatten(params[PARAMS])
  for name, a in pairs.items():
    path, _, which = name.rpartition("/")
    if which != "a":
      continue
    w, b = flat[path], pairs[f"{path}/b"]
    stacked = a.ndim + b.ndim - w.ndim - 2  # layers in front of both
    flat[path] = w + (scale * product(a, b, stacked)).astype(w.dtype)
  return tree.like(plain, flat)


def scale(config: Mapping[str, Any]) -> float:
  """alpha / rank of the config group `task` of such a run."""
  rank = config.get("rank", RANK)
  alpha = config.get("alpha")
  return (rank if alpha is None else alpha) / rank


def product(a: jax.Array, b: jax.Array, stacked: int) -> jax.Array:
  """(layers..., in..., rank) x (layers..., rank, out...), by layer."""
  each = lambda a, b: jnp.tensordot(a, b, 1)
  for _ in range(stacked):
    each = jax.vmap(each)
  return each(a, b)


def pair(
  kernel: Named, rank: int, key: jax.Array, path: str
) -> tuple[Named, Named]:
  """`a` (layers..., in..., rank), normal of variance 1 / fan-in, and zero `b`.

  Raises:
    UserError: `path` has no input or no output axes.
  """
  axes, shape = kernel.axes, kernel.value.shape
  left, right = axes.names[: axes.inputs], axes.names[axes.inputs :]
  stacked = sum(axes_lib.role(n) in axes_lib.STACKED for n in left)
  if not axes.fan_in or not right or left[stacked:] != axes.fan_in:
    raise UserError(
      f"task.kernels: {path} ({axes}) is no matrix: name kernels, such as"
      f" {KERNELS!r}"
    )
  fan_in = math.prod(shape[stacked : axes.inputs])
  inner = "rank@lora"
  a = jax.random.normal(key, (*shape[: axes.inputs], rank)) / fan_in**0.5
  b = jnp.zeros((*shape[:stacked], rank, *shape[axes.inputs :]))
  return (
    Named(a, Axes((*left, inner), axes.inputs)),
    Named(b, Axes((*left[:stacked], inner, *right), stacked + 1)),
  )


def _flat(boxed: Any) -> dict[str, Named]:
  """Path -> box."""
  found = jax.tree_util.tree_flatten_with_path(
    boxed, is_leaf=axes_lib.is_boxed
  )[0]
  return {"/".join(tree.keys(path)): box for path, box in found}


def make(config: Mapping[str, Any], source: Any) -> Task:
  """A Task from the config group `task`, see the module.

  Raises:
    UserError: a plain task that can't be adapted, or a value out of range.
  """
  inner = config["of"]
  task = plugin.module("tasks", inner["name"]).make(inner, source)
  if len(task.players) != 1 or any(hasattr(task, name) for name in STRANGE):
    raise UserError(
      f"task.of {inner['name']!r} can't be adapted: it has several players or"
      " slices its parameters; adapt a plain one, such as classify"
    )
  rank, alpha = config.get("rank", RANK), config.get("alpha")
  if type(rank) is not int or rank < 1:
    raise UserError(f"task.rank={rank!r}: should be 1 or more")
  alpha = rank if alpha is None else alpha
  if type(alpha) not in (int, float) or alpha <= 0:
    raise UserError(f"task.alpha={alpha!r}: should be a number above 0")
  texts = {
    "kernels": config.get("kernels", KERNELS),
    "train": config.get("train", "head/.*"),
  }
  for name, text in texts.items():
    try:
      re.compile(text)
    except (re.error, TypeError) as error:
      raise UserError(f"task.{name}={text!r}: {error}") from None
  return Task(task, rank, float(alpha), **texts)
