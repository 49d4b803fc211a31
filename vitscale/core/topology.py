"""Hardware by name: pods and GPU nodes that need not be there.

    v5e:16x16  v5p:8x8x8   chips of a slice, by its shape
    2xv5e:16x16            two slices, joined by the data centre's network
    v5litepod-256 v5p-1024 names of Google Cloud; v4, v5p and tpu7x count
                           TensorCores there, two a chip
    gpu:64xH100            GPUs in nodes of eight

`CHIPS` holds published figures: TPUs from docs.cloud.google.com/tpu/docs, pages
v4, v5e, v5p, v6e and tpu7x (bandwidth of HBM, of links and of the data centre's
network; that of v4 from its hosts' 200 Gb/s for 4 chips), GPUs from NVIDIA's
data sheets of SXM boards and one 400 Gb/s adapter each (A100: 200). Memory of
TPUs is what libtpu 0.0.42 says it will allot. Links count one direction, all
links of a device together, so times from them are lower bounds.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vitscale.core import mesh as mesh_lib
from vitscale.core.errors import UserError, nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator; figures are of one jax device.

  Attributes:
    kind: jax's `device_kind`, as `accounting.peak_flops` knows it.
    hbm: bytes of memory a program may use.
    bandwidth: of that memory, bytes a second.
    link: sent to other devices of the slice (GPUs: the node), bytes a second.
    network: sent beyond it, bytes a second.
    rank: dimensions of a slice's shape; 0 for GPUs.
    per_chip: jax devices of a chip.
    cores: TensorCores of a chip where cloud names count those, else 0.
  """

  kind: str
  hbm: float
  bandwidth: float
  link: float
  network: float
  rank: int = 0
  per_chip: int = 1
  cores: int = 0


CHIPS: dict[str, Chip] = {
  "v4": Chip("TPU v4", 30.75 * GIB, 1228e9, 300e9, 6.25e9, 3, cores=2),
  "v5e": Chip("TPU v5 lite", 15.75 * GIB, 819e9, 200e9, 3.125e9, 2),
  "v5p": Chip("TPU v5", 95.74 * GIB, 2765e9, 600e9, 6.25e9, 3, cores=2),
  "v6e": Chip("TPU v6 lite", 31.25 * GIB, 1638e9, 400e9, 12.5e9, 2),
  "tpu7x": Chip("TPU7x", 94.75 * GIB, 3690e9, 300e9, 6.25e9, 3, 2, 2),
  "A100": Chip("A100", 80e9, 2039e9, 300e9, 25e9),
  "H100": Chip("H100", 80e9, 3350e9, 450e9, 50e9),
  "H200": Chip("H200", 141e9, 4800e9, 450e9, 50e9),
  "B200": Chip("B200", 180e9, 8000e9, 900e9, 50e9),
}
TPUS = tuple(name for name, chip in CHIPS.items() if chip.rank)
GPUS = tuple(name for name, chip in CHIPS.items() if not chip.rank)
NODE = 8  # GPUs that share NVLink
ROWS = 16  # of a parameter's shard
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x"}
EXAMPLES = (
  "v5e:16x16, v5litepod-256, v5p:8x8x8, v5p-1024, v6e:16x16, v4:8x8x8,"
  " tpu7x:4x4x4, 2xv5e:16x16 (slices), gpu:8xH100"
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """So many slices of one shape (GPUs: nodes, whose shape is empty)."""

  chip: str  # a key of CHIPS
  shape: tuple[int, ...]
  slices: int = 1
  gpus: int = 0

  @property
  def spec(self) -> Chip:
    return CHIPS[self.chip]

  @property
  def is_tpu(self) -> bool:
    return self.spec.rank > 0

  @property
  def chips(self) -> int:
    return self.gpus or self.slices * math.prod(self.shape)

  @property
  def devices(self) -> int:
    return self.chips * self.spec.per_chip

  @property
  def island(self) -> int:
    """Devices that reach each other over links: a slice, or a node."""
    return self.devices // self.slices if self.is_tpu else NODE

  @property
  def name(self) -> str:
    """The name that `parse` gives back."""
    if not self.is_tpu:
      return f"gpu:{self.gpus}x{self.chip}"
    many = f"{self.slices}x" if self.slices > 1 else ""
    return f"{many}{self.chip}:{'x'.join(map(str, self.shape))}"

  def describe(self) -> str:
    """What was understood, in words."""
    if not self.is_tpu:
      return f"{self.gpus} {self.chip} GPUs in nodes of {NODE}"
    many = f", {self.slices} slices" if self.slices > 1 else ""
    two = f", {self.devices} devices" if self.spec.per_chip > 1 else ""
    return f"{self.name}: {self.chips} chips{two}{many}"


def parse(text: str) -> Topology:
  """A topology by any of the names at the top of this file.

  Raises:
    UserError: unknown kind, a shape of wrong rank, or a number of chips
      without a usual shape.
  """
  gpu = re.fullmatch(r"gpu:(\d+)x(\w+)", text)
  if gpu:
    count, kind = int(gpu[1]), gpu[2].upper()
    if kind not in GPUS:
      raise UserError(f"topology {text!r}: no GPU {gpu[2]!r}{_of(kind, GPUS)}")
    if count < 1 or (count > NODE and count % NODE):
      raise UserError(
        f"topology {text!r}: {count} GPUs are not whole nodes of {NODE}"
      )
    return Topology(kind, (), gpus=count)
  found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*)(?::([\dx]+)|-(\d+))", text)
  if not found:
    raise UserError(f"topology {text!r} is no name like {EXAMPLES}")
  slices, kind = int(found[1] or 1), _ALIASES.get(found[2], found[2])
  if kind not in TPUS:
    raise UserError(
      f"topology {text!r}: no chip {found[2]!r}{_of(kind, TPUS)};"
      f" examples: {EXAMPLES}"
    )
  chip = CHIPS[kind]
  if found[3]:
    parts = found[3].split("x")
    if not all(part.isdigit() and int(part) for part in parts):
      raise UserError(f"topology {text!r}: shape {found[3]!r}, not like 4x4")
    shape = tuple(int(part) for part in parts)
    if len(shape) != chip.rank:
      raise UserError(
        f"topology {text!r}: {kind} has {chip.rank} dimensions, for example"
        f" {kind}:{'x'.join('4' * chip.rank)}"
      )
  else:
    shape = _usual_shape(text, chip, int(found[4]))
  if slices < 1:
    raise UserError(f"topology {text!r}: at least one slice")
  return Topology(kind, shape, slices)


def _of(kind: str, known: Sequence[str]) -> str:
  return nearest(kind, known) + f" (known: {', '.join(known)})"


def _usual_shape(text: str, chip: Chip, count: int) -> tuple[int, ...]:
  """The cloud's default shape of a power of two: as cubic as it goes."""
  chips = count // max(chip.cores, 1)
  power = chips.bit_length() - 1
  if chips < 1 or chips * max(chip.cores, 1) != count or chips != 2**power:
    counted = f"{count} TensorCores" if chip.cores else f"{count} chips"
    raise UserError(
      f"topology {text!r}: {counted} have no usual shape; give it, as"
      f" {text.partition('-')[0]}:{'x'.join(['4', '8', '8'][: chip.rank])}"
    )
  if power == 2 and chip.rank == 3:
    return 2, 2, 1
  each, more = divmod(power, chip.rank)
  return tuple(2 ** (each + (i >= chip.rank - more)) for i in range(chip.rank))


# -------------------------------------------------------------------- devices


def devices(topology: Topology) -> list[Any]:
  """The TPU compiler's devices of a topology; they can't run anything.

  Raises:
    UserError: no libtpu here, or the compiler doesn't know the shape.
  """
  from jax.experimental import topologies

  options: dict[str, Any] = {}
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  if topology.chip == "v4":  # otherwise each chip shows as two devices
    options["chip_config_name"] = "megacore"
    options["chips_per_host_bounds"] = (2, 2, 1)
  shape = "x".join(map(str, topology.shape))
  try:
    found = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{topology.chip}:{shape}", **options
    )
  except Exception as error:  # whatever the plug-in raises
    reason = " ".join(str(error).split())[:300]
    raise UserError(
      f"the TPU compiler has no topology {topology.name}: {reason}"
    ) from error
  return list(found.devices)


def make_mesh(
  shape: Mapping[str, int] | None = None,
  devices: Sequence[jax.Device] | None = None,
  sizes: Iterable[int] = (),
) -> Mesh:
  """`mesh.make_mesh`, with slices of a pod along the `replica` axis.

  Only gradients cross the slow network then, once a step. Without a shape
  each slice is one replica, split over all its devices; over fewer, in more
  replicas, where these don't divide the model.

  Args:
    shape: as for `mesh.make_mesh`; `replica` counts over all slices.
    devices: default `jax.devices()`.
    sizes: of the dimensions that `fsdp` splits, for the default shape.

  Raises:
    UserError: as there; replicas that the slices don't divide.
  """
  everyone = list(jax.devices() if devices is None else devices)
  slices: dict[int, list[Any]] = {}
  for device in everyone:
    slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
  count = len(slices)
  shape = dict(
    shape or {"replica": -1, "fsdp": default_fsdp(everyone, count, sizes)}
  )
  if count == 1:
    return _mesh(_grid(shape, everyone))
  replica = int(shape.get("replica", 1))
  if replica != -1 and replica % count:
    raise UserError(
      f"mesh {shape}: the devices are {count} slices, so replica should be a"
      f" multiple of {count}: mesh.replica={count}"
    )
  inner = {**shape, "replica": -1 if replica == -1 else replica // count}
  grids = [_grid(inner, mine) for _, mine in sorted(slices.items())]
  return _mesh(np.concatenate(grids))


def default_fsdp(devices: list[Any], slices: int, sizes: Iterable[int]) -> int:
  """How many devices of a slice share the parameters, by default.

  All, if they divide every size. Else, and on TPUs, the most that leave `ROWS`
  rows each (of fewer, their compiler pads gradients and moves them about), or
  the most that divide.
  """
  each, sizes = len(devices) // slices, list(sizes) or [0]
  divide = [
    n
    for n in range(1, each + 1)
    if each % n == 0 and not any(size % n for size in sizes)
  ]
  full = [n for n in divide if min(sizes) // n >= ROWS]
  if each in divide and devices[0].platform != "tpu":
    return each
  return max(full or divide)


def _grid(shape: Mapping[str, int], devices: list[Any]) -> np.ndarray:
  """Devices of one slice, laid along its links where the shape allows."""
  try:
    return mesh_lib.make_mesh(shape, devices).devices
  except NotImplementedError:  # 16 of 8 x 8 x 8: a dimension is cut
    sizes = [shape.get(name, 1) for name in mesh_lib.MESH_AXES]
    rest = len(devices) // math.prod(size for size in sizes if size != -1)
    return mesh_utils.create_device_mesh(
      [rest if size == -1 else size for size in sizes],
      devices,
      allow_split_physical_axes=True,
    )


def _mesh(grid: np.ndarray) -> Mesh:
  axes = tuple(mesh_lib.MESH_AXES)
  return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))
