"""CheckpointStore: Orbax keeps the arrays, a manifest says what counts.

A save counts only after the asynchronous write has finished *and* our own
`MANIFEST.json` stands beside it, with a digest per leaf: Orbax's latest step
may be one that failed, a stray numbered folder can become "the latest", and a
flipped bit in a data file restores without an error (all measured). A restore
recomputes the digests; what doesn't have its own is never handed out.

Leaves are stored under their paths ("params/head/kernel") as one flat dict, so
that a part of them can be read without the classes of the rest.
"""

import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from vitscale.core import digest, distributed, leaves, tree
from vitscale.core import manifest as manifest_lib
from vitscale.core.errors import UserError
from vitscale.core.manifest import MANIFEST as MANIFEST
from vitscale.core.manifest import Damaged

COMMIT = "checkpoint-commit"  # the thread that waits for a save

Say = Callable[[str], None]


def say_on_stderr(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)


class CheckpointStore:
  """Checkpoints of one run: `DIRECTORY/STEP/{state,MANIFEST.json}`.

  What doesn't count lies beside it: an unfinished save has no manifest, a
  damaged step that a run fell back from is renamed to `STEP.bad`.
  """

  def __init__(
    self,
    directory: Path,
    *,
    keep: int = 2,
    keep_every: int = 0,
    say: Say = say_on_stderr,
  ):
    """Touches nothing.

    Args:
      directory: of the checkpoints.
      keep: how many of the last complete steps stay.
      keep_every: steps divisible by it stay as well; 0 for none.
      say: told of failed saves, damaged steps and fall-backs.
    """
    self.directory = Path(directory).absolute()
    self.keep, self.keep_every, self.say = max(keep, 1), keep_every, say
    self._saver: ocp.AsyncCheckpointer | None = None
    self._commit: threading.Thread | None = None
    self._error: UserError | None = None
    self._failed: list[Path] = []  # saves that failed in a row

  # --------------------------------------------------------------- listing

  def steps(self) -> list[int]:
    """Complete steps, ascending: those whose manifest is there and whole."""
    return [
      step
      for step in self.folders()
      if leaves.manifest_of(self.directory / str(step))[0]
    ]

  def folders(self) -> list[int]:
    """Steps with a manifest of any kind, ascending."""
    return sorted(
      int(path.parent.name)
      for path in self.directory.glob(f"*/{MANIFEST}")
      if path.parent.name.isdigit()
    )

  # ---------------------------------------------------------------- saving

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts an asynchronous save, committed as soon as it is written.

    A save that fails is told by `check`, `wait` or the next save. One failure
    is a warning and the next save the second try; two in a row raise.

    Args:
      step: updates done.
      state: tree of arrays.
      meta: JSON-ready facts stored in the manifest.

    Raises:
      UserError: the two saves before failed, or the step is there already.
    """
    self.check(block=True)
    path = self.directory / str(step)
    if step in distributed.from_main(self.steps):
      raise UserError(f"checkpoint {path} exists: not written again")
    flat = tree.flatten(state)
    found = digest.digests(flat)
    try:
      distributed.from_main(_make_room, path)
      if self._saver is None:
        # Weights hardly compress (8 %), and trying takes ten times as long and
        # another copy in memory.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._saver = ocp.AsyncCheckpointer(handler)
      self._saver.save(path / "state", args=ocp.args.PyTreeSave(flat))
    except Exception as error:  # Orbax raises many kinds: all mean "not saved"
      self._fail(path, error)
      return
    entries = {
      name: [list(leaf.shape), str(leaf.dtype), found[name]]
      for name, leaf in flat.items()
    }
    manifest = {**meta, "step": step, "leaves": entries}
    self._commit = threading.Thread(
      target=self._finish, args=(path, manifest), name=COMMIT, daemon=True
    )
    self._commit.start()

  def _finish(self, path: Path, manifest: Mapping[str, Any]) -> None:
    """Thread: commits a save once it is written; keeps what went wrong."""
    try:
      self._saver.wait_until_finished()
      for entry in manifest["leaves"].values():
        entry[2] = digest.text(entry[2])
      if distributed.is_main():
        manifest_lib.write(path, manifest)
        self._retain()
      self._failed = []
    except Exception as error:
      self._fail(path, error)

  def _retain(self) -> None:
    """Deletes old steps; the new one is committed by now."""
    for old in self.steps()[: -self.keep]:
      if not (self.keep_every and old % self.keep_every == 0):
        # Manifest first: a half-deleted step must not look complete.
        (self.directory / str(old) / MANIFEST).unlink()
        shutil.rmtree(self.directory / str(old), ignore_errors=True)

  def _fail(self, path: Path, error: Exception) -> None:
    self._error = _not_written(path, error, self._failed)
    self._failed = [*self._failed, path]
    self._saver = None  # it remembers its failure
    if distributed.is_main() and not (path / MANIFEST).exists():
      shutil.rmtree(path, ignore_errors=True)  # the disk may be full

  def check(self, *, block: bool = False) -> bool:
    """Whether the last save failed, so that the run should save again now.

    A common act of all processes: one failure is everybody's.

    Args:
      block: wait for a save under way; by default that one says False.

    Raises:
      UserError: it was the second failure in a row.
    """
    error = self._outcome(block=block)
    if not distributed.any_of(error is not None):
      return False
    if distributed.any_of(len(self._failed) > 1):
      raise error or UserError("another process could not write a checkpoint")
    if error is not None:
      self.say(f"{error}; trying again")
    return True

  def wait(self) -> None:
    """Blocks until the last save is committed.

    Raises:
      UserError: it failed.
    """
    error = self._outcome(block=True)
    if error is not None:
      raise error

  def _outcome(self, *, block: bool) -> UserError | None:
    """The error of the last save, told once; None as long as it runs."""
    if self._commit is not None:
      if not block and self._commit.is_alive():
        return None
      self._commit.join()
      self._commit = None
    error, self._error = self._error, None
    return error

  def close(self) -> None:
    """Commits what is pending and stops Orbax's threads."""
    self.wait()
    if self._saver is not None:
      self._saver.close()
      self._saver = None

  # ------------------------------------------------------------- restoring

  def restore(
    self, abstract: Any, step: int | None = None
  ) -> tuple[Any, dict[str, Any]]:
    """A verified state and its manifest; changes nothing on disk.

    Args:
      abstract: tree of jax.ShapeDtypeStruct, with shardings when wanted.
      step: which; by default the last that can be verified, and damaged ones
        on the way are told.

    Raises:
      Damaged: `step` is.
      UserError: no such checkpoint, or its leaves differ from `abstract`
        (differences listed).
    """
    names = tree.flatten(abstract)
    flat, facts = self._newest(names, [""], step)
    return tree.like(abstract, flat), facts

  def resume(self, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """`restore` for the run that owns the folder: damaged steps are renamed.

    `STEP` becomes `STEP.bad`, so that nothing takes it for a checkpoint and
    the step can be saved again; it is kept for whoever wants to know why.
    """
    names = tree.flatten(abstract)
    flat, facts = self._newest(names, [""], None, self._quarantine)
    return tree.like(abstract, flat), facts

  def part(
    self, abstract: Any, sources: Mapping[str, str], step: int | None = None
  ) -> Any:
    """Some leaves of a checkpoint, by an explicit map.

    Args:
      abstract: tree of jax.ShapeDtypeStruct to fill; every leaf needs a source.
      sources: path in `abstract` -> path in the checkpoint, both of leaves or
        branches ("" is the root): `{"params": "ema"}`. The longest fits.
      step: as in `restore`.

    Raises:
      UserError: no such checkpoint; a leaf without a source; the leaves
        below the sources are not those that are wanted (differences listed).
    """
    wanted = tree.flatten(abstract)
    origin = {name: leaves.source(name, sources) for name in wanted}
    names = {origin[name]: leaf for name, leaf in wanted.items()}
    flat, _ = self._newest(names, set(sources.values()), step)
    return tree.like(abstract, {name: flat[origin[name]] for name in wanted})

  def _newest(
    self,
    names: Mapping[str, Any],
    below: Iterable[str],
    step: int | None,
    set_aside: Callable[[int], None] = lambda step: None,
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """`leaves.read` of `step`, or of the last that can be verified."""
    steps = distributed.from_main(self.folders)
    if step is not None and step not in steps:
      raise UserError(
        f"no checkpoint of step {step} in {self.directory}"
        f" (complete: {', '.join(map(str, steps)) or 'none'})"
      )
    for candidate in [step] if step is not None else steps[::-1]:
      try:
        path = self.directory / str(candidate)
        return leaves.read(path, names, below, self.say)
      except Damaged as error:
        if step is not None:
          raise
        self.say(f"{error}: falling back to the step before it")
        set_aside(candidate)
    quarantined = distributed.from_main(
      lambda: sorted(p.name for p in self.directory.glob("*.bad*"))
    )
    if not steps and not quarantined:
      raise UserError(f"no complete checkpoint in {self.directory}")
    raise UserError(
      f"no checkpoint in {self.directory} can be verified"
      f" ({', '.join(quarantined or map(str, steps))} damaged): bring back a"
      " copy, or start in a new workdir; `vitscale doctor` shows what is wrong"
    )

  def _quarantine(self, step: int) -> None:
    path = self.directory / str(step)
    if distributed.is_main():
      names = [f"{step}.bad", *(f"{step}.bad{n}" for n in range(2, 100))]
      free = next(n for n in names if not (self.directory / n).exists())
      path.rename(self.directory / free)
      self.say(f"renamed {path} to {free}")
    distributed.barrier("quarantine")

  # -------------------------------------------------------------- cleaning

  def prepare(self) -> bool:
    """Deletes what killed saves left; whether there is something to resume.

    For the run that owns the folder. Folders that hold anything else than
    temporary files are left alone.
    """
    return distributed.from_main(self._prepare)

  def _prepare(self) -> bool:
    left = [
      *self.directory.glob("*/*.orbax-checkpoint-tmp*"),
      *self.directory.glob(f"*/.{MANIFEST}.*"),
    ]
    for path in left:
      if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
      else:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in left}:
      if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return bool(self.folders()) or any(self.directory.glob("*.bad*"))


def _make_room(path: Path) -> None:
  try:
    if path.exists():
      shutil.rmtree(path)  # without a whole manifest: never finished
    path.mkdir(parents=True)  # Orbax would take minutes to say it can't
  except OSError as error:
    raise UserError(str(error)) from error


def _not_written(path: Path, error: Exception, before: list[Path]) -> UserError:
  too = f" and before it {before[-1]}" if before else ""
  return UserError(
    f"checkpoint {path}{too} could not be written ({leaves.line(error)}); the"
    " run resumes from the last complete one"
  )
