"""Latents or codes that a tokenizer made of images: data of a generator.

    vitscale encode out/tokenizer --out out/latents
    config.data = {"source": "latents", "path": "out/latents"}

A folder of them:

    card.json            which tokenizer, of which data; statistics; what is
                         written so far
    SPLIT/latents.npy    (n, h, w, c) float32, or int32 codes (n, h, w, 1)
    SPLIT/label.npy      (n,) int32

Arrays are mapped, not read: rows are taken from the disk as they are needed.
Of codes h w may be more than the tokens of an image, where a tokenizer has
several scales; sequences have h = 1.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.core.log import jsonable, read_json, write_json
from vitscale.data import source as source_lib
from vitscale.data.source import Origin, Source

CARD = "card.json"
LEAST_STD = 1e-6  # below it a channel of latents says nothing


def latents(
  split: str = "train", path: str = "", tokenizer: str = ""
) -> Source:
  """The latents of one split in a folder that `vitscale encode` wrote.

  Args:
    split: one that is there.
    path: the folder.
    tokenizer: where the tokenizer is, if no longer where it was.

  Raises:
    UserError: no such folder or split, or one that isn't whole.
  """
  folder = Path(path).expanduser()
  card = read_card(folder)
  splits = card["splits"]
  if split not in splits:
    raise source_lib.NoSplit(
      f"latents: {folder} has no split {split!r}{nearest(split, splits)}"
    )
  n, done = splits[split]["examples"], splits[split]["written"]
  if done < n or "mean" not in card:
    raise UserError(
      f"latents: {folder} has {done} of {n} of {split!r}: run `vitscale encode"
      f" {card['tokenizer']['path']} --out {folder}` again to go on"
    )
  shape = tuple(card["shape"])
  for name, want in (("latents", (n, *shape)), ("label", (n,))):
    found = _open(folder / split / f"{name}.npy").shape
    if found != want:
      raise UserError(
        f"latents: {folder / split}/{name}.npy is {found}, {CARD} says {want}"
      )
  mean, std = ([x / 255 for x in card[name]] for name in ("mean", "std"))
  return Source(
    images=functools.partial(_rows, str(folder / split / "latents.npy")),
    label=np.array(_open(folder / split / "label.npy")),
    class_names=tuple(card["class_names"]),
    shape=shape,
    mean=tuple(mean),
    std=tuple(std),
    fingerprint=source_lib.digest(
      card["tokenizer"]["fingerprint"], splits[split]
    ),
    tokenizer=Origin(
      tokenizer or card["tokenizer"]["path"],
      card["tokenizer"]["fingerprint"],
      tuple(card["tokenizer"]["shape"]),
    ),
    vocabulary=card["vocabulary"],
  )


def read_card(folder: Path) -> dict[str, Any]:
  """What is known of a folder of latents.

  Raises:
    UserError: it is none.
  """
  card = read_json(folder / CARD)
  if card is None:
    raise UserError(
      f"latents: no {CARD} in {folder}: data.path is a folder that `vitscale"
      " encode` wrote"
    )
  return card


def _open(file: Path) -> np.ndarray:
  try:
    return np.load(file, mmap_mode="r")
  except (OSError, ValueError) as error:
    raise UserError(f"latents: can't read {file}: {error}") from error


@functools.lru_cache(maxsize=8)
def _mapped(file: str) -> np.ndarray:
  return _open(Path(file))


def _rows(file: str, indices: np.ndarray) -> np.ndarray:
  return np.array(_mapped(file)[indices])


# ------------------------------------------------------------------- writing


@dataclasses.dataclass
class Writer:
  """Fills a folder of latents, in order; goes on where it was stopped.

  Attributes:
    folder: the folder.
    card: what `CARD` says.
  """

  folder: Path
  card: dict[str, Any]

  @classmethod
  def open(cls, folder: Path, card: Mapping[str, Any]) -> "Writer":
    """A new folder, or one of the same card that isn't finished.

    Raises:
      UserError: there is something else.
    """
    card = json.loads(json.dumps(jsonable(card)))  # as it is read back
    old = read_json(folder / CARD)
    if old is None:
      if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--out {folder} has other files: give a new folder")
      folder.mkdir(parents=True, exist_ok=True)
      splits = {
        name: {**split, "written": 0} for name, split in card["splits"].items()
      }
      made = cls(folder, {**card, "splits": splits})
      made.save()
      return made
    for key in card:
      if key != "splits" and old[key] != card[key]:
        raise UserError(
          f"--out {folder} has latents of another {key}: give a new folder"
        )
    for name, split in card["splits"].items():
      have = {**old["splits"].get(name, {}), "written": 0}
      if {**split, "written": 0} != have:
        raise UserError(
          f"--out {folder} has another {name!r}: give a new folder"
        )
    return cls(folder, old)

  def written(self, split: str) -> int:
    """Rows of a split that are there."""
    return self.card["splits"][split]["written"]

  def array(self, split: str, label: np.ndarray) -> np.memmap:
    """The array of a split to be filled, mapped; a new one with its labels."""
    folder = self.folder / split
    folder.mkdir(exist_ok=True)
    file, shape = folder / "latents.npy", (len(label), *self.card["shape"])
    if self.written(split):
      return np.load(file, mmap_mode="r+")
    np.save(folder / "label.npy", label)
    kind = np.float32 if self.card["vocabulary"] is None else np.int32
    return np.lib.format.open_memmap(file, "w+", kind, shape)

  def wrote(self, split: str, array: np.memmap, until: int) -> None:
    """Takes note that rows up to `until` are there, first on the disk."""
    array.flush()
    self.card["splits"][split]["written"] = until
    self.save()

  def save(self) -> None:
    write_json(self.folder / CARD, self.card)


def statistics(array: np.ndarray, block: int = 4096) -> tuple[list, list]:
  """Mean and standard deviation of each channel (n, h, w, c), in float64.

  Raises:
    UserError: a channel without any variance: the tokenizer doesn't use it.
  """
  count, mean, square = 0, 0.0, 0.0  # Chan et al. 1983, block by block
  for start in range(0, len(array), block):
    x = np.asarray(array[start : start + block], np.float64)
    x = x.reshape(-1, x.shape[-1])
    own, n = x.mean(0), len(x)
    square = square + ((x - own) ** 2).sum(0)
    square = square + (own - mean) ** 2 * count * n / (count + n)
    mean = mean + (own - mean) * n / (count + n)
    count += n
  std = np.sqrt(square / count)
  dead = np.flatnonzero(std < LEAST_STD)
  if len(dead):
    raise UserError(
      f"latents: channel {dead[0]} of {len(std)} is the same everywhere (and"
      f" {len(dead) - 1} more): the tokenizer doesn't use it; train one with"
      " fewer floats a token, or with a smaller weight of kl"
    )
  return mean.tolist(), std.tolist()
