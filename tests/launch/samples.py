"""What the tests of launchers share: the command, goldens, engines' parsers.

Golden files are made again by `VITSCALE_GOLDEN=write pytest tests/launch`.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from vitscale import cli

GOLDEN = Path(__file__).parents[1] / "golden" / "launch"
MOUNT = ("--mount", "gs://lab=/mnt/lab")
TPU_VM = (
  "--on", "gcloud_tpu", "--project", "lab-1", "--zone", "us-west4-a",
  "--install", "vitscale[tpu] @ git+https://example.org/vitscale", *MOUNT,
  "--out", "/mnt/lab/runs",
)  # fmt: skip
GKE = (
  "--on", "gke", "--project", "lab-1", "--zone", "us-west4-a", "--cluster",
  "pods", "--image", "gcr.io/lab-1/vitscale:1", "--storage", "lab",
  "--out", "/mnt/lab/runs",
)  # fmt: skip
SKY = ("--on", "skypilot", *MOUNT, "--out", "/mnt/lab/runs")
SLURM = ("--on", "slurm", "--venv", "/lab/venv", "--out", "/lab/runs")


def launch(capsys, *args):
  """(exit code, the JSON object or None, stderr) of `vitscale launch`."""
  code = cli.main(["launch", *args, "--json"])
  # --json writes past what pytest sees of sys.stdout.
  captured = capsys.readouterr()
  return code, json.loads(captured.out) if captured.out else None, captured.err


def dry(capfd, *args):
  """The object that a good dry run prints."""
  code, result, err = launch(capfd, *args, "--dry-run")
  assert code == 0, err
  assert not result["submitted"]
  return result


def complaint(capfd, *args):
  """The one line of a refusal."""
  code, result, err = launch(capfd, *args, "--dry-run")
  assert code == 2 and result is None
  assert err.startswith("vitscale: ") and err.count("\n") == 1, err
  return err


def check_golden(name, result):
  """Files and commands of a dry run are those of the golden file."""
  parts = [f"==== {p}\n{text}" for p, text in result["files"].items()]
  for kind in ("commands", "undo"):
    lines = ["\n  ".join(argv) for argv in result[kind]]
    parts.append(f"==== {kind}\n" + "\n".join(lines) + "\n")
  text, path = "\n".join(parts), GOLDEN / f"{name}.txt"
  if os.environ.get("VITSCALE_GOLDEN") == "write":
    path.write_text(text)
  assert text == path.read_text()


def program(name):
  """The engine's own command, or a skip."""
  found = shutil.which(name)
  if not found:
    pytest.skip(f"no {name} here to read what was rendered")
  return found


def write(folder, result):
  """Writes rendered files to a folder; returns their paths."""
  paths = []
  for name, text in result["files"].items():
    paths.append(folder / Path(name).name)
    paths[-1].write_text(text)
  return paths
