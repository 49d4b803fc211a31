"""`vitscale study`: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "study patchify --scale smoke --out out/first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("name", help="a folder of experiments/, or a path")
  parser.add_argument("--scale", default="quick", help="see the study's README")
  parser.add_argument("--data", help="file or folder, for studies of points")
  parser.add_argument("--out", help="default out/NAME-SCALE")
  parser.add_argument(
    "--launcher", default="local", metavar="local|slurm:key=value,...",
    help="where runs go: slurm:partition=gpu,gpus=1,hours=4",
  )  # fmt: skip
  parser.add_argument(
    "--workers", type=int, help="default: one per core or GPU"
  )
  parser.add_argument(
    "--force", action="store_true", help="run again, keeping old runs aside"
  )


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Runs a study: sweep, runs, laws, verdicts, report."""
  from vitscale import study as study_lib

  result = study_lib.run_study(
    args.name,
    scale=args.scale,
    data=args.data,
    out=args.out,
    launcher=args.launcher,
    workers=args.workers,
    force=args.force,
  )
  return result, study_lib.exit_code(result)
