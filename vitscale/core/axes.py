"""Axes named once: the vocabulary every parameter and activation speaks.

A parameter is declared with one string, inputs left of the arrow, outputs
right, in the order of its dimensions:

    kernel = axes.param(self, "kernel", "embed -> mlp", (d, m), axes.lecun)
    bias = axes.param(self, "bias", "mlp", (m,), axes.zeros)

Sharding, slicing, decay masks, muP and accounting all read these names off
`jax.eval_shape(model.init, ...)`; nothing else in the package repeats them.
A name is a role with an optional scope (`embed@stage2`): rules match the
role, slicing may match the scope. The vocabulary is closed on purpose: a
misspelt name must be an error and never a silently unsharded parameter.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from vitscale.core.errors import UserError, nearest

ROLES: dict[str, str] = {
  # parameters
  "embed": "residual width",
  "qkv": "the three of query, key, value; never sliced or sharded",
  "modulation": "shift, scale, gate of conditioned branches; as qkv",
  "heads": "attention heads",
  "head_dim": "width of one head",
  "mlp": "hidden width of the channel mixer",
  "patch": "pixels of one patch, rows x columns x channels",
  "channel_in": "channels of an image or a feature map",
  "kernel_h": "rows of a convolution kernel",
  "kernel_w": "columns of a convolution kernel",
  "pos": "entries of a position table",
  "registers": "learned tokens: class token, registers, probes",
  "classes": "logits",
  "code": "entries or width of a bottleneck",
  "state": "state of a recurrent mixer",
  "rank": "inner width of a low-rank factor",
  "expert": "experts of a mixture",
  "layers": "stacked equal layers",
  "stage": "stacked stages of a pyramid",
  # activations only
  "batch": "examples",
  "sequence": "tokens of one example",
  "tokens": "batch x sequence, flat",
}


class AxisError(UserError):
  """An axis name is missing, unknown, or used twice."""


STACKED = ("layers", "stage")


@dataclasses.dataclass(frozen=True)
class Axes:
  """What a parameter declared: dimension names and how many are inputs."""

  names: tuple[str, ...]
  inputs: int = 0  # the first `inputs` names stand left of the arrow

  @property
  def fan_in(self) -> tuple[str, ...]:
    """Input axes; stacked layers are copies, not inputs."""
    names = self.names[: self.inputs]
    return tuple(name for name in names if role(name) not in STACKED)

  @property
  def fan_out(self) -> tuple[str, ...]:
    """Output axes, again without stacked layers."""
    names = self.names[self.inputs :]
    return tuple(name for name in names if role(name) not in STACKED)

  def __str__(self) -> str:
    left, right = self.names[: self.inputs], self.names[self.inputs :]
    return " ".join((*left, "->", *right) if left else right)


def role(name: str) -> str:
  """The part of an axis name before its scope: `embed@stage2` -> `embed`."""
  return name.partition("@")[0]


def check_name(name: str) -> None:
  """Raises AxisError unless the role of `name` is in the vocabulary."""
  if role(name) not in ROLES:
    hint = nearest(role(name), ROLES)
    raise AxisError(f"unknown axis name {name!r}{hint}")


def parse(spec: str) -> Axes:
  """`"embed -> heads head_dim"` -> Axes(("embed", "heads", "head_dim"), 1)."""
  left, arrow, right = spec.partition("->")
  fan_in = tuple(left.split()) if arrow else ()
  names = fan_in + tuple((right if arrow else left).split())
  for name in names:
    check_name(name)
  repeated = {name for name in names if names.count(name) > 1}
  if repeated:
    raise AxisError(
      f"axis {sorted(repeated)[0]!r} twice in {spec!r}: give one a scope,"
      f" for example '{sorted(repeated)[0]}@inner'"
    )
  return Axes(names, len(fan_in))


class Named(struct.PyTreeNode, nn.meta.AxisMetadata):
  """A parameter in its box of axis names (flax AxisMetadata)."""

  value: Any
  axes: Axes = struct.field(pytree_node=False)

  def unbox(self) -> Any:
    return self.value

  def replace_boxed(self, val: Any) -> "Named":
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict[Any, Any]) -> "Named":
    name = params.get(nn.PARTITION_NAME, "layers")
    names = list(self.axes.names)
    names.insert(index, name)
    inputs = self.axes.inputs + (index < self.axes.inputs or index == 0) * (
      self.axes.inputs > 0
    )
    return self.replace(axes=Axes(tuple(names), inputs))

  def remove_axis(self, index: int, params: dict[Any, Any]) -> "Named":
    names = list(self.axes.names)
    del names[index]
    inputs = self.axes.inputs - (index < self.axes.inputs)
    return self.replace(axes=Axes(tuple(names), inputs))


# ---------------------------------------------------------------- declaring

Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Fan:
  """Variance scaling whose fans are read from the declared axes."""

  scale: float = 1.0
  mode: str = "fan_in"
  distribution: str = "truncated_normal"

  def bind(self, axes: Axes) -> Initializer:
    """The jax initializer for a parameter with these axes."""
    if not axes.inputs:
      raise AxisError(f"no fan-in in {str(axes)!r}: write it as 'in -> out'")
    return jax.nn.initializers.variance_scaling(
      self.scale,
      self.mode,
      self.distribution,
      in_axis=tuple(range(axes.inputs)),
      out_axis=tuple(range(axes.inputs, len(axes.names))),
    )


lecun = Fan()
xavier = Fan(1.0, "fan_avg", "uniform")
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def normal(stddev: float) -> Initializer:
  """Normal initializer with a fixed standard deviation."""
  return jax.nn.initializers.normal(stddev)


def param(
  module: nn.Module,
  name: str,
  spec: str,
  shape: tuple[int, ...],
  init: Initializer | Fan,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Declares a parameter of `module` with named axes; returns its value.

  Args:
    module: the linen module (inside `setup` or a compact call).
    name: parameter name inside the module.
    spec: axis names in dimension order, `"in ... -> out ..."` or `"names"`.
    shape: one size per name.
    init: a jax initializer, or a `Fan` bound to the declared fan-in.
    dtype: storage type.

  Raises:
    AxisError: unknown or repeated name, or another number of names than
      dimensions.
  """
  box = _boxed(spec, shape, init, dtype)
  return module.param(name, box)


def variable(
  module: nn.Module,
  collection: str,
  name: str,
  spec: str,
  shape: tuple[int, ...],
  init: Initializer,
  dtype: Any = jnp.float32,
) -> nn.Variable:
  """As `param`, for a mutable collection (batch statistics, codebooks)."""
  box = _boxed(spec, shape, init, dtype)
  return module.variable(collection, name, lambda: box(jax.random.key(0)))


def _boxed(spec, shape, init, dtype):
  axes = parse(spec)
  if len(axes.names) != len(shape):
    raise AxisError(
      f"{spec!r} names {len(axes.names)} axes, the shape {tuple(shape)} has"
      f" {len(shape)}"
    )
  if isinstance(init, Fan):
    init = init.bind(axes)
  return lambda key: Named(init(key, tuple(shape), dtype), axes)


# ------------------------------------------------------------------ reading


def is_boxed(x: Any) -> bool:
  return isinstance(x, nn.meta.AxisMetadata)


def names_of(boxed: Mapping[str, Any]) -> Any:
  """Tree of `Axes`, one per variable of a boxed (abstract) variable tree.

  Args:
    boxed: what `model.init` or `jax.eval_shape(model.init, ...)` returns,
      before unboxing.

  Raises:
    AxisError: a variable came without names (listed by path).
  """
  flat, treedef = jax.tree_util.tree_flatten_with_path(boxed, is_leaf=is_boxed)
  bare = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in flat
    if not isinstance(leaf, Named)
  ]
  if bare:
    raise AxisError(
      f"{len(bare)} variables have no axis names: {', '.join(bare[:5])};"
      " declare them with vitscale.core.axes.param"
    )
  for _, leaf in flat:
    for name in leaf.axes.names:
      check_name(name)
  return jax.tree_util.tree_unflatten(treedef, [x.axes for _, x in flat])


def unbox(tree: Any) -> Any:
  """The plain arrays of a boxed tree."""
  return nn.meta.unbox(tree)
