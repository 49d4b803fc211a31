"""xpk workloads: goldens, and read by xpk itself where it is installed."""

import subprocess

import pytest
import yaml

from tests.launch.samples import (
  GKE,
  check_golden,
  complaint,
  dry,
  program,
  write,
)  # fmt: skip
from vitscale.core import topology as topology_lib
from vitscale.launch import job as job_lib

CASES = {
  "gke_pod": ("v5e:16x16", "--env", "XLA_FLAGS=--a=1 --b"),
  "gke_slices": ("2xv5p:8x8x8", "--spot", "--priority", "high"),
  "gke_ironwood": ("tpu7x:4x4x4", "--restarts", "5"),
  "gke_one_host": ("v6e:2x2",),
}


def case(capfd, name):
  topology, *more = CASES[name]
  spec = "vit_pod:path=/mnt/lab/imagenet"
  return dry(capfd, spec, "--topology", topology, *GKE, *more)


@pytest.mark.parametrize("name", CASES)
def test_golden(capfd, name):
  check_golden(name, case(capfd, name))


def test_what_it_can_not(capfd):
  args = ("vit_pod", "--topology", "v5e:4x4", *GKE)
  assert "one of: very-low" in complaint(capfd, *args, "--priority", "top")


@pytest.mark.parametrize("name", CASES)
def test_xpk_reads_the_commands(capfd, tmp_path, monkeypatch, name):
  """xpk renders its JobSet from our command line, and runs nothing."""
  xpk = program("xpk")
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false")
  result = case(capfd, name)
  write(tmp_path, result)
  (argv,) = result["commands"]
  argv = [
    f"--env-file={tmp_path}/vit-pod.env" if "--env-file" in x else x
    for x in argv
  ]
  manifest = tmp_path / "jobset.yaml"
  argv += ["--dry-run", "--skip-validation", "--project-number=1"]
  argv += [f"--output-manifest-file={manifest}"]
  done = subprocess.run(
    [xpk, *argv[1:]], capture_output=True, text=True, timeout=120, cwd=tmp_path
  )
  assert done.returncode == 0, done.stdout + done.stderr
  text = manifest.read_text()
  assert yaml.safe_load(text)["spec"]["failurePolicy"]["maxRestarts"] == (
    5 if name == "gke_ironwood" else 20
  )
  topology = topology_lib.parse(CASES[name][0])
  (jobs,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
  hosts = job_lib.hosts(topology, largest=4) // topology.slices
  assert jobs["replicas"] == topology.slices
  assert jobs["template"]["spec"]["parallelism"] == hosts
  assert "values: [42,75,127" in text
  assert "exec vitscale train vit_pod:path=/mnt/lab/imagenet" in text
  assert ("--dist auto" in text) == (hosts * topology.slices > 1)
