"""CheckpointStore: Orbax keeps the arrays, a manifest says what is complete.

A save counts only after the asynchronous write has finished *and* our own
`MANIFEST.json` stands beside it: Orbax's latest step may be one that failed,
and a stray numbered folder can become "the latest" (both measured).
"""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vitscale.core import tree
from vitscale.core.errors import UserError
from vitscale.core.log import write_json

MANIFEST = "MANIFEST.json"


class CheckpointStore:
  """Checkpoints of one run: `DIRECTORY/STEP/{state,MANIFEST.json}`."""

  def __init__(self, directory: Path, *, keep: int = 2):
    self.directory = Path(directory).absolute()
    self.keep = max(keep, 1)
    self._saver: ocp.AsyncCheckpointer | None = None
    self._commit: threading.Thread | None = None
    self._error: UserError | None = None

  def steps(self) -> list[int]:
    """Complete steps, ascending; anything without a manifest is ignored."""
    return sorted(
      int(path.parent.name)
      for path in self.directory.glob(f"*/{MANIFEST}")
      if path.parent.name.isdigit()
    )

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts an asynchronous save, committed as soon as it is written.

    Args:
      step: updates done.
      state: tree of arrays.
      meta: JSON-ready facts stored in the manifest.

    Raises:
      UserError: this save could not start, or the one before it failed.
    """
    self.wait()
    if self._saver is None:
      self._saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    path = self.directory / str(step)
    if path.exists() and jax.process_index() == 0:
      shutil.rmtree(path)  # without a manifest: a save that never finished
    leaves = {
      name: [list(leaf.shape), str(leaf.dtype)]
      for name, leaf in tree.flatten(state).items()
    }
    try:
      self._saver.save(path / "state", args=ocp.args.StandardSave(state))
    except OSError as error:
      raise _failed(path, error) from error
    manifest = {"step": step, **meta, "leaves": leaves}
    self._commit = threading.Thread(
      target=self._finish, args=(path, manifest), daemon=True
    )
    self._commit.start()

  def _finish(self, path: Path, manifest: Mapping[str, Any]) -> None:
    """Thread: commits a save once it is written; keeps what went wrong."""
    try:
      self._saver.wait_until_finished()
      if jax.process_index() == 0:
        write_json(path / MANIFEST, manifest)
        for old in self.steps()[: -self.keep]:
          # Manifest first: a half-deleted step must not look complete.
          (self.directory / str(old) / MANIFEST).unlink()
          shutil.rmtree(self.directory / str(old), ignore_errors=True)
    except UserError as error:
      self._error = error
    except Exception as error:  # Orbax raises many kinds, all mean "not saved"
      self._error = _failed(path, error)

  def check(self) -> None:
    """Raises UserError if the last save is over and failed; never blocks."""
    if self._commit is not None and not self._commit.is_alive():
      self.wait()

  def wait(self) -> None:
    """Blocks until the last save is committed.

    Raises:
      UserError: it failed.
    """
    if self._commit is not None:
      self._commit.join()
      self._commit = None
    error, self._error = self._error, None
    if error is not None:
      raise error

  def restore(
    self, abstract: Any, step: int | None = None
  ) -> tuple[Any, dict[str, Any]]:
    """The state of `step` (default: the last complete one) and its meta.

    Args:
      abstract: tree of jax.ShapeDtypeStruct, with shardings when wanted.

    Raises:
      UserError: no such checkpoint, or its leaves differ from `abstract`
        (differences listed).
    """
    steps = self.steps()
    if not steps:
      raise UserError(f"no complete checkpoint in {self.directory}")
    step = steps[-1] if step is None else step
    if step not in steps:
      raise UserError(
        f"no checkpoint of step {step} in {self.directory}"
        f" (complete: {', '.join(map(str, steps))})"
      )
    path = self.directory / str(step)
    manifest = json.loads((path / MANIFEST).read_text())
    _check_leaves(path, manifest["leaves"], abstract)
    with ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) as loader:
      state = loader.restore(
        path / "state", args=ocp.args.StandardRestore(abstract)
      )
    return state, manifest

  def close(self) -> None:
    """Commits what is pending and stops Orbax's threads."""
    self.wait()
    if self._saver is not None:
      self._saver.close()
      self._saver = None


def _check_leaves(path: Path, stored: Mapping[str, Any], abstract: Any) -> None:
  wanted = {
    name: [list(leaf.shape), str(leaf.dtype)]
    for name, leaf in tree.flatten(abstract).items()
  }
  if stored == wanted:
    return
  lines = [f"-{name} {stored[name]}" for name in stored if name not in wanted]
  lines += [f"+{name} {wanted[name]}" for name in wanted if name not in stored]
  lines += [
    f"~{name} {stored[name]} -> {wanted[name]}"
    for name in wanted
    if name in stored and stored[name] != wanted[name]
  ]
  more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
  raise UserError(
    f"checkpoint {path} doesn't fit this model: " + "; ".join(lines[:8]) + more
  )


def _failed(path: Path, error: Exception) -> UserError:
  text = (str(error).splitlines() or [type(error).__name__])[0]
  if len(text) > 200:  # the path comes first, the cause last
    text = f"... {text[-200:]}"
  return UserError(
    f"checkpoint {path} could not be written ({text}); the run resumes from the"
    " last complete one"
  )
