"""Somebody's checkpoint as a workdir of the vit family.

What comes out is like the workdir of any run: `vs.load`, `vitscale eval`,
`init.from` and `cut` take it. It was trained elsewhere: its law variables do
not know the compute. Without data of the user's it stands on `noise`, which
has the right shapes and nothing else.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import record
from vitscale.bench import Bench, build
from vitscale.core import axes, guard, tree
from vitscale.core import config as config_lib
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError
from vitscale.core.log import write_json, write_text
from vitscale.data import sources
from vitscale.interop import detect, files, mapping
from vitscale.interop.files import Weights
from vitscale.interop.mapping import Found, Layout, Preprocess
from vitscale.models.vit import Model
from vitscale.nn import patch as patch_lib
from vitscale.nn import position as position_lib

BATCH, SPLIT = 32, "val"
SIDE = 224  # pixels, where neither table nor --size say


def bring(
  path: str | Path,
  out: str | Path,
  *,
  patch: int | None = None,
  size: int | None = None,
  classes: int | None = None,
  overrides: Sequence[str] = (),
  trust: bool = False,
) -> dict[str, Any]:
  """Imports a checkpoint into a workdir, new or empty.

  Args:
    path: see `files.open_weights`; the layout is told from the names.
    out: workdir.
    patch: another patch size: kernel PI-resized, positions resampled.
    size: of square images, in pixels; by default theirs.
    classes: of a new head, all zeros, where there is none; 0 drops the head.
    overrides: `key=value` of the config: `data.source=folder` and so on, or
      `model.num_heads=6` where nothing tells.
    trust: reads torch's pickles (no code in them is run).

  Returns:
    `out`, `layout`, `params`, `image` (h, w, c), `model` (options that were
    read), `preprocess`, `left` (names that have no part in it), `head` ("kept",
    "new", "none" or "dropped"), `data`.

  Raises:
    UserError: no weights that are read here, names or shapes that differ,
      another number of classes, `out` in use. Nothing is written.
  """
  out = Path(out).expanduser().absolute()
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"{out} exists and is not an empty folder: choose another")
  weights = files.open_weights(path, trust=trust)
  layout = detect.layout(weights.shapes, weights.config)
  shapes, weights, left = stripped(layout, weights)
  found = layout.read(shapes, weights.config)
  given = config_lib.ConfigDict({"data": {}, "model": {}})
  config_lib.override(given, [o for o in overrides if o.startswith("model.")])
  kwargs = found.kwargs | given.model.to_dict()
  if "num_heads" not in kwargs:
    raise UserError(
      f"a width of {kwargs['width']} doesn't tell the heads: bring the"
      " config.json, or say model.num_heads=N"
    )
  theirs = Model(**kwargs)
  taken = patch_lib.pair(theirs.patch_size)
  side = found.side or (size or SIDE) // taken[0]
  params = parameters(found, theirs, side, shapes, weights)
  # Ours: another patch, image, or head.
  size = size or side * taken[0]
  ours = dataclasses.replace(theirs, patch_size=patch or theirs.patch_size)
  grid = patch_lib.grid_of((size, size), ours.patch_size)
  resized(params, theirs, ours, grid)
  seen = files.preprocess(weights, layout.preprocess)
  config = config_of(ours, size, found.channels, seen, classes, overrides)
  ours, said = headed(params, ours, config, classes)
  bench = build(config, devices=jax.local_devices()[:1])
  facts = {
    "from": str(Path(path).expanduser().absolute()),
    "layout": layout.name,
    "left": left,
    "head": said,
    "preprocess": dataclasses.asdict(seen),
  }
  write(config, bench, params, facts, out)
  return {
    "out": str(out), **facts, "what": layout.what,
    "params": bench.facts["params"], "image": [size, size, found.channels],
    "model": config["model"], "data": config["data"]["source"],
  }  # fmt: skip


# --------------------------------------------------------------------- parts


def stripped(
  layout: Layout, weights: Weights
) -> tuple[dict[str, Any], Weights, list[str]]:
  """Shapes under the layout's own names, the weights, and names left behind."""
  names, left = {}, []
  for stored in weights.shapes:
    own = layout.own(stored)
    if own is None:
      left.append(stored)
    else:
      names[own] = stored
  shapes = {own: weights.shapes[stored] for own, stored in names.items()}
  read = lambda own: weights.read(names[own])
  if layout.unstack:
    shapes, read = files.unstacked(shapes, read, *layout.unstack)
  return shapes, dataclasses.replace(weights, read=read), left


def parameters(
  found: Found,
  model: Model,
  side: int,
  shapes: Mapping[str, Any],
  weights: Weights,
) -> dict[str, np.ndarray]:
  """Path -> array, of the model as it was stored."""
  h, w = (side * p for p in patch_lib.pair(model.patch_size))
  image = jax.ShapeDtypeStruct((1, h, w, found.channels), jnp.float32)
  abstract = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  paths = tree.flatten(abstract["params"])
  made = mapping.to_ours(
    found.rows(model, paths), shapes, weights.read, model, abstract["params"],
    str(weights.path),
  )  # fmt: skip
  return tree.flatten(made)


def resized(
  params: dict[str, np.ndarray],
  theirs: Model,
  ours: Model,
  grid: tuple[int, int],
) -> None:
  """Takes kernel and positions to our patch and grid, in place."""
  kernel = patch_lib.resize_kernel(
    jnp.asarray(params["embed/kernel"]), theirs.patch_size, ours.patch_size
  )
  params["embed/kernel"] = np.asarray(kernel)
  if "positions/table" in params:
    table = jnp.asarray(params["positions/table"])
    params["positions/table"] = np.asarray(position_lib.resample(table, grid))


def config_of(
  model: Model,
  size: int,
  channels: int,
  seen: Preprocess,
  classes: int | None,
  overrides: Sequence[str],
) -> Any:
  """The config of the workdir: plain classification of images so prepared."""
  kwargs = {
    f.name: getattr(model, f.name)
    for f in dataclasses.fields(Model)
    if f.name not in ("parent", "name")
  }
  fields = {f.name: f.default for f in dataclasses.fields(Model)}
  kwargs = {k: v for k, v in kwargs.items() if v != fields[k]}
  kwargs["num_classes"] = model.num_classes
  labels = classes or model.num_classes or model.width
  transform = seen.transform(size)
  config = config_lib.ConfigDict(
    {
      "seed": 0, "batch_size": BATCH, "total_steps": 1,
      "data": {
        "source": "noise", "size": size, "n": 2, "channels": channels,
        "classes": labels,
      },
      "train": {"split": "train", "transform": transform},
      "model": {"family": "vit", **kwargs},
      "task": {"name": "classify", "mean": seen.mean, "std": seen.std},
      "optim": {"name": "sgd", "lr": 0.0, "b1": 0.0},
      "evals": {SPLIT: {"split": SPLIT, "transform": transform}},
    }
  )  # fmt: skip
  if any(o.startswith("data.source=") for o in overrides):
    config.data = config_lib.ConfigDict({})
  config_lib.override(config, list(overrides))
  return config


def headed(
  params: dict[str, np.ndarray], model: Model, config: Any, classes: int | None
) -> tuple[Model, str]:
  """Keeps, drops or makes the head in place; writes num_classes to a config.

  Raises:
    UserError: the head, `classes` and the data have other numbers of classes.
  """
  have = model.num_classes
  data = dict(config.data)
  known = None
  if data["source"] != "noise":
    source = sources.make(split=config.train.split, **_named(data))
    known = source.classes
  wanted = have if classes is None else classes
  if have and wanted not in (0, have):
    raise UserError(
      f"the head has {have} classes, not {wanted}: leave --classes out; or"
      " --classes 0 drops it, and a run that starts from here has its own"
    )
  if known is not None and not wanted and classes is None:
    wanted = known
  if known is not None and wanted not in (0, known):
    raise UserError(f"the data have {known} classes, the head {wanted}")
  said = "kept" if have else "none"
  if have and not wanted:
    said = "dropped"
    for name in [name for name in params if name.startswith("head/")]:
      del params[name]
  elif wanted and not have:
    said = "new"
    params["head/kernel"] = np.zeros((model.width, wanted), np.float32)
    params["head/bias"] = np.zeros(wanted, np.float32)
  config.model.num_classes = wanted
  if known is None:  # features stand in for logits where there is no head
    config.data.classes = wanted or model.width
  return dataclasses.replace(model, num_classes=wanted), said


def _named(data: Mapping[str, Any]) -> dict[str, Any]:
  return {("name" if k == "source" else k): v for k, v in data.items()}


def write(
  config: Any,
  bench: Bench,
  params: dict[str, Any],
  facts: Mapping[str, Any],
  out: Path,
) -> None:
  """The workdir, whole or not at all."""
  config = config_lib.to_dict(config)
  want = tree.flatten(bench.abstract["params"])
  tree.check_same(params, want, "imported parameters", "model")
  # All but the weights as a fresh run has it, with nothing drawn.
  counters, _ = guard.arm(lambda _: {"first_bad": np.int32(-1)}, dict, 1)
  zero = lambda x: np.zeros(x.shape, x.dtype)
  state = jax.tree.map(
    zero,
    {k: v for k, v in bench.abstract.items() if k not in ("params", "ema")},
  )
  state |= {k: v for k, v in counters(0).items() if k in state}
  # Saving copies numpy's arrays, not jax's: one by one, so that few are both.
  for name in list(params):
    params[name] = jnp.asarray(params[name])
  weights = tree.unflatten(params)
  state |= {"params": weights, "ema": weights if bench.abstract["ema"] else {}}
  run = record.describe(config, bench)
  run["law_variables"] = {**run["law_variables"], "examples": None}
  run["law_variables"]["flops"] = None  # spent elsewhere
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
  except OSError as error:
    raise UserError(f"can't write {out}: {error.strerror}") from error
  try:
    store = CheckpointStore(made / "checkpoints")
    store.save(0, state, {"config_digest": run["config_digest"]})
    store.close()
    write_text(made / "metrics.jsonl", "")
    run |= {"status": "finished", "step": 0, "imported": dict(facts)}
    write_json(made / "run.json", run)
    made.chmod(0o777 & ~_umask())
    made.rename(out)
  except OSError as error:
    raise UserError(f"can't write {out}: {error.strerror}") from error
  finally:
    shutil.rmtree(made, ignore_errors=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def text(result: Mapping[str, Any]) -> str:
  """The result for a terminal."""
  h, w, c = result["image"]
  seen = result["preprocess"]
  share = seen["share"]
  crop = "squeezed" if share is None else f"central crop {share:.3g}"
  lines = [
    f"{result['what']}: {result['params']} parameters, images of {h} x {w} x"
    f" {c}, {crop}, mean {list(seen['mean'])}, std {list(seen['std'])}",
    f"  head: {result['head']}, {result['model']['num_classes']} classes",
  ]
  if left := result["left"]:
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    lines.append(f"  left behind: {', '.join(left[:3])}{more}")
  if result["data"] == "noise":
    lines.append(
      "  no data: it stands on noise; evaluate with --data DIR, or import with"
      " data.source=NAME"
    )
  return "\n".join([*lines, f"in {result['out']}"])
