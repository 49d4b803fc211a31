"""Layers by number: their names in a tree, and looped to scanned and back.

A looped stack keeps one set of parameters per layer (`block_00`, ...), a
scanned one all of them stacked under `blocks`; everything but the layout is the
same.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.core.errors import UserError

LAYER = re.compile(r"block_(\d+)")


def layer_name(i: int) -> str:
  """3 -> "block_03"."""
  return f"block_{i:02d}"


def stack_layers(tree: Any) -> Any:
  """Looped parameters to scanned ones: every `block_NN` into one `blocks`.

  Args:
    tree: nested mappings (variables, an optimizer's moments) whose leaves
      are arrays, shapes, boxed parameters or `Axes`.

  Raises:
    UserError: layers are missing, or differ in their parameters.
  """
  if not isinstance(tree, Mapping):
    return tree
  layers = {int(LAYER.fullmatch(k)[1]): k for k in tree if LAYER.fullmatch(k)}
  rest = {k: stack_layers(v) for k, v in tree.items() if not LAYER.fullmatch(k)}
  if not layers:
    return rest
  if sorted(layers) != list(range(len(layers))):
    raise UserError(f"layers {sorted(layers)} are not 0 to {max(layers)}")
  each = [tree[layers[i]] for i in range(len(layers))]
  try:
    rest["blocks"] = jax.tree.map(lambda *x: _stack(x), *each, is_leaf=_leaf)
  except ValueError as e:
    raise UserError(f"layers differ, they cannot be scanned: {e}") from None
  return rest


def unstack_layers(tree: Any) -> Any:
  """Scanned parameters to looped ones, the inverse of `stack_layers`.

  A tree of `Axes` does not say how many layers there are: convert the boxed
  abstract variables instead, and read their names after.
  """
  if not isinstance(tree, Mapping):
    return tree
  rest = {k: unstack_layers(v) for k, v in tree.items() if k != "blocks"}
  if "blocks" in tree:
    inner = tree["blocks"]
    shapes = axes.unbox(inner)
    depth = jax.tree.leaves(shapes)[0].shape[0]
    for i in range(depth):
      cut = lambda x, i=i: _unstack(x, i)
      rest[layer_name(i)] = jax.tree.map(cut, inner, is_leaf=_leaf)
  return rest


_META = {nn.PARTITION_NAME: "layers"}


def _leaf(x: Any) -> bool:
  return axes.is_boxed(x) or isinstance(x, axes.Axes)


def _stack(leaves: tuple) -> Any:
  first = leaves[0]
  if isinstance(first, axes.Axes):
    return axes.Named(None, first).add_axis(0, _META).axes
  if axes.is_boxed(first):
    value = _stack(tuple(x.value for x in leaves))
    return first.replace_boxed(value).add_axis(0, _META)
  if isinstance(first, jax.ShapeDtypeStruct):
    shape = (len(leaves), *first.shape)
    return jax.ShapeDtypeStruct(shape, first.dtype)
  if isinstance(first, np.ndarray):
    return np.stack(leaves)
  return jnp.stack(leaves)


def _unstack(leaf: Any, i: int) -> Any:
  if axes.is_boxed(leaf):
    box = leaf.replace_boxed(_unstack(leaf.value, i))
    return box.remove_axis(0, _META)
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
  return leaf[i]
