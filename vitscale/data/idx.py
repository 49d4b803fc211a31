"""The idx format of the MNIST family: read, write, verify, download.

An idx file is two zero bytes, a type byte (8 = uint8), the rank, the
dimensions as big-endian int32, then the values; here always gzipped.
http://yann.lecun.com/exdb/mnist (bottom of the page)
"""

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.request
import zlib
from pathlib import Path

import numpy as np

from vitscale.core.errors import UserError

FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the decompressed files: a mirror may compress them anew.
SHA256 = {
  "train-images-idx3-ubyte.gz":
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
  "train-labels-idx1-ubyte.gz":
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
  "t10k-images-idx3-ubyte.gz":
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
  "t10k-labels-idx1-ubyte.gz":
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}  # fmt: skip


def decode(data: bytes, where: str) -> np.ndarray:
  """The array in decompressed idx bytes; `where` names them in errors."""
  if len(data) < 4 or data[:3] != b"\0\0\x08":
    raise UserError(f"{where} is not an idx file of uint8 values")
  start = 4 + 4 * data[3]
  if len(data) < start:
    raise UserError(f"{where} is cut or damaged: its header is incomplete")
  shape = np.frombuffer(data[4:start], ">i4").tolist()
  if min(shape, default=0) < 0 or len(data) != start + math.prod(shape):
    raise UserError(
      f"{where} is cut or damaged: its header promises {shape} values, "
      f"{len(data) - start} bytes follow"
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def encode(array: np.ndarray) -> bytes:
  """Gzipped idx bytes, the same on every run (no time stamp, no name)."""
  if array.dtype != np.uint8:
    raise TypeError(f"idx files here hold uint8, not {array.dtype}")
  head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
  return gzip.compress(head + array.tobytes(), 9, mtime=0)


def _gunzip(data: bytes, where: str) -> bytes:
  try:
    return gzip.decompress(data)
  except (OSError, EOFError, zlib.error) as e:
    raise UserError(f"{where} is no readable gzip file: {e}") from e


def read(path: Path) -> np.ndarray:
  """The array of one gzipped idx file."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    raise UserError(
      f"{path} does not exist; get the files by "
      f"`vitscale data get fashion_mnist --out {path.parent}`"
    ) from None
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror}") from e
  return decode(_gunzip(data, str(path)), str(path))


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Images (n, h, w) uint8 and labels (n,) uint8 of "train" or "test"."""
  images, labels = (read(folder / name) for name in FILES[split])
  if images.ndim != 3 or labels.shape != images.shape[:1]:
    raise UserError(
      f"{folder}: {FILES[split][0]} has shape {images.shape} and "
      f"{FILES[split][1]} {labels.shape}; expected (n, h, w) and (n,)"
    )
  return images, labels


def download(out: str | Path, base: str = FASHION_MNIST) -> list[Path]:
  """Fetches the four Fashion-MNIST files into `out`, checked.

  Files already there with the right content are kept. A file appears under
  its name only when its sha256 is right.

  Args:
    out: folder, made if missing.
    base: address the file names are appended to; a mirror, or file://.

  Raises:
    UserError: no network, a wrong digest, or a folder that can't be written.
  """
  out = Path(out)
  paths = []
  try:
    out.mkdir(parents=True, exist_ok=True)
    for name, digest in SHA256.items():
      paths.append(out / name)
      if not _holds(out / name, digest):
        _fetch(base.rstrip("/") + "/" + name, out / name, digest)
  except OSError as e:
    raise UserError(f"cannot write to {out}: {e.strerror or e}") from e
  return paths


def _holds(path: Path, digest: str) -> bool:
  try:
    data = gzip.decompress(path.read_bytes())
  except (OSError, EOFError, zlib.error):
    return False
  return hashlib.sha256(data).hexdigest() == digest


def _fetch(url: str, path: Path, digest: str) -> None:
  try:
    with urllib.request.urlopen(url, timeout=60) as response:
      data = response.read()
  except (OSError, ValueError, http.client.HTTPException) as e:
    reason = getattr(e, "reason", e)
    raise UserError(
      f"cannot download {url}: {reason}; fetch the four files elsewhere and "
      f"put them in {path.parent}"
    ) from e
  found = hashlib.sha256(_gunzip(data, url)).hexdigest()
  if found != digest:
    raise UserError(
      f"{url} is not the published file: sha256 of its content is "
      f"{found[:16]}..., expected {digest[:16]}..."
    )
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
  try:
    with os.fdopen(handle, "wb") as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except BaseException:
    Path(temporary).unlink(missing_ok=True)
    raise
