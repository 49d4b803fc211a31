"""What a mesh makes of a model: refused before anything compiles, or a table.

A mesh that a model makes nothing of does not fail by itself: it is slow, or
full, for as long as the job runs.
"""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from vitscale.core import axes as axes_lib
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError, nearest
from vitscale.core.mesh import Rules, axis_tuple
from vitscale.core.sharding import SMALL, Scope, nearby
from vitscale.core.tree import flatten

FREE = PartitionSpec.UNCONSTRAINED
# Roles that a model may leave out: layouts of tokens, and the batch itself.
LAYOUTS = ("batch", "sequence", "tokens")


def check_used(scope: Scope, shardings: Any) -> None:
  """Refuses a mesh or a rule that a model makes nothing of.

  Args:
    scope: under which the model was traced, with a whole batch.
    shardings: of its parameters.

  Raises:
    UserError: the mesh splits activations, and the model places none; a mesh
      axis splits nothing at all.
    AxisError: a rule that was asked for places nothing.
  """
  mesh, rules = dict(scope.mesh.shape), scope.rules
  split = {name: size for name, size in mesh.items() if size > 1}
  if split and not scope.constraints:
    raise UserError(
      f"the model places no activation, and the mesh {split} splits them: the"
      " compiler may copy each to every device. Name the axes of some, as in"
      ' sharding.constrain(x, "batch", "sequence", "embed")'
    )
  roles = {axes_lib.role(n) for names, _ in scope.placed for n in names if n}
  for asked in sorted(rules.asked_activations - roles - set(LAYOUTS)):
    raise AxisError(
      f"rule {asked!r} matches no activation{nearest(asked, sorted(roles))}"
    )
  specs = [x.spec for x in jax.tree.leaves(shardings)]
  used = set(axis_tuple(rules.activations.get("batch")))
  for spec in (*scope.placed.values(), *specs):
    used.update(*(axis_tuple(entry) for entry in spec if entry is not FREE))
  for axis in sorted(set(split) - used):
    raise UserError(
      f"mesh axis {axis!r} = {split[axis]} splits nothing of this model:"
      f" {split[axis]} devices would all do the same; say mesh.{axis}=1"
    )


def check_batch(
  name: str, size: int, mesh: Any, rules: Rules, accumulate: int = 1
) -> None:
  """Refuses a batch that doesn't divide over the mesh.

  Args:
    name: its key in the config, for the message.
    size: examples.
    mesh: the mesh.
    rules: `batch` says which axes split the examples.
    accumulate: microbatches of a step.

  Raises:
    UserError: it doesn't.
  """
  axes = axis_tuple(rules.activations["batch"])
  ways = math.prod(mesh.shape[axis] for axis in axes) * accumulate
  if size % ways:
    parts = f" and {accumulate} microbatches" if accumulate > 1 else ""
    raise UserError(
      f"{name}={size} doesn't divide over {dict(mesh.shape)}{parts}: should be"
      f" a multiple of {ways}, nearest {nearby(size, ways)}"
    )


def split_sizes(
  names: Any, abstract: Any, rules: Rules, axis: str, *, small: int = SMALL
) -> set[int]:
  """Sizes of the parameters' dimensions that a mesh axis would split.

  Args:
    names, abstract, rules, small: as for `param_shardings`.
    axis: of the mesh.
  """
  named = flatten(names)
  return {
    size
    for path, leaf in flatten(abstract).items()
    if math.prod(leaf.shape) >= small
    for name, size in zip(named[path].names, leaf.shape)
    if axis in axis_tuple(rules.params.get(axes_lib.role(name)))
  }


def describe(names: Any, abstract: Any, shardings: Any) -> str:
  """A table, one parameter a line: path, shape, axes, placement."""
  named, flat = flatten(names), flatten(shardings)
  rows = []
  for path, leaf in flatten(abstract).items():
    spec, mesh = flat[path].spec, flat[path].mesh
    shape = " x ".join(str(d) for d in leaf.shape) or "scalar"
    text = [_split(entry, mesh) for entry in spec]
    placed = " ".join(text) if {*text} - {"-"} else "copied"
    rows.append((path, shape, str(named[path]), placed))
  return _table(("parameter", "shape", "axes", "placement"), rows)


def describe_activations(scope: Scope) -> str:
  """A table of the activations placed under a scope: axes, shape, placement."""
  rows = []
  for (names, shape), spec in scope.placed.items():
    called = " ".join(name or "?" for name in names)
    text = ["?" if e is FREE else _split(e, scope.mesh) for e in spec]
    rows.append((called, " x ".join(map(str, shape)), " ".join(text)))
  return _table(("activation", "shape", "placement"), sorted(rows))


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  """Columns of text under their titles."""
  rows = [titles, *rows]
  widths = [max(len(cell) for cell in column) for column in zip(*rows)]
  return "\n".join(
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
    for row in rows
  )


def _split(entry: Any, mesh: Mesh | AbstractMesh) -> str:
  """The mesh axes that split a dimension, those of size 1 left out."""
  return "+".join(a for a in axis_tuple(entry) if mesh.shape[a] > 1) or "-"
