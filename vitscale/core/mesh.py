"""The device mesh, and the table from axis names to its axes.

Mesh axes are always of type Auto: `jax.make_mesh` defaults to Explicit, under
which linen and custom-partitioned kernels (cuDNN attention) do not trace.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from vitscale.core.axes import ROLES, AxisError
from vitscale.core.errors import UserError, nearest

MESH_AXES: dict[str, str] = {
  "replica": "data parallel, parameters copied (between slices or nodes)",
  "fsdp": "data parallel, parameters split",
  "tensor": "heads and hidden units split",
  "sequence": "tokens of one example split",
}

# How attention sees all tokens where `sequence` splits them: nn/context.py.
CONTEXTS: dict[str, str] = {
  "gather": "every device gets all keys and values",
  "ring": "keys and values travel from device to device",
  "ulysses": "tokens are exchanged for heads",
}

MeshAxes = str | tuple[str, ...] | None

DATA: tuple[str, ...] = ("replica", "fsdp")


@dataclasses.dataclass(frozen=True)
class Rules:
  """Role -> mesh axes, for parameters and for activations.

  A role that is not listed is not split. `asked` holds the parameter roles a
  user named: each of them has to exist in the model, as has each activation
  role in `asked_activations`. `context` is a key of CONTEXTS.
  """

  params: Mapping[str, MeshAxes]
  activations: Mapping[str, MeshAxes]
  asked: frozenset[str] = frozenset()
  context: str = "gather"
  asked_activations: frozenset[str] = frozenset()

  def override(
    self,
    params: Mapping[str, MeshAxes] | None = None,
    activations: Mapping[str, MeshAxes] | None = None,
    context: str | None = None,
  ) -> "Rules":
    """These rules with some replaced; unknown names raise."""
    context = self.context if context is None else context
    if context not in CONTEXTS:
      raise UserError(f"rules.context={context!r}{nearest(context, CONTEXTS)}")
    params, activations = dict(params or {}), dict(activations or {})
    for key, value in (*params.items(), *activations.items()):
      if key not in ROLES:
        raise AxisError(f"rule for unknown axis {key!r}{nearest(key, ROLES)}")
      for axis in axis_tuple(value):
        if axis not in MESH_AXES:
          raise AxisError(
            f"rule {key!r}: no mesh axis {axis!r}{nearest(axis, MESH_AXES)}"
          )
    return Rules(
      {**self.params, **params},
      {**self.activations, **activations},
      self.asked | set(params),
      context,
      self.asked_activations | set(activations),
    )


RULES = Rules(
  params={"embed": "fsdp", "mlp": "tensor", "heads": "tensor"},
  activations={
    "batch": DATA,
    "tokens": DATA,
    "sequence": "sequence",
    "mlp": "tensor",
    "heads": "tensor",
  },
)


def make_mesh(
  shape: Mapping[str, int] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over all `devices` with the four axes of `MESH_AXES`.

  Args:
    shape: size per axis; one may be -1 (what is left), absent axes are 1.
      Default: everything on `fsdp`.
    devices: default `jax.devices()`.

  Raises:
    UserError: unknown axis, or sizes that do not multiply to the devices.
  """
  shape = dict(shape or {"fsdp": -1})
  for name in shape:
    if name not in MESH_AXES:
      raise UserError(f"mesh: no axis {name!r}{nearest(name, MESH_AXES)}")
  count = len(devices) if devices is not None else jax.device_count()
  sizes = {name: int(shape.get(name, 1)) for name in MESH_AXES}
  open_axes = [name for name, size in sizes.items() if size == -1]
  bad = [n for n, size in sizes.items() if size < 1 and size != -1]
  if bad or len(open_axes) > 1:
    raise UserError(f"mesh {shape}: sizes are 1 or more, and one may be -1")
  known = math.prod(size for size in sizes.values() if size != -1)
  if open_axes and count % known == 0:
    sizes[open_axes[0]] = count // known
  if math.prod(sizes.values()) != count:
    raise UserError(
      f"mesh {shape} asks for {'a multiple of ' * bool(open_axes)}{known}"
      f" devices, there are {count}{_hosts(devices)}; sizes must multiply to"
      f" {count}, for example {_fitting(sizes, count)}"
    )
  return jax.make_mesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
    devices=devices,
  )


def _hosts(devices: Sequence[Any] | None) -> str:
  """ " in 2 processes", where there are several."""
  hosts = {d.process_index for d in devices or jax.devices()}
  return f" in {len(hosts)} processes" if len(hosts) > 1 else ""


def _fitting(sizes: Mapping[str, int], count: int) -> str:
  """A mesh of `count` devices as near to `sizes` as divisors allow."""
  fits = dict.fromkeys(sizes, 1)
  for name in ("tensor", "sequence", "replica"):
    fits[name] = math.gcd(max(sizes[name], 1), count)
    count //= fits[name]
  fits["fsdp"] = count
  shown = [n for n in sizes if n == "fsdp" or max(sizes[n], fits[n]) > 1]
  return " ".join(f"mesh.{name}={fits[name]}" for name in shown)


def check_context() -> None:
  """Refuses a surrounding mesh under which constraints would not hold.

  Under `with mesh:` they vanish without a word, and under Explicit axes most
  models don't trace.

  Raises:
    UserError: there is one.
  """
  from jax._src import mesh as internal  # nothing public sees the old context

  env = getattr(getattr(internal, "thread_resources", None), "env", None)
  if env is not None and not env.physical_mesh.empty:
    raise UserError(
      f"inside of `with mesh:` ({dict(env.physical_mesh.shape)}), where"
      " constraints on activations are lost: leave it, and give the sizes as"
      " config.mesh or enter `vitscale.core.sharding.use(mesh)`"
    )
  context = jax.sharding.get_abstract_mesh()
  if AxisType.Explicit in context.axis_types:
    raise UserError(
      f"inside of a mesh with Explicit axes ({dict(context.shape)}), the"
      " default of jax.make_mesh: leave it, and give the sizes as config.mesh"
      " or enter `vitscale.core.sharding.use(make_mesh(...))`"
    )


def check_mesh(mesh: Mesh, rules: Rules) -> None:
  if any(kind != AxisType.Auto for kind in mesh.axis_types):
    raise UserError(
      f"mesh axes must be of type Auto, not {mesh.axis_types};"
      " make it with vitscale.core.sharding.make_mesh"
    )
  for table in (rules.params, rules.activations):
    for name, value in table.items():
      for axis in axis_tuple(value):
        if axis not in mesh.shape:
          raise UserError(
            f"rule {name!r}: the mesh has no axis {axis!r}"
            f"{nearest(axis, mesh.shape)}"
          )


def axis_tuple(value: Any) -> tuple[str, ...]:
  if value is None:
    return ()
  return (value,) if isinstance(value, str) else tuple(value)


def axis_entry(axes: tuple[str, ...]) -> MeshAxes:
  return None if not axes else axes[0] if len(axes) == 1 else axes
