"""SkyPilot: GPUs of any cloud, TPUs of Google's, as managed jobs.

One YAML a run, for `sky jobs launch`, which watches the run: a machine that
was taken away is replaced, and a run that ended with 75 or by a signal is
started again, both as often as needed. The folder `--code` (default: the
current one) is copied to the machines and installed there.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vitscale.core.errors import UserError
from vitscale.core.topology import NODE
from vitscale.launch.gcloud_tpu import RUNTIMES, mount_lines
from vitscale.launch.job import (
  AGAIN,
  Job,
  cloud_name,
  hosts,
  is_usual,
  need_mount,
)  # fmt: skip

SERVES = ("tpu", "gpu")
TAKES = ("infra", "install", "code")
NEEDS = ("topology",)
PROGRAM = "sky"
INSTALL = "SkyPilot: pip install 'skypilot[gcp]' (or your cloud's extra)"

GPU_NAMES = {"A100": "A100-80GB"}  # others are named as here
# Aborted, killed, out of memory, crashed: as bash tells it.
SIGNALS = (134, 135, 137, 139, 143)
PORT = 8476
VENV = "~/vitscale-env"


def check(job: Job) -> None:
  """Raises UserError for what SkyPilot doesn't give."""
  topology = job.topology
  if topology.is_tpu:
    if topology.chip not in RUNTIMES:
      raise UserError(f"skypilot has no {topology.chip}: use --on gke")
    if topology.slices > 1 or not is_usual(topology):
      raise UserError(
        f"skypilot gives one slice of the usual shape, not {topology.name}:"
        " use --on gke"
      )
  need_mount(job, "skypilot")


def render(jobs: Sequence[Job]) -> dict[str, str]:
  """One task a job."""
  return {f"{job.name}.yaml": _yaml(_task(job)) for job in jobs}


def commands(jobs: Sequence[Job], folder: Path) -> list[list[str]]:
  return [
    ["sky", "jobs", "launch", "--yes", "--detach-run"]
    + ["--name", job.name, str(folder / f"{job.name}.yaml")]
    for job in jobs
  ]


def undo(jobs: Sequence[Job]) -> list[list[str]]:
  return [
    ["sky", "jobs", "cancel", "--yes", "--name", job.name] for job in jobs
  ]


def _task(job: Job) -> dict[str, Any]:
  """The task as SkyPilot reads it."""
  topology, mount = job.topology, job.mount
  resources: dict[str, Any] = {}
  if job.options.get("infra") or topology.is_tpu:
    resources["infra"] = job.options.get("infra") or "gcp"
  if topology.is_tpu:
    resources["accelerators"] = f"tpu-{cloud_name(topology)}"
    resources["accelerator_args"] = {"runtime_version": RUNTIMES[topology.chip]}
  else:
    kind = GPU_NAMES.get(topology.chip, topology.chip)
    resources["accelerators"] = f"{kind}:{min(topology.gpus, NODE)}"
  resources["use_spot"] = job.spot
  resources["job_recovery"] = {
    "strategy": "EAGER_NEXT_REGION" if not topology.is_tpu else "FAILOVER",
    "max_restarts_on_errors": 0,
    "recover_on_exit_codes": [AGAIN, *SIGNALS],
  }
  task: dict[str, Any] = {
    "name": job.name,
    "resources": resources,
    "num_nodes": 1 if topology.is_tpu else hosts(topology),
  }
  if not job.options.get("install"):
    task["workdir"] = job.options.get("code") or "."
  if job.env:
    task["envs"] = dict(job.env)
  if mount.bucket:
    task["file_mounts"] = {
      mount.folder: {"source": mount.source.rstrip("/"), "mode": "MOUNT"}
    }
  return {**task, "setup": _setup(job), "run": _run(job)}


def _setup(job: Job) -> str:
  """Installs the code, with a Python that is new enough."""
  extra = "tpu" if job.topology.is_tpu else "cuda"
  install = job.options.get("install")
  what = shlex.quote(install) if install else f"--editable '.[{extra}]'"
  text = f"""set -e
python3 -m pip install --quiet uv
python3 -m uv venv --quiet --clear --python 3.12 {VENV}
python3 -m uv pip install --quiet --python {VENV}/bin/python {what}
"""
  if job.mount.bucket:
    return text
  lines = mount_lines(job.mount)
  return f"{text}sudo bash -e <<'VITSCALE_MOUNT'\n{lines}VITSCALE_MOUNT\n"


def _run(job: Job) -> str:
  """The run; GPU nodes are told of each other, TPU hosts know."""
  count = hosts(job.topology)
  several = ("--dist", "auto") if job.topology.is_tpu and count > 1 else ()
  train = shlex.join(job.train("vitscale", *several))
  text = f"source {VENV}/bin/activate\n"
  if job.topology.is_tpu or count == 1:
    return f"{text}{train}\n"
  return f"""{text}head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
{train} \\
  --coordinator "$head:{PORT}" --num-processes "$SKYPILOT_NUM_NODES" \\
  --process-id "$SKYPILOT_NODE_RANK"
"""


class _Dumper(yaml.SafeDumper):
  """YAML with scripts as blocks."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
  style = "|" if "\n" in text else None
  return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)


def _yaml(task: dict[str, Any]) -> str:
  return yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=1000)
