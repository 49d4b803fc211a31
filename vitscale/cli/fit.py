"""`vitscale fit` on the command line: its options, and what they mean."""

import argparse
from collections.abc import Sequence
from typing import Any

from vitscale.core.errors import UserError

EXAMPLE = "fit runs.csv --law chinchilla --map N=params D=tokens"
ACCELERATOR = False  # a few milliseconds of work


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("files", nargs="+", help="logs, or folders of runs")
  parser.add_argument(
    "--law", required=True,
    help="chinchilla, power, bnsl1, ...; a formula, as 'E + A/N^alpha';"
    " auto extrapolates curves",
  )  # fmt: skip
  parser.add_argument(
    "--map", nargs="+", default=[], metavar="NAME=COLUMN",
    help="the law's variables and `loss` in terms of columns",
  )  # fmt: skip
  parser.add_argument("--y", default="loss", help="column of the loss")
  parser.add_argument(
    "--bound", nargs="+", default=[], metavar="NAME=LOW:HIGH[:log]",
    help="where a parameter is searched",
  )  # fmt: skip
  parser.add_argument("--pin", nargs="+", default=[], metavar="NAME=VALUE")
  parser.add_argument(
    "--objective", default="log-mse",
    help="log-mse, mse, huber[:1e-3], lad, asymmetric[:10]",
  )  # fmt: skip
  parser.add_argument("--groups", help="column that says which run a row is of")
  parser.add_argument(
    "--x", help="column that orders the rows of a run (default step); of"
    " --outliers and --law auto: the variable",
  )  # fmt: skip
  parser.add_argument("--group", help="auto: columns that name a curve, A[,B]")
  parser.add_argument(
    "--holdout", help="auto: column, 1 to fit and 0 to predict"
  )
  parser.add_argument(
    "--dedup", action="store_true",
    help="drop rows equal to an earlier one in run, x, variables and loss",
  )  # fmt: skip
  parser.add_argument(
    "--drop-warmup", default="", metavar="STEPS|PERCENT",
    help="drop the start of every run: 500, or 10%%",
  )  # fmt: skip
  parser.add_argument(
    "--smooth", type=int, default=0, metavar="WINDOW",
    help="mean of log loss over so many rows of a run",
  )  # fmt: skip
  parser.add_argument(
    "--final", action="store_true", help="the last point of each run only"
  )
  parser.add_argument(
    "--drop-highest", type=int, default=0, metavar="K",
    help="keep losses below the K-th largest",
  )  # fmt: skip
  parser.add_argument(
    "--outliers", default="", metavar="report|drop",
    help="rows far from the trend of their neighbours, with reasons",
  )  # fmt: skip
  parser.add_argument("--bootstrap", type=int, default=4000)
  parser.add_argument("--resample", default="auto")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--predict", nargs="+", default=[], metavar="N=..,D=..")
  parser.add_argument("--compute", type=float, help="budget to allocate, FLOPs")
  parser.add_argument(
    "--next", type=int, default=0, metavar="K",
    help="plan K runs that narrow the forecast at --predict",
  )  # fmt: skip
  parser.add_argument(
    "--budget", type=float, help="FLOPs of these runs together"
  )
  parser.add_argument(
    "--approaches", action="store_true",
    help="Approaches 1 to 3: envelope, IsoFLOP, parametric",
  )  # fmt: skip
  parser.add_argument(
    "--levels", nargs="+", type=float, metavar="C", help="IsoFLOP budgets"
  )
  parser.add_argument(
    "--validate", nargs="?", const="", metavar="COLUMN",
    help="predict the largest runs from the others, by compute or a column",
  )  # fmt: skip
  parser.add_argument(
    "--count", metavar="total|non-embedding", help="what N counts"
  )
  parser.add_argument("--out", help="folder for card.json and report.html")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Fits a scaling law to logs: runs, CSV, JSON, TensorBoard, W&B exports.

  Order of cleaning: columns are mapped (--map, --y), missing ones of N, D, C
  = 6 N D, M = D / N derived, then --dedup, --drop-warmup, --smooth, --final,
  --drop-highest, --outliers. Each says which rows it dropped.
  """
  from vitscale.laws import from_files

  if args.law == "auto":
    result = from_files.extrapolate_files(
      args.files, x=args.x, y=args.y, group=args.group, holdout=args.holdout
    )
    if not args.json:
      print(from_files.table(result))
    return result, 0
  result = from_files.fit_files(
    args.files,
    law=args.law,
    mapping=_pairs("--map", args.map),
    y=args.y,
    bounds=_bounds(args.bound),
    pin=_numbers("--pin", args.pin),
    objective=args.objective,
    groups=args.groups,
    bootstrap=args.bootstrap,
    resample=args.resample,
    seed=args.seed,
    predict=_numbers("--predict", args.predict) or None,
    compute=args.compute,
    next_count=args.next,
    budget=args.budget,
    approaches=args.approaches,
    levels=args.levels,
    validate=args.validate,
    count=args.count,
    out=args.out,
    x=args.x,
    dedup=args.dedup,
    drop_warmup=args.drop_warmup,
    smooth=args.smooth,
    final=args.final,
    drop_highest=args.drop_highest,
    outliers=args.outliers,
  )
  if not args.json:
    print(from_files.text(result))
  return result, 0


def _pairs(option: str, items: Sequence[str]) -> dict[str, str]:
  """`["N=Model Size", ...]` as a dict."""
  out = {}
  for item in items:
    key, equals, value = item.partition("=")
    if not equals or not key or not value:
      raise UserError(f"{option} {item!r} is not NAME=VALUE")
    if key in out:
      raise UserError(f"{option} gives {key!r} twice")
    out[key] = value
  return out


def _numbers(option: str, items: Sequence[str]) -> dict[str, float]:
  """`["N=1e9,D=2e10"]` as numbers."""
  pairs = _pairs(option, [i for item in items for i in item.split(",")])
  return {key: _number(option, key, value) for key, value in pairs.items()}


def _number(option: str, key: str, value: str) -> float:
  try:
    return float(value)
  except ValueError:
    raise UserError(f"{option} {key}={value}: not a number") from None


def _bounds(items: Sequence[str]) -> dict[str, tuple]:
  """`["alpha=0:2", "T0=1e3:1e6:log"]` as (low, high) or (low, high, "log")."""
  out = {}
  for key, text in _pairs("--bound", items).items():
    low, *rest = text.split(":")
    if len(rest) not in (1, 2):
      raise UserError(f"--bound {key}={text} is not NAME=LOW:HIGH[:log]")
    ends = (_number("--bound", key, v) for v in (low, rest[0]))
    out[key] = (*ends, *rest[1:])
  return out
