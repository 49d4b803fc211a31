"""The safetensors format: little-endian arrays behind a JSON header.

8 bytes with the length of the header, the header (name -> dtype, shape and
byte range), the bytes (https://huggingface.co/docs/safetensors). Small enough
to need no package.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vitscale.core.errors import UserError

DTYPES = {
  "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4",
  "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


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
  blocks, at = [], 0
  for name, array in arrays.items():
    kind = names.get(np.asarray(array).dtype.newbyteorder("<"))
    if kind is None:
      raise UserError(f"{name}: {array.dtype} is not written to safetensors")
    block = np.ascontiguousarray(array, DTYPES[kind]).tobytes()
    span = [at, at + len(block)]
    header[name] = {
      "dtype": kind, "shape": list(np.shape(array)), "data_offsets": span,
    }  # fmt: skip
    blocks.append(block)
    at += len(block)
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  try:
    with open(path, "wb") as out:
      out.write(len(text).to_bytes(8, "little") + text)
      out.writelines(blocks)
  except OSError as error:
    raise UserError(f"can't write {path}: {error.strerror}") from error


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a file by name.

  Raises:
    UserError: no such file, not this format, or a type this file lacks.
  """
  try:
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    out = {}
    for name, one in header.items():
      if name == "__metadata__":
        continue
      if one["dtype"] not in DTYPES:
        raise UserError(f"{path}: {name} is {one['dtype']}, not read here")
      first, last = one["data_offsets"]
      dtype, shape = np.dtype(DTYPES[one["dtype"]]), one["shape"]
      if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(name)
      block = data[8 + size + first : 8 + size + last]
      out[name] = np.frombuffer(block, dtype).reshape(shape)
    return out
  except OSError as error:
    raise UserError(f"can't read {path}: {error.strerror}") from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is no whole safetensors file") from error
