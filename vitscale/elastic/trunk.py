"""Many mixes of one nested model, with what they have in common run once.

    trunk = Trunk(task, model, params, names, levels, batch)
    for i, found in trunk.predictions(mixes, batch):
      found["nll"], found["correct"]        # (b,), of mixes[i]

Mixes that agree in their first k layers have the same activations after layer
k. The trie of mixes is walked depth first, one batch of images at a time: a
layer runs once for a prefix. A level costs its own FLOPs, as parameters are
sliced and nothing is masked; what levels of a layer have in common, attention,
runs once where all of them are wanted. What comes out is what each cut model
computes alone.

All 455 rising mixes of 4 levels in 12 layers are 1,819 layers instead of 5,460,
all 4,096 of 6 layers are 5,460 instead of 24,576 (`layers_run`). Compiled are
the stem, a layer at each level and one at all of them, and a head. In memory
are activations of one batch: at most g for each of the L layers.

It asks nothing of a family but that its blocks are those of one
`nn.block.Stack`. The stem is the model whose stack does nothing, the head the
model whose stack returns what it is given; XLA drops the rest of each.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from vitscale.core import axes as axes_lib
from vitscale.core import sharding, tree
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.mixes import Mix
from vitscale.elastic.slice import boxed, nest
from vitscale.elastic.spec import ElasticSpec
from vitscale.nn.block import Stack, flatten, per_layer
from vitscale.nn.layers import layer_name

AHEAD = 8  # results that may still be computing: bounds the memory they hold
Ask = Callable[[Any, nn.Module, Mapping[str, Any], Mapping[str, Any]], Any]


class NotShared(Exception):
  """Why the mixes of a model can't share layers."""


def predict(
  task: Any, model: nn.Module, variables: Any, batch: Any
) -> dict[str, jax.Array]:
  """What a task predicts, per example."""
  return task.predict(model, variables, batch)


def layers_run(mixes: Sequence[Mix]) -> int:
  """Layers that a walk runs; one by one it would be the sum of depths."""
  return len({mix[:k] for mix in mixes for k in range(1, len(mix) + 1)})


class Trunk:
  """A nested model in parts: stem, layers at every level, heads."""

  def __init__(
    self,
    task: Any,
    model: nn.Module,
    params: Any,
    names: Any,
    levels: Sequence[Any],
    example: Mapping[str, Any],
    ask: Ask = predict,
  ):
    """Splits a model; nothing runs or compiles yet.

    Args:
      task: the plain task.
      model: the whole model, looped or scanned.
      params, names: its parameters and their `Axes`.
      levels: parts of the FFN, rising; mixes count them from 0.
      example: a batch or its shapes.
      ask: what is wanted of a model and a batch; jitted.

    Raises:
      NotShared: the family's blocks are not those of one `Stack`.
    """
    looped = model.clone(scan=False) if getattr(model, "scan", 0) else model
    self._task, self._ask = task, ask
    self._models = [
      spec_lib.small(looped, ElasticSpec(ffn=(level,) * model.depth))[0]
      for level in levels
    ]
    self._depth, self._all = model.depth, tuple(range(len(levels)))
    one = {
      key: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
      for key, x in example.items()
    }
    whole = _opened(task, looped, one)
    self._levels = [_opened(task, little, one) for little in self._models]
    inside = {layer_name(i): x for i, x in enumerate(whole.layers)}
    for key in reversed(whole.path):
      inside = {key: inside}
    sliced = _at(nest(params, names, inside), whole.path)
    self._params = [sliced[layer_name(i)] for i in range(self._depth)]
    self._names = whole.names
    self._stem_params = nest(params, names, whole.outside)
    self._heads = [nest(params, names, one.outside) for one in self._levels]
    # Layers and heads of equal shapes are one program: that of the first.
    kinds = [
      tuple(one.blocks[i] for one in self._levels) for i in range(self._depth)
    ]
    self._like = [kinds.index(kind) for kind in kinds]
    shapes = [
      {path: x.shape for path, x in tree.flatten(head).items()}
      for head in self._heads
    ]
    self._head_like = [shapes.index(one) for one in shapes]
    self._stem = jax.jit(functools.partial(self._run_stem, looped))
    self._block = jax.jit(self._run_block, static_argnames=("like", "levels"))
    self._head = jax.jit(self._run_head, static_argnames="level")

  # ------------------------------------------------------------- compiled

  def _run_stem(self, model, params, batch):
    with _instead(lambda x: x) as seen:
      self._task.predict(model, {"params": params}, batch)
    return seen[0].x, seen[0].who

  def _run_block(self, params, x, who, *, like, levels):
    """Layers of the kind of layer `like`, from the whole one's parameters.

    The slices of one array stand in one program, so that the compiler finds
    what the levels have in common.
    """
    found = []
    for level in levels:
      one = self._levels[level]
      own = nest(params, self._names[like], one.layers[like])
      y, _ = one.blocks[like].apply(
        {"params": own}, flatten(x), batch=len(x), **who
      )
      found.append(y.reshape(x.shape))
    return tuple(found)

  def _run_head(self, params, x, batch, *, level):
    with _instead(lambda _: x):
      return self._ask(
        self._task, self._models[level], {"params": params}, batch
      )

  # ------------------------------------------------------------------ walk

  def predictions(
    self, mixes: Sequence[Mix], batch: Mapping[str, Any]
  ) -> Iterator[tuple[int, Any]]:
    """What is asked, of every mix, for one batch.

    Args:
      mixes: one level number for each layer.
      batch: numpy or jax arrays.

    Yields:
      (place in `mixes`, answer on the host), in the order of the walk.
    """
    batch = jax.device_put(dict(batch))
    x, who = self._stem(self._stem_params, batch)
    order = sorted(range(len(mixes)), key=mixes.__getitem__)
    running: collections.deque[tuple[int, Any]] = collections.deque()
    for one in self._walk(mixes, order, 0, x, who, batch):
      running.append(one)
      if len(running) > AHEAD:
        yield jax.device_get(running.popleft())
    yield from map(jax.device_get, running)

  def _walk(self, mixes, order, layer, x, who, batch):
    groups = [
      (level, list(own))
      for level, own in itertools.groupby(order, lambda i: mixes[i][layer])
    ]
    wanted = tuple(level for level, _ in groups)
    run = functools.partial(
      self._block, self._params[layer], x, who, like=self._like[layer]
    )
    if wanted == self._all:
      found = iter(run(levels=wanted))
    else:
      found = (run(levels=(level,))[0] for level in wanted)
    for (level, own), y in zip(groups, found):
      if layer + 1 < self._depth:
        yield from self._walk(mixes, own, layer + 1, y, who, batch)
        continue
      answer = self._head(
        self._heads[level], y, batch, level=self._head_like[level]
      )
      yield from ((i, answer) for i in own)


# ---------------------------------------------------------------- the seams


@dataclasses.dataclass(frozen=True)
class _Seen:
  """A call of a stack: the module, where it is, tokens, other arguments."""

  stack: Stack
  path: tuple[str, ...]
  x: jax.Array
  who: dict[str, Any]


@contextlib.contextmanager
def _instead(run: Callable[[jax.Array], jax.Array]) -> Iterator[list[_Seen]]:
  """Inside, a `Stack` returns `run(tokens)` and is noted."""
  seen: list[_Seen] = []

  def intercept(call, args, kwargs, context):
    module = context.module
    if not isinstance(module, Stack) or context.method_name != "__call__":
      return call(*args, **kwargs)
    who = {key: value for key, value in kwargs.items() if key != "train"}
    seen.append(_Seen(module, module.path, args[0], who))
    return run(args[0]), {}

  with nn.intercept_methods(intercept):
    yield seen


@dataclasses.dataclass(frozen=True)
class _Opened:
  """A looped model: its blocks, and shapes and names of its parameters.

  Attributes:
    path: of the stack.
    blocks: one module a layer.
    layers, names: shapes and `Axes` of each layer's parameters.
    outside: shapes of all other parameters.
  """

  path: tuple[str, ...]
  blocks: tuple[nn.Module, ...]
  layers: list[Any]
  names: list[Any]
  outside: Any


def _opened(task: Any, model: nn.Module, one: Mapping[str, Any]) -> _Opened:
  """Raises NotShared where the model is no single stack of blocks."""
  shapes = boxed(task, model, one)
  variables = axes_lib.unbox(shapes)
  if set(variables) != {"params"}:
    raise NotShared("it keeps statistics besides its parameters")
  with sharding.use(None), _instead(lambda x: x) as seen:
    jax.eval_shape(
      lambda v, batch: task.predict(model, v, batch), variables, one
    )
  if len(seen) != 1:
    raise NotShared(
      f"{type(model).__module__} runs {len(seen)} stacks of blocks, not one"
    )
  (call,) = seen
  stack, depth = call.stack, call.stack.depth
  if depth != model.depth:
    raise NotShared(f"{depth} of its {model.depth} layers are in the stack")
  each = {k: per_layer(v, depth, k) for k, v in stack.sizes.items()}
  blocks = tuple(
    stack.block(**{k: sizes[i] for k, sizes in each.items()})
    for i in range(depth)
  )
  params = variables["params"]
  inside = _at(params, call.path)
  named = _at(axes_lib.names_of(shapes)["params"], call.path)
  prefix = "/".join(call.path) + "/"
  flat = tree.flatten(params)
  outside = {k: x for k, x in flat.items() if not k.startswith(prefix)}
  if sorted(inside) != sorted(map(layer_name, range(depth))):
    raise NotShared("its stack has parameters of its own")
  return _Opened(
    call.path,
    blocks,
    [inside[layer_name(i)] for i in range(depth)],
    [named[layer_name(i)] for i in range(depth)],
    tree.unflatten(outside),
  )


def _at(params: Any, path: Sequence[str]) -> Any:
  for key in path:
    params = params[key]
  return params
