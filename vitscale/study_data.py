"""Data of a study that reads points instead of training: `--data PATH`.

Public points stay out of the repository, so such a study declares

    DATA = Data(files=("a.csv", "b.csv"), source="github.com/owner/repository")

and its `analyse(results, scale, data)` gets the path of every file by name.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitscale.core.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Data:
  """What a study reads.

  Attributes:
    files: names that the folder must have. If there is one only, `--data` may
      name the file itself, whatever it is called.
    source: where to get them, one line.
    also: names that are used if they lie beside.
  """

  files: tuple[str, ...]
  source: str
  also: tuple[str, ...] = ()

  def find(self, path: str | Path) -> dict[str, Path]:
    """Name -> absolute path of the files that are there.

    Raises:
      UserError: nothing at `path`, or a needed file is missing.
    """
    path = Path(path).absolute()
    if not path.exists():
      raise UserError(f"no file or folder {path}: {self.wanted}")
    if path.is_dir():
      found = {name: path / name for name in self.files}
    elif len(self.files) == 1:
      found, path = {self.files[0]: path}, path.parent
    else:
      raise UserError(f"{path} is a file: {self.wanted}")
    found |= {k: path / k for k in self.also if (path / k).is_file()}
    for name, file in found.items():
      if not file.is_file():
        there = {p.name for p in path.iterdir() if p.is_file()}
        close = nearest(name, there - set(self.files))
        close = close if "did you mean" in close else ""
        raise UserError(f"{path} has no {name}{close}: {self.wanted}")
    return found

  @property
  def wanted(self) -> str:
    """What `--data` must be, in words."""
    names = " and ".join(self.files)
    kind = "a folder with" if len(self.files) > 1 else "the file"
    return f"--data must be {kind} {names} ({self.source})"


def find(study: str, module: Any, path: str | Path | None) -> dict[str, Path]:
  """The files of a study, none for one that needs none.

  Raises:
    UserError: `path` is missing, not wanted, or lacks a file.
  """
  wanted: Data | None = getattr(module, "DATA", None)
  if wanted is None:
    if path is not None:
      raise UserError(f"study {study} takes no --data: it makes its own runs")
    return {}
  if path is None:
    raise UserError(f"study {study} reads data: {wanted.wanted}")
  return wanted.find(path)


def digests(files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
  """Name -> `path` and `sha256`, for the report."""
  out = {}
  for name, path in files.items():
    with open(path, "rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    out[name] = {"path": str(path), "sha256": digest}
  return out
