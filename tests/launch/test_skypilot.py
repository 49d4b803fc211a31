"""SkyPilot tasks: goldens, and read by SkyPilot where it is installed."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.samples import (
  SKY,
  check_golden,
  complaint,
  dry,
  program,
  write,
)  # fmt: skip

CASES = {
  "skypilot_gpus": ("gpu:16xH100", "--spot"),
  "skypilot_gpu": ("gpu:4xA100", "--infra", "aws", "--env", "A=it's 1"),
  "skypilot_pod": ("v5e:16x16", "--install", "vitscale[tpu]"),
  "skypilot_host": ("v6e:2x4",),
}


def case(capfd, name):
  topology, *more = CASES[name]
  spec = "vit_pod:path=/mnt/lab/imagenet"
  return dry(capfd, spec, "--topology", topology, *SKY, *more)


def nfs(capfd):
  args = ["nas:/lab=/mnt/lab" if "gs://" in x else x for x in SKY]
  return dry(capfd, "vit_pod", "--topology", "gpu:8xH200", *args)


@pytest.mark.parametrize("name", CASES)
def test_golden(capfd, name):
  check_golden(name, case(capfd, name))


def test_nfs_golden(capfd):
  check_golden("skypilot_nfs", nfs(capfd))


def test_scripts_are_shell(capfd):
  for result in (case(capfd, "skypilot_gpus"), nfs(capfd)):
    (text,) = result["files"].values()
    task = yaml.safe_load(text)
    for part in ("setup", "run"):
      subprocess.run(["bash", "-n", "-c", task[part]], check=True)


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("2xv5e:4x4", "one slice of the usual shape, not 2xv5e:4x4: use --on gke"),
    ("v5p:4x4x32", "one slice of the usual shape"),
    ("tpu7x:2x2x2", "skypilot has no tpu7x: use --on gke"),
  ],
)
def test_what_it_can_not(capfd, topology, message):
  assert message in complaint(capfd, "vit_pod", "--topology", topology, *SKY)


READ = """
import json, sys, sky
task = sky.Task.from_yaml(sys.argv[1])
(one,) = task.resources
print(json.dumps({
  "name": task.name, "nodes": task.num_nodes, "spot": one.use_spot,
  "accelerators": one.accelerators, "recovery": one.job_recovery,
  "mounts": sorted(task.storage_mounts)}))
"""


@pytest.mark.parametrize("name", CASES)
def test_skypilot_reads_the_task(capfd, tmp_path, monkeypatch, name):
  python = Path(program("sky")).resolve().parent / "python"
  if not python.exists():
    pytest.skip("no Python beside sky")
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
  (path,) = write(tmp_path, case(capfd, name))
  done = subprocess.run(
    [python, "-c", READ, path], capture_output=True, text=True, timeout=300,
    cwd=Path(__file__).parents[2],
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  read = json.loads(done.stdout.splitlines()[-1])
  assert read["name"] == "vit-pod"
  assert read["nodes"] == (2 if name == "skypilot_gpus" else 1)
  assert read["spot"] == (name == "skypilot_gpus")
  assert (
    read["accelerators"]
    == {
      "skypilot_gpus": {"H100": 8},
      "skypilot_gpu": {"A100-80GB": 4},
      "skypilot_pod": {"tpu-v5litepod-256": 1},
      "skypilot_host": {"tpu-v6e-8": 1},
    }[name]
  )
  assert 75 in read["recovery"]["recover_on_exit_codes"]
  assert read["recovery"]["strategy"]
  assert read["mounts"] == ["/mnt/lab"]
