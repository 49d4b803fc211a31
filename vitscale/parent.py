"""The run that another one starts from or learns from: its weights, read.

    parent = Parent("out/big")
    params = parent.read(bench.abstract["params"])

Nothing is built for it: names and shapes are those of its last checkpoint.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitscale import models, workdir
from vitscale.core import axes as axes_lib
from vitscale.core import distributed, leaves, manifest, tree
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.core.log import read_json
from vitscale.nn import patch as patch_lib
from vitscale.nn import position as position_lib
from vitscale.tasks import lora

TEACHER = "teacher"  # collection in which a taught run keeps its teacher


class Parent:
  """A checkpoint of a run; it is looked at when something of it is asked for.

  Attributes:
    path: as it was given.
    folder: workdir of the run.
    config: its config, as stored.
  """

  def __init__(self, path: str | Path):
    """Opens a workdir, its checkpoints/ or a step folder.

    Raises:
      UserError: no run there.
    """
    self.path = Path(path).expanduser()
    self.folder, self._named = workdir.root(self.path)
    self.config: Mapping[str, Any] = read_json(self.folder / "run.json")[
      "config"
    ]
    self._store = CheckpointStore(self.folder / "checkpoints")

  @functools.cached_property
  def step(self) -> int:
    """Of the checkpoint: the last whole one, unless the path names one.

    Raises:
      UserError: there is none.
    """
    steps = distributed.from_main(self._store.steps)
    if not steps or self._named not in (None, *steps):
      step = "" if self._named is None else f" of step {self._named}"
      where = self._store.directory
      raise UserError(f"no complete checkpoint{step} in {where}")
    return steps[-1] if self._named is None else self._named

  @functools.cached_property
  def leaves(self) -> dict[str, Any]:
    """Name -> [shape, dtype, digest] of everything in the checkpoint."""
    found, reason = distributed.from_main(leaves.manifest_of, self._where)
    if found is None:
      raise manifest.Damaged(self._where, reason)
    return found["leaves"]

  @property
  def weights(self) -> str:
    """The branch with the weights: "ema" where the run kept an average."""
    averaged = any(name.startswith("ema/") for name in self.leaves)
    return "ema" if averaged else "params"

  @property
  def _where(self) -> Path:
    return self._store.directory / str(self.step)

  @property
  def facts(self) -> dict[str, Any]:
    """What a child's run.json says of it; equal facts are equal weights."""
    text = json.dumps(sorted(self.leaves.items()))
    return {
      "path": str(self.folder),
      "step": self.step,
      "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
    }

  def shapes(self, branch: str | None = None) -> dict[str, Any]:
    """The tree of ShapeDtypeStructs below a branch, default the weights."""
    start = f"{branch or self.weights}/"
    return tree.unflatten(
      {
        name.removeprefix(start): jax.ShapeDtypeStruct(shape, dtype)
        for name, (shape, dtype, *_) in self.leaves.items()
        if name.startswith(start)
      }
    )

  @property
  def collections(self) -> set[str]:
    """Statistics and codebooks it keeps beside its parameters."""
    parts = [name.split("/") for name in self.leaves]
    return {p[1] for p in parts if p[0] == "mutable"} - {TEACHER}

  def read(
    self,
    abstract: Any,
    branch: str | None = None,
    *,
    skip: str = "",
    beside: Collection[str] = (),
  ) -> dict[str, Any]:
    """Verified leaves below a branch, placed as `abstract` says.

    Low-rank pairs of an adapted run (tasks/lora.py) are merged into the weights
    for a run that has none, or skips its own.

    Args:
      abstract: tree of ShapeDtypeStruct.
      branch: of the checkpoint, default the weights.
      skip: regex of paths, on either side, that are left out.
      beside: collections that the caller reads besides the weights.

    Returns:
      Path -> array, for every path of `abstract` that isn't skipped.

    Raises:
      UserError: the paths, shapes or dtypes differ (listed), nothing is
        skipped by `skip`, or there are `collections` besides the weights.
    """
    branch = branch or self.weights
    if branch == self.weights:
      self._check_plain(beside)
    left_out = lambda path: bool(skip) and re.fullmatch(skip, path)
    have, want = tree.flatten(self.shapes(branch)), tree.flatten(abstract)
    pairs = {k: x for k, x in have.items() if k.startswith(f"{lora.PARAMS}/")}
    if skip and not any(map(left_out, want)):
      raise UserError(f"skip={skip!r} fits no parameter of this model")
    have, want = (
      {path: x for path, x in flat.items() if not left_out(path)}
      for flat in (have, want)
    )
    if any(path in want for path in pairs):
      pairs = {}  # they go on as they are
    have = {path: x for path, x in have.items() if path not in pairs}
    stored = {path: [x.shape, str(x.dtype)] for path, x in have.items()}
    manifest.check_fits(self._where, stored, want)
    if not want:
      return {}
    sources = {path: f"{branch}/{path}" for path in want}
    found = self._store.part(tree.unflatten(want), sources, self.step)
    return tree.flatten(self._merged(found, pairs, branch))

  def _merged(
    self, found: Any, pairs: Mapping[str, Any], branch: str
  ) -> dict[str, Any]:
    """The weights `found`, with the pairs of those that are there added in."""
    flat = tree.flatten(found)
    mine = {}
    for name, x in pairs.items():
      kernel = flat.get(name.removeprefix(f"{lora.PARAMS}/").rpartition("/")[0])
      if kernel is not None:
        mesh = getattr(kernel.sharding, "mesh", None)
        whole = mesh and jax.NamedSharding(mesh, jax.P())
        mine[name] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
    if not mine:
      return found
    sources = {name: f"{branch}/{name}" for name in mine}
    read = self._store.part(tree.unflatten(mine), sources, self.step)
    merge = jax.jit(
      functools.partial(lora.merge, scale=lora.scale(self.config["task"])),
      out_shardings=jax.tree.map(lambda x: x.sharding, found),
    )
    return merge({**found, **read})

  def _check_plain(self, beside: Collection[str]) -> None:
    """Raises UserError where it keeps what is not read."""
    if others := self.collections - set(beside):
      raise UserError(
        f"{self.folder} keeps {sorted(others)[0]!r} beside its parameters,"
        " which are all that this run can read"
      )


def resizes(
  bench: Any, parent: Parent
) -> tuple[Any, dict[str, Callable[[jax.Array], jax.Array]]]:
  """What to read of a parent of another patch or image, and what makes it fit.

  Args:
    bench: of the child.
    parent: of the same family and widths.

  Returns:
    The tree of ShapeDtypeStruct to read, and path -> function of what was
    read: patch kernels are PI-resized, position tables resampled. What else
    differs is left for `read` to refuse.
  """
  named, have = tree.flatten(bench.names), tree.flatten(parent.shapes())
  want = tree.flatten(bench.abstract["params"])
  read, change = dict(want), {}
  whole = jax.sharding.NamedSharding(bench.mesh, jax.sharding.PartitionSpec())
  for path, x in want.items():
    old = have.get(path)
    if old is None or old.shape == x.shape or old.shape[-1] != x.shape[-1]:
      continue
    roles = [axes_lib.role(name) for name in named[path].names]
    if roles == ["patch", "embed"]:
      fit = _patch_resize(bench, parent, old.shape, x.shape)
    elif set(roles[:-1]) == {"pos"} and len(old.shape) == len(x.shape):
      fit = functools.partial(position_lib.resample, grid=x.shape[:-1])
    else:
      fit = None
    if fit is not None:
      read[path] = jax.ShapeDtypeStruct(old.shape, old.dtype, sharding=whole)
      change[path] = jax.jit(fit, out_shardings=x.sharding)
  return tree.like(bench.abstract["params"], read), change


def _patch_resize(bench: Any, parent: Parent, old, new) -> Callable | None:
  """The PI-resize of a patch kernel, None where not the patch alone differs."""
  model, _ = models.make(Reader(parent.config["model"]), bench.source)
  sizes = model.patch_size, bench.model.patch_size
  before, after = (np.prod(patch_lib.pair(size)) for size in sizes)
  if old[0] * after != new[0] * before:
    return None
  return lambda x: patch_lib.resize_kernel(x, *sizes)
