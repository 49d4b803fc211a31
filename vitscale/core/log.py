"""Logs of a run: JSON lines are the truth, everything else mirrors them.

`metrics.jsonl` holds what the run computed, one row per log step, equal bit
for bit after any number of restarts; `timing.jsonl` holds wall-clock.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitscale.core.errors import UserError


def jsonable(x: Any) -> Any:
  """Plain JSON types; NaN and infinities become null."""
  if isinstance(x, Mapping):
    return {str(k): jsonable(v) for k, v in x.items()}
  if isinstance(x, list | tuple | set):
    return [jsonable(v) for v in x]
  if isinstance(x, float):
    return x if math.isfinite(x) else None
  if x is None or isinstance(x, bool | int | str):
    return x
  if hasattr(x, "item") and getattr(x, "ndim", 0) == 0:
    return jsonable(x.item())
  if hasattr(x, "tolist"):
    return jsonable(x.tolist())
  return str(x)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON atomically, see `write_text`."""
  write_text(path, json.dumps(jsonable(value), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
  """Writes a file atomically: the old one stays whole until the new one is.

  Raises:
    UserError: the disk is full or not writable.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    temporary.write_text(text)
    os.replace(temporary, path)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise _disk_error(path, error) from error


def read_json(path: Path) -> Any:
  """The JSON of a file, None when it doesn't exist.

  Raises:
    UserError: the file is not JSON.
  """
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise UserError(f"{path} is not JSON ({error})") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Rows of a JSON-lines file; a torn last line is left out."""
  if not path.is_file():  # a device or pipe can't be read back
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except ValueError:
      break
  return rows


def _disk_error(path: Path, error: OSError) -> UserError:
  if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return UserError(
      f"disk full while writing {path}: free some space and run the same"
      " command again, it resumes from the last checkpoint"
    )
  return UserError(f"can't write {path}: {error.strerror}")


class Rows:
  """An append-only JSON-lines file, cut back to the restored data step.

  A row's data step is its step unless it says otherwise (batches dropped).
  """

  def __init__(self, path: Path, *, upto: int):
    self.path = path
    rows = read_rows(path)
    at = lambda row: row.get("data_step", row.get("step", 0))
    kept = [row for row in rows if at(row) <= upto]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    if path.is_file() and path.read_text() != text:
      write_text(path, text)
    self.last = kept[-1] if kept else None

  def append(self, row: Mapping[str, Any]) -> None:
    """Adds one row and flushes it to the system.

    Raises:
      UserError: the disk is full or not writable.
    """
    line = json.dumps(jsonable(row)) + "\n"
    try:
      # Opened per row: a row is whole on disk or torn at the very end.
      with open(self.path, "a") as file:
        file.write(line)
    except OSError as error:
      raise _disk_error(self.path, error) from error
    self.last = dict(row)


class Log:
  """metrics.jsonl, timing.jsonl and the optional mirrors of one workdir."""

  def __init__(
    self,
    workdir: Path,
    *,
    upto: int,
    mirrors: Mapping[str, Any] | None = None,
    write: bool = True,
  ):
    """Cuts the files back to `upto`; touches nothing unless `write`."""
    self.workdir, self.writes = workdir, write
    self.cut(upto)
    mirrors = mirrors if mirrors and write else {}
    self.mirrors = [
      make(workdir)
      for name, make in (("tensorboard", tensorboard), ("wandb", wandb))
      if mirrors.get(name)
    ]

  def cut(self, upto: int) -> None:
    """Drops the rows behind a data step."""
    if self.writes:
      self.metrics = Rows(self.workdir / "metrics.jsonl", upto=upto)
      self.timing = Rows(self.workdir / "timing.jsonl", upto=upto)

  def write(self, row: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    if not self.writes:
      return
    self.metrics.append(row)
    self.timing.append(timing)
    for mirror in self.mirrors:
      mirror({**timing, **row})

  def close(self) -> None:
    for mirror in self.mirrors:
      mirror(None)


def tensorboard(workdir: Path) -> Any:
  """A mirror to TensorBoard event files (extra `[tensorboard]`)."""
  try:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
  except ImportError as error:
    raise UserError(
      "log.tensorboard needs the extra: pip install 'vitscale[tensorboard]'"
    ) from error
  writer = EventFileWriter(str(workdir / "tensorboard"))

  def mirror(row: Mapping[str, Any] | None) -> None:
    if row is None:
      return writer.close()
    values = [
      summary_pb2.Summary.Value(tag=key, simple_value=value)
      for key, value in row.items()
      if isinstance(value, int | float)
    ]
    summary = summary_pb2.Summary(value=values)
    return writer.add_event(
      event_pb2.Event(step=row["step"], wall_time=_wall_time(), summary=summary)
    )

  return mirror


def wandb(workdir: Path) -> Any:
  """A mirror to Weights & Biases (extra `[wandb]`)."""
  try:
    import wandb as client
  except ImportError as error:
    raise UserError(
      "log.wandb needs the extra: pip install 'vitscale[wandb]'"
    ) from error
  # The id is the workdir's, so that a resumed run goes on in the same place.
  identity = hashlib.sha256(str(workdir).encode()).hexdigest()[:16]
  run = client.init(
    dir=str(workdir), name=workdir.name, id=identity, resume="allow"
  )
  return lambda row: (
    run.finish() if row is None else run.log(dict(row), step=row["step"])
  )


def _wall_time() -> float:
  import time

  return time.time()
