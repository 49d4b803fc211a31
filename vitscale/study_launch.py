"""A study's runs sent to machines elsewhere, one round at a time.

`vitscale launch STUDY --scale S --out DIR` finds the runs of the round that are
neither finished nor out, writes each one's exact config to DIR/configs/ and
sends it off. Called again later it takes in what has finished and sends the
next round; when nothing is left, `vitscale study STUDY --scale S --out DIR`
skips all runs and writes laws, verdicts and the report. DIR is on storage that
this machine and those of the runs see under the same path.

DIR/launched.json remembers what was sent. A run that is in it and has not
ended is taken to be out there, whatever became of it: `--again` sends it anew.
"""

import contextlib
import dataclasses
import datetime
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale import study as study_lib
from vitscale import study_report
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.study import ENDED, Run


@dataclasses.dataclass
class Round:
  """Where a study stands: names of runs by state, and what to send now."""

  study: str
  scale: str
  out: Path
  send: list[Run]
  finished: list[str]
  failed: list[str]
  away: list[str]

  @property
  def complete(self) -> bool:
    """Nothing to send, nothing to wait for."""
    return not self.send and not self.away

  def describe(self) -> str:
    text = (
      f"{self.study} at scale {self.scale}: {len(self.finished)} runs finished,"
      f" {len(self.failed)} failed, {len(self.away)} out, {len(self.send)} to"
      " send"
    )
    if self.complete:
      text += (
        f"; nothing left to launch: vitscale study {self.study}"
        f" --scale {self.scale} --out {self.out}"
      )
    return text


@contextlib.contextmanager
def opened(
  name: str, *, scale: str, out: str | Path, again: bool, dry: bool
) -> Iterator[Round]:
  """The round to send, with `out` held until it is sent.

  Args:
    name: a folder with study.py, or the name of one in experiments/.
    scale: one of the study's SCALES.
    out: absolute path of the study's folder.
    again: send runs that are out or failed once more.
    dry: touch nothing.

  Raises:
    UserError: as `study.run_study`; a study of public points.
  """
  path, module = study_lib.find(name, scale)
  name, out = path.parent.name, Path(out)
  if getattr(module, "DATA", None):
    raise UserError(f"{name} is a study of points: it has no runs to launch")
  head = {"study": name, "scale": scale}
  with contextlib.nullcontext() if dry else study_lib.claimed(out, head):
    yield _round(module, name, scale, out, again=again, dry=dry)


def _round(
  module: Any, name: str, scale: str, out: Path, *, again: bool, dry: bool
) -> Round:
  sent = study_lib.launched(out)
  found = Round(name, scale, out, [], [], [], [])
  results: dict[str, Any] = {}
  while True:
    with study_report.no_accelerator():
      named = study_lib.checked(list(module.runs(scale, dict(results))))
    new = [run for run in named if run.name not in results]
    for run in new:
      workdir = study_lib.workdir_of(run, out)
      old = read_json(workdir / "run.json") or {}
      status = _status(run, old, run.name in sent)
      if again and status in ("failed", "away"):
        status = "send"
      ended = old.get("status") in ENDED
      if status == "send" and not dry and (ended or run.name not in sent):
        study_lib.find_old(run, out, False, _say)  # another's: moved aside
      getattr(found, status).append(run if status == "send" else run.name)
      raw = {**old, "status": status}
      results[run.name] = study_lib.result_of(run, raw, workdir)
    if not new or found.send or found.away:
      return found


def _status(run: Run, old: Mapping[str, Any], sent: bool) -> str:
  """finished | failed | away | send, from its run.json."""
  ended = old.get("status") in ENDED
  ours = old.get("config_digest") == config_lib.digest(run.config)
  if ended and not ours:
    return "send"
  if ended and (sent or old["status"] == "finished"):
    return old["status"]
  return "away" if sent else "send"


def _say(line: str) -> None:
  print(line, file=sys.stderr)


def config_path(run: Run, out: Path) -> Path:
  """Where the exact config of a run is written."""
  return out / "configs" / f"{run.name}.json"


def write_configs(runs: Sequence[Run], out: Path) -> None:
  """Writes what `vitscale train CONFIG.json` reads."""
  for run in runs:
    path = config_path(run, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, config_lib.to_dict(run.config))


def remember(jobs: Mapping[str, str], out: Path, on: str) -> None:
  """Notes in launched.json that runs are out: {run name: job name}."""
  now = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
  new = {
    name: {"on": on, "job": job, "when": now} for name, job in jobs.items()
  }
  write_json(
    out / "launched.json", {"runs": {**study_lib.launched(out), **new}}
  )
