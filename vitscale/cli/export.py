"""`vitscale export` on the command line: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "export out/small --to timm --out small-timm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a run, or a step"
  )
  parser.add_argument(
    "--to", required=True, metavar="timm|hf|stablehlo",
    help="timm and hf: safetensors and config.json in their layout; stablehlo:"
    " a program of any batch that runs without vitscale",
  )  # fmt: skip
  parser.add_argument("--out", required=True, help="folder, new")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Writes a checkpoint as timm, Hugging Face or StableHLO has it.

  Averaged weights are used where the run has them.
  """
  from vitscale.interop import exporter

  result = exporter.export(args.checkpoint, args.out, args.to)
  if not args.json:
    print(exporter.text(result))
  return result, 0
