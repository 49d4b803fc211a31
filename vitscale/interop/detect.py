"""Which layout a checkpoint has, told from its names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vitscale.core.errors import UserError
from vitscale.interop import big_vision, dinov2, hf_vit, mae, siglip, timm
from vitscale.interop.mapping import Layout

# The first that fits: what has more marks comes before its plainer kin.
LAYOUTS: tuple[Layout, ...] = (
  dinov2.LAYOUT, mae.LAYOUT, hf_vit.LAYOUT, siglip.LAYOUT, big_vision.LAYOUT,
  dinov2.RELEASED, mae.RELEASED, timm.LAYOUT,
)  # fmt: skip


def layout(names: Iterable[str], config: Mapping[str, Any]) -> Layout:
  """The layout of a checkpoint.

  Args:
    names: of its arrays.
    config: its config.json, for the message.

  Raises:
    UserError: it is none that is read here; the nearest is named.
  """
  names = list(names)
  for one in LAYOUTS:
    if all(_mark(names, mark) for mark in one.marks):
      return one
  nearest = max(LAYOUTS, key=lambda one: _share(names, one))
  lacking = next(m for m in nearest.marks if not _mark(names, m))
  family = config.get("model_type") or config.get("architecture")
  said = f" of family {family!r}" if family else ""
  shown = ", ".join(sorted(names)[:3])
  raise UserError(
    f"weights{said} named {shown}, ... are of no layout that is read; nearest:"
    f" {nearest.what}, which has {_plain(lacking)} (read:"
    f" {', '.join(one.what for one in LAYOUTS)})"
  )


def _mark(names: list[str], mark: str) -> bool:
  return any(re.fullmatch(mark, name) for name in names)


def _share(names: list[str], one: Layout) -> tuple[float, float]:
  """Marks that are there, then the parts of names that are like theirs."""
  there = sum(_mark(names, mark) for mark in one.marks) / len(one.marks)
  words = {w for mark in one.marks for w in re.findall(r"[A-Za-z]\w+", mark)}
  have = {w for name in names for w in re.findall(r"[A-Za-z]\w+", name)}
  return there, len(words & have) / len(words)


def _plain(mark: str) -> str:
  """A mark as one of the names it fits."""
  return re.sub(r"\([^)]*\)[?*]?|\\", "", mark)
