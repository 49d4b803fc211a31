"""Studies: runs -> results -> laws, tables, figures, verdicts -> one page.

A study is a folder `experiments/NAME/` with a README.md that states claims and
thresholds beforehand, and a study.py with

    SCALES                     # name -> anything
    runs(scale, done)          # -> list[Run]; done: {name: result}
    analyse(results, scale)    # -> study_report.Analysis

`runs` is called again with the results so far until it names nothing new, so
that rates can be tuned before they are used. A result is a dict: `name`,
`status` (finished | failed | interrupted), `law_variables`, `metrics` (last
row, empty when failed), `workdir`, `checkpoint`, `elastic`, `error`.

A study of public points instead declares `DATA`, see study_data.py: it has no
runs, and `analyse(results, scale, data)` gets the files.
"""

import contextlib
import dataclasses
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale import study_data, study_report, warm_start
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError, nearest
from vitscale.core.lock import hold
from vitscale.core.log import read_json, write_json
from vitscale.data import sources
from vitscale.launch import board, local
from vitscale.launch.engines import ENGINES
from vitscale.launch.local import TRAIN, Interrupted

LAUNCHERS = ("local", "slurm")
ENDED = ("finished", "failed")  # of a run that won't go on by itself
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study.

  Attributes:
    name: unique in the study; letters, digits and `.,=+@_-`, `/` for folders.
    config: what `vitscale.train` takes.
    law_variables: what laws are fitted over; added to the run's own
      (params, flops, examples, ...).
    cost: expected cost in any unit, for order and ETA; estimated from
      examples and `law_variables["tokens"]` when missing.
    may_fail: failing is an answer (a pilot whose rate was too high): it is
      reported and does not fail the study.
  """

  name: str
  config: Mapping[str, Any]
  law_variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  cost: float | None = None
  may_fail: bool = False


def run_study(
  name: str,
  *,
  scale: str,
  data: str | Path | None = None,
  out: str | Path | None = None,
  launcher: str = "local",
  workers: int | None = None,
  force: bool = False,
  train: str = TRAIN,
) -> dict[str, Any]:
  """Runs a study, or what is left of it, and writes its report.

  Finished runs of an equal config are skipped, unfinished ones resume; a
  failed run is reported and the others go on.

  Args:
    name: a folder with study.py, or the name of one in experiments/.
    scale: one of the study's SCALES.
    data: file or folder of a study that reads data, see study_data.py.
    out: folder of runs and report; default out/NAME-SCALE.
    launcher: where runs go: `local`, or `slurm:partition=gpu,...` (see
      launch/slurm_pool.py); other engines don't wait: `vitscale launch`.
    workers: processes at once; default one per core or GPU.
    force: run everything again; old runs are kept as NAME.old-N.
    train: import path of what runs a config (tests).

  Returns:
    `study, scale, status, seconds, data, runs, laws, verdicts, tables, report,
    out, errors`; `exit_code` tells what it means for a command.

  Raises:
    UserError: unknown study, scale or launcher, data missing or not wanted,
      `out` of another study or in use, a run name that can't be one.
  """
  start = time.monotonic()
  path, module = find(name, scale)
  name = path.parent.name
  files = study_data.find(name, module, data)
  out = Path(out or f"out/{name}-{scale}").absolute()
  head = {"study": name, "scale": scale}
  log = out / "logs" / "workers.log"
  pool = _pool(launcher, workers=workers, train=train, log=log)

  with claimed(out, head):
    refuse_launched(out)
    show = board.Board(workers=len(pool.slots))
    with show, pool:
      given = [*files.values()] or [f"{len(pool.slots)} worker(s)"]
      show.say(
        f"study {name} at scale {scale}: {', '.join(map(str, given))}, {out}"
      )
      results, errors, status = _all_runs(
        module, scale, out, pool=pool, show=show, force=force
      )
    result: dict[str, Any] = {
      **head,
      "status": status,
      "seconds": 0.0,
      "data": study_data.digests(files),
      "runs": list(results.values()),
      "laws": [],
      "verdicts": [],
      "tables": [],
      "report": None,
      "out": str(out),
      "errors": errors,
    }
    if status != "interrupted":
      study_report.judge(module, result, path.parent, files, start=start)
      if errors or any(
        r["status"] != "finished" and not r["may_fail"] for r in result["runs"]
      ):
        result["status"] = "failed"
    result["seconds"] = round(time.monotonic() - start, 1)
    write_json(out / "study.json", result)
  print(study_report.summary(result), flush=True)
  return result


def exit_code(result: Mapping[str, Any]) -> int:
  """0, 1 with a failed run or analysis, 75 when it can be resumed."""
  return {"finished": 0, "failed": 1, "interrupted": 75}[result["status"]]


def _pool(launcher: str, **kwargs: Any) -> Any:
  """The pool of `local` or `slurm:OPTIONS`; nothing starts yet."""
  name, _, args = launcher.partition(":")
  if name not in LAUNCHERS:
    waits = "" if name not in ENGINES else (
      f": {name} doesn't wait for its runs; `vitscale launch STUDY --on {name}`"
    )  # fmt: skip
    raise UserError(f"no launcher {name!r}{waits or nearest(name, LAUNCHERS)}")
  if name == "local":
    if args:
      raise UserError(f"launcher 'local' takes no options, got {args!r}")
    return local.Pool(**kwargs)
  from vitscale.launch import slurm_pool

  return slurm_pool.Pool(**kwargs, args=args)


# ---------------------------------------------------------------------- runs


def launched(out: Path) -> dict[str, Any]:
  """Runs that `vitscale launch` sent away, by name: `{"on", "job", "when"}`."""
  return (read_json(out / "launched.json") or {}).get("runs", {})


def refuse_launched(out: Path) -> None:
  """Raises UserError while runs are out: two processes may not share one."""
  away = [
    (name, sent["on"])
    for name, sent in launched(out).items()
    if (read_json(out / "runs" / name / "run.json") or {}).get("status")
    not in ENDED
  ]
  if away:
    raise UserError(
      f"{len(away)} runs are out on {away[0][1]} ({away[0][0]}, ...): wait for"
      f" them, or cancel them and remove {out / 'launched.json'}"
    )


def _all_runs(
  module: Any,
  scale: str,
  out: Path,
  *,
  pool: Any,
  show: board.Board,
  force: bool,
) -> tuple[dict[str, Result], list[str], str]:
  """(results by name, errors of the study's own code, status)."""
  results: dict[str, Result] = {}
  while True:
    try:
      with study_report.no_accelerator():
        named = list(module.runs(scale, dict(results)))
    except UserError:
      raise
    except Exception as error:
      if not results:
        raise
      traceback.print_exc()  # what has run is not lost with it
      return results, [f"runs: {study_report.one_line(error)}"], "failed"
    new = [run for run in checked(named) if run.name not in results]
    if not new:
      return results, [], "finished"
    found = {run.name: find_old(run, out, force, show.say) for run in new}
    done = {n: f for n, f in found.items() if f and f["status"] == "finished"}
    jobs = [_job(run, out) for run in new if run.name not in done]
    show.skip(done)
    show.add(jobs)
    resumed = sum(f is not None for f in found.values()) - len(done)
    show.say(
      f"{len(new)} runs: {len(done)} finished before, {resumed} to resume,"
      f" {len(jobs) - resumed} new"
    )
    stop = None
    try:
      ran = pool.run(jobs, progress=show) if jobs else {}
    except Interrupted as error:
      ran, stop = error.results, error
    for run in new:
      raw = done.get(run.name) or ran.get(run.name)
      if raw is None and stop:
        raw = {"status": "interrupted"}
      results[run.name] = result_of(run, raw, workdir_of(run, out))
    if stop:
      return results, [], "interrupted"


def checked(runs: Sequence[Run]) -> Sequence[Run]:
  """Raises UserError for a name that is no folder or names two runs."""
  seen = set()
  for run in runs:
    if not re.fullmatch(r"[\w@][\w.,=+@-]*(/[\w@][\w.,=+@-]*)*", run.name):
      raise UserError(
        f"run name {run.name!r}: use letters, digits and .,=+@_- only"
      )
    if run.name in seen:
      raise UserError(f"two runs are named {run.name!r}")
    seen.add(run.name)
  return runs


def workdir_of(run: Run, out: Path) -> Path:
  return out / "runs" / run.name


def find_old(run: Run, out: Path, force: bool, say: Any) -> Result | None:
  """The run.json of an earlier session that this run can build on.

  A workdir of another config is moved aside, never overwritten.
  """
  workdir = workdir_of(run, out)
  if not workdir.exists() or not any(workdir.iterdir()):
    return None
  try:
    old = read_json(workdir / "run.json")
  except UserError:
    old = None
  if old and old.get("config_digest") == config_lib.digest(run.config):
    before, now = old.get("data_fingerprint"), sources.fingerprint(run.config)
    if force:
      why = "--force"
    elif before and now and before != now:
      why = "its data changed"
    elif _other_parents(old, run.config):
      why = "the run it started from changed"
    else:
      return old
  elif old:
    changed = config_lib.difference(old.get("config", {}), run.config)
    why = "; ".join(changed[:3]) or "another version of vitscale"
  else:
    why = "no readable run.json"
  aside = next(
    path
    for n in range(1, 10**6)
    for path in [workdir.with_name(f"{workdir.name}.old-{n}")]
    if not path.exists()
  )
  workdir.rename(aside)
  say(f"{run.name} runs afresh ({why}); the old run is {aside.name}")
  return None


def _other_parents(old: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
  """Whether the checkpoints it read are others now; gone ones are not."""
  before, now = old.get("parents") or {}, warm_start.facts(config) or {}
  same = lambda key: before[key]["digest"] == now[key]["digest"]
  return any(not same(key) for key in before if key in now)


def _job(run: Run, out: Path) -> dict[str, Any]:
  config = run.config
  return {
    "name": run.name,
    "config": config,
    "workdir": str(workdir_of(run, out)),
    "cost": _cost(run),
    # Equal up to these is one compiled step, see train.reuse.
    "group": config_lib.digest(config, without=("seed", "optim.lr", "init")),
    "log": str(out / "logs" / f"{run.name}.log"),
  }


def _cost(run: Run) -> float:
  """The run's cost, or examples x tokens as far as they are known."""
  if run.cost is not None:
    return float(run.cost)
  config, variables = run.config, run.law_variables
  steps = config.get("total_steps") or variables.get("steps") or 1
  examples = config.get("total_examples") or steps * config.get("batch_size", 1)
  # A step of few tokens costs more than its tokens: the constant is overhead.
  return float(examples) * (16 + float(variables.get("tokens") or 1))


def result_of(run: Run, raw: Mapping[str, Any], workdir: Path) -> Result:
  """A result as studies and users see it."""
  facts = read_json(workdir / "run.json") or {} if workdir.exists() else {}
  checkpoint = workdir / "checkpoints"
  elastic = run.config.get("elastic")
  result = {
    "name": run.name,
    "status": raw["status"],
    "law_variables": {
      **facts.get("law_variables", {}),
      **dict(run.law_variables),
    },
    "metrics": raw.get("metrics") or {},
    "workdir": str(workdir),
    "checkpoint": str(checkpoint) if checkpoint.is_dir() else None,
    "elastic": config_lib.to_dict(elastic) if elastic else None,
    "seconds": facts.get("seconds") or raw.get("seconds"),
    "may_fail": run.may_fail,
  }
  extra = {k: raw[k] for k in ("error", "log") if raw.get(k)}
  return {**result, **extra}


# --------------------------------------------------------------------- parts


def find(name: str, scale: str) -> tuple[Path, Any]:
  """The path of a study's study.py, and the module.

  Raises:
    UserError: no such study, or it lacks something, or this scale.
  """
  path = config_lib.find(name, "experiments", "{}/study.py").absolute()
  with study_report.no_accelerator():
    module = _load(path)
  if scale not in module.SCALES:
    raise UserError(
      f"{path.parent.name} has no scale"
      f" {scale!r}{nearest(scale, module.SCALES)}"
    )
  return path, module


def _load(path: Path) -> Any:
  """Imports study.py; files beside it can be imported by name."""
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  module = config_lib.load_module(path)
  missing = [x for x in ("SCALES", "runs", "analyse") if not hasattr(module, x)]
  if missing:
    raise UserError(f"{path} has no {missing[0]}: see vitscale/study.py")
  return module


def _others(out: Path) -> list[str]:
  """What lies in a folder that has no study.json, but for our traces."""
  return [p.name for p in out.iterdir() if p.name not in (".lock", "logs")]


@contextlib.contextmanager
def claimed(out: Path, head: Mapping[str, Any]) -> Iterator[None]:
  """Holds `out` for this study and this process.

  Raises:
    UserError: it belongs to another study or scale, holds other files, or
      another process works in it.
  """
  old = read_json(out / "study.json") if out.is_dir() else None
  if old is not None:
    whose = {key: old.get(key) for key in head}
    if whose != head:
      raise UserError(
        f"{out} belongs to study {whose['study']!r} at scale"
        f" {whose['scale']!r}: choose another --out"
      )
  elif out.exists() and (not out.is_dir() or _others(out)):
    raise UserError(f"{out} holds something else: choose another --out")
  try:
    (out / "logs").mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"can't write {out}: {error.strerror}") from error
  with hold(out, "a study"):
    if old is None:
      write_json(out / "study.json", {**head, "status": "running"})
    yield
