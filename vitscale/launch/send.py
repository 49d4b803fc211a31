"""`vitscale launch`: from arguments to jobs, files and commands, and off.

Nothing is written or sent before every job was found good by its engine and
the engine's command was found here.
"""

import argparse
import contextlib
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitscale.core import config as config_lib
from vitscale.core import topology as topology_lib
from vitscale.core.errors import UserError, nearest
from vitscale.launch import job as job_lib
from vitscale.launch.engines import ENGINES, OPTIONS
from vitscale.launch.job import Job


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Renders and submits; with --dry-run prints what it would.

  Returns:
    `on`, `jobs` (name, workdir), `files` (text by path), `commands`, `undo`
    (argv that take the jobs away), `submitted`, and for a study `study`.
  """
  engine, topology = _checked(args)
  if args.scale is None:
    return _send(args, engine, _of_config(args, topology))
  if args.overrides:
    raise UserError(f"a study takes no overrides, got {args.overrides[0]!r}")
  from vitscale import study_launch

  out = _out(args)
  job_lib.check_shared(out, _mount(args))
  with study_launch.opened(
    args.what, scale=args.scale, out=out, again=args.again, dry=args.dry_run
  ) as found:
    print(found.describe(), file=sys.stderr)
    jobs = [
      _job(
        args, topology,
        name=job_lib.slug(f"{found.study}-{found.scale}-{one.name}"),
        config=str(study_launch.config_path(one, found.out)),
        workdir=str(found.out / "runs" / one.name),
        array=job_lib.slug(f"{found.study}-{found.scale}"),
      )
      for one in found.send
    ]  # fmt: skip

    names = {job.name: one.name for job, one in zip(jobs, found.send)}

    def sent(some: Sequence[Job]) -> None:
      new = {names[job.name]: job.name for job in some}
      study_launch.remember(new, found.out, args.on)

    def before() -> None:
      study_launch.write_configs(found.send, found.out)

    state = {
      "name": found.study, "scale": found.scale, "complete": found.complete,
      "finished": found.finished, "failed": found.failed, "away": found.away,
    }  # fmt: skip
    result, code = _send(args, engine, jobs, before, sent)
    return {**result, "study": state}, code


# -------------------------------------------------------------------- sending


def _send(
  args: argparse.Namespace,
  engine: Any,
  jobs: list[Job],
  before: Callable[[], None] = lambda: None,
  sent: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> tuple[dict[str, Any], int]:
  """Checks, renders, and submits unless it is a dry run or nothing to do.

  Calls `before()` before the first command, `sent(jobs)` after each.
  """
  for job in jobs:
    job_lib.check_name(job.name)
    engine.check(job)
  name = (
    "nothing" if not jobs else (jobs[0].options.get("array") or jobs[0].name)
  )
  folder = Path(args.files or f"launch/{name}")
  texts = engine.render(jobs) if jobs else {}
  files = {str(folder / name): text for name, text in texts.items()}
  commands = engine.commands(jobs, folder) if jobs else []
  result = {
    "on": args.on,
    "jobs": [{"name": job.name, "workdir": job.workdir} for job in jobs],
    "files": files,
    "commands": commands,
    "undo": engine.undo(jobs) if jobs else [],
    "submitted": False,
  }
  if args.dry_run:
    if not args.json:
      print(_text(result))
    return result, 0
  if not jobs:
    return result, 0
  _write(files, jobs, args.on)
  before()
  each = [[job] for job in jobs] if len(commands) == len(jobs) else [jobs]
  for argv, some in zip(commands, each):
    code = subprocess.run(argv, stdout=sys.stderr, check=False).returncode
    if code:
      print(
        f"vitscale: {shlex.join(argv[:5])} ... ended with {code}; written files"
        f" are in {folder}",
        file=sys.stderr,
      )
      return result, 1
    sent(some)
  if not args.json:
    print(f"{len(jobs)} job(s) sent to {args.on}; to take them away:")
    print("\n".join(shlex.join(argv) for argv in result["undo"]))
  return {**result, "submitted": True}, 0


def _write(files: dict[str, str], jobs: list[Job], on: str) -> None:
  try:
    for path, text in files.items():
      Path(path).parent.mkdir(parents=True, exist_ok=True)
      Path(path).write_text(text)
    if on == "slurm":
      Path(jobs[0].options["logs"]).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"can't write {error.filename}: {error.strerror}"
    ) from error


def _text(result: dict[str, Any]) -> str:
  """What a dry run prints: files, then commands, ready for a shell."""
  parts = [f"# ---- {path}\n{text}" for path, text in result["files"].items()]
  argvs = [shlex.join(argv) for argv in result["commands"]]
  undo = [f"# {shlex.join(argv)}" for argv in result["undo"]]
  heads = ["# ---- to submit", *argvs, "# ---- to take away", *undo]
  return "\n".join([*parts, *(heads if argvs else [])])


# ------------------------------------------------------------------ arguments


def _engine(on: str) -> Any:
  if on not in ENGINES:
    raise UserError(f"no engine {on!r}{nearest(on, ENGINES)}")
  return importlib.import_module(f"vitscale.launch.{on}")


def _checked(args: argparse.Namespace) -> tuple[Any, Any]:
  """The engine and the topology, after checks that need no files.

  Raises:
    UserError: unknown engine or topology, hardware the engine can't give,
      options missing or not for this engine, its command not found here.
  """
  engine = _engine(args.on)
  topology = topology_lib.parse(args.topology) if args.topology else None
  given = {name for name in OPTIONS if getattr(args, name) is not None}
  strange = sorted(given - set(engine.TAKES))
  if strange:
    takers = [on for on in ENGINES if strange[0] in _engine(on).TAKES]
    raise UserError(
      f"--{strange[0]} is not for {args.on} but for {', '.join(takers)}"
    )
  if topology is not None:
    kind = "tpu" if topology.is_tpu else "gpu"
    if kind not in engine.SERVES:
      can = [on for on in ENGINES if kind in _engine(on).SERVES]
      raise UserError(
        f"{args.on} has no {kind.upper()}s for {topology.name}: use --on"
        f" {' or '.join(can)}"
      )
  missing = [n for n in engine.NEEDS if getattr(args, n) in (None, "")]
  if missing:
    raise UserError(f"{args.on} needs --{' and --'.join(missing)}")
  if not args.dry_run and shutil.which(engine.PROGRAM) is None:
    raise UserError(
      f"{engine.PROGRAM} is not installed here; needed for --on {args.on}:"
      f" {engine.INSTALL} (--dry-run works without it)"
    )
  if args.restarts < 0:
    raise UserError(f"--restarts {args.restarts}: 0 or more")
  return engine, topology


def _of_config(args: argparse.Namespace, topology: Any) -> list[Job]:
  """The one job of a config, which is loaded here to find mistakes early."""
  spec, _, arg = args.what.partition(":")
  try:
    config_lib.load(args.what, args.overrides)
  except UserError:
    if _is_study(args.what):
      raise UserError(f"{args.what} is a study: give --scale") from None
    raise
  path = Path(spec)
  out, name = _out(args), args.name or job_lib.slug(path.stem)
  if path.is_file():
    # A file of ours: the machines have to see it under the same path.
    spec = str(path.absolute())
    if args.on != "slurm":
      mounted = _mount(args)
      seen = mounted.folder if mounted else out
      if not f"{spec}/".startswith(f"{seen}/"):
        raise UserError(
          f"the machines don't see {args.what}: put it below {seen}, or into"
          " configs/ of what they install"
        )
  config = f"{spec}:{arg}" if arg else spec
  return [
    _job(args, topology, name=name, config=config, workdir=f"{out}/{name}")
  ]


def _is_study(name: str) -> bool:
  with contextlib.suppress(UserError):
    config_lib.find(name.partition(":")[0], "configs")
    return False
  with contextlib.suppress(UserError):
    config_lib.find(name, "experiments", "{}/study.py")
    return True
  return False


def _job(
  args: argparse.Namespace, topology: Any, *, name: str, config: str,
  workdir: str, array: str = "",
) -> Job:  # fmt: skip
  options = {
    key: getattr(args, key)
    for key in _engine(args.on).TAKES
    if getattr(args, key) is not None
  }
  if args.on == "slurm":
    _number("hours", args.hours), _number("cpus", args.cpus)
    _number("parallel", args.parallel)
    options |= {"array": array, "logs": f"{_out(args)}/logs"}
  return Job(
    name=name,
    config=config,
    workdir=workdir,
    topology=topology,
    overrides=tuple(args.overrides),
    mount=_mount(args),
    spot=args.spot,
    restarts=args.restarts,
    env=_env(args.env),
    options=options,
  )


def _out(args: argparse.Namespace) -> str:
  """--out; for Slurm relative to here, as its nodes see this folder."""
  out = args.out.rstrip("/") or "/"
  return str(Path(out).absolute()) if args.on == "slurm" else out


def _mount(args: argparse.Namespace) -> job_lib.Mount | None:
  return job_lib.mount(args.mount) if args.mount else None


def _env(items: Sequence[str]) -> dict[str, str]:
  """`["A=1"]` as a dict."""
  pairs = {}
  for item in items:
    key, equals, value = item.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
      raise UserError(f"--env {item!r} is not NAME=VALUE")
    if "\n" in value:
      raise UserError(f"--env {key}: a value of one line, please")
    pairs[key] = value
  return pairs


def _number(option: str, text: str | None) -> None:
  try:
    good = text is None or float(text) > 0
  except ValueError:
    good = False
  if not good:
    raise UserError(f"--{option} {text!r} is not a number above 0")
