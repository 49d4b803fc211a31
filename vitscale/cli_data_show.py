"""`vitscale data`: shows images on a disk, converts them, downloads a set."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest

ACTIONS = ("get", "show", "convert")
LOOK = 256  # images of a split whose sizes and values are looked at
TILES, SIDE = 64, 96  # of a contact sheet; pixels
CLASSES = 20  # printed


def add_arguments(sub: argparse.ArgumentParser) -> None:
  sub.add_argument(
    "words", nargs="+", metavar="[get|show|convert] PATH [key=value]",
    help="show, if left out; of get: fashion_mnist; options of the source",
  )  # fmt: skip
  sub.add_argument("--source", help="default: what PATH looks like")
  sub.add_argument("--sheet", metavar="FILE.png", help="writes a contact sheet")
  sub.add_argument("--out", help="of get and convert: the folder to write")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """The verb."""
  words = list(args.words)
  action = words.pop(0) if words[0] in ACTIONS else "show"
  if not words or "=" in words[0]:
    raise UserError(f"data {action}: of what? give a PATH, or a name to get")
  target, items = words[0], words[1:]
  if wrong := [x for x in items if "=" not in x]:
    raise UserError(f"data {action} {target}: {wrong[0]!r} is no key=value")
  if action == "show" and args.out:
    raise UserError("data: --out is of `get` and `convert`; show takes --sheet")
  if action != "show" and args.sheet:
    raise UserError(
      f"data {action} writes no --sheet: `vitscale data PATH` does"
    )
  if action != "show" and not args.out:
    raise UserError(f"data {action}: --out DIR is missing")
  if action == "get":
    return _get(args, target, items)
  options = _options(target, args.source, items)
  parts = splits(options)
  if action == "convert":
    return _convert(args, options, parts)
  result = describe(options, parts)
  if args.sheet:
    _sheet(parts, Path(args.sheet))
    result["sheet"] = args.sheet
  if not args.json:
    print(text(result))
  return result, 0


def _get(args, name: str, items: Sequence[str]) -> tuple[dict[str, Any], int]:
  from vitscale.data import fashion

  if name != "fashion_mnist":
    raise UserError(
      f"no data set {name!r} to get{nearest(name, ['fashion_mnist'])}"
    )
  if items or args.source:
    raise UserError("data get takes a name and --out alone")
  files = fashion.download(args.out)
  if not args.json:
    print(f"{len(files)} files in {args.out}: use data.path={args.out}")
  return {"name": name, "files": [str(f) for f in files]}, 0


def _options(
  path: str, name: str | None, items: Sequence[str]
) -> dict[str, Any]:
  """Options of a data source, with its name as `source`."""
  from vitscale.core import config as config_lib
  from vitscale.data import detect, folder

  if name is None:
    name = detect.source_of(path)
  found: dict[str, Any] = {"source": name, "path": path}
  if name == "folder" and folder.is_flat(Path(path).expanduser()):
    found["flat"] = True
  made = config_lib.ConfigDict({"data": found})
  config_lib.override(made, [f"data.{item}" for item in items])
  return made.data.to_dict()


def splits(options: Mapping[str, Any]) -> dict[str, Any]:
  """The sources of every split that the data have."""
  from vitscale.data import source, sources

  options = dict(options)
  name = options.pop("source")
  found = {}
  for split in source.SPLITS:
    try:
      found[split] = sources.make(name, split=split, **options)
    except source.NoSplit:
      if split == "train":
        raise
  return found


# ---------------------------------------------------------------------- show


def describe(
  options: Mapping[str, Any], parts: Mapping[str, Any]
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


def _describe(part: Any) -> dict[str, Any]:
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
  from vitscale.report.plain import table

  names, parts = result["class_names"], result["splits"]
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
    " ".join(f"data.{key}={x}" for key, x in result["options"].items()),
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


def _sheet(parts: Mapping[str, Any], file: Path) -> None:
  """Images of train, classes as equal as they can be, class by class."""
  from vitscale.data import transforms
  from vitscale.data.random import Rng
  from vitscale.data.source import limited
  from vitscale.report import pictures

  source = limited(parts["train"], TILES)
  if source.tokenizer is not None or len(source.shape or (1, 1, 1)) != 3:
    raise UserError("--sheet is for images, these are latents or videos")
  if file.suffix.lower() != ".png":
    raise UserError(f"--sheet writes a .png, got {file}")
  rows = np.argsort(source.label, kind="stable")
  shrink = transforms.parse(f"resize_small({SIDE})|central_crop({SIDE})")
  tiles = shrink({"image": source.images(rows)}, Rng(0, 0, rows))["image"]
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(file, pictures.sheet(np.asarray(tiles)))
  except OSError as e:
    raise UserError(f"cannot write {file}: {e.strerror}") from e


# ------------------------------------------------------------------- convert


def _convert(args, options, parts) -> tuple[dict[str, Any], int]:
  from vitscale.data import array_record

  def report(split: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
      print(f"{split}: {done} of {total} images", file=sys.stderr)

  first = parts["train"]
  card = array_record.write(
    parts, Path(args.out).expanduser(), channels=len(first.mean), report=report
  )
  if not args.json:
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    print(f"{counts} images: use data.source=array_record data.path={args.out}")
  return {"out": args.out, "from": dict(options), **card}, 0
