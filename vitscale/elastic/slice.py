"""The small model inside the big one: parameters sliced to its shapes.

    small, layers = spec.small(model, spec.parse("ffn=1/2"))
    shapes = unbox(eval_shape(small.init, ...))
    y, out = small.apply(nest(variables, names, shapes, layers), image)

is the nested forward pass (MatFormer, 2310.07707 equation 2, and every other
prefix nesting): it runs the small model's own FLOPs, autodiff scatters the
gradient back into the big parameters, and a cut model is this one by
construction. Axis names say along which axes a slice means something.

A prefix of a residual stream has other norm statistics than the whole, so
only along `mlp` and `heads` does it equal a masked big model.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vitscale.core import axes as axes_lib
from vitscale.core import sharding, tree
from vitscale.core.axes import Axes, AxisError
from vitscale.core.errors import UserError
from vitscale.core.mesh import axis_entry, axis_tuple
from vitscale.nn import patch as patch_lib
from vitscale.nn.layers import LAYER, layer_name
from vitscale.nn.position import resample

STACKED = "blocks"  # where a scanned stack keeps what a loop has per layer


def nest(
  big: Any, names: Any, small: Any, layers: Sequence[int] | None = None
) -> Any:
  """The leading part of every leaf, in the shapes of the small model.

  Args:
    big: the big model's parameters or variables, or a state that mirrors them
      (optimizer moments, averages): arrays, traced ones or ShapeDtypeStructs,
      layers looped or scanned.
    names: `Axes` of the parameters; a leaf of `big` is named by the parameter
      in which its path ends. Leaves without names (counters) stay as they are.
    small: the same kind of tree of the small model, anything with `.shape`.
    layers: which layer of the big model each of the small one is, the first
      ones by default; a `spec.Kept` also says if patches are resized.

  Returns:
    The slices in the structure of `small`. Inside `sharding.use(mesh)`, while
    tracing, an axis that the mesh splits is gathered before it is cut.

  Raises:
    AxisError: see `tree.shrink`.
    UserError: a state that cannot be sliced (factored moments) or resized.
  """
  patches = getattr(layers, "patches", None)
  flat, named = tree.flatten(big), tree.flatten(names)
  if any(isinstance(x, jax.ShapeDtypeStruct) for x in flat.values()):
    return jax.eval_shape(lambda x: nest(x, names, small, layers), big)
  out = {}
  for path, target in tree.flatten(small).items():
    x, axes = _origin(path, flat, named, layers)
    if patches and axes is not None:
      x = _resized(path, x, axes, target, patches, moments=path not in named)
    if axes is not None and len(axes.names) == len(x.shape):
      before, after = _placed(path, x, axes, target)
      out[path] = after(tree.shrink_leaf(path, before(x), axes, target))
    elif tuple(x.shape) == tuple(target.shape):
      out[path] = x
    else:
      raise UserError(
        f"{path} of shape {tuple(x.shape)} mirrors no parameter: a state with"
        " factored moments cannot be sliced"
      )
  return tree.like(small, out)


def boxed(task: Any, model: nn.Module, batch: Mapping[str, Any]) -> Any:
  """Boxed shapes of what `task.init` makes, from a batch or its shapes."""
  one = {
    key: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    for key, x in batch.items()
  }
  with sharding.use(None):  # shapes only: places nothing
    key = jax.eval_shape(lambda: jax.random.key(0))
    init = lambda key, batch: task.init(model, key, batch)
    return jax.eval_shape(init, key, one)


def _origin(path, flat, named, layers) -> tuple[Any, Axes | None]:
  """What a leaf of the small model is cut from, and its axes."""
  source, layer = path, None
  found = [LAYER.fullmatch(part) for part in path.split("/")]
  if any(found):
    at = next(i for i, match in enumerate(found) if match)
    layer = int(found[at][1])
    layer = layer if layers is None else layers[layer]
    source = _replaced(path, at, layer_name(layer))
    if source not in flat:  # the big model is scanned
      source = _replaced(path, at, STACKED)
    else:
      layer = None
  if source not in flat:
    raise AxisError(f"the big model has no {path}")
  x, axes = flat[source], tree.mirrored(source, named)
  if axes is None or "layers" not in axes.names:
    return x, axes
  dim = axes.names.index("layers")
  if layer is not None:
    box = axes_lib.Named(None, axes).remove_axis(dim, {})
    return x[(slice(None),) * dim + (layer,)], box.axes
  if layers is not None and list(layers) != list(range(len(layers))):
    x = x[(slice(None),) * dim + (np.asarray(layers),)]
  return x, axes


def layer_of(path: str) -> int | None:
  """3 for `encoder/block_03/mlp/up/kernel`; None outside of looped layers."""
  found = (LAYER.fullmatch(part) for part in path.split("/"))
  return next((int(match[1]) for match in found if match), None)


def _replaced(path: str, at: int, part: str) -> str:
  parts = path.split("/")
  return "/".join([*parts[:at], part, *parts[at + 1 :]])


def _resized(path, x, axes: Axes, target, patches, moments: bool) -> Any:
  """A patch kernel or a position table for another patch, others unchanged."""
  roles = [axes_lib.role(name) for name in axes.names]
  if "patch" not in roles and "pos" not in roles:
    return x
  if moments:
    raise UserError(f"{path}: moments can't be resized to another patch")
  if "patch" in roles:
    return patch_lib.resize_kernel(x, *patches)
  return resample(x, target.shape[: roles.count("pos")])


def _placed(path: str, x: Any, axes: Axes, target: Any) -> tuple[Any, Any]:
  """Constraints for a parameter before and after it is cut.

  A prefix of a split axis lies on a few devices only; left alone, the
  partitioner shuffles pieces around, or copies the whole parameter. So the
  axis is gathered first. After the cut it stays whole where the mesh axis
  carries examples, as a product would gather it anyway, and is split again
  where it splits the computation.
  """
  nothing = lambda x: x
  scope = sharding.current()
  if scope is None or scope.mesh is None or not isinstance(x, jax.core.Tracer):
    return nothing, nothing
  mesh, rules = scope.mesh, scope.rules
  spec = [*sharding.param_spec(path, axes, x, mesh, rules)]
  spec += [None] * (len(x.shape) - len(spec))
  cut = [have != want for have, want in zip(x.shape, target.shape)]
  if not any(is_cut and part for is_cut, part in zip(cut, spec)):
    return nothing, nothing
  examples = axis_tuple(rules.activations["batch"])
  again = [
    axis_entry(tuple(a for a in axis_tuple(part) if a not in examples))
    for part in spec
  ]
  place = lambda parts: functools.partial(
    jax.lax.with_sharding_constraint,
    shardings=NamedSharding(mesh, PartitionSpec(*parts)),
  )
  pick = lambda new: [n if c else old for c, old, n in zip(cut, spec, new)]
  return place(pick([None] * len(spec))), place(pick(again))


# ----------------------------------------------------------------- rewiring


def rewire(params: Any, names: Any, order: Mapping[str, Any]) -> Any:
  """The same function, with the entries of axes in another order.

  DynaBERT (2004.04037 section 3.1) puts important heads and hidden units
  first, so that a prefix is the most important part.

  Args:
    params: the model's parameters, layers looped or scanned.
    names: the same tree of `Axes`.
    order: axis -> a permutation (n,) for all layers, or one row per layer
      (depth, n). `mlp` and `heads` may differ between layers, the residual
      stream may not.

  Raises:
    AxisError: no permutation, an axis nobody has, or one without a meaning in
      another order.
  """
  order = {key: np.asarray(index) for key, index in order.items()}
  named, flat = tree.flatten(names), tree.flatten(params)
  used, out = set(), {}
  for path, x in flat.items():
    roles = [axes_lib.role(name) for name in named[path].names]
    for key in set(roles) & set(order):
      if key in (*tree.WHOLE, *axes_lib.STACKED, "head_dim"):
        raise AxisError(f"axis {key!r} cannot be put in another order")
      x = _permute(path, x, roles, key, order[key])
      used.add(key)
    out[path] = x
  if set(order) - used:
    raise AxisError(f"no parameter has axis {sorted(set(order) - used)[0]!r}")
  return tree.like(params, out)


def _permute(path, x, roles, key, index) -> Any:
  dims = [dim for dim, role in enumerate(roles) if role == key]
  layer = layer_of(path)
  for dim in dims:
    size = x.shape[dim]
    if index.shape[-1:] != (size,) or np.any(
      np.sort(index, -1) != np.arange(size)
    ):
      raise AxisError(f"{path}: {key!r} wants a permutation of {size} entries")
    if index.ndim == 1 or layer is not None:
      row = index if index.ndim == 1 else index[layer]
      x = x[(slice(None),) * dim + (row,)]
    elif "layers" in roles:
      shape = [1] * len(x.shape)
      shape[roles.index("layers")], shape[dim] = index.shape
      take = (
        np.take_along_axis
        if isinstance(x, np.ndarray)
        else (jax.numpy.take_along_axis)
      )
      x = take(x, index.reshape(shape), dim)
    else:
      raise AxisError(
        f"{path} is in no layer: {key!r} wants one order for all layers"
      )
  return x
