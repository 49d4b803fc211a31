"""`vitscale cut` on the command line: its options, and what they mean."""

import argparse
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a nested run, or a step"
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--spec", help="'ffn=1/2', 'ffn=1/4x6,1/2x6', ...")
  what.add_argument(
    "--budget", metavar="0.6|macs:0.6|params:3e6",
    help="the most it may cost; up to 1 a fraction of the whole model",
  )  # fmt: skip
  parser.add_argument(
    "--select", default="least_slope",
    metavar="least_slope|sensitivity|exhaustive",
    help="how to choose for a budget",
  )  # fmt: skip
  parser.add_argument(
    "--score-on", metavar="NAME",
    help="sensitivity, exhaustive: the config's evals.NAME (default val)",
  )  # fmt: skip
  parser.add_argument(
    "--by", default="prefix", metavar="prefix|importance",
    help="importance: cuts a run that was not trained nested too",
  )  # fmt: skip
  parser.add_argument(
    "--export", metavar="timm", help="also write timm.safetensors"
  )
  parser.add_argument("--out", required=True, help="workdir of the cut model")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  from vitscale.elastic import cut as cut_lib

  result = cut_lib.cut(
    args.checkpoint, args.out, spec=args.spec, budget=args.budget,
    how=args.select, score_on=args.score_on, export=args.export, by=args.by,
  )  # fmt: skip
  if not args.json:
    print(text(result))
  return result, 0


def text(result: dict[str, Any]) -> str:
  """The result for a terminal."""
  lines = [
    f"{result['spec']}: {result['params']} parameters,"
    f" {result['gmacs_per_image']:.4g} GMACs an image",
  ]
  if result["by"] == "importance":
    lines.append("  cut by importance: this model was never trained as such")
  cut = result["metrics"]["cut"]
  for name, whole in result["metrics"]["full"].items():
    if not name.endswith(("_se", "examples")):
      lines.append(f"  {name}: {whole:.4f} whole, {cut[name]:.4f} cut")
  return "\n".join([*lines, f"in {result['out']}"])
