"""Tensors from torch's files, without torch and without running any code.

A `.pth` is a pickle, and a pickle may call any function it names. The reader
here knows the few names that tensors need, answers them with parts of its own
and refuses every other. Both layouts are read: the zip of torch 1.6 and later
(`NAME/data.pkl` and `NAME/data/KEY`), and the stream of pickles before.
"""

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError

STORAGES = {
  "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2",
  "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2",
  "CharStorage": "|i1", "ByteStorage": "|u1", "BoolStorage": "|b1",
}  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the stream


WRAPPED = ("model", "state_dict")  # the one name above a state dict


def read(path: str | Path) -> dict[str, np.ndarray]:
  """The tensors of a state dict by name.

  Args:
    path: what `torch.save(model.state_dict(), path)` wrote, or the same under
      one of the names WRAPPED.

  Raises:
    UserError: no such file, not this format, a type this file lacks, or
      anything in it but tensors under names.
  """
  try:
    data = Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"can't read {path}: {error.strerror}") from error
  try:
    read = _zipped if data[:2] == b"PK" else _streamed
    found = read(data)
  except _Refused as error:
    raise UserError(f"{path} {error}") from None
  # A damaged pickle makes the reader raise nearly anything.
  except Exception as error:
    raise UserError(f"{path} is no whole file of torch.save") from error
  if not isinstance(found, Mapping):
    raise UserError(
      f"{path} holds one {type(found).__name__}: want a state dict, tensors"
      " under names"
    )
  if len(found) == 1:
    ((name, value),) = found.items()
    if name in WRAPPED and isinstance(value, Mapping):
      found = value
  for name, value in found.items():
    if not (isinstance(name, str) and isinstance(value, np.ndarray)):
      raise UserError(
        f"{path} holds {name!r}, no tensor: want a state dict, as"
        " torch.save(model.state_dict(), FILE) writes it"
      )
  return dict(found)


class _Refused(Exception):
  """What a file holds that is not read."""


class _Storage:
  """Numbers to be, of which tensors are views."""

  def __init__(self, kind: str, n: int, data: bytes | None = None):
    self.dtype, self.n = np.dtype(STORAGES[kind]), n
    if data is not None:
      self.fill(data)

  def fill(self, data: bytes) -> None:
    if len(data) != self.n * self.dtype.itemsize:
      raise ValueError("cut short")
    self.flat = np.frombuffer(data, self.dtype)


class _Tensor:
  """A view of a storage that may not be filled yet."""

  def __init__(self, storage: _Storage, offset: int, shape, strides):
    whole = (offset, *shape, *strides)
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if (
      any(type(i) is not int or i < 0 for i in whole)
      or len(shape) != len(strides)
      or (math.prod(shape) and last >= storage.n)
      or math.prod(shape) > storage.n
    ):
      raise ValueError("no view of its storage")
    self.storage, self.offset = storage, offset
    self.shape, self.strides = shape, strides

  def array(self) -> np.ndarray:
    flat = self.storage.flat[self.offset :]
    strides = [s * flat.itemsize for s in self.strides]
    view = np.lib.stride_tricks.as_strided(flat, self.shape, strides)
    return np.array(view)


def _unpickled(
  stream: io.BytesIO, load: Callable[[tuple], _Storage] | None = None
) -> Any:
  """The next pickle of a stream, `load` giving the storages it names."""

  def tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, shape, strides)

  def parameter(data, *_):
    return data

  known = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): parameter,
    **{("torch", name): name for name in STORAGES},
  }

  class Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
      if load is None or (module, name) not in known:
        raise _Refused(
          f"asks for {module}.{name}, which is not read here: want a state"
          f" dict of tensors, of {', '.join(STORAGES)}"
        )
      return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
      if load is None or pid[0] != "storage" or pid[1] not in STORAGES:
        raise ValueError(pid)
      return load(pid)

  return Reader(stream).load()


def _zipped(data: bytes) -> Any:
  with zipfile.ZipFile(io.BytesIO(data)) as file:
    (index,) = (n for n in file.namelist() if n.endswith("/data.pkl"))
    root = index.removesuffix("data.pkl")
    if f"{root}byteorder" in file.namelist() and (
      file.read(f"{root}byteorder") != b"little"
    ):
      raise _Refused("was written on a big-endian machine: not read here")
    kept: dict[str, _Storage] = {}

    def load(pid):
      _, kind, key, _, n = pid
      if key not in kept:
        kept[key] = _Storage(kind, n, file.read(f"{root}data/{key}"))
      return kept[key]

    return _arrays(_unpickled(io.BytesIO(file.read(index)), load))


def _streamed(data: bytes) -> Any:
  stream = io.BytesIO(data)
  if _unpickled(stream) != MAGIC or _unpickled(stream) != PROTOCOL:
    raise ValueError("other layout")
  if not _unpickled(stream)["little_endian"]:
    raise _Refused("was written on a big-endian machine: not read here")
  kept: dict[str, _Storage] = {}

  def load(pid):
    _, kind, key, _, n, view = pid
    if view is not None:
      raise _Refused("has views of storages, of torch before 0.4: save anew")
    return kept.setdefault(key, _Storage(kind, n))

  found = _unpickled(stream, load)
  for key in _unpickled(stream):
    n = int.from_bytes(stream.read(8), "little")
    one = kept[key]
    if n != one.n:
      raise ValueError("another length")
    one.fill(stream.read(n * one.dtype.itemsize))
  return _arrays(found)


def _arrays(found: Any) -> Any:
  if isinstance(found, _Tensor):
    return found.array()
  if isinstance(found, Mapping):
    return {name: _arrays(value) for name, value in found.items()}
  return found
