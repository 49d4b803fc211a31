"""A checkpoint restores bit for bit on any mesh, by any number of processes;
and whoever reads a batch, its bytes are the same.

Saved by `vitscale train` on fsdp 4 x tensor 2, read by one process (1, 2, 4
and 8 devices, three more meshes), two and four over gloo (restore.py).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_processes import ended, fine, free_port
from tests.runs import ROOT, command, python

CONFIG = """
from tests import toys


def get_config(arg=None):
  config = toys.everything()
  config.mesh = {"fsdp": 4, "tensor": 2}
  config.model.width, config.model.mlp_dim = 128, 256  # large enough to split
  config.ema, config.total_steps = 0.9, 4
  return config
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("restore")
  (folder / "config.py").write_text(CONFIG)
  args = ["train", folder / "config.py", "--workdir", folder / "run"]
  process = command(*args, JAX_NUM_CPU_DEVICES="8")
  assert process.returncode == 0, process.stderr[-3000:]
  return folder / "run"


def read(workdir, count, devices=8):
  """What each of `count` processes with `devices` in all says."""
  address = f"localhost:{free_port()}"
  path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  script = Path(__file__).with_name("restore.py")
  processes = [
    subprocess.Popen(
      [sys.executable, script, workdir, address, str(count), str(index)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
      env={
        **os.environ, "PYTHONPATH": path,
        "JAX_NUM_CPU_DEVICES": str(devices // count),
      },
    )
    for index in range(count)
  ]  # fmt: skip
  found = ended(processes)
  fine(found)
  return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


@pytest.fixture(scope="module")
def alone(saved):
  (said,) = read(saved, 1)
  return said


def hashes(*said):
  return {h for each in said for h in each["leaves"].values()}


def batches(said, mesh):
  """Rows of the steps' batches, put together from everyone's block."""
  found = {}
  for each in said:
    block, blocks, steps = each["blocks"][mesh]
    assert found.setdefault(block, steps) == steps  # who shares, agrees
  assert sorted(found) == list(range(blocks))
  return [
    {
      name: [row for b in range(blocks) for row in found[b][i][name]]
      for name in found[0][i]
    }
    for i in range(len(found[0]))
  ]


def test_one_process_on_seven_meshes(alone):
  assert len(alone["leaves"]) == 7 and len(hashes(alone)) == 1, alone["leaves"]
  first, *rest = (batches([alone], mesh) for mesh in alone["blocks"])
  assert [len(step["image"]) for step in first] == [16, 16]
  assert first[0] != first[1]
  assert all(other == first for other in rest)
  placed = list(alone["rows"].values())
  assert all(other == placed[0] for other in placed)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes(saved, alone, count):
  said = read(saved, count)
  assert len(said) == count and all(len(s["leaves"]) == 2 for s in said)
  assert hashes(*said) == hashes(alone)
  want = batches([alone], next(iter(alone["blocks"])))
  for mesh in said[0]["blocks"]:
    assert batches(said, mesh) == want, mesh
    shared = {each["blocks"][mesh][0] for each in said}
    assert len(shared) == (2 if "sequence" in mesh else count)
  placed = {json.dumps(r) for each in said for r in each["rows"].values()}
  assert placed == {json.dumps(r) for r in alone["rows"].values()}


LOAD = """
import hashlib, sys
import jax, numpy as np
import vitscale as vs
_, variables = vs.load(sys.argv[1])
text = hashlib.sha256()
for x in jax.tree.leaves(variables):
  text.update(np.ascontiguousarray(x).tobytes())
print(len(jax.tree.leaves(variables)[0].devices()), text.hexdigest())
"""


def test_load_where_the_batch_does_not_divide(saved):
  """16 examples over 3 devices: a notebook loads the model all the same."""
  said = {}
  for count in (2, 3):
    process = python("-c", LOAD, saved, JAX_NUM_CPU_DEVICES=str(count))
    assert process.returncode == 0, process.stderr[-3000:]
    said[count] = process.stdout.split()
  assert said[2][0] == "2" and said[3][0] == "1"
  assert said[2][1] == said[3][1]
