"""Google Cloud TPU VMs, by queued resources.

Each host of the slice gets one start-up script: it mounts the storage,
installs the code and leaves the run to systemd, which starts it again after
exit code 75 or a signal, and after a reboot, and stops it with SIGTERM when the
machine goes: the run saves itself. A spot slice that was taken away is
SUSPENDED and does not come back: delete it (`undo`) and launch again.
"""

import dataclasses
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from vitscale.core.errors import UserError
from vitscale.launch.job import (
  AGAIN,
  Job,
  Mount,
  cloud_name,
  hosts,
  is_usual,
  need_mount,
)  # fmt: skip

SERVES = ("tpu",)
TAKES = ("project", "zone", "install", "runtime", "network")
NEEDS = ("project", "zone", "install", "topology")
PROGRAM = "gcloud"
INSTALL = "the Google Cloud CLI, cloud.google.com/sdk/docs/install"

# Machine images, cloud.google.com/tpu/docs/runtimes; for JAX.
RUNTIMES = {
  "v4": "tpu-ubuntu2204-base",
  "v5e": "v2-alpha-tpuv5-lite",
  "v5p": "v2-alpha-tpuv5",
  "v6e": "v2-alpha-tpuv6e",
}
HOME = "/opt/vitscale"


def check(job: Job) -> None:
  """Raises UserError for what queued resources don't give."""
  topology = job.topology
  if topology.chip not in RUNTIMES:
    raise UserError(f"gcloud_tpu has no {topology.chip} machines: use --on gke")
  if not is_usual(topology) and topology.chip != "v4":
    power = 2 ** (math.prod(topology.shape).bit_length() - 1)
    usual = cloud_name(dataclasses.replace(topology, shape=(power,)))
    raise UserError(
      f"gcloud_tpu gives {topology.chip} in its usual shapes only, not"
      f" {topology.name}: give {usual}, or use --on gke"
    )
  need_mount(job, "gcloud_tpu")


def render(jobs: Sequence[Job]) -> dict[str, str]:
  """One start-up script a job."""
  return {f"{job.name}.sh": _script(job) for job in jobs}


def commands(jobs: Sequence[Job], folder: Path) -> list[list[str]]:
  return [_create(job, folder) for job in jobs]


def undo(jobs: Sequence[Job]) -> list[list[str]]:
  return [
    ["gcloud", "compute", "tpus", "queued-resources", "delete", job.name]
    + [*_place(job), "--force", "--quiet"]
    for job in jobs
  ]


def _create(job: Job, folder: Path) -> list[str]:
  topology = job.topology
  if is_usual(topology):
    kind = [f"--accelerator-type={cloud_name(topology)}"]
  else:
    shape = "x".join(map(str, topology.shape))
    kind = [f"--type={topology.chip}", f"--topology={shape}"]
  if topology.slices > 1:
    nodes = [f"--node-count={topology.slices}", f"--node-prefix={job.name}"]
  else:
    nodes = [f"--node-id={job.name}"]
  runtime = job.options.get("runtime") or RUNTIMES[topology.chip]
  argv = ["gcloud", "compute", "tpus", "queued-resources", "create", job.name]
  argv += [*_place(job), *kind, *nodes, f"--runtime-version={runtime}"]
  argv += [f"--metadata-from-file=startup-script={folder / job.name}.sh"]
  if job.options.get("network"):
    argv += [f"--network={job.options['network']}"]
  return argv + (["--spot"] if job.spot else []) + ["--quiet"]


def _place(job: Job) -> list[str]:
  return [f"--{key}={job.options[key]}" for key in ("project", "zone")]


# --------------------------------------------------------------------- script


def _script(job: Job) -> str:
  dist = ("--dist", "auto", "--dist-timeout", "900")
  several = dist if hosts(job.topology) > 1 else ()
  train = shlex.join(job.train(f"{HOME}/bin/vitscale", *several))
  env = "".join(
    f"export {key}={shlex.quote(value)}\n" for key, value in job.env.items()
  )
  install = shlex.quote(job.options["install"])
  return f"""#!/bin/bash
# {job.name}: {job.topology.describe()}
# Runs at every boot, on every host, as root.
set -euo pipefail
export HOME=/root

{mount_lines(job.mount)}
# The images' own Python is 3.10.
if [ ! -e {HOME}/installed ]; then
  python3 -m pip install --quiet uv
  python3 -m uv venv --quiet --clear --python 3.12 {HOME}
  python3 -m uv pip install --quiet --python {HOME}/bin/python {install}
  touch {HOME}/installed
fi

cat > {HOME}/run.sh <<'VITSCALE_RUN'
{env}exec {train}
VITSCALE_RUN

cat > /etc/systemd/system/vitscale.service <<'VITSCALE_UNIT'
{_unit(job)}VITSCALE_UNIT
systemctl daemon-reload
systemctl start --no-block vitscale.service
"""


def _unit(job: Job) -> str:
  """The systemd unit: 75 and signals start again, other codes end it."""
  return f"""[Unit]
Description=vitscale train {job.name}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=infinity
StartLimitBurst={job.restarts + 1}

[Service]
ExecStart=/bin/bash {HOME}/run.sh
Restart=on-abnormal
RestartForceExitStatus={AGAIN}
RestartSec=10
TimeoutStopSec=90
"""


def mount_lines(mount: Mount) -> str:
  """Shell that mounts the storage, if that isn't done yet (Debian, root)."""
  source, folder = shlex.quote(mount.source), shlex.quote(mount.folder)
  if not mount.bucket:
    return f"""mkdir -p {folder}
if ! mountpoint -q {folder}; then
  apt-get update -q && apt-get install -q -y nfs-common
  mount -t nfs -o hard {source} {folder}
fi
"""
  # Checkpoints are committed by renaming a folder, which gcsfuse refuses
  # beyond a number of files unless told.
  return f"""mkdir -p {folder}
if ! command -v gcsfuse > /dev/null; then
  host=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  curl -fsS $host/doc/apt-key.gpg -o $key
  echo "deb [signed-by=$key] $host gcsfuse-$(lsb_release -cs) main" \\
    > /etc/apt/sources.list.d/gcsfuse.list
  apt-get update -q && apt-get install -q -y gcsfuse
fi
if ! mountpoint -q {folder}; then
  gcsfuse --implicit-dirs --rename-dir-limit=100000 {mount.bucket} {folder}
fi
"""
