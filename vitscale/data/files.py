"""Files of a data set, on a disk or behind fsspec (gs://, s3://, memory://).

`listing` finds shards, `by_split` tells from their names which split they are
of, `pread` takes bytes at an offset and `stored` keeps what takes long to find
out. Remote paths need fsspec and the driver of their kind (gcsfs, s3fs); which
sources take them is said by each.
"""

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.data.folder import ALIASES

_DRIVERS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs",
            "az": "adlfs", "hf": "huggingface_hub"}  # fmt: skip


class Entry(NamedTuple):
  """A file below a root.

  Attributes:
    name: path below the root, with forward slashes.
    size: bytes.
    stamp: of its last change, in the words of its file system.
  """

  name: str
  size: int
  stamp: str


def is_remote(path: str | Path) -> bool:
  return "://" in str(path)


def local(path: str | Path, what: str) -> Path:
  """The path, for a source that reads the disk alone.

  Raises:
    UserError: it is remote.
  """
  if is_remote(path):
    raise UserError(
      f"{what} reads local files, not {path}: copy them here, or use"
      " webdataset, parquet or numpy, which read remote ones"
    )
  return Path(path).expanduser()


def listing(
  path: str | Path, suffixes: Sequence[str], what: str
) -> tuple[str, list[Entry]]:
  """The files of some kinds at or below a path, by name.

  Args:
    path: a file, or a folder, local or remote.
    suffixes: of their names, such as (".tar",).
    what: the source's name, for errors.

  Returns:
    The folder they are in, and the files; hidden ones are left out.

  Raises:
    UserError: no such path, no such files, no permission, no driver.
  """
  find = _remote_files if is_remote(path) else _local_files
  root, found = find(str(path), what)
  kinds = " or ".join(suffixes)
  good = [e for e in found if e.name.lower().endswith(tuple(suffixes))]
  if not good and len(found) == 1 and not str(root) == str(path):
    raise UserError(f"{what} reads {kinds} files, {path} is none")
  if not good:
    said = f"{len(found)} files, none of them {kinds}" if found else "no files"
    raise UserError(f"{what}: {path} holds {said}")
  if empty := [e.name for e in good if not e.size]:
    raise UserError(f"{what}: {root}/{empty[0]} is empty: fetch it again")
  return root, sorted(good)


def _local_files(path: str, what: str) -> tuple[str, list[Entry]]:
  root = Path(path).expanduser()
  if not root.exists():
    raise UserError(f"{what}: {root} does not exist")
  try:
    if root.is_file():
      return str(root.parent), [_entry(root.parent, root)]
    found = []
    for top, folders, names in os.walk(root, followlinks=True, onerror=_raise):
      folders[:] = sorted(d for d in folders if not d.startswith("."))
      found += [
        _entry(root, Path(top, name))
        for name in names
        if not name.startswith(".")
      ]
  except OSError as e:
    raise UserError(f"cannot list {e.filename or root}: {e.strerror}") from e
  return str(root), found


def _raise(error: OSError) -> None:
  raise error


def _entry(root: Path, file: Path) -> Entry:
  stat = file.stat()
  name = file.relative_to(root).as_posix()
  return Entry(name, stat.st_size, str(stat.st_mtime_ns))


def _remote_files(path: str, what: str) -> tuple[str, list[Entry]]:
  fs, inside = remote(path)
  try:
    if fs.isfile(inside):
      root, name = path.rsplit("/", 1)
      return root, [_remote_entry(name, fs.info(inside))]
    found = fs.find(inside, detail=True)
  # What a driver raises without credentials or network is its own business.
  except Exception as e:
    raise _failed(path, e) from e
  if not found:
    raise UserError(f"{what}: {path} does not exist or holds nothing")
  base = inside.rstrip("/") + "/"
  entries = [
    _remote_entry(name.removeprefix(base), info) for name, info in found.items()
  ]
  return path.rstrip("/"), [e for e in entries if "/." not in f"/{e.name}"]


def _remote_entry(name: str, info: Mapping[str, Any]) -> Entry:
  keys = ("etag", "ETag", "md5Hash", "mtime", "updated", "LastModified",
          "last_modified", "created")  # fmt: skip
  stamp = next((str(info[k]) for k in keys if info.get(k)), "")
  return Entry(name, int(info["size"]), stamp)


def remote(path: str) -> tuple[Any, str]:
  """The file system of a remote path, and the path within.

  Raises:
    UserError: fsspec or the driver is missing, or there is no such kind.
  """
  fs = _filesystem(path.partition("://")[0])
  return fs, fs._strip_protocol(path)


@functools.lru_cache(8)
def _filesystem(protocol: str) -> Any:
  try:
    import fsspec
  except ImportError as e:
    raise UserError(
      f"{protocol}:// paths need fsspec: pip install 'vitscale[remote]'"
    ) from e
  try:
    return fsspec.filesystem(protocol)
  except ImportError as e:
    driver = _DRIVERS.get(protocol, "its driver")
    raise UserError(
      f"{protocol}:// paths need {driver}: pip install {driver}"
      if protocol in _DRIVERS
      else f"{protocol}:// paths need a driver: {' '.join(str(e).split())}"
    ) from e
  except ValueError as e:
    known = nearest(protocol, ["gs", "s3", "az", "hf", "http", "memory"])
    raise UserError(f"no such kind of path: {protocol}://{known}") from e
  except Exception as e:  # without credentials drivers raise nearly anything
    raise _failed(f"{protocol}://", e) from e


def _failed(path: str, e: Exception) -> UserError:
  reason = " ".join(str(e).split()) or type(e).__name__
  return UserError(f"cannot read {path}: {reason}")


def opened(path: str) -> Any:
  """A seekable file, read only.

  Raises:
    UserError: it can't be opened.
  """
  try:
    if is_remote(path):
      fs, inside = remote(path)
      return fs.open(inside, "rb")
    return open(path, "rb")
  except UserError:
    raise
  except Exception as e:
    raise _failed(path, e) from e


def pread(path: str, offset: int, length: int) -> bytes:
  """`length` bytes from `offset` on; for any number of threads.

  Raises:
    UserError: the file ends before, or can't be read.
  """
  try:
    if is_remote(path):
      fs, inside = remote(path)
      data = fs.cat_file(inside, start=offset, end=offset + length)
    else:
      held = _descriptor(path)  # open until it is read, whoever forgets it
      data = os.pread(held.number, length, offset)
  except UserError:
    raise
  except Exception as e:
    raise _failed(path, e) from e
  if len(data) < length:
    raise UserError(
      f"{path} ends before byte {offset + length}: it has changed, or was cut"
    )
  return data


class _Descriptor:
  """An open file; closed when nobody holds it any more."""

  def __init__(self, path: str):
    self.number = os.open(path, os.O_RDONLY)

  def __del__(self, close=os.close):
    if hasattr(self, "number"):
      close(self.number)


_descriptor = functools.lru_cache(512)(_Descriptor)


# ------------------------------------------------------------------- splits


def by_split(entries: Sequence[Entry], where: str) -> dict[str, list[Entry]]:
  """Files by the split that their names say; "" if none says one.

  A folder or a word of the file's name counts: `train/`, `val-0003.tar`,
  `validation-00000-of-00014.parquet`.

  Raises:
    UserError: a name says two, or some say one and others none.
  """
  found: dict[str, list[Entry]] = {}
  for entry in entries:
    folders, _, file = entry.name.rpartition("/")
    words = folders.split("/") + re.split(r"[-_.]", file)
    said = {s for s, names in ALIASES.items() if set(names) & set(words)}
    if len(said) > 1:
      raise UserError(
        f"{where}/{entry.name} says {' and '.join(sorted(said))}: name one"
        " split"
      )
    found.setdefault("".join(said), []).append(entry)
  if "" in found and len(found) > 1:
    other = next(s for s in found if s)
    raise UserError(
      f"{where}: {found[''][0].name} names no split, others do"
      f" ({found[other][0].name}): name all of them or none"
    )
  return found


# ------------------------------------------------------------- what is kept


def stored(
  key: str, beside: str | Path | None, build: Callable[[], dict]
) -> dict[str, np.ndarray]:
  """Arrays that `build` makes once; later they are read.

  Args:
    key: of what they depend on; others are made anew.
    beside: a folder to keep them in; else, and where that can't be written,
      $XDG_CACHE_HOME/vitscale (default ~/.cache).
    build: makes arrays of numbers or bytes by name.
  """
  name = f"vitscale-index-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
  cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
  places = [Path(beside)] if beside is not None else []
  places += [cache / "vitscale"]
  for place in places:
    try:
      with np.load(place / name, allow_pickle=False) as old:
        if str(old["key"]) == key:
          return {k: old[k] for k in old.files if k != "key"}
    except Exception:  # none, or a damaged one, at which NumPy raises anything
      continue
  made = build()
  for place in places:
    try:
      place.mkdir(parents=True, exist_ok=True)
      with tempfile.NamedTemporaryFile(
        dir=place, prefix=".index-", suffix=".npz", delete=False
      ) as out:
        np.savez(out, key=np.array(key), **made)
      os.replace(out.name, place / name)
      break
    except OSError:
      continue  # read-only: the next place, or nothing is kept
  return made
