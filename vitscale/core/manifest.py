"""MANIFEST.json: what makes a checkpoint count, and how it is checked.

It stands beside the arrays once they are written, names every leaf with its
shape, dtype and digest, and carries a checksum of itself, so that a flipped
byte in it is found too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale.core.errors import UserError
from vitscale.core.log import jsonable, write_json

MANIFEST = "MANIFEST.json"
SHOWN = 4  # differences of each kind in a message


class Damaged(UserError):
  """A checkpoint that can't be trusted.

  Attributes:
    reason: what is wrong, in words.
    leaves: the leaves that are wrong; empty when it isn't about leaves.
  """

  def __init__(self, folder: Path, reason: str, leaves: Sequence[str] = ()):
    self.reason, self.leaves = reason, list(leaves)
    shown = ", ".join(self.leaves[:4])
    more = f" and {len(self.leaves) - 4} more" if len(self.leaves) > 4 else ""
    named = f": {shown}{more}" if shown else ""
    super().__init__(f"checkpoint {folder} is damaged ({reason}{named})")


def write(folder: Path, manifest: Mapping[str, Any]) -> None:
  """Commits a checkpoint; atomic.

  Args:
    folder: of the step.
    manifest: `step`, `leaves` (name -> [shape, dtype, digest]) and facts.
  """
  manifest = jsonable(manifest)
  write_json(folder / MANIFEST, {**manifest, "checksum": _checksum(manifest)})


def read(folder: Path) -> dict[str, Any]:
  """The manifest of a step folder, checked; without its checksum.

  Raises:
    Damaged: no manifest, no JSON, another checksum, or of another step.
  """
  try:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    leaves, step = manifest["leaves"], manifest["step"]
    checksum = manifest.pop("checksum", None)
    old = checksum is None and all(len(v) == 2 for v in leaves.values())
  except FileNotFoundError as error:
    raise Damaged(folder, f"no {MANIFEST}") from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Damaged(folder, f"{MANIFEST} can't be read") from error
  if not old and checksum != _checksum(manifest):
    raise Damaged(folder, f"{MANIFEST} doesn't have its checksum")
  if str(step) != folder.name:
    raise Damaged(folder, f"{MANIFEST} is of step {step}")
  return manifest


def has_digests(manifest: Mapping[str, Any]) -> bool:
  """Whether it was written with digests (vitscale's first version had none)."""
  return any(len(entry) == 3 for entry in manifest["leaves"].values())


def check_fits(
  folder: Path,
  stored: Mapping[str, Sequence[Any]],
  wanted: Mapping[str, Any],
) -> None:
  """Compares what a checkpoint holds with what is wanted.

  Args:
    folder: for the message.
    stored: name -> [shape, dtype, ...] of a manifest.
    wanted: name -> anything with `shape` and `dtype`.

  Raises:
    UserError: they differ; lists what only the checkpoint has (-), what only
      the model has (+) and what has another shape or dtype (~), the first few
      of each.
  """
  have = {name: _kind(entry[0], entry[1]) for name, entry in stored.items()}
  want = {name: _kind(x.shape, str(x.dtype)) for name, x in wanted.items()}
  kinds = [
    [f"-{name} {have[name]}" for name in have if name not in want],
    [f"+{name} {want[name]}" for name in want if name not in have],
    [
      f"~{name} {have[name]} -> {want[name]}"
      for name in want
      if have.get(name, want[name]) != want[name]
    ],
  ]
  if not any(kinds):
    return
  lines = []
  for found in filter(None, kinds):
    # What a person knows first: the parameters, not their moments.
    found.sort(key=lambda text: not text[1:].startswith("params/"))
    lines += found[:SHOWN]
    if len(found) > SHOWN:
      lines.append(f"and {len(found) - SHOWN} more {found[0][0]}")
  raise UserError(
    f"checkpoint {folder} doesn't fit this model (- only in the checkpoint,"
    f" + only in the model, ~ differs): {'; '.join(lines)}"
  )


def _kind(shape: Sequence[int], dtype: str) -> str:
  """ "float32[16, 4]" """
  return f"{dtype}{list(shape)}"


def _checksum(manifest: Mapping[str, Any]) -> str:
  text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()
