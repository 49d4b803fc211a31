"""What a training step costs, without a compiler for its device.

`roofline` bounds a step's time from below. `memory` and `traffic` estimate by
arithmetic what a compiler would report: they serve GPUs, whose compiler needs
a GPU, and choose what is worth compiling for TPUs. They know what the backward
pass keeps, not what a compiler pads or holds for a moment: of the golden plans
in tests/golden/plans they give FLOPs to 0.1 % and gathered bytes to 8 %, but
0.75 to 1.5 of the memory, and 0.3 of it at 50,176 tokens.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import accounting
from vitscale.core.errors import UserError
from vitscale.core.hlo import Total
from vitscale.core.mesh import DATA, axis_tuple
from vitscale.core.topology import Topology

# ------------------------------------------------------------------- roofline


@dataclasses.dataclass(frozen=True)
class Bound:
  """Seconds that one step takes at the least, by resource."""

  compute_s: float
  memory_s: float
  network_s: float

  @property
  def step_s(self) -> float:
    return max(self.compute_s, self.memory_s, self.network_s)

  @property
  def binding(self) -> str:
    names = {"compute": self.compute_s, "memory": self.memory_s,
             "network": self.network_s}  # fmt: skip
    return max(names, key=names.__getitem__)


def roofline(
  topology: Topology,
  *,
  flops: float,
  hbm_bytes: float,
  collectives: Mapping[str, Total],
) -> Bound:
  """Lower bounds of a step's time if each resource worked at its peak.

  Args:
    topology: the hardware.
    flops: of the whole step, recomputation included, all devices together.
    hbm_bytes: a device reads and writes at the least.
    collectives: of one device.

  Raises:
    UserError: the chip has no known peak.
  """
  chip = topology.spec
  peak = accounting.peak_flops(chip.kind)
  if peak is None:
    raise UserError(f"no peak FLOP/s known of {chip.kind}")
  far = sum(total.far_bytes for total in collectives.values())
  near = sum(total.wire_bytes for total in collectives.values()) - far
  return Bound(
    flops / (topology.devices * peak),
    hbm_bytes / chip.bandwidth,
    max(near / chip.link, far / chip.network),
  )


# ------------------------------------------------------------------- memory


Sizes = Mapping[str, int]  # of the mesh's axes


def shard_bytes(tree: Any, mesh: Sizes) -> int:
  """Bytes a device of a mesh holds of placed ShapeDtypeStructs, unpadded."""
  return sum(
    math.prod(_shard_shape(leaf, mesh)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _shard_shape(leaf: Any, mesh: Sizes) -> list[int]:
  shape = list(leaf.shape)
  for i, entry in enumerate(leaf.sharding.spec):
    shape[i] //= math.prod(mesh[axis] for axis in axis_tuple(entry))
  return shape


def state_bytes(bench: Any, mesh: Sizes, batch_size: int) -> dict[str, int]:
  """Bytes a device holds before a step, by kind: arithmetic, no padding."""
  state, batch = bench.inputs[:2]
  kinds = {key: shard_bytes(state[key], mesh) for key in _KINDS}
  rest = {k: v for k, v in state.items() if k not in kinds}
  each = sum(math.prod(x.shape[1:]) * x.dtype.itemsize for x in batch.values())
  ways = math.prod(mesh[axis] for axis in DATA)
  return {
    **kinds,
    "other": shard_bytes(rest, mesh),
    "batch": each * -(-batch_size // ways),
  }


_KINDS = ("params", "opt", "ema")


def residual_bytes(bench: Any, model: Any) -> float:
  """Bytes per example that the forward pass keeps for the backward pass.

  What `jax.vjp` of the loss carries over, counted at one and at two examples;
  the difference is free of weights.
  """
  task, batch = bench.task, bench.inputs[1]
  rest = bench.inputs[0]["mutable"]

  def kept(examples: int) -> int:
    few = {
      k: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype)
      for k, x in batch.items()
    }

    def pullback(params, rest, batch):
      key = jax.random.key(0)

      def loss(params):
        total = 0.0
        for player in task.players:
          total += getattr(task, player.loss)(
            model, {"params": params, **rest}, batch,
            {"dropout": key, "mix": key}, {},
          )[0]  # fmt: skip
        return total

      return jax.vjp(loss, params)[1]

    plain = lambda tree: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree
    )
    saved = jax.eval_shape(
      pullback, plain(bench.inputs[0]["params"]), plain(rest), few
    )
    return sum(
      math.prod(x.shape) * x.dtype.itemsize
      for x in jax.tree.leaves(saved)
      if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )

  return float(kept(2) - kept(1))


def memory(
  bench: Any,
  mesh: Sizes,
  *,
  batch_size: int,
  accumulate: int,
  kept: float,
  whole: float,
) -> dict[str, float]:
  """HBM of a device by arithmetic: `argument`, `temp`, `output`, `total`.

  Args:
    bench: what `build` made, on any mesh.
    mesh: the mesh to count for.
    batch_size, accumulate: as in a config.
    kept: `residual_bytes` of the model.
    whole: the same without remat: one block's worth of it is recomputed.
  """
  argument = sum(state_bytes(bench, mesh, batch_size).values())
  params, depth = bench.inputs[0]["params"], getattr(bench.model, "depth", 1)
  ways = math.prod(mesh[axis] for axis in DATA)
  examples = max(batch_size / ways / accumulate, 1)
  block = max(whole - kept, 0.0) / depth
  temp = examples * (kept + block) / (mesh["sequence"] * mesh["tensor"])
  temp += shard_bytes(params, mesh) * (1 + (accumulate > 1))  # gradients
  if mesh["fsdp"] > 1:  # two layers' weights, gathered
    full = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    temp += 2 * _width(bench) * full / depth
  return {
    "argument": argument, "temp": temp, "output": 0, "total": argument + temp,
  }  # fmt: skip


# ------------------------------------------------------------------- traffic


def traffic(
  bench: Any, mesh: Sizes, topology: Topology, *, accumulate: int
) -> dict[str, Total]:
  """Collectives of one step by arithmetic: parameters and their gradients.

  In the type that the model computes in, as XLA does it: every parameter split
  over `fsdp` is gathered for the forward and again for the backward pass, and
  its gradient scattered; copies of a gradient are summed. Each accumulated part
  pays again. What a tensor or sequence axis exchanges is not counted.
  """
  width = _width(bench)
  fsdp, replica = mesh["fsdp"], mesh["replica"]
  kinds = ("all-gather", "reduce-scatter", "all-reduce")
  found = {kind: Total() for kind in kinds}
  add = lambda kind, size, group, stride, times: found[kind].add(
    _total(kind, size, group, stride, mesh, topology), times
  )
  for leaf in jax.tree.leaves(bench.inputs[0]["params"]):
    used = {axis for entry in leaf.sharding.spec for axis in axis_tuple(entry)}
    local = math.prod(_shard_shape(leaf, mesh))
    group, stride = replica * fsdp, 1
    if "fsdp" in used and fsdp > 1:
      add("all-gather", local * fsdp * width, fsdp, 1, 2 * accumulate)
      add("reduce-scatter", local * fsdp * width, fsdp, 1, accumulate)
      group, stride = replica, fsdp
    if group > 1:
      add("all-reduce", local * width, group, stride, accumulate)
  return {kind: total for kind, total in found.items() if total.count}


def _width(bench: Any) -> int:
  """Bytes of an entry in the model's compute type."""
  return jnp.dtype(getattr(bench.model, "dtype", "float32")).itemsize


def _total(kind, size, group, stride, mesh, topology: Topology) -> Total:
  """One collective of `group` devices, `stride` data ranks apart."""
  inner = mesh["tensor"] * mesh["sequence"]
  each = max(min(topology.island // (stride * inner), group), 1)
  slices = -(-group // each)
  share, far = (group - 1) / group, (slices - 1) / slices / each
  twice = 2 if kind == "all-reduce" else 1
  return Total(1, size, twice * share * size, twice * far * size)


# --------------------------------------------------------------------- meshes


def meshes(bench: Any, devices: int, slices: int) -> list[dict[str, int]]:
  """Shapes replica x fsdp over all devices that this model can be split in.

  In rising order of fsdp. A replica never spans slices, but may span nodes of
  GPUs.
  """
  most = devices // slices
  return [
    {"replica": devices // fsdp, "fsdp": fsdp, **_WHOLE}
    for fsdp in (2**k for k in range(most.bit_length()))
    if most % fsdp == 0 and _divides(bench, fsdp)
  ]


_WHOLE = {"tensor": 1, "sequence": 1}


def _divides(bench: Any, fsdp: int) -> bool:
  return all(
    size % fsdp == 0
    for leaf in jax.tree.leaves(bench.inputs[0]["params"])
    for size, entry in zip(leaf.shape, leaf.sharding.spec)
    if "fsdp" in axis_tuple(entry)
  )
