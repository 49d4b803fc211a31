"""What is timed in a process of its own, which prints one JSON object."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import vitscale
from vitscale.core.errors import UserError


def timed(script: Path, case: Any) -> dict[str, Any]:
  """What `python SCRIPT CASE` prints.

  Args:
    script: gets the case as JSON; its stdout holds the answer alone.
    case: a dataclass with `device`, "cpu" or "gpu".

  Raises:
    UserError: the script failed; it has said why on stderr.
  """
  process = subprocess.run(
    [sys.executable, str(script), json.dumps(dataclasses.asdict(case))],
    stdout=subprocess.PIPE, text=True, env=environment(case.device),
    check=False,
  )  # fmt: skip
  if process.returncode:
    raise UserError(f"{script.name} ended with {process.returncode}, see above")
  return json.loads(process.stdout)


def environment(device: str) -> dict[str, str]:
  """Of a process on that device, with the vitscale that asks."""
  mine = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  home = str(Path(vitscale.__file__).parents[1])
  paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
  mine["PYTHONPATH"] = os.pathsep.join(paths)
  if device == "cpu":
    mine |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
  return mine
