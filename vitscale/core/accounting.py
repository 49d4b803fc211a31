"""What a model costs: its parameters by role, its FLOPs, and device peaks."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vitscale.core import axes as axes_lib
from vitscale.core import tree as tree_lib
from vitscale.core.flops import Flops as Flops
from vitscale.core.flops import count_flops as count_flops
from vitscale.core.flops import register_cost as register_cost
from vitscale.core.flops import train_flops as train_flops
from vitscale.core.flops import (
  train_flops_per_example as train_flops_per_example,
)

# -------------------------------------------------------------- parameters

# Parameters of the interface, not of the trunk: pixels to tokens, positions,
# extra tokens, logits. Scaling laws fit the rest (N non-embedding). The patch
# bias and stem convolutions carry no such axis and count with the trunk.
EMBEDDING: tuple[str, ...] = ("patch", "pos", "registers", "classes")


def params_by_role(abstract: Any, names: Any) -> dict[str, Any]:
  """Counts of a parameter tree, ready for JSON.

  Args:
    abstract: tree of anything with `.shape` and `.dtype` (unboxed).
    names: the same tree of `Axes`.

  Returns:
    `total`, `embedding`, `non_embedding`, `bytes` and `roles`: entries per
    kind of parameter, such as `{"embed -> mlp": 1536, "mlp": 64}` (scopes and
    stacked layers folded).
  """
  shapes, named = tree_lib.flatten(abstract), tree_lib.flatten(names)
  tree_lib.check_same(named, shapes, "axis names", "parameters")
  total = embedding = size_bytes = 0
  kinds: dict[str, int] = {}
  for path, leaf in shapes.items():
    count = math.prod(leaf.shape)
    roles = [axes_lib.role(name) for name in named[path].names]
    total += count
    embedding += count * any(role in EMBEDDING for role in roles)
    size_bytes += count * np.dtype(leaf.dtype).itemsize
    kind = _kind(named[path])
    kinds[kind] = kinds.get(kind, 0) + count
  return {
    "total": total,
    "embedding": embedding,
    "non_embedding": total - embedding,
    "bytes": size_bytes,
    "roles": dict(sorted(kinds.items(), key=lambda item: -item[1])),
  }


def _kind(axes: axes_lib.Axes) -> str:
  left = [axes_lib.role(n) for n in axes.fan_in]
  right = [axes_lib.role(n) for n in axes.fan_out]
  return " ".join((*left, "->", *right) if left else right) or "scalar"


# ------------------------------------------------------------------- devices

# Dense bfloat16 FLOP/s of one jax device, by a part of `device_kind`, most
# specific first. H200, B200, GB200 and TPU7x are vendors' figures that nobody
# here has checked; a TPU7x chip (2307 TF) shows as two devices.
PEAKS: dict[str, float] = {
  "GB200": 2500e12,
  "B200": 2250e12,
  "H200 NVL": 835e12,
  "H200": 989e12,
  "H100 NVL": 835e12,
  "H100 PCIe": 756e12,
  "H100": 989e12,
  "A100": 312e12,
  "TPU7x": 2307e12 / 2,
  "TPU v6": 918e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v4 lite": 138e12,
  "TPU v4": 275e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak dense bf16 FLOP/s of one device; None when it is not in `PEAKS`."""
  kind = device_kind.lower()
  return next((v for key, v in PEAKS.items() if key.lower() in kind), None)


def mfu(
  flops_per_step: float,
  seconds: float,
  devices: Sequence[jax.Device] | None = None,
) -> float | None:
  """Model FLOPs utilisation in 0..1; None on hardware without a known peak.

  Args:
    flops_per_step: model FLOPs of the whole step, all devices together.
    seconds: duration of the step.
    devices: default `jax.devices()`.
  """
  devices = jax.devices() if devices is None else devices
  peaks = [peak_flops(device.device_kind) for device in devices]
  if not peaks or None in peaks or seconds <= 0:
    return None
  return flops_per_step / seconds / sum(peaks)
