"""Where arrays live: a device mesh, and one table from axis names to it.

    mesh = make_mesh({"fsdp": -1, "tensor": 2})
    with use(mesh):
      shardings = param_shardings(names, abstract, mesh)
      ...                     # inside the model: constrain(x, "batch", ...)

Models never see a mesh: they name the axes of activations (`constrain`), as
parameters name theirs. Every mistake is an error before anything compiles; a
silently replicated parameter is the classic failure this file exists to stop.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import (
  AbstractMesh,
  AxisType,
  Mesh,
  NamedSharding,
  PartitionSpec,
)

from vitscale.core import axes as axes_lib
from vitscale.core import tree as tree_lib
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError, nearest
from vitscale.core.mesh import MESH_AXES as MESH_AXES
from vitscale.core.mesh import (
  RULES,
  Rules,
  axis_entry,
  axis_tuple,
  check_context,
  check_mesh,
)
from vitscale.core.mesh import make_mesh as make_mesh

# Parameters below this many entries stay replicated: a split bias saves
# nothing and costs a collective of its own.
SMALL = 2**14


@dataclasses.dataclass
class Scope:
  """What `use` put in force, and what was traced under it.

  Attributes:
    mesh: the mesh, None for `use(None)`.
    rules: the rules.
    constraints: how many constraints were put on activations.
    placed: (axis names, shape) of an activation -> its PartitionSpec.
    chosen: what a part of the model chose by size, see `record`.
  """

  mesh: Mesh | AbstractMesh | None
  rules: Rules
  constraints: int = 0
  placed: dict[tuple[Any, Any], PartitionSpec] = dataclasses.field(
    default_factory=dict
  )
  chosen: dict[str, dict[str, list[int]]] = dataclasses.field(
    default_factory=dict
  )


_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar(
  "vitscale_sharding", default=None
)


@contextlib.contextmanager
def use(
  mesh: Mesh | AbstractMesh | None, rules: Rules = RULES
) -> Iterator[Scope]:
  """Enters a mesh; `constrain` acts inside, also within `jit`.

  `use(None)` switches constraints off, for tracing `init` with one example.
  An AbstractMesh is enough where only shapes are traced. The rules are not
  part of jit's cache key: one function, one set of rules.

  Raises:
    UserError: a mesh axis is not Auto, a rule names an absent mesh axis, or
      another kind of mesh is around (`mesh.check_context`).
  """
  scope = Scope(mesh, rules)
  with contextlib.ExitStack() as stack:
    if mesh is not None:
      check_context()
      check_mesh(mesh, rules)
      abstract = isinstance(mesh, AbstractMesh)
      enter = jax.sharding.use_abstract_mesh if abstract else jax.set_mesh
      stack.enter_context(enter(mesh))
    token = _scope.set(scope)
    stack.callback(_scope.reset, token)
    yield scope


def current() -> Scope | None:
  """The innermost `use`, or None."""
  return _scope.get()


def platform() -> str:
  """ "cpu" | "gpu" | "tpu": of the mesh in force, else where JAX runs.

  A mesh may be of devices that aren't here, to compile for them.
  """
  scope = _scope.get()
  if scope is not None and isinstance(scope.mesh, Mesh):
    return scope.mesh.devices.flat[0].platform
  return jax.default_backend()


def record(what: str, choice: str, size: int) -> None:
  """Notes in the scope that `what` took `choice` at a size, for run.json."""
  scope = _scope.get()
  if scope is not None:
    sizes = scope.chosen.setdefault(what, {}).setdefault(choice, [])
    if size not in sizes:
      sizes.append(size)


def splits() -> bool:
  """Whether a mesh of several devices is in force."""
  scope = _scope.get()
  return scope is not None and scope.mesh is not None and scope.mesh.size > 1


def ways(name: str) -> int:
  """Into how many pieces an activation axis is split here (1: it is not).

  Inside a shard_map, what it has split already does not count.
  """
  return math.prod(_scope.get().mesh.shape[axis] for axis in over(name))


def over(name: str) -> tuple[str, ...]:
  """The mesh axes that split an activation axis here, see `ways`."""
  axes_lib.check_name(name)
  scope = _scope.get()
  if scope is None or scope.mesh is None:
    return ()
  free = _free()
  rule = scope.rules.activations.get(axes_lib.role(name))
  return tuple(axis for axis in axis_tuple(rule) if axis in free)


def _free() -> set[str]:
  """Mesh axes that are not manual: inside a shard_map some are."""
  context = jax.sharding.get_abstract_mesh()
  return {
    axis
    for axis, kind in zip(context.axis_names, context.axis_types)
    if kind == AxisType.Auto
  }


# -------------------------------------------------------------- activations


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Places an activation by its axis names; identity without `use(mesh)`.

  Args:
    x: an array of rank `len(names)`.
    *names: one axis name per dimension; a name without a rule is kept whole,
      None leaves the choice to the compiler.

  Raises:
    AxisError: unknown name, wrong number of names, one mesh axis for two
      dimensions, or a dimension that does not divide. A dimension of size 1
      (one example at init, a broadcast) stays whole; a sequence may be uneven
      (the last device has fewer tokens), as a class token makes it odd.
    UserError: another kind of mesh is around, where this would be lost.
  """
  for name in names:
    if name is not None:
      axes_lib.check_name(name)
  if len(names) != x.ndim:
    raise AxisError(f"{len(names)} axis names {names} for shape {x.shape}")
  scope = _scope.get()
  if scope is None:
    check_context()
  if scope is None or scope.mesh is None:
    return x
  if not _free():
    return x
  spec, used = [], {}
  for name, size in zip(names, x.shape):
    if name is None:
      spec.append(PartitionSpec.UNCONSTRAINED)
      continue
    axes = over(name) if size > 1 else ()
    for axis in axes:
      if axis in used:
        raise AxisError(
          f"activation {names}: {used[axis]!r} and {name!r} both ask for"
          f" mesh axis {axis!r}"
        )
      used[axis] = name
    count = math.prod(scope.mesh.shape[axis] for axis in axes)
    if size % count and axes_lib.role(name) == "sequence":
      # Only a compiler can place an uneven array.
      axes = axes if isinstance(x, jax.core.Tracer) else ()
    elif size % count:
      raise AxisError(
        f"activation {names} of shape {x.shape}: {name!r} = {size} does not"
        f" divide by {_text(axes)} = {count}; nearest {nearby(size, count)}"
      )
    spec.append(axis_entry(axes))
  scope.constraints += 1
  scope.placed[names, tuple(x.shape)] = PartitionSpec(*spec)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def everywhere(tree: Any) -> Any:
  """Every process gets all rows of the arrays of a tree."""
  scope = current()
  if scope is None or scope.mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(
    tree, NamedSharding(scope.mesh, PartitionSpec())
  )


# --------------------------------------------------------------- parameters


def param_shardings(
  names: Any,
  abstract: Any,
  mesh: Mesh,
  rules: Rules = RULES,
  *,
  small: int = SMALL,
) -> Any:
  """One NamedSharding per parameter, from the axis names alone.

  Args:
    names: tree of `Axes` (`axes.names_of`).
    abstract: the same tree of shapes (`axes.unbox` of an eval_shape).
    mesh: the mesh.
    rules: role -> mesh axes.
    small: parameters with fewer entries are replicated.

  Two scopes of one role (`embed -> embed@inner`): the first is split, the
  second whole. Two roles of one parameter on one mesh axis is an error.

  Raises:
    AxisError: see above; an indivisible dimension; a rule that was asked for
      and matches nothing.
    UserError: a rule names an axis the mesh does not have.
  """
  check_mesh(mesh, rules)
  named = tree_lib.flatten(names)
  shapes = tree_lib.flatten(abstract)
  tree_lib.check_same(named, shapes, "axis names", "parameters")
  roles = {axes_lib.role(n) for a in named.values() for n in a.names}
  for asked in sorted(rules.asked - roles):
    raise AxisError(
      f"rule {asked!r} matches no parameter{nearest(asked, sorted(roles))}"
    )
  specs = {
    path: param_spec(path, named[path], leaf, mesh, rules, small)
    for path, leaf in shapes.items()
  }
  return tree_lib.like(
    abstract, {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
  )


def param_spec(
  path: str,
  axes: axes_lib.Axes,
  leaf: Any,
  mesh: Mesh | AbstractMesh,
  rules: Rules = RULES,
  small: int = SMALL,
) -> PartitionSpec:
  """One parameter of `param_shardings`, with the same errors about it."""
  if len(axes.names) != len(leaf.shape):
    raise AxisError(f"{path}: axes '{axes}' for shape {tuple(leaf.shape)}")
  if math.prod(leaf.shape) < small:
    return PartitionSpec()
  spec, used = [], {}
  for name, size in zip(axes.names, leaf.shape):
    role = axes_lib.role(name)
    wanted = axis_tuple(rules.params.get(role))
    clash = [axis for axis in wanted if used.get(axis, role) != role]
    if clash:
      raise AxisError(
        f"{path}: {used[clash[0]]!r} and {role!r} both ask for mesh axis"
        f" {clash[0]!r}; one parameter may use it once"
      )
    wanted = tuple(axis for axis in wanted if axis not in used)
    count = math.prod(mesh.shape[axis] for axis in wanted)
    if size % count:
      raise AxisError(
        f"{path} {tuple(leaf.shape)}: {name!r} = {size} does not divide by"
        f" mesh axis {_text(wanted)} = {count}; nearest that does:"
        f" {nearby(size, count)}"
      )
    used.update(dict.fromkeys(wanted, role))
    spec.append(axis_entry(wanted))
  return PartitionSpec(*spec)


def follow(state: Any, shardings: Any, mesh: Mesh) -> Any:
  """Shardings of an optimizer state: each leaf as the parameter it mirrors.

  Args:
    state: abstract state (`jax.eval_shape(optimizer.init, params)`).
    shardings: `param_shardings(...)`.
    mesh: the mesh.

  A state leaf mirrors a parameter when its path ends in the parameter's path;
  counters and leaves of another rank (factored moments) are replicated.
  """
  flat = tree_lib.flatten(shardings)
  whole = NamedSharding(mesh, PartitionSpec())

  def place(path, leaf):
    found = tree_lib.mirrored("/".join(tree_lib.keys(path)), flat)
    if found is None:
      return whole
    try:
      found.shard_shape(tuple(leaf.shape))
    except ValueError:
      return whole
    return found

  return jax.tree_util.tree_map_with_path(place, state)


# ------------------------------------------------------------------- batches


def batch_sharding(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
  """Examples over the data axes, all other dimensions whole."""
  return NamedSharding(
    mesh, PartitionSpec(axis_entry(axis_tuple(rules.activations["batch"])))
  )


def data_block(mesh: Mesh, rules: Rules = RULES) -> tuple[int, int]:
  """(index, count): which equal block of the global batch this process reads.

  Usually (process_index, process_count); where a tensor or sequence axis
  spans processes, several of them read the same rows.

  Raises:
    UserError: the rows of this process are not one contiguous block.
  """
  sharding = batch_sharding(mesh, rules)
  axes = axis_tuple(rules.activations["batch"])
  pieces = math.prod(mesh.shape[axis] for axis in axes)
  where = sharding.addressable_devices_indices_map((pieces,))
  mine = sorted({rows[0].indices(pieces)[0] for rows in where.values()})
  count, first = len(mine), mine[0]
  if mine != list(range(first, first + count)) or first % count:
    raise UserError(
      f"process {jax.process_index()} holds batch pieces {mine} of {pieces},"
      " not one block; put the data axes first in the mesh"
    )
  return first // count, pieces // count


def shard_batch(
  batch: Mapping[str, np.ndarray], mesh: Mesh, rules: Rules = RULES
) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices as part of the global batch.

  Args:
    batch: host arrays whose first dimension is this process's rows.
    mesh: the mesh.
    rules: the rules; `batch` says which mesh axes split the examples.

  Raises:
    UserError: the rows do not divide over the devices.
  """
  sharding = batch_sharding(mesh, rules)
  _, blocks = data_block(mesh, rules)
  pieces = math.prod(
    mesh.shape[axis] for axis in axis_tuple(rules.activations["batch"])
  )
  local = pieces // blocks
  out = {}
  for name, value in batch.items():
    value = np.asarray(value)
    rows = value.shape[0] if value.ndim else 0
    if not rows or rows % local:
      raise UserError(
        f"batch[{name!r}] has {rows * blocks} rows; {pieces} data shards need"
        f" a multiple of {pieces}: nearest {nearby(rows * blocks, pieces)}"
      )
    out[name] = jax.make_array_from_process_local_data(
      sharding, value, (rows * blocks, *value.shape[1:])
    )
  return out


# -------------------------------------------------------------------- helpers


def _text(axes: tuple[str, ...]) -> str:
  return "+".join(axes)


def nearby(size: int, count: int) -> str:
  """The multiples of `count` around `size`, for messages."""
  low = size // count * count
  return f"{low} or {low + count}" if low else f"{count}"
