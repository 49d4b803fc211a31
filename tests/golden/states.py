"""State dicts of random weights that need no file: the same in every place.

`RandomState` is numpy's frozen generator; each name has a seed of its own.
"""

import math
import zlib

import numpy as np


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Of a scale at which no layer silences the next."""
  draws = np.random.RandomState(zlib.crc32(name.encode()))
  if name.endswith("num_batches_tracked"):
    return np.zeros(shape, np.int64)
  if name.endswith("running_var") or (
    len(shape) == 1 and name.endswith(".weight")
  ):
    return draws.uniform(0.5, 1.5, shape).astype(np.float32)
  if name.startswith("lin"):  # weights of distances are positive
    return draws.uniform(0, 1, shape).astype(np.float32)
  scale = 0.1
  if len(shape) > 1:
    scale = math.sqrt(2 / math.prod(shape[1:]))
  return (scale * draws.standard_normal(shape)).astype(np.float32)


def images(n: int, h: int, w: int) -> np.ndarray:
  """(n, h, w, 3) uint8: ramps with noise."""
  draws = np.random.RandomState(0)
  ramp = np.linspace(0, 150, h * w * 3).reshape(1, h, w, 3)
  x = ramp + draws.uniform(0, 100, (n, h, w, 3))
  return np.rint(x).astype(np.uint8)


def activations(*shape: int) -> np.ndarray:
  """Standard normal, float32."""
  return np.random.RandomState(1).standard_normal(shape).astype(np.float32)
