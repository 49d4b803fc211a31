"""One of N processes that restores a checkpoint and reads batches.

    python restore.py WORKDIR ADDRESS COUNT INDEX

Prints one JSON object: `leaves`, mesh -> one hash of every leaf's bytes;
`blocks`, mesh -> [block of the batch, blocks, hash of its rows for each of
STEPS]; `rows` -> hash of each row of the device's global batch.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vitscale.bench import build
from vitscale.core import distributed, sharding, tree
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.log import read_json

STEPS = (0, 5)


def meshes() -> list[tuple[dict[str, int], list | None]]:
  """Meshes over all devices; alone, over one, two, four and eight of them."""
  if distributed.process_count() == 1:
    here = jax.devices()
    return [({"fsdp": -1}, here[:n]) for n in (1, 2, 4, 8)] + [
      ({"fsdp": 2, "tensor": 2}, here[:4]),
      ({"replica": 2, "fsdp": 2, "tensor": 2}, here),
      ({"fsdp": 2, "tensor": 2, "sequence": 2}, here),
    ]
  # In the second a process has fewer rows than devices: two read the same.
  count = jax.device_count()
  return [({"fsdp": -1}, None), ({"fsdp": 2, "sequence": count // 2}, None)]


def sha(*arrays: np.ndarray) -> str:
  text = hashlib.sha256()
  for array in arrays:
    array = np.ascontiguousarray(array)
    text.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
  return text.hexdigest()


def whole(x: jax.Array) -> np.ndarray:
  """All of an array that may lie on several processes."""
  if distributed.process_count() == 1:
    return np.asarray(x)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def main(workdir: Path, address: str, count: int, index: int) -> None:
  if count > 1:
    distributed.initialize(
      "explicit", coordinator=address, num_processes=count, process_id=index
    )
  config = ConfigDict(read_json(workdir / "run.json")["config"])
  out = {"leaves": {}, "blocks": {}, "rows": {}}
  for shape, devices in meshes():
    config.mesh = ConfigDict(shape)
    bench = build(config, devices=devices)
    name = f"{shape} of {bench.mesh.size}"
    state, _ = CheckpointStore(workdir / "checkpoints").restore(bench.abstract)
    flat = tree.flatten(state)
    split = sum(not x.sharding.is_fully_replicated for x in flat.values())
    assert split > 9 or bench.mesh.size == 1, (name, split)
    parts = [sha(np.frombuffer(k.encode(), np.uint8)) for k in sorted(flat)]
    parts += [sha(whole(flat[k])) for k in sorted(flat)]
    out["leaves"][name] = sha(np.array(parts))

    block, blocks = sharding.data_block(bench.mesh, bench.rules)
    found, rows = [], []
    for step in STEPS:
      batches = bench.batches(step, config.seed)
      batch = next(batches)
      batches.close()
      found.append({k: [sha(row) for row in v] for k, v in batch.items()})
      placed = sharding.shard_batch(batch, bench.mesh, bench.rules)
      rows.append({k: sha(whole(v)) for k, v in placed.items()})
    out["blocks"][name] = [block, blocks, found]
    out["rows"][name] = rows
  print(json.dumps(out))


if __name__ == "__main__":
  main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
