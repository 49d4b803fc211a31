"""Queued resources: goldens, read by gcloud's, bash's and systemd's parsers."""

import json
import re
import shlex
import subprocess

import pytest

from tests.launch.samples import (
  TPU_VM,
  check_golden,
  complaint,
  dry,
  program,
  write,
)  # fmt: skip

CASES = {
  "gcloud_pod": ("v5e:16x16", "--spot", "optim.lr=2e-3"),
  "gcloud_slices": ("2xv5p:8x8x8", "--env", "XLA_FLAGS=--a=1 --b=$2"),
  "gcloud_shape": ("v4:4x4x12", "--network", "fast"),
  "gcloud_one_host": ("v6e:2x4", "--restarts", "3"),
}


def case(capfd, name):
  topology, *more = CASES[name]
  spec = "vit_pod:path=/mnt/lab/imagenet"
  return dry(capfd, spec, "--topology", topology, *TPU_VM, *more)


@pytest.mark.parametrize("name", CASES)
def test_golden(capfd, name):
  check_golden(name, case(capfd, name))


def test_nfs_golden(capfd):
  args = [*TPU_VM]
  args[args.index("gs://lab=/mnt/lab")] = "10.0.0.2:/lab=/mnt/lab"
  result = dry(capfd, "vit_pod", "--topology", "v5e:4x4", *args)
  check_golden("gcloud_nfs", result)


@pytest.mark.parametrize(
  ("topology", "message"),
  [
    ("v5p:4x4x32", "usual shapes only, not v5p:4x4x32: give v5p-1024"),
    ("v5e:3x3", "usual shapes only, not v5e:3x3: give v5litepod-8"),
    ("tpu7x:4x4x4", "gcloud_tpu has no tpu7x machines: use --on gke"),
  ],
)
def test_what_it_can_not(capfd, topology, message):
  assert message in complaint(capfd, "vit_pod", "--topology", topology, *TPU_VM)


@pytest.mark.parametrize("name", CASES)
def test_gcloud_reads_the_commands(capfd, tmp_path, monkeypatch, name):
  """gcloud's own check of a command line; it runs nothing."""
  gcloud = program("gcloud")
  monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
  monkeypatch.setenv("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false")
  monkeypatch.setenv("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "true")
  result = case(capfd, name)
  for argv in result["commands"] + result["undo"]:
    asked = [gcloud, "meta", "lint-gcloud-commands"]
    asked += [f"--command-string={shlex.join(argv)}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    if "Invalid choice" in done.stderr:
      pytest.skip("this gcloud can't check commands")
    (verdict,) = json.loads(done.stdout)
    assert verdict["success"], verdict["error_message"]


@pytest.mark.parametrize("name", CASES)
def test_shell_and_systemd_read_the_script(capfd, tmp_path, name):
  (path,) = write(tmp_path, case(capfd, name))
  subprocess.run(["bash", "-n", path], check=True)
  unit = re.search(r"<<'VITSCALE_UNIT'\n(.*?)VITSCALE_UNIT", path.read_text(),
                   re.DOTALL)[1]  # fmt: skip
  (tmp_path / "vitscale.service").write_text(unit)
  verify = [program("systemd-analyze"), "verify", tmp_path / "vitscale.service"]
  done = subprocess.run(verify, capture_output=True, text=True, timeout=60)
  said = [x for x in done.stderr.splitlines() if "vitscale.service" in x]
  assert not said, done.stderr


def test_the_script_runs(capfd, tmp_path):
  """With stand-ins for what only a TPU VM has: twice, as at a second boot."""
  (path,) = write(tmp_path, case(capfd, "gcloud_slices"))
  text = path.read_text()
  for folder in ("/opt/vitscale", "/etc/systemd/system", "/mnt/lab"):
    text = text.replace(folder, f"{tmp_path}{folder}")
  text = text.replace("export HOME=/root\n", "")
  (tmp_path / "opt/vitscale/bin").mkdir(parents=True)
  (tmp_path / "etc/systemd/system").mkdir(parents=True)
  stand_ins = "".join(
    f'{name}() {{ echo "{name} $*" >> {tmp_path}/calls; }}\n'
    for name in ("gcsfuse", "python3", "systemctl")
  )
  mounted = f"mountpoint() {{ grep -qs ^gcsfuse {tmp_path}/calls; }}\n"
  for _ in range(2):
    subprocess.run(["bash", "-c", stand_ins + mounted + text], check=True)
  calls = (tmp_path / "calls").read_text().splitlines()
  starts = [i for i, x in enumerate(calls) if x.startswith("systemctl start")]
  assert len(starts) == 2
  assert sum(x.startswith("gcsfuse") for x in calls) == 1
  assert sum(x.startswith("python3 -m uv pip install") for x in calls) == 1
  program_ = tmp_path / "opt/vitscale/bin/vitscale"
  program_.write_text('#!/bin/sh\necho "$XLA_FLAGS|$@"\nexit 75\n')
  program_.chmod(0o755)
  run = subprocess.run(
    ["bash", tmp_path / "opt/vitscale/run.sh"], capture_output=True, text=True
  )
  assert run.returncode == 75
  flags, _, argv = run.stdout.strip().partition("|")
  assert flags == "--a=1 --b=$2"
  assert argv.startswith(f"train vit_pod:path={tmp_path}/mnt/lab/imagenet")
  assert argv.endswith("--dist auto --dist-timeout 900")
