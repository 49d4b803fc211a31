"""Reading the leaves of one checkpoint, each verified by its digest."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vitscale.core import digest, distributed, manifest, tree
from vitscale.core.errors import UserError, nearest
from vitscale.core.manifest import Damaged

Leaves = dict[str, Any]


def read(
  folder: Path,
  names: Mapping[str, Any],
  below: Iterable[str],
  say: Callable[[str], None],
) -> tuple[Leaves, dict[str, Any]]:
  """Verified leaves by name, and the manifest; a common act of all processes.

  Args:
    folder: of the step.
    names: name -> ShapeDtypeStruct, placed as its sharding says.
    below: paths under which the checkpoint must have no other leaves.
    say: told when there is nothing to verify with.

  Raises:
    Damaged: the manifest, a file or a leaf is not what was written.
    UserError: the leaves are others (differences listed).
  """
  facts, reason = distributed.from_main(manifest_of, folder)
  if facts is None:
    raise Damaged(folder, reason)
  stored, below = facts["leaves"], list(below)
  inside = {k: v for k, v in stored.items() if _below(k, below)}
  manifest.check_fits(folder, inside, names)
  flat, error = load(folder, names, facts)
  if not distributed.every(error is None):
    raise error or Damaged(folder, "another process could not read it")
  if not manifest.has_digests(facts):
    say(f"checkpoint {folder} has no digests: it can't be verified")
    return flat, facts
  wrong = mismatches(flat, stored)
  if wrong:
    raise Damaged(folder, "leaves differ from their digests", wrong)
  return flat, facts


def manifest_of(folder: Path) -> tuple[dict[str, Any] | None, str]:
  """The manifest, or None and why not; JSON, so that processes can share it."""
  try:
    return manifest.read(folder), ""
  except Damaged as error:
    return None, error.reason


def load(
  folder: Path, names: Mapping[str, Any], facts: Mapping[str, Any]
) -> tuple[Leaves, Damaged | None]:
  """Leaves by name, not verified, and what was wrong with the files.

  Args:
    folder: of the step.
    names: name -> ShapeDtypeStruct, or None to read to host memory.
    facts: the manifest.
  """
  try:
    flat = _load(folder / "state", names, facts)
  except Exception as error:  # Orbax and TensorStore raise many kinds
    if isinstance(error, MemoryError | PermissionError) or (
      "RESOURCE_EXHAUSTED" in str(error)
    ):
      raise  # says nothing about the files
    bad = _unreadable(folder, names, facts)
    return {}, Damaged(folder, line(error), bad)
  # A leaf that its files don't know comes back as what was asked for.
  wrong = [
    name
    for name, x in flat.items()
    if not isinstance(x, jax.Array | np.ndarray)
    or [list(x.shape), str(x.dtype)] != facts["leaves"][name][:2]
  ]
  error = Damaged(folder, "leaves missing or of another shape", wrong)
  return flat, error if wrong else None


def mismatches(flat: Leaves, stored: Mapping[str, Any]) -> list[str]:
  """Names of the leaves that don't have the digest of the manifest."""
  found = digest.digests(flat)
  return [name for name in flat if digest.text(found[name]) != stored[name][2]]


def source(name: str, sources: Mapping[str, str]) -> str:
  """Where a leaf comes from by a map of paths (see CheckpointStore.part).

  Raises:
    UserError: the map has no path at or above it.
  """
  fits = [target for target in sources if _below(name, [target])]
  if not fits:
    raise UserError(
      f"no source for {name!r}: add it to the map{nearest(name, sources)}"
    )
  target = max(fits, key=len)
  rest = name[len(target) :].strip("/")
  return "/".join(filter(None, (sources[target], rest)))


def line(error: Exception) -> str:
  """An error of Orbax or TensorStore in one line of bearable length."""
  text = (str(error).splitlines() or [""])[0] or type(error).__name__
  text = re.split(r" \[(?:source locations|tensorstore_spec)=", text)[0]
  if len(text) <= 240:
    return text
  return f"{text[:120]} ... {text[-120:]}"  # what, and the cause at the end


# ------------------------------------------------------------------ helpers


def _load(path: Path, names: Mapping[str, Any], facts: Any) -> Leaves:
  if not names:
    return {}
  args = {name: _restore_args(leaf) for name, leaf in names.items()}
  item = {name: 0 if leaf is None else leaf for name, leaf in names.items()}
  old = not manifest.has_digests(facts)  # the first version kept it nested
  if old:
    item, args = tree.unflatten(item), tree.unflatten(args)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as loader:
    restored = loader.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=item, restore_args=args, partial_restore=True
      ),
    )
  return tree.flatten(restored) if old else restored


def _restore_args(leaf: Any) -> Any:
  if leaf is None:
    return ocp.RestoreArgs(restore_type=np.ndarray)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return ocp.ArrayRestoreArgs(
    sharding=getattr(leaf, "sharding", None) or here,
    global_shape=tuple(leaf.shape),
    dtype=leaf.dtype,
    strict=True,
  )


def _unreadable(folder: Path, names: Any, facts: Any) -> list[str]:
  """The leaves that can't be read even alone; [] when it is all of them."""
  if distributed.process_count() > 1:
    return []  # reading is a common act, and the others are not here
  bad = []
  for name in names:
    try:
      _load(folder / "state", {name: None}, facts)
    except Exception:
      bad.append(name)
  return bad if len(bad) < len(names) else []


def _below(name: str, paths: Iterable[str]) -> bool:
  return any(p in ("", name) or name.startswith(f"{p}/") for p in paths)
