"""Names of pods, their figures, and meshes over them."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vitscale import plan
from vitscale.core import accounting, mesh, topology
from vitscale.core.errors import UserError


@pytest.mark.parametrize(
  ("text", "name", "chips", "devices"),
  [
    ("v5e:16x16", "v5e:16x16", 256, 256),
    ("v5litepod-256", "v5e:16x16", 256, 256),
    ("v5litepod-8", "v5e:2x4", 8, 8),
    ("v6e-32", "v6e:4x8", 32, 32),
    ("v5p-8", "v5p:2x2x1", 4, 4),
    ("v5p-32", "v5p:2x2x4", 16, 16),
    ("v5p-512", "v5p:4x8x8", 256, 256),
    ("v5p-1024", "v5p:8x8x8", 512, 512),
    ("v4-4096", "v4:8x16x16", 2048, 2048),
    ("v4:2x2x2", "v4:2x2x2", 8, 8),
    ("tpu7x:4x4x4", "tpu7x:4x4x4", 64, 128),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 128),
    ("2xv5e:16x16", "2xv5e:16x16", 512, 512),
    ("gpu:8xH100", "gpu:8xH100", 8, 8),
    ("gpu:64xh100", "gpu:64xH100", 64, 64),
  ],
)
def test_names(text, name, chips, devices):
  found = topology.parse(text)
  assert (found.name, found.chips, found.devices) == (name, chips, devices)
  assert topology.parse(found.name) == found


def test_an_island_is_a_slice_or_a_node():
  assert topology.parse("2xv5e:16x16").island == 256
  assert topology.parse("tpu7x:2x2x1").island == 8
  assert topology.parse("gpu:64xH100").island == 8


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("v5x:4x4", "no chip 'v5x', did you mean 'v5p'?"),
    ("v5x:4x4", "known: v4, v5e, v5p, v6e, tpu7x"),
    ("v5e:16", "v5e has 2 dimensions, for example v5e:4x4"),
    ("v5e:4x0", "shape '4x0', not like 4x4"),
    ("v5p-100", "100 TensorCores have no usual shape; give it, as v5p:4x8x8"),
    ("gpu:8xV100", "no GPU 'V100', did you mean 'H100'?"),
    ("gpu:12xH100", "12 GPUs are not whole nodes of 8"),
    ("0xv5e:2x2", "at least one slice"),
    ("a pod", "is no name like v5e:16x16"),
  ],
)
def test_strange_names(text, message):
  with pytest.raises(UserError) as error:
    topology.parse(text)
  assert message in str(error.value)


@pytest.mark.parametrize("name", topology.CHIPS)
def test_every_chip_has_a_peak(name):
  chip = topology.CHIPS[name]
  assert accounting.peak_flops(chip.kind)
  assert chip.link > chip.network > 0 and chip.bandwidth > chip.link


def test_one_slice_gives_the_plain_mesh():
  ours, plain = topology.make_mesh(), mesh.make_mesh()
  assert ours == plain
  assert topology.make_mesh({"replica": -1}).shape["replica"] == (
    jax.device_count()
  )


@pytest.mark.parametrize(
  ("platform", "count", "slices", "sizes", "fsdp"),
  [
    ("cpu", 8, 1, (64, 128), 8),
    ("cpu", 8, 1, (36, 96), 2),  # 8 does not divide 36, 4 leave 9 rows
    ("cpu", 6, 1, (35,), 1),
    ("cpu", 8, 1, (), 8),
    ("tpu", 8, 1, (64, 128), 4),  # 16 rows each
    ("tpu", 512, 1, (384, 1536), 16),
    ("tpu", 512, 2, (1024,), 64),
    ("gpu", 512, 1, (768,), 32),  # 256 would leave 3 rows
  ],
)
def test_default_mesh_divides_the_model(platform, count, slices, sizes, fsdp):
  devices = [SimpleNamespace(platform=platform) for _ in range(count)]
  assert topology.default_fsdp(devices, slices, sizes) == fsdp


def test_default_mesh_has_all_devices():
  sizes = topology.make_mesh(None, None, (35,)).shape
  assert sizes["replica"] * sizes["fsdp"] == jax.device_count()


MESHES = """
import json
from vitscale.core import topology

def mesh(name, shape):
  devices = topology.devices(topology.parse(name))
  return topology.make_mesh(shape, devices).devices

out = {}
grid = mesh("2xv5e:2x2", None)
out["slices"] = [[d.slice_index for d in row.flat] for row in grid]
grid = mesh("2xv5e:2x2", {"replica": 4, "fsdp": 2})
out["replicas"] = [[d.slice_index for d in row.flat] for row in grid]
out["cut"] = mesh("v5p:8x8x8", {"replica": -1, "fsdp": 16}).shape
out["v4"] = mesh("v4:2x2x1", None).shape
try:
  mesh("2xv5e:2x2", {"replica": 1, "fsdp": -1})
except topology.UserError as error:
  out["error"] = str(error)
print(json.dumps(out))
"""


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu, the TPU compiler, is not installed",
)
def test_meshes_of_pods():
  done = subprocess.run(
    [sys.executable, "-c", MESHES],
    env=plan.environment(1),
    capture_output=True, text=True, timeout=300, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["slices"] == [[0] * 4, [1] * 4]
  assert found["replicas"] == [[0] * 2, [0] * 2, [1] * 2, [1] * 2]
  assert found["cut"] == [32, 16, 1, 1] and found["v4"] == [1, 4, 1, 1]
  assert "replica should be a multiple of 2" in found["error"]
  assert np.prod(found["cut"]) == 512
