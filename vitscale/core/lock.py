"""One process per folder: an advisory lock that ends with the process."""

import contextlib
import fcntl
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from vitscale.core import distributed
from vitscale.core.errors import UserError


def hold(folder: Path, what: str) -> IO[str]:
  """Locks `folder/.lock`; closing the returned file lets go.

  Args:
    folder: an existing folder.
    what: names the other holder in the error ("a study", "a run").

  Raises:
    UserError: another process holds it, or the folder isn't writable.
  """
  try:
    file = open(folder / ".lock", "w")  # noqa: SIM115 (held by the caller)
  except OSError as error:
    raise UserError(f"can't write {folder}: {error.strerror}") from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    file.close()
    said = f"another process is running {what} in {folder}"
    raise UserError(said) from error
  return file


def hold_together(folder: Path, what: str) -> AbstractContextManager:
  """`hold` by process 0 for all of a run's processes, as a context."""
  files = []
  distributed.from_main(lambda: files.append(hold(folder, what)))
  return files[0] if files else contextlib.nullcontext()


def held(folder: Path) -> bool:
  """Whether some process holds `folder/.lock` now; leaves no trace."""
  try:
    file = open(folder / ".lock")  # noqa: SIM115
  except OSError:
    return False
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
      return True
  return False
