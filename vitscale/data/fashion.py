"""Fashion-MNIST: the embedded subset, or the full set from a folder."""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import idx, pixels, source
from vitscale.data.random import Rng
from vitscale.data.source import Source

FASHION_CLASSES = (
  "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
  "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_EMBEDDED = Path(__file__).parent / "embedded"


def fashion_mnist(
  split: str = "train",
  size: int = 28,
  *,
  path: str | None = None,
  val: int = 2000,
) -> Source:
  """Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747), grey, 10 classes.

  Args:
    split: "train", "val" (the last val/10 of each class of the training
      set, which "train" then lacks) or "test".
    size: pixels a side; below 28 shrunk once, linear and antialiased.
    path: folder with the four original files; None is the embedded subset
      of 12,000 + 4,000 images.
    val: validation images, a multiple of 10.

  Mean and standard deviation are those of "train" at this size.
  """
  source.check_split(split)
  if not 1 <= size <= 28:
    raise UserError(
      f"fashion_mnist has 28 px, got size={size}; larger images hold nothing "
      f"new: use upsample=2 for 56 px"
    )
  where = _EMBEDDED if path is None else Path(path).expanduser()
  image, label, mark = _fashion(
    where, "test" if split == "test" else "train", size
  )
  train_image, train_label, _ = _fashion(where, "train", size)
  held_out = _last_per_class(train_label, val, where)
  mean, std = _fashion_statistics(where, size, val)
  if split != "test":
    keep = held_out if split == "val" else ~held_out
    image, label = train_image[keep], train_label[keep]
  if not len(label):
    raise UserError(f"fashion_mnist: split {split!r} is empty with val={val}")
  mark = source.digest(mark, split, size, val)
  return source.in_memory(image, label, FASHION_CLASSES, mean, std, mark)


def fashion_aspects(
  split: str = "train",
  size: int = 20,
  *,
  spread: float = 0.4,
  path: str | None = None,
  val: int = 2000,
  seed: int = 0,
) -> Source:
  """Fashion-MNIST stretched to any aspect ratio: images whose shapes differ.

  Args:
    split, path, val: as for `fashion_mnist`.
    size: geometric mean of height and width, pixels, rounded for each side.
    spread: standard deviation of the log of width over height (within 3 of
      them), a function of the image's number alone.
    seed: of the ratios.
  """
  if size < 2 or not 0 <= spread <= 1:
    raise UserError(
      f"fashion_aspects: size={size} should be 2 or more, and spread={spread}"
      " 0 to 1"
    )
  plain = fashion_mnist(split, path=path, val=val)
  rng = Rng(seed, 0, np.arange(len(plain))).scope(f"aspects/{split}")
  log_ratio = spread * np.clip(rng.normal("ratio")[:, 0], -3, 3)
  sides = np.exp(np.stack([-log_ratio, log_ratio], 1) / 2)
  sides = np.maximum(np.rint(size * sides), 1).astype(np.int64)
  return dataclasses.replace(
    plain,
    images=functools.partial(_stretched, plain.images, sides),
    shape=None,
    fingerprint=source.digest(plain.fingerprint, sides),
    measure=functools.partial(np.asarray, sides),
  )


def _stretched(images, sides, indices) -> list[np.ndarray]:
  return [
    pixels.resize(image[None], tuple(size))[0]
    for image, size in zip(images(indices), sides[indices])
  ]


@functools.lru_cache(8)
def _fashion(folder: Path, split: str, size: int):
  if size == 28:
    image, label = idx.read_split(folder, split)
    if image.shape[1:] != (28, 28) or label.max(initial=0) > 9:
      raise UserError(
        f"{folder} holds no Fashion-MNIST: {image.shape[1]}x{image.shape[2]} "
        f"px, labels up to {label.max(initial=0)}"
      )
    return image[..., None], label, source.digest(image, label)
  image, label, mark = _fashion(folder, split, 28)
  return pixels.resize(image, (size, size)), label, mark


@functools.lru_cache(8)
def _fashion_statistics(where: Path, size: int, val: int):
  image, label, _ = _fashion(where, "train", size)
  return source.statistics(image[~_last_per_class(label, val, where)])


def _last_per_class(label: np.ndarray, total: int, where: Path) -> np.ndarray:
  """(n,) bool: the last total/10 samples of each class."""
  smallest = np.bincount(label, minlength=10).min()
  if total % 10 or not 0 <= total < 10 * smallest:
    raise UserError(
      f"fashion_mnist: val must be a multiple of 10 below {10 * smallest} "
      f"({where}), got {total}"
    )
  mask = np.zeros(len(label), bool)
  for c in range(10 if total else 0):
    mask[np.nonzero(label == c)[0][-(total // 10) :]] = True
  return mask


def download(out, *, base: str = idx.FASHION_MNIST) -> list[Path]:
  """Fetches the four original files into `out`; see `idx.download`."""
  return idx.download(out, base)
