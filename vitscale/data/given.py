"""What a command's `--data` says: a source like the run's own, or another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ALL = {"val": 0.0, "test": 0.0}  # of a folder without splits


def group(
  trained: Mapping[str, Any], items: Sequence[str], learned: tuple[int, ...]
) -> tuple[dict[str, Any], bool]:
  """Options of a data source, with its name as `source`.

  Args:
    trained: the run's own, which `key=value` amend.
    items: of the command line: a path of any format that is known
      (data/detect.py), if any, then `key=value`; `source=NAME` starts afresh.
    learned: shape of an image or a clip of the run.

  Returns:
    The options, and whether it is a folder without splits of which nothing is
    to be held out: with `ALL` besides, all its images are in "train".

  Raises:
    UserError: a path of no known format.
  """
  from vitscale.core import config as config_lib
  from vitscale.data import detect
  from vitscale.data.folder import ALIASES, is_flat

  found, items, whole = dict(trained), list(items), False
  if items and "=" not in items[0]:
    path = items.pop(0)
    # Frames of a clip may lie in folders, as images of a class do.
    name = "video" if len(learned) == 4 else detect.source_of(path)
    found = {"source": name, "path": path}
    if name in ("folder", "video"):
      root = Path(path).expanduser()
      found |= {"path": str(root), "channels": learned[-1]}
      kinds = [name for names in ALIASES.values() for name in names]
      held_out = any(x.startswith(("val=", "test=")) for x in items)
      split = any((root / name).is_dir() for name in kinds)
      whole = not split and not held_out
    if name == "video":
      mine = trained if trained["source"] == "video" else {}
      cut = {key: mine[key] for key in ("stride", "size") if key in mine}
      found |= {"frames": learned[0], **cut}
    elif name == "folder" and is_flat(root):
      found["flat"] = True
  elif any(item.startswith("source=") for item in items):
    found = {}
  made = config_lib.ConfigDict({"data": found})
  config_lib.override(made, [f"data.{item}" for item in items])
  return made.data.to_dict(), whole
