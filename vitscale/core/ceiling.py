"""What a device really reaches: the FLOP/s of one large matrix product.

A published peak is what no program reaches, and a CPU has none. The product is
in the compute type, on random numbers (constant ones need less power, and a
GPU then clocks higher), on all devices of the process at once, as a step is:
the fake devices of a CPU share its cores. It is the best of several windows;
on a machine that is busy with something else a step may come out above it.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vitscale.core import compiler

# Side of the matrices, products a window: about 15 ms a window on a CPU core
# and on an H100.
SIZES: dict[str, tuple[int, int]] = {"cpu": (1024, 1)}
ELSEWHERE = (8192, 10)
SECONDS = 0.15  # after compilation, for three windows at least
WINDOWS = 8


def dtype_of(model: Any) -> str:
  """The compute type of a model: its `dtype`, float32 without."""
  return str(np.dtype(getattr(model, "dtype", None) or "float32"))


def flops_per_second(devices: Sequence[jax.Device], dtype: str) -> float | None:
  """Of one device; None where it can't be measured.

  Args:
    devices: those of a mesh; the ones of this process are measured, once.
    dtype: of the matrices.
  """
  local = [d for d in devices if d.process_index == jax.process_index()]
  return _measured(tuple(local), dtype) if local else None


@functools.cache
def _measured(devices: tuple[jax.Device, ...], dtype: str) -> float | None:
  platform = devices[0].platform
  try:
    return _measure(devices, dtype, *SIZES.get(platform, ELSEWHERE))
  except (jax.errors.JaxRuntimeError, TypeError):
    return None  # no room, no such product: a run goes on without


def _measure(
  devices: tuple[jax.Device, ...], dtype: str, side: int, products: int
) -> float:
  few = np.random.default_rng(0).standard_normal((256, side), np.float32)
  matrix = np.tile(few.astype(dtype), (side // 256, 1))
  placed = [jax.device_put(matrix, device) for device in devices]
  product = jax.jit(
    lambda a, b: a @ b, compiler_options=compiler.options(devices[0].platform)
  )
  jax.block_until_ready([product(x, x) for x in placed])
  best, begun, windows = float("inf"), time.perf_counter(), 0
  while windows < 3 or (
    windows < WINDOWS and time.perf_counter() - begun < SECONDS
  ):
    start = time.perf_counter()
    for _ in range(products):
      last = [product(x, x) for x in placed]
    jax.block_until_ready(last)
    best = min(best, time.perf_counter() - start)
    windows += 1
  return products * 2 * side**3 / best
