"""What can be resumed: verifies every checkpoint of a run, changes nothing.

Reads the arrays to host memory by the names in their manifest, so that it
needs neither the run's model nor its devices.
"""

import contextlib
from pathlib import Path
from typing import Any

from vitscale.core import leaves
from vitscale.core import lock as lock_lib
from vitscale.core import manifest as manifest_lib
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError
from vitscale.core.log import read_json
from vitscale.core.manifest import MANIFEST

STATUS: dict[str, str] = {
  "verified": "every leaf has the digest it was saved with",
  "damaged": "can't be trusted; a run falls back to the step before it",
  "unverified": "written before digests; a run takes it on trust",
  "unfinished": "no manifest: killed while it was saved, or being saved now",
  "quarantined": "a run found it damaged and renamed it",
}


def examine(folder: str | Path) -> dict[str, Any]:
  """Verifies a run's checkpoints.

  Args:
    folder: a workdir or its checkpoints/.

  Returns:
    `steps`: one dict per step folder, ascending, with `step`, `status` (see
    `STATUS`), `bad_leaves` and `reason`; `resumable_from`: the step from which
    the same command goes on, None when there is none to trust; `run`: the
    status in run.json, "running" only while a process holds the workdir, else
    "killed"; `strays`: entries of checkpoints/ that are none.

  Raises:
    UserError: no such folder, or no checkpoints/ there.
  """
  directory = find(Path(folder))
  store = CheckpointStore(directory)
  rows, strays = [], []
  for path in sorted(directory.iterdir(), key=_order):
    number, _, tail = path.name.partition(".bad")
    if not (number.isdigit() and path.is_dir()) or (
      tail and not tail.isdigit()
    ):
      strays.append(path.name)
    elif path.name != number:
      rows.append(_row(number, "quarantined", "renamed by a run"))
    elif int(number) in store.folders():
      row = verify(path)
      if row["status"] != "damaged" or (path / MANIFEST).exists():
        rows.append(row)  # else its run is deleting it, to keep the last few
    elif any(path.glob("state*")):
      rows.append(_row(number, "unfinished", "no manifest"))
    elif path.exists():
      strays.append(path.name)
  good = [r["step"] for r in rows if r["status"] in ("verified", "unverified")]
  return {
    "workdir": str(directory.parent),
    "run": _status(directory.parent),
    "steps": rows,
    "resumable_from": max(good, default=None),
    "strays": strays,
  }


def find(folder: Path) -> Path:
  """The absolute checkpoints/ of a workdir, or `folder` if it is one.

  Raises:
    UserError: neither.
  """
  folder = folder.absolute()
  if not folder.is_dir():
    raise UserError(f"no folder {folder}")
  if (folder / "checkpoints").is_dir():
    return folder / "checkpoints"
  if folder.name == "checkpoints":
    return folder
  if (folder / "run.json").is_file():
    raise UserError(f"{folder} has no checkpoints yet: the run starts anew")
  raise UserError(
    f"{folder} is not a run: no run.json or checkpoints/ there; give a workdir"
  )


def verify(path: Path) -> dict[str, Any]:
  """The row of a step folder that has a manifest."""
  facts, reason = leaves.manifest_of(path)
  if facts is None:
    return _row(path.name, "damaged", reason)
  if not manifest_lib.has_digests(facts):
    return _row(path.name, "unverified", "no digests in its manifest")
  flat, error = leaves.load(path, dict.fromkeys(facts["leaves"]), facts)
  if error is not None:
    return _row(path.name, "damaged", error.reason, error.leaves)
  wrong = leaves.mismatches(flat, facts["leaves"])
  if wrong:
    reason = "leaves differ from their digests"
    return _row(path.name, "damaged", reason, wrong)
  return _row(path.name, "verified", "")


def text(result: dict[str, Any]) -> str:
  """What the command prints without --json."""
  from vitscale.report.plain import table

  shown = [
    {
      "step": row["step"],
      "status": row["status"],
      "what is wrong": "; ".join(
        filter(None, [row["reason"], ", ".join(row["bad_leaves"][:4])])
      ),
    }
    for row in result["steps"]
  ]
  lines = [table(shown, list(shown[0]))] if shown else ["no checkpoints"]
  if result["strays"]:
    lines += [f"not checkpoints, ignored: {', '.join(result['strays'])}"]
  step = result["resumable_from"]
  lines += [
    f"{result['workdir']} ({result['run']}): "
    + (f"resumes from step {step}" if step is not None else "nothing to resume")
  ]
  return "\n".join(lines)


def _row(step: str, status: str, reason: str, bad: Any = ()) -> dict[str, Any]:
  return {
    "step": int(step),
    "status": status,
    "bad_leaves": list(bad),
    "reason": reason,
  }


def _order(path: Path) -> tuple[bool, int, str]:
  number = path.name.partition(".")[0]
  known = number.isdigit()
  return not known, int(number) if known else 0, path.name


def _status(workdir: Path) -> str:
  run = None
  with contextlib.suppress(UserError):  # a torn run.json is the run's worry
    run = read_json(workdir / "run.json")
  status = (run or {}).get("status", "unknown")
  if status == "running" and not lock_lib.held(workdir):
    return "killed"
  return status
