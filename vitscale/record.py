"""run.json: what a run is, whose workdir it is in, and how it ended."""

import datetime
import functools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vitscale.bench import Bench
from vitscale.core import ceiling, draws
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.core.log import read_json


def claim(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
  """The run.json already in `workdir`, after checking that it is ours.

  Raises:
    UserError: the workdir belongs to another config (difference shown).
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"can't make workdir {workdir}: {error.strerror}"
    ) from error
  previous = read_json(workdir / "run.json")
  if previous is None:
    strangers = sorted(p.name for p in workdir.iterdir())
    if "metrics.jsonl" in strangers or "checkpoints" in strangers:
      raise UserError(
        f"{workdir} holds a run without run.json: choose another workdir"
      )
    return None
  if previous.get("config_digest") != config_lib.digest(config):
    lines = config_lib.difference(previous.get("config", {}), config)
    shown = "; ".join(lines[:6]) or (
      f"vitscale {previous.get('versions', {}).get('vitscale')} -> now"
    )
    raise UserError(
      f"{workdir} belongs to another config ({shown}); nothing was changed,"
      " choose another workdir"
    )
  return previous


def check_data(workdir: Path, previous: Any, now: str | None) -> None:
  """A run must see the data it started with (None: they are gone)."""
  before = (previous or {}).get("data_fingerprint")
  if before and now and before != now:
    raise UserError(
      f"the data of {workdir} changed since the run began"
      f" ({before} -> {now}): choose another workdir"
    )


def describe(config: Mapping[str, Any], bench: Bench) -> dict[str, Any]:
  """run.json of a run about to start."""
  from importlib import metadata

  import vitscale

  devices = list(bench.mesh.devices.flat)
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
  dtype = ceiling.dtype_of(bench.model)
  tokens = bench.facts["tokens_per_example"]
  examples = bench.total_steps * bench.batch_size
  flops = draws.mean_of(bench.draws, bench.flops, config["seed"])
  return {
    "config": config_lib.to_dict(config),
    "config_digest": config_lib.digest(config),
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    "command": sys.argv,
    "git_commit": git_commit(),
    "versions": {"vitscale": vitscale.__version__}
    | {name: metadata.version(name) for name in packages},
    "devices": [devices[0].device_kind, len(devices)],
    "compute_dtype": dtype,
    "gemm_flops_per_second": ceiling.flops_per_second(devices, dtype),
    "processes": jax.process_count(),
    "mesh": dict(bench.mesh.shape),
    "total_steps": bench.total_steps,
    **bench.facts,
    "law_variables": {
      "params": bench.facts["params"],
      "params_non_embedding": bench.facts["params_non_embedding"],
      "tokens_per_example": tokens,
      "examples": examples,
      "flops": flops(bench.total_steps) * examples,
      **dict(config.get("law_variables") or {}),
    },
  }


@functools.cache
def git_commit() -> str | None:
  """The commit this code runs from, with `+` when changed; None outside git.

  Asked once: a process runs what it has imported, whatever is committed since.
  """
  folder = Path(__file__).parent
  if not (folder.parent / "setup.py").exists():
    return None  # installed: a repository around it is somebody else's

  def git(*args: str) -> str:
    return subprocess.run(
      ["git", "-C", str(folder), *args],
      capture_output=True, text=True, check=True, timeout=10,
    ).stdout.strip()  # fmt: skip

  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None


def result(workdir: Path, run: Mapping[str, Any]) -> dict[str, Any]:
  """What `vitscale train --json` prints."""
  return {
    "status": run["status"],
    "step": run.get("step", 0),
    "metrics": run.get("metrics", {}),
    "params": run["params"],
    "flops_per_example": run["flops_per_example"],
    "mfu": run.get("mfu"),
    "goodput": run.get("goodput"),
    "workdir": str(workdir),
  }
