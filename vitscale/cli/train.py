"""`vitscale train`: its options, and what they mean."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from vitscale.cli.codes import INTERRUPTED
from vitscale.launch import machine

EXAMPLE = "train vit_fashion --workdir out/run optim.lr=3e-3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("config", help="FILE.py[:args] or a name of configs/")
  parser.add_argument("overrides", nargs="*", metavar="key=value")
  parser.add_argument("--workdir", required=True)
  parser.add_argument(
    "--profile", metavar="steps=A:B",
    help="trace steps A to B - 1, counted from 0, into WORKDIR/profile",
  )  # fmt: skip
  parser.add_argument(
    "--dist", metavar="none|auto|slurm|explicit",
    help="how processes find each other; by default what the surroundings say",
  )  # fmt: skip
  parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  parser.add_argument("--num-processes", type=int, metavar="N")
  parser.add_argument("--process-id", type=int, metavar="I", help="0 to N-1")
  parser.add_argument(
    "--dist-timeout", type=int, default=300, metavar="SECONDS",
    help="how long to wait for the other processes at the start",
  )  # fmt: skip


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Trains one config in a workdir, resuming what is there.

  With several processes, run the same command in each of them: Slurm (srun),
  MPI, GKE job sets and TPU pods are found by themselves, else give
  --coordinator, --num-processes and --process-id.
  """
  from vitscale.core import config as config_lib
  from vitscale.core import duration

  config = config_lib.load(args.config, args.overrides)
  window = args.profile and duration.window(args.profile)
  os.environ.update(machine.cache_env())  # before jax is imported
  with _sigterm_interrupts():
    from vitscale.core import distributed

    named = "explicit" if args.coordinator else distributed.detect()
    distributed.initialize(
      args.dist or named,
      coordinator=args.coordinator,
      num_processes=args.num_processes,
      process_id=args.process_id,
      timeout_seconds=args.dist_timeout,
    )
    from vitscale import train as train_lib
    from vitscale.core.progress import Progress

    if (args.dist or named) != "none":
      print(f"{args.dist or named}: {distributed.found()}", file=sys.stderr)
    args.json = args.json and distributed.is_main()
    with Progress() as progress, distributed.end_with_lost_peers():
      report = progress.train if distributed.is_main() else None
      result = train_lib.train(
        config, args.workdir, report=report, profile=window
      )
    if report:
      progress.ended(result)
  if result["status"] == "interrupted":
    print(
      f"interrupted at step {result['step']}: run the same command to go on",
      file=sys.stderr,
    )
    return result, INTERRUPTED
  return result, 0


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
  """SIGTERM is Ctrl-C until a run has something to save: exit code 75."""
  try:
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
  except ValueError:  # not the main thread
    old = None
  try:
    yield
  finally:
    if old is not None:
      signal.signal(signal.SIGTERM, old)
