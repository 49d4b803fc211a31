"""Every family on 8 fake devices; `python devices.py` prints one JSON object.

family -> kind of mesh -> {"gap", "constraints", "split"} or {"refused"} or
{"error"}: the worst of its meshes.
"""

import json
import traceback

import jax

from tests.contract.families import Family, gap
from vitscale import zoo
from vitscale.core import axes, sharding
from vitscale.core.errors import UserError

MESHES = {
  "mesh": (
    {"fsdp": 8},
    {"replica": 4, "tensor": 2},
    {"replica": 2, "fsdp": 2, "tensor": 2},
  ),
  "sequence": (
    {"fsdp": 2, "sequence": 4},
    {"fsdp": 2, "tensor": 2, "sequence": 2},
  ),
}
BATCH, TOKENS = 8, 8  # tokens per side of the coarsest features


def compare(family: Family, shape: dict[str, int], want) -> dict:
  """Loss and gradient on a mesh against those of one device."""
  mesh = sharding.make_mesh(shape)
  size = image_size(family)
  variables, boxed = family.variables(size), family.boxed(size=size)
  with sharding.use(mesh) as scope:
    placed = sharding.param_shardings(
      axes.names_of(boxed), axes.unbox(boxed), mesh, small=64
    )
    run = jax.jit(
      family.gradient(family.base), out_shardings=(None, placed["params"])
    )
    batch = {"image": family.image(size, BATCH)}
    image = sharding.shard_batch(batch, mesh)["image"]
    (loss, _), grads = run(jax.device_put(variables, placed), image)
  split = [x for x in jax.tree.leaves(placed) if any(x.spec)]
  return {
    "gap": max(gap(loss, want[0]), gap(jax.device_get(grads), want[1])),
    "constraints": scope.constraints,
    "split": len(split),
  }


def image_size(family: Family) -> tuple[int, int]:
  return tuple(TOKENS * s for s in family.stride())


def alone(family: Family):
  """(loss, gradient) on one device."""
  size = image_size(family)
  run = jax.jit(family.gradient(family.base))
  (loss, _), grads = run(family.variables(size), family.image(size, BATCH))
  return jax.device_get((loss, grads))


def check(name: str) -> dict[str, dict]:
  family, results = Family(name), {}
  want = alone(family)
  for kind, shapes in MESHES.items():
    try:
      found = [compare(family, shape, want) for shape in shapes]
      results[kind] = {
        "gap": max(one["gap"] for one in found),
        "constraints": min(one["constraints"] for one in found),
        "split": min(one["split"] for one in found),
      }
    except UserError as error:
      results[kind] = {"refused": str(error)}
    except Exception:
      results[kind] = {"error": traceback.format_exc()}
  return results


def main() -> None:
  assert jax.device_count() == 8, jax.devices()
  results = {}
  for name in zoo.names():
    try:
      results[name] = check(name)
    except Exception:
      error = {"error": traceback.format_exc()}
      results[name] = dict.fromkeys(MESHES, error)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
