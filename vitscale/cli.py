"""The `vitscale` command: one thin function per verb.

Every verb takes `--json`: one JSON object on stdout and nothing else there
(file descriptor 1 is redirected, so no library can write to it; progress goes
to stderr). Bad input is one line on stderr and exit code 2. An interrupted
run that can be resumed exits with 75.
"""

import argparse
import contextlib
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitscale.core.errors import UserError, nearest

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 75


# --------------------------------------------------------------------- verbs


def study(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
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


def train(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Trains one config in a workdir, resuming what is there."""
  from vitscale.core import config as config_lib
  from vitscale.launch import machine

  config = config_lib.load(args.config, args.overrides)
  os.environ.update(machine.cache_env())  # before jax is imported
  from vitscale import train as train_lib
  from vitscale.core.progress import Progress

  with Progress() as progress:
    result = train_lib.train(config, args.workdir, report=progress.train)
  if result["status"] == "interrupted":
    print(
      f"interrupted at step {result['step']}: run the same command to go on",
      file=sys.stderr,
    )
    return result, INTERRUPTED
  return result, 0


def fit(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Fits a scaling law to logs: runs, CSV, JSON, TensorBoard, W&B exports.

  Order of cleaning: columns are mapped (--map, --y), missing ones of N, D, C
  = 6 N D, M = D / N derived, then --dedup, --drop-warmup, --smooth, --final,
  --drop-highest, --outliers. Each says which rows it dropped.
  """
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a few milliseconds of work
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


def models(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Lists families and variants with exact sizes."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # shapes need no accelerator
  from vitscale import zoo

  rows = zoo.rows(args.family)
  if not args.json:
    print(zoo.table(rows))
  return {"models": rows}, 0


def runs(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Lists the runs below a folder."""
  from vitscale import workdir
  from vitscale.report.plain import table

  rows = workdir.runs(args.folder)
  if not args.json:
    columns = ["name", "status", "step", "params", "train/loss"]
    evals = {key for row in rows for key in row if key.startswith("eval/")}
    columns += sorted(key for key in evals if not key.endswith("_se"))
    print(table(rows, columns) if rows else f"no runs in {args.folder}")
  return {"runs": rows}, 0


def data(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Downloads a data set and verifies it."""
  from vitscale.data import fashion

  if args.name != "fashion_mnist":
    raise UserError(
      f"no data set {args.name!r} to get{nearest(args.name, ['fashion_mnist'])}"
    )
  files = fashion.download(args.out)
  if not args.json:
    print(f"{len(files)} files in {args.out}: use data.path={args.out}")
  return {"name": args.name, "files": [str(f) for f in files]}, 0


# ------------------------------------------------------------------- parsing


def parser() -> argparse.ArgumentParser:
  """The whole command line."""
  from vitscale import __version__

  top = _Parser(
    prog="vitscale",
    description="Scale, nest, plan and compare vision transformers.",
    epilog="example: vitscale study patchify --scale quick",
  )
  top.add_argument("--version", action="version", version=__version__)
  verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

  def verb(function: Any, example: str) -> argparse.ArgumentParser:
    text = textwrap.dedent(function.__doc__).strip()
    sub = verbs.add_parser(
      function.__name__,
      help=text.splitlines()[0],
      description=text,
      epilog=f"example: vitscale {example}",
    )
    sub.set_defaults(function=function)
    sub.add_argument(
      "--json", action="store_true", help="one JSON object on stdout"
    )
    return sub

  sub = verb(study, "study patchify --scale smoke --out out/first")
  sub.add_argument("name", help="a folder of experiments/, or a path")
  sub.add_argument("--scale", default="quick", help="see the study's README")
  sub.add_argument("--data", help="file or folder, for studies of points")
  sub.add_argument("--out", help="default out/NAME-SCALE")
  sub.add_argument("--launcher", default="local", help="where runs go")
  sub.add_argument("--workers", type=int, help="default: one per core or GPU")
  sub.add_argument(
    "--force", action="store_true", help="run again, keeping old runs aside"
  )
  sub = verb(train, "train vit_fashion --workdir out/run optim.lr=3e-3")
  sub.add_argument("config", help="FILE.py[:args] or a name of configs/")
  sub.add_argument("overrides", nargs="*", metavar="key=value")
  sub.add_argument("--workdir", required=True)
  sub = verb(fit, "fit runs.csv --law chinchilla --map N=params D=tokens")
  sub.add_argument("files", nargs="+", help="logs, or folders of runs")
  sub.add_argument(
    "--law", required=True,
    help="chinchilla, power, bnsl1, ...; a formula, as 'E + A/N^alpha';"
    " auto extrapolates curves",
  )  # fmt: skip
  sub.add_argument(
    "--map", nargs="+", default=[], metavar="NAME=COLUMN",
    help="the law's variables and `loss` in terms of columns",
  )  # fmt: skip
  sub.add_argument("--y", default="loss", help="column of the loss")
  sub.add_argument(
    "--bound", nargs="+", default=[], metavar="NAME=LOW:HIGH[:log]",
    help="where a parameter is searched",
  )  # fmt: skip
  sub.add_argument("--pin", nargs="+", default=[], metavar="NAME=VALUE")
  sub.add_argument(
    "--objective", default="log-mse",
    help="log-mse, mse, huber[:1e-3], lad, asymmetric[:10]",
  )  # fmt: skip
  sub.add_argument("--groups", help="column that says which run a row is of")
  sub.add_argument(
    "--x", help="column that orders the rows of a run (default step); of"
    " --outliers and --law auto: the variable",
  )  # fmt: skip
  sub.add_argument("--group", help="auto: columns that name a curve, A[,B]")
  sub.add_argument("--holdout", help="auto: column, 1 to fit and 0 to predict")
  sub.add_argument(
    "--dedup", action="store_true",
    help="drop rows equal to an earlier one in run, x, variables and loss",
  )  # fmt: skip
  sub.add_argument(
    "--drop-warmup", default="", metavar="STEPS|PERCENT",
    help="drop the start of every run: 500, or 10%%",
  )  # fmt: skip
  sub.add_argument(
    "--smooth", type=int, default=0, metavar="WINDOW",
    help="mean of log loss over so many rows of a run",
  )  # fmt: skip
  sub.add_argument(
    "--final", action="store_true", help="the last point of each run only"
  )
  sub.add_argument(
    "--drop-highest", type=int, default=0, metavar="K",
    help="keep losses below the K-th largest",
  )  # fmt: skip
  sub.add_argument(
    "--outliers", default="", metavar="report|drop",
    help="rows far from the trend of their neighbours, with reasons",
  )  # fmt: skip
  sub.add_argument("--bootstrap", type=int, default=4000)
  sub.add_argument("--resample", default="auto")
  sub.add_argument("--seed", type=int, default=0)
  sub.add_argument("--predict", nargs="+", default=[], metavar="N=..,D=..")
  sub.add_argument("--compute", type=float, help="budget to allocate, FLOPs")
  sub.add_argument(
    "--count", metavar="total|non-embedding", help="what N counts"
  )
  sub.add_argument("--out", help="folder for card.json and report.html")
  sub = verb(models, "models --family vit")
  sub.add_argument("--family", help="only this family")
  sub = verb(runs, "runs out/patchify-quick")
  sub.add_argument("folder")
  sub = verb(data, "data get fashion_mnist --out data/fashion_mnist")
  sub.add_argument("action", choices=["get"])
  sub.add_argument("name", help="fashion_mnist")
  sub.add_argument("--out", required=True, help="folder to download to")
  return top


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Arguments, with key=value overrides allowed after options too."""
  top = parser()
  args, extra = top.parse_known_args(argv)
  strange = [
    text
    for text in extra
    if not hasattr(args, "overrides") or text[0] == "-" or "=" not in text
  ]
  if strange:
    top.error(f"unrecognized argument {strange[0]!r} of {args.verb!r}")
  if extra:
    args.overrides = [*args.overrides, *extra]
  return args


class _Parser(argparse.ArgumentParser):
  """argparse whose errors are one line and exit code 2."""

  def error(self, message: str) -> Any:
    self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point; returns the exit code."""
  args = _parse(argv)
  with _stdout(args.json) as write:
    try:
      result, code = args.function(args)
    except UserError as error:
      return _complain(str(error))
    except KeyboardInterrupt:
      print("vitscale: interrupted", file=sys.stderr)
      return INTERRUPTED
    except BrokenPipeError:
      return FAILED
    if args.json:
      write(result)
  return code


def _complain(text: str) -> int:
  print(f"vitscale: {' '.join(text.split())}", file=sys.stderr)
  return BAD_INPUT


@contextlib.contextmanager
def _stdout(only_json: bool) -> Iterator[Any]:
  """With `only_json`, everything but `write` goes to stderr."""
  if not only_json:
    yield None
    return
  from vitscale.core.log import jsonable

  sys.stdout.flush()
  real = os.dup(1)
  os.dup2(2, 1)

  def write(result: Mapping[str, Any]) -> None:
    with os.fdopen(os.dup(real), "w") as out:
      out.write(json.dumps(jsonable(result)) + "\n")

  try:
    yield write
  finally:
    sys.stdout.flush()
    os.dup2(real, 1)
    os.close(real)


if __name__ == "__main__":
  sys.exit(main())
