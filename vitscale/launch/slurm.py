"""Slurm: a batch script for `vitscale launch`.

All runs are one array of jobs. One process a GPU, as jax wants it under srun.
Slurm sends SIGUSR2 some time before the limit, the run saves itself and ends
with 75, and the script puts the job back into the queue. A job that was
cancelled isn't RUNNING any more and stays out. `vitscale study NAME --launcher
slurm` waits for its runs instead, see slurm_pool.py.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from vitscale.core.errors import UserError
from vitscale.core.topology import NODE
from vitscale.launch.job import AGAIN, Job, check_shared, hosts

SERVES = ("gpu", "cpu")
TAKES = ("partition", "account", "qos", "hours", "cpus", "memory", "parallel",
         "venv")  # fmt: skip
NEEDS = ()
PROGRAM = "sbatch"
INSTALL = "Slurm's commands: run this on a login node of the cluster"

NOTICE = 120  # seconds between SIGUSR2 and the end


def check(job: Job) -> None:
  """Raises UserError for what Slurm doesn't do."""
  if job.mount is not None:
    raise UserError(
      "slurm mounts nothing: give --out a folder that all nodes see"
    )
  if job.spot:
    raise UserError(
      "slurm has no --spot: name a partition whose jobs are preempted"
    )
  check_shared(job.workdir)


def render(jobs: Sequence[Job]) -> dict[str, str]:
  """One script; its log goes to logs/ in the folder of the workdirs."""
  return {f"{_name(jobs)}.sbatch": _script(jobs)}


def commands(jobs: Sequence[Job], folder: Path) -> list[list[str]]:
  return [["sbatch", str(folder / f"{_name(jobs)}.sbatch")]]


def undo(jobs: Sequence[Job]) -> list[list[str]]:
  return [["scancel", f"--jobname={_name(jobs)}"]]


def logs(jobs: Sequence[Job]) -> PurePath:
  """Folder of logs, which Slurm doesn't make: it kills the job instead."""
  return PurePath(jobs[0].options["logs"])


def _name(jobs: Sequence[Job]) -> str:
  return jobs[0].options.get("array") or jobs[0].name


def parameters(jobs: Sequence[Job]) -> dict[str, Any]:
  """What #SBATCH lines say, by option."""
  topology, options = jobs[0].topology, jobs[0].options
  found: dict[str, Any] = {
    "job-name": _name(jobs),
    "output": logs(jobs)
    / f"{_name(jobs)}-{'%A_%a' if _many(jobs) else '%j'}.log",
    "open-mode": "append",
    "time": int(float(options.get("hours") or 24) * 60),
    "signal": f"USR2@{NOTICE}",
    "requeue": True,
    "nodes": 1 if topology is None else hosts(topology),
    "ntasks-per-node": 1 if topology is None else min(topology.gpus, NODE),
  }
  if topology is not None:
    found["gpus-per-node"] = min(topology.gpus, NODE)
  if _many(jobs):
    together = f"%{options['parallel']}" if options.get("parallel") else ""
    found["array"] = f"0-{len(jobs) - 1}{together}"
  names = {"cpus": "cpus-per-task", "memory": "mem"}
  for key in ("partition", "account", "qos", "cpus", "memory"):
    if options.get(key):
      found[names.get(key, key)] = options[key]
  return found


def _many(jobs: Sequence[Job]) -> bool:
  return len(jobs) > 1


def _script(jobs: Sequence[Job]) -> str:
  program = f"{jobs[0].options.get('venv') or sys.prefix}/bin/vitscale"
  lines = [
    f"#SBATCH --{key}" if value is True
    else f"#SBATCH --{key}={shlex.quote(str(value))}"
    for key, value in parameters(jobs).items()
  ]  # fmt: skip
  env = [f"export {k}={shlex.quote(v)}" for k, v in jobs[0].env.items()]
  if _many(jobs):
    runs = [
      f"  {index}) run=({shlex.join(job.train(program))}) ;;"
      for index, job in enumerate(jobs)
    ]
    run = "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *runs, "esac"])
  else:
    run = f"run=({shlex.join(jobs[0].train(program))})"
  # Processes that stop together end one after the other: time for the last.
  srun = f"srun --kill-on-bad-exit=0 --wait={NOTICE}"
  if jobs[0].options.get("cpus"):  # not handed down since Slurm 22.05
    srun += f" --cpus-per-task={jobs[0].options['cpus']}"
  head = "\n".join(["#!/bin/bash", *lines, "", *env])
  return f"""{head}
{run}
{srun} "${{run[@]}}"
code=$?

restarts=${{SLURM_RESTART_COUNT:-0}}
if ((code == {AGAIN} || code > 127)) && ((restarts < {jobs[0].restarts})); then
  state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
  if [ "$state" = RUNNING ]; then
    echo "vitscale: exit code $code, back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
"""
