"""The safetensors format: little-endian arrays behind a JSON header.

8 bytes with the length of the header, the header (name -> dtype, shape and
byte range), the bytes (https://huggingface.co/docs/safetensors). Small enough
to need no package.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vitscale.core.errors import UserError

DTYPES = {
  "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4",
  "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
READ = {**DTYPES, "BF16": ml_dtypes.bfloat16}


def write(
  path: Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes arrays under their names; metadata are strings.

  Raises:
    UserError: a type the format or this file doesn't have (bfloat16).
  """
  names = {np.dtype(code): name for name, code in DTYPES.items()}
  header: dict[str, object] = {"__metadata__": dict(metadata or {})}
  at = 0
  for name, array in arrays.items():
    kind = names.get(np.asarray(array).dtype.newbyteorder("<"))
    if kind is None:
      raise UserError(f"{name}: {array.dtype} is not written to safetensors")
    size = np.asarray(array).nbytes
    header[name] = {
      "dtype": kind, "shape": list(np.shape(array)),
      "data_offsets": [at, at + size],
    }  # fmt: skip
    at += size
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  try:
    with open(path, "wb") as out:
      out.write(len(text).to_bytes(8, "little") + text)
      for name, array in arrays.items():
        kind = header[name]["dtype"]
        out.write(np.ascontiguousarray(array, DTYPES[kind]).tobytes())
  except OSError as error:
    raise UserError(f"can't write {path}: {error.strerror}") from error


class File(Mapping[str, np.ndarray]):
  """The arrays of a file by name, each read when it is asked for.

  Attributes:
    shapes: name -> shape and type, from the header.
  """

  def __init__(self, path: str | Path):
    """Reads the header.

    Raises:
      UserError: no such file, not this format or cut short, or a type this
        file lacks.
    """
    self.path = Path(path)
    self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
    self._at: dict[str, int] = {}
    try:
      with open(self.path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        whole = self.path.stat().st_size
        header = json.loads(file.read(min(size, whole)))
      header.pop("__metadata__", None)
      for name, one in header.items():
        self._add(name, one, 8 + size, whole)
    except OSError as error:
      raise UserError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(f"{path} is no whole safetensors file") from error

  def _add(self, name: str, one: Any, start: int, whole: int) -> None:
    if one["dtype"] not in READ:
      raise UserError(f"{self.path}: {name} is {one['dtype']}, not read here")
    first, last = one["data_offsets"]
    dtype, shape = np.dtype(READ[one["dtype"]]), tuple(one["shape"])
    inside = 0 <= first <= last and start + last <= whole
    if not inside or last - first != math.prod(shape) * dtype.itemsize:
      raise ValueError(name)
    self._at[name] = start + first
    self.shapes[name] = jax.ShapeDtypeStruct(shape, dtype)

  def __getitem__(self, name: str) -> np.ndarray:
    kind, n = self.shapes[name], math.prod(self.shapes[name].shape)
    try:
      # A plain read: mapped pages would count as memory of this process.
      found = np.fromfile(self.path, kind.dtype, n, offset=self._at[name])
    except OSError as error:
      raise UserError(f"can't read {self.path}: {error.strerror}") from error
    return found.reshape(kind.shape)

  def __iter__(self) -> Iterator[str]:
    return iter(self.shapes)

  def __len__(self) -> int:
    return len(self.shapes)


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a file by name.

  Raises:
    UserError: as `File`.
  """
  return dict(File(path))
