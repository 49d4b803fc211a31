"""`vitscale frontier` on the command line: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "frontier out/nested --score-on test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "checkpoint", metavar="CKPT", help="workdir of a nested run, or a step"
  )
  parser.add_argument(
    "--specs", nargs="+", default=[], metavar="SPEC",
    help="'ffn=1/2' 'ffn=1/4x6,1/2x6' ...; default: what was trained, and"
    " mixes of it that rise with depth",
  )  # fmt: skip
  parser.add_argument(
    "--score-on", metavar="NAME", help="the config's evals.NAME (default val)"
  )
  parser.add_argument(
    "--batch-size", type=int, default=1, metavar="N",
    help="images of a call whose latency is measured",
  )  # fmt: skip
  parser.add_argument(
    "--repeats", type=int, default=30, metavar="N", help="calls of each part"
  )


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Tables the parts of a nested run: accuracy, cost, measured latency.

  Each part is scored and timed as the plain model that `cut` would write.
  Nothing is written. Parts that no step trained are marked: mixes of trained
  sizes, and unseen sizes.
  """
  from vitscale.elastic import evaluate

  result = evaluate.frontier(
    args.checkpoint, args.specs, score_on=args.score_on,
    batch_size=args.batch_size, repeats=args.repeats,
  )  # fmt: skip
  if not args.json:
    print(text(result))
  return result, 0


def text(result: dict[str, Any]) -> str:
  """The table for a terminal, with what the run cost."""
  from vitscale.elastic import ledger
  from vitscale.report.plain import table

  rows = [
    {
      "spec": row["spec"],
      "kind": row["kind"],
      "accuracy": f"{row['accuracy']:.4f}",
      "nll": f"{row['nll']:.4f}",
      "MACs": row["macs"],
      "parameters": row["params"],
      "ms": f"{row['latency']:.3f}",
      "": "*" if row["efficient"] else "",
    }
    for row in result["rows"]
  ]
  return "\n".join(
    [
      table(rows, list(rows[0])),
      f"scores on {result['on']}, * is beaten by none; latency of"
      f" {result['batch_size']} on {result['device']}, median of"
      f" {result['repeats']}",
      ledger.text(result["ledger"]),
    ]
  )
