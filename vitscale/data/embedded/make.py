"""Makes the embedded subset from the full Fashion-MNIST, byte for byte.

  python -m vitscale.data.embedded.make FULL_FOLDER OUT_FOLDER

The first 1,200 images of each class of the training set and the first 400
of each class of the test set, in their original order.
"""

import sys
from pathlib import Path

import numpy as np

from vitscale.data import idx

PER_CLASS = {"train": 1200, "test": 400}


def first_per_class(label: np.ndarray, k: int) -> np.ndarray:
  """Indices of the first k samples of each class, ascending."""
  classes = range(int(label.max()) + 1)
  return np.sort(
    np.concatenate([np.nonzero(label == c)[0][:k] for c in classes])
  )


def make(full: Path, out: Path) -> None:
  """Writes the four files of the subset to `out`."""
  out.mkdir(parents=True, exist_ok=True)
  for split, k in PER_CLASS.items():
    arrays = idx.read_split(full, split)
    keep = first_per_class(arrays[1], k)
    for name, array in zip(idx.FILES[split], arrays):
      (out / name).write_bytes(idx.encode(array[keep]))


if __name__ == "__main__":
  make(*map(Path, sys.argv[1:3]))
