"""Bit rot: whatever happens to a file, a restore is exact or says so.

One seeded byte is changed in each file of a checkpoint in turn. The restore
then gives that step bit for bit (the byte was harmless), or names what is
damaged and gives the step before it bit for bit.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import tree
from vitscale.core.checkpoint import MANIFEST, CheckpointStore

FLIPS = 240


def state(step):
  key = jax.random.key(step)
  draw = lambda i, *s: jax.random.normal(jax.random.fold_in(key, i), s)
  params = {
    "kernel": draw(0, 48, 64),
    "half": draw(1, 40, 40).astype(jnp.bfloat16),
    "bias": draw(2, 5),
    "zeros": jnp.zeros((64, 64)),
  }
  return {
    "step": jnp.int32(step),
    "params": params,
    "mu": jax.tree.map(jnp.ones_like, params),
    "mask": draw(3, 700) > 0,
  }


ABSTRACT = jax.eval_shape(state, 0)


def exact(got, step):
  want = tree.flatten(state(step))
  bits = lambda x: np.atleast_1d(np.asarray(x)).view(np.uint8)
  return all(
    np.array_equal(bits(x), bits(want[name]))
    for name, x in tree.flatten(got).items()
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("flips")
  store = CheckpointStore(folder)
  for step in (1, 2):
    store.save(step, state(step), {})
  store.close()
  files = sorted(p for p in (folder / "2").rglob("*") if p.is_file())
  assert len(files) > 8 and any(p.stat().st_size > 4096 for p in files)
  return folder, files


def outcome(folder):
  """ "harmless" or what was said, after checking that nothing is silent."""
  said = []
  back, facts = CheckpointStore(folder, say=said.append).restore(ABSTRACT)
  assert facts["step"] == (1 if said else 2), said
  assert exact(back, facts["step"]), f"silent corruption: {said}"
  return said[0] if said else "harmless"


def test_flipped_bytes(saved):
  folder, files = saved
  rng, seen = np.random.default_rng(0), collections.defaultdict(list)
  for trial in range(FLIPS):
    path = files[trial % len(files)]
    good = path.read_bytes()
    bad = bytearray(good)
    bad[rng.integers(len(bad))] ^= int(rng.integers(1, 256))
    path.write_bytes(bytes(bad))
    seen[path.relative_to(folder / "2")].append(outcome(folder))
    path.write_bytes(good)
  assert outcome(folder) == "harmless"
  assert len(seen) == len(files)
  caught = sum(o != "harmless" for found in seen.values() for o in found)
  print(f"{FLIPS} flips in {len(files)} files: {caught} detected, rest exact")
  assert caught > FLIPS / 4  # the trial can fail
  leaves = {
    name
    for found in seen.values()
    for o in found
    for name in ("params/kernel", "params/half", "mu/kernel")
    if name in o
  }
  assert leaves  # flips in data name their leaf


@pytest.mark.parametrize("damage", ["zeroed", "truncated", "deleted"])
def test_worse_than_a_byte(saved, damage):
  folder, files = saved
  for path in files:
    if path.name == MANIFEST and damage == "deleted":
      continue  # then it is no checkpoint: tests/core/test_checkpoint.py
    good = path.read_bytes()
    if damage == "zeroed":
      path.write_bytes(bytes(min(4096, len(good))) + good[4096:])
    elif damage == "truncated":
      path.write_bytes(good[: len(good) // 2])
    else:
      path.unlink()
    outcome(folder)
    path.write_bytes(good)
