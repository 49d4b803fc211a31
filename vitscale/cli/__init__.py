"""The `vitscale` command: a module per verb.

A verb's module has `add_arguments(parser)`, `run(args)`, whose docstring is its
help, an EXAMPLE, and ACCELERATOR = False where a CPU will do. What computes is
imported when it is asked for.

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

from vitscale.cli import (
  cut,
  data,
  doctor,
  encode,
  eval,
  export,
  fit,
  frontier,
  import_,
  launch,
  models,
  plan,
  runs,
  sample,
  study,
  train,
)
from vitscale.cli.codes import BAD_INPUT, FAILED, INTERRUPTED, complain
from vitscale.core.errors import UserError
from vitscale.launch import machine

# As `vitscale --help` lists them.
VERBS = (
  study, train, fit, plan, launch, cut, frontier, eval, import_, export,
  encode, sample, models, runs, doctor, data,
)  # fmt: skip


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
  for module in VERBS:
    name = module.__name__.rpartition(".")[2].rstrip("_")
    text = textwrap.dedent(module.run.__doc__).strip()
    sub = verbs.add_parser(
      name,
      help=text.splitlines()[0],
      description=text,
      epilog=f"example: vitscale {module.EXAMPLE}",
    )
    sub.set_defaults(
      run=module.run, accelerator=getattr(module, "ACCELERATOR", True)
    )
    sub.add_argument(
      "--json", action="store_true", help="one JSON object on stdout"
    )
    module.add_arguments(sub)
  return top


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Arguments, with key=value overrides allowed after options too."""
  top = parser()
  args, extra = top.parse_known_args(argv)
  strange = [
    text
    for text in extra
    if not hasattr(args, "overrides") or text.startswith("-") or "=" not in text
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
      result, code = args.run(args)
    except UserError as error:
      return complain(str(error))
    except KeyboardInterrupt:
      print("vitscale: interrupted", file=sys.stderr)
      return INTERRUPTED
    except BrokenPipeError:
      return FAILED
    if args.json:
      write(result)
  return code


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
