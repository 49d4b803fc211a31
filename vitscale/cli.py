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
import signal
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitscale import (
  cli_cut,
  cli_data_show,
  cli_encode,
  cli_eval,
  cli_export,
  cli_fit,
  cli_frontier,
  cli_import,
  cli_launch,
  cli_runs,
  cli_sample,
)
from vitscale.core.errors import UserError
from vitscale.launch import machine

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


def fit(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Fits a scaling law to logs: runs, CSV, JSON, TensorBoard, W&B exports.

  Order of cleaning: columns are mapped (--map, --y), missing ones of N, D, C
  = 6 N D, M = D / N derived, then --dedup, --drop-warmup, --smooth, --final,
  --drop-highest, --outliers. Each says which rows it dropped.
  """
  return cli_fit.run(args)


def plan(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Says what a config costs on hardware that isn't here.

  Memory a device, collectives, the least time of a step, and chip-hours: by
  the TPU compiler (extra [tpu], no TPU needed), for GPUs by analysis.
  """
  from vitscale import plan as plan_lib

  result = plan_lib.plan(
    args.config,
    args.overrides,
    topology=args.topology,
    search=args.search,
    classes=args.classes,
    examples=args.examples,
    timeout=args.timeout,
    say=_whisper,
  )
  if not result["fits"]:
    return result, _complain(plan_lib.misfit_text(result))
  if not args.json:
    print(plan_lib.text(result))
  return result, 0


def launch(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Sends a config, or the next runs of a study, to machines elsewhere.

  Renders what an engine takes and submits it; --dry-run prints it. Runs that
  are preempted go on from their last checkpoint. A study is launched round by
  round: the same command later sends what has become due.
  """
  return cli_launch.run(args)


def cut(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Cuts a nested run to a standalone model of the plain family.

  What comes out is a workdir like any other; no elastic code is needed to
  run the model. A budget takes a model that the run trained, or a mix of its
  levels over the layers.
  """
  return cli_cut.run(args)


def frontier(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Tables the parts of a nested run: accuracy, cost, measured latency.

  Each part is scored and timed as the plain model that `cut` would write.
  Nothing is written. Parts that no step trained are marked: mixes of trained
  sizes, and unseen sizes.
  """
  return cli_frontier.run(args)


def eval(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Scores a checkpoint on held-out images, its run's own or others.

  Averaged weights are used where the run has them. Nothing is written.
  """
  return cli_eval.run(args)


def import_(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Makes a workdir of a checkpoint of timm, Hugging Face or big_vision.

  ViT, DeiT, DINOv2, SigLIP's image tower, MAE's encoder. What comes out is
  like the workdir of any run; preprocessing comes along.
  """
  return cli_import.run(args)


def export(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Writes a checkpoint as timm, Hugging Face or StableHLO has it.

  Averaged weights are used where the run has them.
  """
  return cli_export.run(args)


def encode(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Writes a tokenizer's latents of images, for generators to train on.

  Latents are of whole images, not augmented. Stopped, the same command goes
  on.
  """
  return cli_encode.run(args)


def sample(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Draws samples of a generator: PNG grid, .npz, and a page.

  Latents are decoded by the tokenizer that made the training data.
  """
  return cli_sample.run(args)


def _whisper(text: str) -> None:
  """Progress, for those who watch."""
  if sys.stderr.isatty():
    print(text, file=sys.stderr)


def models(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Lists families and variants with exact sizes."""
  from vitscale import zoo

  rows = zoo.rows(args.family)
  if not args.json:
    print(zoo.table(rows))
  return {"models": rows}, 0


def runs(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Lists the runs below a folder, or compares them on a page.

  Keys are those of `--json`. The page has curves, final metrics, a law over
  size, and what differs between the configs; report.json and figures/ come
  beside it.
  """
  return cli_runs.run(args)


def doctor(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Verifies a run's checkpoints and says what can be resumed.

  Exit code 1 when a checkpoint is damaged; nothing is changed.
  """
  from vitscale import doctor as doctor_lib

  result = doctor_lib.examine(args.folder)
  if not args.json:
    print(doctor_lib.text(result))
  damaged = any(row["status"] == "damaged" for row in result["steps"])
  return result, FAILED if damaged else 0


def data(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Shows images on a disk, converts them, or downloads a data set.

  `data PATH` finds the format, and prints counts, sizes and statistics; `data
  convert PATH --out DIR` writes ArrayRecord shards, and goes on where it was
  stopped; `data get fashion_mnist --out DIR` downloads and verifies.
  """
  return cli_data_show.run(args)


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

  def verb(
    function: Any, example: str, *, accelerator: bool = True
  ) -> argparse.ArgumentParser:
    text = textwrap.dedent(function.__doc__).strip()
    sub = verbs.add_parser(
      function.__name__.rstrip("_"),
      help=text.splitlines()[0],
      description=text,
      epilog=f"example: vitscale {example}",
    )
    sub.set_defaults(function=function, accelerator=accelerator)
    sub.add_argument(
      "--json", action="store_true", help="one JSON object on stdout"
    )
    return sub

  sub = verb(study, "study patchify --scale smoke --out out/first")
  sub.add_argument("name", help="a folder of experiments/, or a path")
  sub.add_argument("--scale", default="quick", help="see the study's README")
  sub.add_argument("--data", help="file or folder, for studies of points")
  sub.add_argument("--out", help="default out/NAME-SCALE")
  sub.add_argument(
    "--launcher", default="local", metavar="local|slurm:key=value,...",
    help="where runs go: slurm:partition=gpu,gpus=1,hours=4",
  )  # fmt: skip
  sub.add_argument("--workers", type=int, help="default: one per core or GPU")
  sub.add_argument(
    "--force", action="store_true", help="run again, keeping old runs aside"
  )
  sub = verb(train, "train vit_fashion --workdir out/run optim.lr=3e-3")
  sub.add_argument("config", help="FILE.py[:args] or a name of configs/")
  sub.add_argument("overrides", nargs="*", metavar="key=value")
  sub.add_argument("--workdir", required=True)
  sub.add_argument(
    "--profile", metavar="steps=A:B",
    help="trace steps A to B - 1, counted from 0, into WORKDIR/profile",
  )  # fmt: skip
  sub.add_argument(
    "--dist", metavar="none|auto|slurm|explicit",
    help="how processes find each other; by default what the surroundings say",
  )  # fmt: skip
  sub.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
  sub.add_argument("--num-processes", type=int, metavar="N")
  sub.add_argument("--process-id", type=int, metavar="I", help="0 to N-1")
  sub.add_argument(
    "--dist-timeout", type=int, default=300, metavar="SECONDS",
    help="how long to wait for the other processes at the start",
  )  # fmt: skip
  # A few milliseconds of work, shapes, a sum over every file: on the CPU.
  sub = verb(
    fit, "fit runs.csv --law chinchilla --map N=params D=tokens",
    accelerator=False,
  )  # fmt: skip
  cli_fit.add_arguments(sub)
  sub = verb(plan, "plan vit_i1k:variant=L/16 --topology v5e:16x16")
  sub.add_argument("config", help="FILE.py[:args] or a name of configs/")
  sub.add_argument("overrides", nargs="*", metavar="key=value")
  sub.add_argument(
    "--topology", required=True,
    help="v5e:16x16, v5p:8x8x8, v5litepod-256, 2xv5e:16x16, gpu:8xH100, ...",
  )  # fmt: skip
  sub.add_argument(
    "--search", action="store_true",
    help="find the mesh, batch and remat that fit and bound best",
  )  # fmt: skip
  sub.add_argument("--classes", type=int, default=0, help="of absent data")
  sub.add_argument("--examples", type=int, default=0, help="of absent data")
  sub.add_argument(
    "--timeout", type=float, default=900.0, help="seconds a compilation"
  )
  sub = verb(launch, "launch vit_fashion --on slurm --out /lab/runs --dry-run")
  cli_launch.add_arguments(sub)
  sub = verb(cut, "cut out/nested --budget macs:0.6 --out out/small")
  cli_cut.add_arguments(sub)
  sub = verb(frontier, "frontier out/nested --score-on test")
  cli_frontier.add_arguments(sub)
  sub = verb(eval, "eval out/tok --evals reconstruction --split test")
  cli_eval.add_arguments(sub)
  sub = verb(import_, "import dinov2-small/ --out out/dinov2 --size 224")
  cli_import.add_arguments(sub)
  sub = verb(export, "export out/small --to timm --out small-timm")
  cli_export.add_arguments(sub)
  sub = verb(encode, "encode out/tok --out out/latents --splits train,val")
  cli_encode.add_arguments(sub)
  sub = verb(sample, "sample out/dit --n 64 --cfg 1.5 --out out/samples")
  cli_sample.add_arguments(sub)
  sub = verb(models, "models --family vit", accelerator=False)
  sub.add_argument("--family", help="only this family")
  sub = verb(runs, "runs out/lab --where status=finished --sort=-params")
  cli_runs.add_arguments(sub)
  sub = verb(doctor, "doctor out/run", accelerator=False)
  sub.add_argument("folder", metavar="WORKDIR")
  sub = verb(data, "data photos --sheet photos.png", accelerator=False)
  cli_data_show.add_arguments(sub)
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
  # Before jax is imported.
  os.environ.update(machine.platform_env(accelerator=args.accelerator))
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
