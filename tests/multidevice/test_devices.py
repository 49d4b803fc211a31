"""Eight fake devices in one process of their own, two processes together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NAMES = [
  line.strip(" ,\n")
  for line in (HERE / "checks.py")
  .read_text()
  .split("CHECKS = [")[1]
  .split("]")[0]
  .splitlines()
  if line.strip()
]


def environment(devices: int) -> dict[str, str]:
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "PYTHONPATH": path,
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
  }


@pytest.fixture(scope="module")
def results():
  run = subprocess.run(
    [sys.executable, HERE / "checks.py"],
    env=environment(8),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices(results, name):
  assert results[name] == "", results[name]


def test_two_processes():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = str(probe.getsockname()[1])
  pair = [
    subprocess.Popen(
      [sys.executable, HERE / "pair.py", port, str(index)],
      env=environment(2),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    for process in pair:
      out, err = process.communicate(timeout=120)
      assert process.returncode == 0 and "fine" in out, err[-3000:]
  finally:
    for process in pair:
      if process.poll() is None:
        process.kill()
