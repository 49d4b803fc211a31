"""`vitscale data`: shows images on a disk, converts them, downloads a set."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitscale.core.errors import UserError, nearest

EXAMPLE = "data photos --sheet photos.png"
ACCELERATOR = False  # nothing to compute

ACTIONS = ("get", "show", "convert")


def add_arguments(sub: argparse.ArgumentParser) -> None:
  sub.set_defaults(overrides=[])
  sub.add_argument(
    "words", nargs="+", metavar="WORD",
    help="[show] PATH, convert PATH, or get fashion_mnist; then key=value"
    " options of the source",
  )  # fmt: skip
  sub.add_argument("--source", help="default: what PATH looks like")
  sub.add_argument("--sheet", metavar="FILE.png", help="writes a contact sheet")
  sub.add_argument("--out", help="of get and convert: the folder to write")


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Shows images on a disk, converts them, or downloads a data set.

  `data PATH` finds the format, and prints counts, sizes and statistics; `data
  convert PATH --out DIR` writes ArrayRecord shards, and goes on where it was
  stopped; `data get fashion_mnist --out DIR` downloads and verifies.
  """
  words = list(args.words)
  action = words.pop(0) if words[0] in ACTIONS else "show"
  if not words or "=" in words[0]:
    raise UserError(f"data {action}: of what? give a PATH, or a name to get")
  target, items = words[0], [*words[1:], *args.overrides]
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
  from vitscale.data import show

  parts = show.splits(options)
  if action == "convert":
    return _convert(args, options, parts)
  result = show.describe(options, parts)
  if args.sheet:
    show.sheet(parts, Path(args.sheet))
    result["sheet"] = args.sheet
  if not args.json:
    print(show.text(result))
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
