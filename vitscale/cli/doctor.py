"""`vitscale doctor`: its options, and what they mean."""

import argparse
from typing import Any

from vitscale.cli.codes import FAILED

EXAMPLE = "doctor out/run"
ACCELERATOR = False  # a sum over every file


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("folder", metavar="WORKDIR")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Verifies a run's checkpoints and says what can be resumed.

  Exit code 1 when a checkpoint is damaged; nothing is changed.
  """
  from vitscale import doctor as doctor_lib

  result = doctor_lib.examine(args.folder)
  if not args.json:
    print(doctor_lib.text(result))
  damaged = any(row["status"] == "damaged" for row in result["steps"])
  return result, FAILED if damaged else 0
