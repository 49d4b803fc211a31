"""What a data set holds: counts, sizes, statistics, a contact sheet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import source as source_lib
from vitscale.data import sources, transforms
from vitscale.data.random import Rng
from vitscale.data.source import Source
from vitscale.report import pictures
from vitscale.report.plain import table

LOOK = 256  # images of a split whose sizes and values are looked at
TILES, SIDE = 64, 96  # of a contact sheet; pixels
CLASSES = 20  # printed


def splits(options: Mapping[str, Any]) -> dict[str, Source]:
  """The sources of every split that the data have."""
  options = dict(options)
  name = options.pop("source")
  found = {}
  for split in source_lib.SPLITS:
    try:
      found[split] = sources.make(name, split=split, **options)
    except source_lib.NoSplit:
      if split == "train":
        raise
  return found


def describe(
  options: Mapping[str, Any], parts: Mapping[str, Source]
) -> dict[str, Any]:
  """What there is: by split, images, counts, sizes, values, fingerprint.

  Sizes and values are of 256 images of each split, evenly spaced.
  """
  first = parts["train"]
  return {
    "options": dict(options),
    "class_names": first.class_names,
    "mean": first.mean,
    "std": first.std,
    "splits": {name: _describe(part) for name, part in parts.items()},
  }


def _describe(part: Source) -> dict[str, Any]:
  rows = np.unique(np.linspace(0, len(part) - 1, LOOK).astype(int))
  made = {
    "images": len(part),
    "counts": part.counts.tolist(),
    "fingerprint": part.fingerprint,
    "looked_at": len(rows),
  }
  if part.tokenizer is not None or len(part.shape or (1, 1, 1)) != 3:
    return made | {"shape": part.shape}  # latents, or videos
  sizes, counts = [], 0
  for i in rows:
    (image,) = part.images(np.array([i]))
    sizes.append(image.shape[:2])
    if image.ndim != 3:
      return made | {"shape": image.shape}
    counts = counts + _histogram(image)
  height, width = np.array(sizes).T
  mean, std = _moments(counts)
  return made | {
    "height": _range(height), "width": _range(width),
    "measured_mean": mean, "measured_std": std,
  }  # fmt: skip


def _range(values: np.ndarray) -> dict[str, int]:
  return {
    "least": int(values.min()),
    "median": int(np.median(values)),
    "most": int(values.max()),
  }


def _histogram(image: np.ndarray) -> np.ndarray:
  """(channels, 256) pixels of each value."""
  flat = image.reshape(-1, image.shape[-1])
  return np.stack([np.bincount(x, minlength=256) for x in flat.T])


def _moments(counts: np.ndarray) -> tuple[list[float], list[float]]:
  """Mean and deviation per channel in 0..1."""
  value, n = np.arange(256) / 255, counts.sum(1)
  mean = counts @ value / n
  return mean.tolist(), np.sqrt(counts @ value**2 / n - mean**2).tolist()


def text(result: Mapping[str, Any]) -> str:
  """`describe` for people."""
  names, parts = result["class_names"], result["splits"]
  options = {"source": result["options"]["source"]} | result["options"]
  rows = []
  for name, part in parts.items():
    row = {"split": name, "images": part["images"]}
    if "height" in part:
      for side in ("height", "width"):
        row[f"{side} (least, median, most)"] = " ".join(
          str(x) for x in part[side].values()
        )
    else:
      row["shape"] = part["shape"]
    rows.append(row | {"fingerprint": part["fingerprint"]})
  lines = [
    " ".join(f"data.{key}={x}" for key, x in options.items()),
    table(rows, list(rows[0])),
  ]
  classes = [
    {"class": name} | {k: part["counts"][c] for k, part in parts.items()}
    for c, name in enumerate(names)
  ]
  lines.append(table(classes[:CLASSES], ["class", *parts]))
  if len(names) > CLASSES:
    least = min(range(len(names)), key=parts["train"]["counts"].__getitem__)
    lines.append(
      f"and {len(names) - CLASSES} more classes; the smallest of train is"
      f" {names[least]}: {parts['train']['counts'][least]} images"
    )
  number = lambda values: " ".join(f"{x:.3f}" for x in values)
  lines.append(f"mean {number(result['mean'])}, std {number(result['std'])}")
  train = parts["train"]
  if "measured_mean" in train:
    lines[-1] += (
      f"; of {train['looked_at']} images of train"
      f" {number(train['measured_mean'])}, {number(train['measured_std'])}"
    )
  if "sheet" in result:
    lines.append(f"contact sheet: {result['sheet']}")
  return "\n".join(lines)


def _from_all_over(source: Source) -> np.ndarray:
  """Up to TILES rows, evenly spaced in each class: neighbours may be alike."""
  quota = source_lib.limited(source, TILES).counts
  places = [
    np.flatnonzero(source.label == c)[
      np.linspace(0, source.counts[c] - 1, n).round().astype(int)
    ]
    for c, n in enumerate(quota)
    if n
  ]
  return np.concatenate(places)


def sheet(parts: Mapping[str, Source], file: Path) -> None:
  """Images of train, class by class, as many of each as there can be."""
  source = parts["train"]
  if source.tokenizer is not None or len(source.shape or (1, 1, 1)) != 3:
    raise UserError("--sheet is for images, these are latents or videos")
  if file.suffix.lower() != ".png":
    raise UserError(f"--sheet writes a .png, got {file}")
  rows = _from_all_over(source)
  shrink = transforms.parse(f"resize_small({SIDE})|central_crop({SIDE})")
  tiles = shrink({"image": source.images(rows)}, Rng(0, 0, rows))["image"]
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(file, pictures.sheet(np.asarray(tiles)))
  except OSError as e:
    raise UserError(f"cannot write {file}: {e.strerror}") from e
