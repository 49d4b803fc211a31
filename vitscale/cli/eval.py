"""`vitscale eval`: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "eval out/tok --evals reconstruction --split test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a run, or a step"
  )
  parser.add_argument(
    "--evals", metavar="NAME,...",
    help="modules of vitscale.evals: classify, reconstruction, ..., with"
    " options in brackets: 'reconstruction(rfd=False)'. What is not said is as"
    " in the run's own evaluation of the split, or in its first one",
  )  # fmt: skip
  parser.add_argument(
    "--data", nargs="+", default=[], metavar="PATH|key=value",
    help="a path of any format that is known, or options of a data source, of"
    " another one with source=NAME",
  )  # fmt: skip
  parser.add_argument(
    "--split", metavar="NAME",
    help="of the data (default test if the run has an evaluation of it);"
    " of a DIR without splits everything",
  )  # fmt: skip
  parser.add_argument(
    "--transform", metavar="OPS", help="'resize_small(32)|central_crop(32)'"
  )  # fmt: skip
  parser.add_argument("--batch-size", type=int, metavar="N")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Scores a checkpoint on held-out images, its run's own or others.

  Averaged weights are used where the run has them. Nothing is written.
  """
  from vitscale import evaluate

  result = evaluate.evaluate(
    args.checkpoint, args.evals, data=args.data, split=args.split,
    transform=args.transform, batch_size=args.batch_size,
  )  # fmt: skip
  if not args.json:
    print(evaluate.text(result))
  return result, 0
