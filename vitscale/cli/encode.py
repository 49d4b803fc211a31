"""`vitscale encode`: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "encode out/tok --out out/latents --splits train,val"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a tokenizer, or a step"
  )
  parser.add_argument("--out", required=True, help="a new folder")
  parser.add_argument(
    "--data", nargs="+", default=[], metavar="PATH|key=value",
    help="a path of any format that is known, or options of a data source, of"
    " another one with source=NAME (default: the run's own)",
  )  # fmt: skip
  parser.add_argument(
    "--splits", metavar="NAME,...",
    help="of the data, the training one first (default: the run's own)",
  )  # fmt: skip
  parser.add_argument(
    "--transform", metavar="OPS",
    help="of each image, 'resize_small(256)|central_crop(256)' (default: that"
    " of the run's evaluations)",
  )  # fmt: skip
  parser.add_argument("--batch-size", type=int, default=64, metavar="N")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Writes a tokenizer's latents of images, for generators to train on.

  Latents are of whole images, not augmented. Stopped, the same command goes
  on.
  """
  from vitscale import encode

  card = encode.encode(
    args.checkpoint, args.out, data=args.data,
    splits=args.splits and args.splits.split(","),
    transform=args.transform, batch_size=args.batch_size,
  )  # fmt: skip
  if not args.json:
    print(encode.text(args.out, card))
  return card, 0
