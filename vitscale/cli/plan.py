"""`vitscale plan`: its options, and what they mean."""

import argparse
import sys
from typing import Any

from vitscale.cli.codes import complain

EXAMPLE = "plan vit_i1k:variant=L/16 --topology v5e:16x16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("config", help="FILE.py[:args] or a name of configs/")
  parser.add_argument("overrides", nargs="*", metavar="key=value")
  parser.add_argument(
    "--topology", required=True,
    help="v5e:16x16, v5p:8x8x8, v5litepod-256, 2xv5e:16x16, gpu:8xH100, ...",
  )  # fmt: skip
  parser.add_argument(
    "--search", action="store_true",
    help="find the mesh, batch and remat that fit and bound best",
  )  # fmt: skip
  parser.add_argument("--classes", type=int, default=0, help="of absent data")
  parser.add_argument("--examples", type=int, default=0, help="of absent data")
  parser.add_argument(
    "--timeout", type=float, default=900.0, help="seconds a compilation"
  )


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Says what a config costs on hardware that isn't here.

  Memory a device, collectives, the least time of a step, and chip-hours: by
  the TPU compiler (extra [tpu], no TPU needed), for GPUs by analysis.
  """
  from vitscale import plan as plan_lib

  result = plan_lib.plan(
    args.config,
    args.overrides,
    topology=args.topology,
    search=args.search,
    classes=args.classes,
    examples=args.examples,
    timeout=args.timeout,
    say=_whisper,
  )
  if not result["fits"]:
    return result, complain(plan_lib.misfit_text(result))
  if not args.json:
    print(plan_lib.text(result))
  return result, 0


def _whisper(text: str) -> None:
  """Progress, for those who watch."""
  if sys.stderr.isatty():
    print(text, file=sys.stderr)
