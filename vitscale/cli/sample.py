"""`vitscale sample`: its options, and what they mean."""

import argparse
from typing import Any

from vitscale.core import call
from vitscale.core.errors import UserError

EXAMPLE = "sample out/dit --n 64 --cfg 1.5 --out out/samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a generator, or a step"
  )
  parser.add_argument("--n", type=int, default=64, help="samples")
  parser.add_argument(
    "--cfg", type=float, metavar="W",
    help="guidance: 1 changes nothing, above it towards the class (default:"
    " none)",
  )  # fmt: skip
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", required=True, help="a new folder")
  parser.add_argument(
    "--labels", metavar="CLASS,...",
    help="numbers or names of classes, in turn; 'none' for no class (default:"
    " all)",
  )  # fmt: skip
  parser.add_argument(
    "--options", metavar="KEY=VALUE,...", default="",
    help="of the task: steps=50,sampler='heun',interval=(0.1,0.8) of diffuse,"
    " temperature=0.9,top_k=100 of next_token and next_scale",
  )  # fmt: skip
  parser.add_argument(
    "--tokenizer", metavar="CKPT",
    help="where the tokenizer of the latents is, if it has moved",
  )  # fmt: skip
  parser.add_argument("--batch-size", type=int, default=64, metavar="N")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Draws samples of a generator: PNG grid, .npz, and a page.

  Latents are decoded by the tokenizer that made the training data.
  """
  from vitscale import sample

  result = sample.sample(
    args.checkpoint, args.out, n=args.n, guidance=args.cfg, seed=args.seed,
    labels=args.labels and args.labels.split(","),
    options=parse(args.options), tokenizer=args.tokenizer,
    batch_size=args.batch_size,
  )  # fmt: skip
  if not args.json:
    print(
      f"{result['n']} samples of {result['checkpoint']}, step"
      f" {result['step']}, in {result['seconds']:.1f} s: {result['page']}"
    )
  return result, 0


def parse(options: str) -> dict[str, Any]:
  """`"steps=50,sampler='heun'"` -> its values.

  Raises:
    UserError: something else.
  """
  if not options:
    return {}
  _, args, found = call.read(f"options({options})", "--options")
  if args:
    raise UserError(f"--options {options}: name them, as steps=50")
  return found
