"""Where every family's parameters and activations live, as golden text.

    python -m tests.contract.shardings         prints what differs
    python -m tests.contract.shardings write   writes tests/golden/sharding/

Shapes only: meshes are abstract, nothing compiles. Equal layers are one line.
"""

import difflib
import re
import sys
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, AxisType

from tests.contract.families import Family
from vitscale import zoo
from vitscale.core import axes, placement, sharding
from vitscale.core.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "sharding"
WRITE = "python -m tests.contract.shardings write"
MESHES = (
  {"fsdp": 8},
  {"replica": 2, "fsdp": 2, "tensor": 2},
  {"fsdp": 2, "tensor": 2, "sequence": 2},
)
BATCH = 16


def mesh_of(sizes: dict[str, int]) -> AbstractMesh:
  sizes = {name: sizes.get(name, 1) for name in sharding.MESH_AXES}
  kinds = (AxisType.Auto,) * len(sizes)
  return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


def snapshot(family: Family) -> str:
  """The text of a family: its toy, and the two smallest published sizes."""
  toy, *published = zoo.presented(family.module)
  sizes = [(toy, 64), *((shown, sharding.SMALL) for shown in published[:2])]
  parts = [
    section(family, shown, mesh, small)
    for shown, small in sizes
    for mesh in MESHES
  ]
  return "\n\n".join(parts) + "\n"


def section(family: Family, shown, sizes: dict[str, int], small: int) -> str:
  """One variant on one mesh."""
  model, size = shown.model(), shown.image
  mesh = mesh_of(sizes)
  image = jax.ShapeDtypeStruct((BATCH, *size), "float32")
  text = " x ".join(f"{name} {n}" for name, n in sizes.items())
  head = (
    f"# {shown.variant} on {text}: images {' x '.join(map(str, image.shape))},"
    f" parameters from {small} entries on"
  )
  try:
    boxed = zoo.boxed(family.module, model, image)
    names, shapes = axes.names_of(boxed), axes.unbox(boxed)
    placed = sharding.param_shardings(names, shapes, mesh, small=small)
    with sharding.use(mesh) as scope:
      more = zoo.more_inputs(family.module, image)
      jax.eval_shape(model.apply, shapes, image, **more)
    placement.check_used(scope, placed)
  except UserError as error:
    return f"{head}\nrefused: {error}"
  params = {"params"} == set(shapes)
  pick = lambda tree: tree["params"] if params else tree
  table = placement.describe(pick(names), pick(shapes), pick(placed))
  placed = placement.describe_activations(scope)
  return f"{head}\n{folded(table)}\n\n{folded(placed)}"


def folded(table: str) -> str:
  """Lines that differ in the number of a layer only, as one."""
  title, *lines = table.splitlines()
  lines = [re.sub(r"block_\d\d", "block_..", line) for line in lines]
  return "\n".join([title, *dict.fromkeys(lines)])


def difference(name: str) -> str:
  """A diff of what is stored and what is; "" when equal."""
  path = GOLDEN / f"{name}.txt"
  stored = path.read_text() if path.exists() else ""
  lines = difflib.unified_diff(
    stored.splitlines(), snapshot(Family(name)).splitlines(),
    f"stored: {path.name}", "now", lineterm="", n=1,
  )  # fmt: skip
  return "\n".join(lines)


def main(*args: str) -> int:
  if args == ("write",):
    GOLDEN.mkdir(exist_ok=True)
    for name in zoo.names():
      (GOLDEN / f"{name}.txt").write_text(snapshot(Family(name)))
    return 0
  found = [difference(name) for name in zoo.names()]
  print("\n\n".join(filter(None, found)) or "nothing differs")
  return int(any(found))


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
