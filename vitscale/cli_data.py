"""What a command's `--data` says: a source like the run's own, or another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def group(
  trained: Mapping[str, Any], items: Sequence[str], channels: int
) -> tuple[dict[str, Any], bool]:
  """Options of a data source, with its name as `source`.

  Args:
    trained: the run's own, which `key=value` amend.
    items: of the command line: a folder of images, if any, then `key=value`;
      `source=NAME` starts afresh.
    channels: of the images, for a folder.

  Returns:
    The options, and whether it is a folder without splits: all its images are
    then in "train".
  """
  from vitscale.core import config as config_lib
  from vitscale.data.folder import ALIASES

  found, items, whole = dict(trained), list(items), False
  if items and "=" not in items[0]:
    path = Path(items.pop(0)).expanduser()
    found = {"source": "folder", "path": str(path), "channels": channels}
    kinds = [name for names in ALIASES.values() for name in names]
    whole = not any((path / name).is_dir() for name in kinds)
  elif any(item.startswith("source=") for item in items):
    found = {}
  made = config_lib.ConfigDict({"data": found})
  config_lib.override(made, [f"data.{item}" for item in items])
  return made.data.to_dict(), whole
