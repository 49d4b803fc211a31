"""One of two processes with two fake devices each: `pair.py PORT INDEX`."""

import sys

import jax
import numpy as np

from vitscale.core import distributed, sharding


def main(port: str, index: str) -> None:
  distributed.initialize(
    "explicit",
    coordinator=f"localhost:{port}",
    num_processes=2,
    process_id=int(index),
    timeout_seconds=60,
  )
  assert distributed.process_count() == 2
  assert distributed.is_main() == (index == "0")
  rows = np.arange(8, dtype=np.float32).reshape(8, 1)

  mesh = sharding.make_mesh()  # every process reads half of the rows
  assert sharding.data_block(mesh) == (int(index), 2)
  half = rows[4 * int(index) :][:4]
  batch = sharding.shard_batch({"x": half}, mesh)["x"]
  assert batch.shape == (8, 1)
  with sharding.use(mesh):
    weights = np.arange(8, dtype=np.float32).reshape(8, 1)
    total = jax.jit(lambda x: (x * weights).sum())(batch)
  assert float(total) == 140.0, total  # rows are where they belong

  mesh = sharding.make_mesh({"tensor": 4})  # both read all of them
  assert sharding.data_block(mesh) == (0, 1)
  batch = sharding.shard_batch({"x": rows}, mesh)["x"]
  np.testing.assert_array_equal(batch.addressable_shards[0].data, rows)
  print("fine")


if __name__ == "__main__":
  main(*sys.argv[1:])
