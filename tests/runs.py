"""What tests of real runs share: read a run, compare two, call the command."""

import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vitscale.bench import build
from vitscale.core import tree
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.log import read_json

ROOT = Path(__file__).parents[1]


def state_of(workdir):
  """Every leaf of the last checkpoint, by name."""
  config = ConfigDict(read_json(workdir / "run.json")["config"])
  state, _ = CheckpointStore(workdir / "checkpoints").restore(
    build(config).abstract
  )
  return {k: np.asarray(v) for k, v in tree.flatten(state).items()}


def assert_same_run(a, b):
  """Bit for bit: parameters, optimizer, EMA, metrics.jsonl."""
  left, right = state_of(a), state_of(b)
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)
  assert (a / "metrics.jsonl").read_bytes() == (
    b / "metrics.jsonl"
  ).read_bytes()


def complete(workdir):
  """Steps of the checkpoints that count."""
  return CheckpointStore(workdir / "checkpoints").steps()


def contents(folder):
  """Bytes and time of change of every file."""
  return {
    p: (p.read_bytes(), p.stat().st_mtime_ns)
    for p in folder.rglob("*")
    if p.is_file()
  }


def python(*args, **env):
  """A Python process that finds the package and these tests."""
  path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  return subprocess.run(
    [sys.executable, *map(str, args)],
    capture_output=True, text=True, timeout=600, cwd=ROOT,
    env={**os.environ, "PYTHONPATH": path, **env},
  )  # fmt: skip


def command(*args, **env):
  """The real `vitscale` in a process of its own."""
  return python("-m", "vitscale.cli", *args, **env)


def print_results(checks):
  """Runs the checks of a process; prints name -> "" or the traceback."""
  assert jax.device_count() == 8, jax.devices()
  results = {}
  for check in checks:
    try:
      check()
      results[check.__name__] = ""
    except Exception:
      results[check.__name__] = traceback.format_exc()
  print(json.dumps(results))


def complaint(err, *, noise=False):
  """The last line of a failed command, its only one but for progress.

  Args:
    err: what it wrote to stderr.
    noise: threads of libraries may have printed tracebacks around it, even
      into its line.
  """
  start = "vitscale: " if noise else "^vitscale: "
  lines = re.findall(start + ".*", err, re.MULTILINE)
  assert len(lines) == 1, err
  if not noise:
    assert "Traceback" not in err, err
    assert err.rstrip().endswith(lines[0]), err
  return lines[0]
