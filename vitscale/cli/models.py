"""`vitscale models`: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "models --family vit"
ACCELERATOR = False  # shapes alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--family", help="only this family")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Lists families and variants with exact sizes."""
  from vitscale import zoo

  rows = zoo.rows(args.family)
  if not args.json:
    print(zoo.table(rows))
  return {"models": rows}, 0
