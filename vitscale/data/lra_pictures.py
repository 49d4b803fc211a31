"""Pictures of the Long Range Arena from your files, as they come.

  lra_image       cifar-10-batches-py/ or cifar-10-batches-bin/
  lra_pathfinder  .../curv_contour_length_14/metadata/*.npy and imgs/*/*.png

Tay et al., 2011.04006, section 2.2. Other than published, the tenths of
Pathfinder's pictures are picked by a hash of their names; pathfinder.py can
generate them.
"""

import functools
import pickle
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import image_file, source
from vitscale.data.lra import carved, existing, some

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog",
         "horse", "ship", "truck")  # fmt: skip
GREY = np.array([0.2989, 0.587, 0.114])  # of red, green, blue


def lra_image(path: str, split: str = "train") -> source.Source:
  """CIFAR-10 in grey (32, 32, 1); `val` is the last tenth of `train`.

  Args:
    path: the folder cifar-10-batches-py or cifar-10-batches-bin, or the one it
      is in.
    split: "train", "val" or "test".
  """
  source.check_split(split)
  here = Path(path).expanduser()
  kinds = {"": _pickled, ".bin": _binary}
  found = [
    (root, end)
    for end, name in (("", "cifar-10-batches-py"),
                      (".bin", "cifar-10-batches-bin"))
    for root in (here / name, here)
    if (root / f"test_batch{end}").is_file()
  ]  # fmt: skip
  if not found:
    raise UserError(
      f"{here} has neither test_batch nor test_batch.bin: lra_image wants"
      " cifar-10-batches-py or cifar-10-batches-bin"
    )
  root, end = found[0]
  read = lambda *names: [
    np.concatenate(x)
    for x in zip(*(kinds[end](existing(root, f"{n}{end}")) for n in names))
  ]
  image, label = read(*(f"data_batch_{i}" for i in range(1, 6)))
  mean, std = source.statistics(image)
  if split == "test":
    image, label = read("test_batch")
  else:
    first = len(label) * 9 // 10
    rows = slice(first, None) if split == "val" else slice(first)
    image, label = image[rows], label[rows]
  print_ = source.digest(image, label)
  return source.in_memory(image, label, CIFAR, mean, std, print_)


def _grey(image: np.ndarray, label: Any, file: Path):
  """(n, 3072), planes of red, green, blue -> (n, 32, 32, 1); (n,) int32."""
  label = np.asarray(label, np.int32)
  if label.shape != image.shape[:1] or not ((label >= 0) & (label < 10)).all():
    raise UserError(f"{file}: want one label 0 to 9 per image")
  grey = np.tensordot(GREY, image.reshape(-1, 3, 32, 32), (0, 1))
  return np.rint(grey).astype(np.uint8)[..., None], label


def _binary(file: Path):
  data = np.fromfile(file, np.uint8)
  if not len(data) or len(data) % 3073:
    raise UserError(
      f"{file}: {len(data)} bytes: want images of 3073, a label and 3 x 32 x 32"
    )
  data = data.reshape(-1, 3073)
  return _grey(data[:, 1:], data[:, 0], file)


# All that CIFAR's pickles need: arrays, and bytes as Python 2 wrote them.
_ALLOWED = {
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
  ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),
  **{
    (module, "_reconstruct"): np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
  },
}


class _Unpickler(pickle.Unpickler):
  """Reads arrays and plain values; whatever would call more is refused."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(f"it asks for {module}.{name}")
    return _ALLOWED[module, name]


def _pickled(file: Path):
  try:
    with file.open("rb") as stream:
      batch = _Unpickler(stream, encoding="bytes").load()
  # Damaged pickles raise nearly anything.
  except Exception as error:
    reason = str(error).split("\n")[0] or type(error).__name__
    raise UserError(f"{file}: no batch of CIFAR-10: {reason}") from error
  data, label = (
    batch.get(key, batch.get(key.decode())) if isinstance(batch, dict) else None
    for key in (b"data", b"labels")
  )
  good = isinstance(data, np.ndarray) and data.dtype == np.uint8
  if not good or data.ndim != 2 or data.shape[1] != 3072 or label is None:
    raise UserError(
      f"{file}: want a dict with 'data', uint8 (n, 3072), and 'labels'"
    )
  return _grey(data, label, file)


def lra_pathfinder(path: str, split: str = "train") -> source.Source:
  """The released Pathfinder pictures; splits are tenths 8, 1 and 1.

  Args:
    path: folder with metadata/*.npy (lines `imgs/0 sample_0.png 0 LABEL ...`,
      or arrays of them) and the pictures that they name.
    split: "train", "val" or "test".
  """
  source.check_split(split)
  root = Path(path).expanduser()
  tables = sorted((root / "metadata").glob("*.npy"))
  if not tables:
    raise UserError(
      f"no {root}/metadata/*.npy: lra_pathfinder wants a folder such as"
      " pathfinder32/curv_contour_length_14"
    )
  labels, empty = {}, []
  for table in tables:
    for number, fields in enumerate(_metadata(table)):
      if len(fields) < 4 or fields[3] not in ("0", "1"):
        raise UserError(
          f"{table}:{number + 1}: want folder, file, number and label 0 or 1"
        )
      name = f"{fields[0]}/{fields[1]}"
      file = root / name
      if not file.is_file():
        raise UserError(f"{table}:{number + 1}: there is no {file}")
      if file.stat().st_size:
        labels[name] = int(fields[3])
      else:
        empty.append(name)
  if empty:
    warnings.warn(
      f"{root}: {len(empty)} empty pictures left out, such as {empty[0]}",
      stacklevel=2,
    )
  some(labels, root)
  names = sorted(labels)
  parts = dict(zip(("val", "test", "train"), carved(names, (0.1, 0.1))))
  first = [names[i] for i in parts["train"][:256]]
  probe = _pictures(str(root), tuple(first), np.arange(len(first)))
  mine = tuple(names[i] for i in parts[split])
  some(mine, root)
  label = np.array([labels[name] for name in mine], np.int32)
  mean, std = source.statistics(probe)
  return source.Source(
    images=functools.partial(_pictures, str(root), mine),
    label=label,
    class_names=("two contours", "one contour"),
    shape=probe.shape[1:],
    mean=mean,
    std=std,
    fingerprint=source.digest(mine, label),
  )


def _metadata(table: Path) -> Iterable[Sequence[str]]:
  """Rows of a table: text, or an array that holds no objects."""
  data = table.read_bytes()
  try:
    if data.startswith(b"\x93NUMPY"):
      return np.load(table, allow_pickle=False).tolist()
    return [line.split() for line in data.decode().splitlines()]
  except (ValueError, EOFError) as error:
    raise UserError(
      f"{table}: neither lines of text nor an array of strings"
    ) from error


def _pictures(root: str, names: tuple[str, ...], indices) -> np.ndarray:
  images = [image_file.decode(f"{root}/{names[i]}", 1) for i in indices]
  shapes = sorted({image.shape for image in images})
  if len(shapes) > 1:
    raise UserError(
      f"{root}: pictures of {shapes[0]} and {shapes[-1]}; want one size"
    )
  return np.stack(images)
