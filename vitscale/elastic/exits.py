"""A nested model in stages: every exit of an image from one pass.

A stage takes what the one before it left and gives the logits of its exit:

    stages = by_depth(task, model, ("depth=2", "depth=4", "full"))
    logits, carry = stages[0](variables, {"image": images})
    logits, carry = stages[1](variables, carry)      # layers 2 and 3 only

Layers are a prefix of each other, so that stages by depth compute what the
small models of the exits compute, each layer once. `cascade.run` stops an
image after any stage. A run of tasks/nested.py with granularities `depth=...`
and weights linear in the layer is the parent that ECO-M2F's first step trains
(2404.15244; the weights are those of its code), with one final norm and head
for all exits.

What a family has to offer is one `nn.block.Stack` that its tokens pass once:
`at_stack` changes what enters it and sees what leaves it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import accounting
from vitscale.core.errors import UserError
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.spec import ElasticSpec
from vitscale.nn.block import Stack

Carry = dict[str, jax.Array]  # `image` (b, h, w, c) uint8, and `tokens`
Stage = Callable[[Any, Carry], tuple[jax.Array, Carry]]


@contextlib.contextmanager
def at_stack(
  enter: Callable[[jax.Array], jax.Array] | None = None,
) -> Iterator[dict[str, Any]]:
  """Stands around the layers of the one model that is applied inside.

  Args:
    enter: tokens (b, n, d), after stem and positions, to those that enter the
      layers instead.

  Yields:
    A dict, filled by then: `entered` the tokens before `enter`, `left` those
    behind the last layer, `out` what the family calls its intermediates.

  Raises:
    UserError: the family doesn't pass its tokens through one Stack.
  """
  seen: dict[str, Any] = {}
  roots: list[nn.Module] = []

  def around(call, args, kwargs, context):
    module = context.module
    if context.method_name != "__call__":
      return call(*args, **kwargs)
    roots.append(module)
    if isinstance(module, Stack):
      if "left" in seen:
        raise UserError(_no_stack(roots[0], "several stacks"))
      x, *more = args
      seen["entered"] = x
      result = call(enter(x) if enter else x, *more, **kwargs)
      seen["left"] = result[0]
      return result
    result = call(*args, **kwargs)
    if module is roots[0]:
      seen["out"] = result[1]
    return result

  with nn.intercept_methods(around):
    yield seen
  if "left" not in seen:
    raise UserError(_no_stack(roots[0], "no stack"))


def _no_stack(model: nn.Module, has: str) -> str:
  return (
    f"{type(model).__module__} has {has} of blocks: exits and recycling want a"
    " family whose tokens pass one nn.block.Stack"
  )


# ------------------------------------------------------------------- stages


def by_depth(
  task: Any, model: nn.Module, exits: Sequence[str]
) -> tuple[Stage, ...]:
  """Stages that go on through the layers of one model.

  Args:
    task: a nested task (tasks/nested.py).
    model: the whole model.
    exits: specs of nothing but depth, shallow to deep.

  Returns:
    Jitted stages; the carry holds `tokens` (b, n, d) behind the exit's layer.

  Raises:
    UserError: specs that cut something else, or don't get deeper.
  """
  ends = []
  for text in exits:
    spec = spec_lib.parse(text)
    if not spec.touched() <= {"depth"}:
      raise UserError(f"exit '{text}': an exit is a depth, such as depth=1/2")
    ends.append(len(spec_lib.small(model, spec)[1]))
  starts = [0, *ends[:-1]]
  if any(a >= b for a, b in zip(starts, ends)):
    raise UserError(f"exits {', '.join(exits)}: should get deeper")
  return tuple(
    jax.jit(_layers(task, model, a, b)) for a, b in zip(starts, ends)
  )


def _layers(task: Any, model: nn.Module, start: int, end: int) -> Stage:
  """Layers `start` to `end`, and the read-out of the model that ends there."""
  spec = str(ElasticSpec(layers=tuple(range(start, end))))

  def stage(variables: Any, carry: Carry) -> tuple[jax.Array, Carry]:
    image = carry["image"]
    little, own = task.part(model, variables, {"image": image}, spec)
    # The stem before tokens that are replaced is read by nobody.
    enter = (lambda _: carry["tokens"]) if start else None
    with at_stack(enter) as seen:
      logits, _ = little.apply(own, task.normalise(image))
    return logits, {"image": image, "tokens": seen["left"]}

  return stage


def by_part(
  task: Any, model: nn.Module, parts: Sequence[str]
) -> tuple[Stage, ...]:
  """Stages that begin anew, each as another part of the model.

  Args:
    task: a nested task.
    model: the whole model.
    parts: specs, small to large.
  """

  def one(text: str) -> Stage:
    def stage(variables: Any, carry: Carry) -> tuple[jax.Array, Carry]:
      little, own = task.part(model, variables, carry, text)
      return little.apply(own, task.normalise(carry["image"]))[0], carry

    return jax.jit(stage)

  return tuple(one(text) for text in parts)


def everything(
  stages: Sequence[Stage], variables: Any, images: np.ndarray, *, size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
  """All exits of all images, each stage run once (ECO-M2F's second step).

  Args:
    stages: of a model.
    variables: of it.
    images: (n, h, w, c) uint8.
    size: images at once.

  Returns:
    Logits (n, exits, classes), and the tokens that each stage carries on as
    their mean over tokens, (n, d) each; an empty list where none does.
  """
  logits, pooled = [], []
  for rows in chunks(np.arange(len(images)), size):
    carry, found, means = {"image": jnp.asarray(images[rows])}, [], []
    for stage in stages:
      y, carry = stage(variables, carry)
      found.append(y)
      if "tokens" in carry:
        means.append(carry["tokens"].mean(1, dtype=jnp.float32))
    logits.append(jnp.stack(found, 1))
    pooled.append(means)
  join = lambda parts: np.concatenate(jax.device_get(list(parts)))[
    : len(images)
  ]
  return join(logits), [join(parts) for parts in zip(*pooled)]


def chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
  """`rows` in chunks of `size`, the last filled up with its last row."""
  for start in range(0, len(rows), size):
    part = rows[start : start + size]
    yield np.pad(part, (0, size - len(part)), mode="edge")


# -------------------------------------------------------------------- costs


@dataclasses.dataclass(frozen=True)
class Costs:
  """Multiply-accumulates of an image, by stage.

  Attributes:
    body: (exits,) what a stage does for the stages behind it.
    head: (exits,) what it does for its logits alone.
  """

  body: np.ndarray
  head: np.ndarray

  def tried(self) -> np.ndarray:
    """(exits,) of leaving at each exit, with the heads of all before it."""
    return np.cumsum(self.body + self.head)

  def known(self, choosing: int = 0) -> np.ndarray:
    """(exits,) when the exit is known from the first on: one head is run.

    Args:
      choosing: what choosing costs an image, of a gate for example.
    """
    return np.cumsum(self.body) + self.head + choosing


def costs(
  stages: Sequence[Stage], variables: Any, image: tuple[int, int, int]
) -> Costs:
  """Counted on what the stages run, for an image of (h, w, c).

  Stages that begin anew have no body but their own: all they do is head, so
  that `tried` is the one to read.

  Args:
    stages: of a model.
    variables: of it, arrays or ShapeDtypeStructs.
    image: (h, w, c).
  """
  shapes = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  variables = jax.tree.map(shapes, variables)
  found = []
  for b in (1, 2):  # what a second image adds
    carry: Any = {"image": jax.ShapeDtypeStruct((b, *image), np.uint8)}
    each = []
    for stage in stages:
      whole, body = (
        accounting.count_flops(fn, variables, carry).matmul
        for fn in (stage, lambda v, c, stage=stage: stage(v, c)[1])
      )
      each.append((body, whole - body))
      carry = jax.eval_shape(stage, variables, carry)[1]
    found.append(np.asarray(each))
  body, head = ((found[1] - found[0]) // 2).T
  return Costs(body, head)
