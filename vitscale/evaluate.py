"""A checkpoint, scored again: on its own held-out images or on others."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax

from vitscale import held_out, plugin, workdir
from vitscale.core import call
from vitscale.core.config import Reader
from vitscale.core.errors import UserError, nearest
from vitscale.core.log import read_json
from vitscale.data import given, pipeline, sources, transforms
from vitscale.report.plain import number, table

SPLIT = "test"  # where a run has no evaluation to say another


def text(result: Mapping[str, Any]) -> str:
  """The result for a terminal."""
  rows = [
    {"metric": name, "value": m["value"], "se": m["se"], "n": m["n"]}
    for name, m in result["metrics"].items()
  ]
  data = result["data"]
  shape = " x ".join(map(str, data["shape"]))
  what = "videos" if len(data["shape"]) == 4 else "images"
  lines = [
    table(rows, list(rows[0])),
    f"{result['checkpoint']}, step {result['step']}, on {data['images']} {what}"
    f" of {data['source']} ({data['split']}), {shape}",
  ]
  if "E" in result:
    ratio = number(result["pixels_per_float"])
    lines.append(f"E = {result['E']} floats, {ratio} values of an example each")
  if "feature_net" in result:
    fid = {"fid", "rfid"} & set(result["metrics"])
    verdict = "" if fid else ": no FID"
    lines.append(f"features of {result['feature_net']}{verdict}")
  return "\n".join(lines)


# ------------------------------------------------------------------- scoring


def evaluate(
  path: str | Path,
  evals: str | None = None,
  *,
  data: Sequence[str] = (),
  split: str | None = None,
  transform: str | None = None,
  batch_size: int | None = None,
) -> dict[str, Any]:
  """Scores of a checkpoint; averaged weights where the run has them.

  Args:
    path: a workdir, its checkpoints/ or a step folder.
    evals: modules of `vitscale.evals` with commas between; that and what
      else is not given is as in the run's evaluation of this split, or in its
      first one.
    data: a path of any format that is known (data/detect.py), if any, then
      `key=value` of a data source; without a path and `source=` they amend the
      run's own.
    split, transform, batch_size: of the data.

  Returns:
    `metrics`, name -> {value, se (or None), n}, the name being `EVAL/NAME`
    where two evaluations find the same; facts of the evaluations, such as
    `feature_net`, `E` and `pixels_per_float`; `checkpoint`, `step`, `data`.

  Raises:
    UserError: no such checkpoint, evaluation or data; images that don't fit
      the model, or too few.
  """
  folder, _ = workdir.root(Path(path))
  config = read_json(folder / "run.json")["config"]
  own = _own(config, split or SPLIT)
  asked = parse(evals) if evals is not None else _same(own)
  modules = {name: plugin.module("evals", name) for name in asked}
  for name, options in asked.items():
    known = _options(modules[name])
    for key in set(options) - set(known):
      raise UserError(f"--evals {name}: no option {key!r}{nearest(key, known)}")
  bench, variables, step = workdir.restored(path)
  learned = bench.inputs[1]["image"].shape[1:]
  two = any(
    hasattr(module, "DATA") and not getattr(module, "ALONE", False)
    for module in modules.values()
  )
  # Of other splits than the evaluation's own nothing is amended.
  plain, _ = _data(config["data"], {}, data, split, learned, two)
  group, split = _data(config["data"], own, data, split, learned, two)
  named = group.pop("source")
  source = sources.make(named, split=split, **group)
  for name in asked:
    _check_source(name, modules[name], source, bench)
  any_size = transform is not None or not data
  if transform is None:
    transform = own.get("transform", "")
  batch = _first(source, transform)
  if "pack" not in config:
    _check_fits(bench, variables, batch, any_size)
  if batch_size is None:
    batch_size = own.get("batch_size", bench.batch_size)
  common = {"split": split, "transform": transform, "batch_size": batch_size}
  groups = {k: {"name": k, **common, **more} for k, more in asked.items()}
  for name, one in groups.items():
    for key in getattr(modules[name], "DATA", ()):
      if key in one:
        one[key] = _gallery(name, key, one[key], transform)

  def another(named: str, *, split: str, **options: Any) -> Any:
    if split == common["split"]:  # galleries are of others
      return source
    return sources.make(named, split=split, **options)

  made = held_out.evals(
    Reader({**config, "data": plain, "evals": groups}), another, bench.task,
    bench.model, variables, source, bench.mesh, bench.rules,
    lambda *_, **__: 1, bench.batch_size, False,
  )  # fmt: skip
  for name, options in asked.items():
    if hasattr(modules[name], "require"):
      modules[name].require(len(source), **options)
  state = {"params": variables["params"], "mutable": dict(variables)}
  del state["mutable"]["params"]
  scores = {name: one.run(state) for name, one in made.items()}
  facts = {}
  for name, options in asked.items():
    more = getattr(modules[name], "facts", lambda *_, **__: {})
    facts |= more(bench.task, bench.model, variables, batch, **options)
  return {
    "metrics": metrics(scores),
    **facts,
    "checkpoint": str(folder),
    "step": step,
    "data": {
      "source": named,
      "options": group,
      "split": split,
      "transform": transform,
      "images": len(source),
      "shape": list(batch["image"].shape[1:]),
      "fingerprint": source.fingerprint,
    },
  }


def metrics(
  scores: Mapping[str, Mapping[str, float]],
) -> dict[str, dict[str, Any]]:
  """Evaluation -> its scores, as name -> {value, se, n}."""
  owners: dict[str, list[str]] = {}
  for label, found in scores.items():
    for name in found:
      owners.setdefault(name, []).append(label)
  out = {}
  for label, found in scores.items():
    for name, value in found.items():
      part, _, leaf = name.rpartition("/")
      if leaf == "examples" or leaf.endswith("_se"):
        continue
      n = found.get(f"{part}/examples", found["examples"])
      unique = name if len(owners[name]) == 1 else f"{label}/{name}"
      out[unique] = {"value": value, "se": found.get(f"{name}_se"), "n": n}
  return out


# ------------------------------------------------------------- what is asked


def parse(evals: str) -> dict[str, dict[str, Any]]:
  """`"classify,reconstruction(rfd=False)"` -> name -> options.

  Raises:
    UserError: no list of names and calls, or one of them twice.
  """
  try:
    parts = ast.parse(f"[{evals}]", mode="eval").body.elts
  except (SyntaxError, AttributeError, ValueError):
    parts = []
  found = {}
  for part in map(ast.unparse, parts):
    name, options = part, {}
    if "(" in part:
      name, args, options = call.read(part, "--evals")
      if args:
        raise UserError(f"--evals {part}: name the options, as rfd=False")
    if name in found:
      raise UserError(f"--evals: {name!r} is given twice")
    found[name] = options
  if not found:
    raise UserError(
      f"--evals {evals!r}: write names with commas between, such as"
      " reconstruction,classify"
    )
  return found


def _own(config: Mapping[str, Any], split: str) -> Mapping[str, Any]:
  """The run's evaluation of a split, or its first one."""
  groups = list(config.get("evals", {}).values())
  same = [group for group in groups if group.get("split") == split]
  return [*same, *groups, {}][0]


def _same(own: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """As `parse`, of the run's own evaluation."""
  name = own.get("name", "classify")
  known = _options(plugin.module("evals", name))
  return {name: {key: own[key] for key in known if key in own}}


def _options(module: Any) -> tuple[str, ...]:
  """What an evaluation is told: options, and groups of further data."""
  named = getattr(module, "OPTIONS", ()), getattr(module, "DATA", ())
  return tuple(key for keys in named for key in keys)


def _gallery(name: str, key: str, asked: Any, transform: Any) -> dict[str, Any]:
  """`"train"`, or a group as a config has it, with the query's transform."""
  group = {"split": asked} if isinstance(asked, str) else asked
  if not isinstance(group, Mapping) or "split" not in group:
    raise UserError(
      f"--evals {name}: {key}={asked!r}: write {key}='train', or"
      " {'split': 'train', 'data': {'limit': 5000}}"
    )
  return {"transform": transform, **group}


def _data(
  trained: Mapping[str, Any],
  own: Mapping[str, Any],
  data: Sequence[str],
  split: str | None,
  learned: tuple[int, ...],
  two: bool = False,
) -> tuple[dict[str, Any], str]:
  """Options of a source, with its name as `source`; and the split.

  A folder without splits is taken whole; with `two`, where an evaluation needs
  other images besides, the usual share of it is held out and scored.
  """
  mine = dict(trained)
  if split in (None, own.get("split")):
    mine |= own.get("data", {})
  group, whole = given.group(mine, data, learned)
  if whole and split is None and two:
    return group, "val"
  if whole and split is None:
    return group | given.ALL, "train"
  return group, split or own.get("split", SPLIT)


# ------------------------------------------------------------------ what fits


def _check_source(name: str, module: Any, source: Any, bench: Any) -> None:
  """Raises UserError for other classes than those the run learned."""
  free = getattr(module, "UNLABELLED", False)
  if free(bench.model) if callable(free) else free:
    return
  trained = bench.source
  ours, theirs = trained.class_names, source.class_names
  # Weights from elsewhere know their classes by number, in the data's order.
  numbers = tuple(map(str, range(len(theirs))))
  if theirs != ours != numbers:
    strange = [c for c in theirs if c not in ours] or theirs
    raise UserError(
      f"--evals {name}: the data have {len(theirs)} classes, with"
      f" {strange[0]!r}, the run learned {len(ours)}: {', '.join(ours[:5])}"
    )


def _first(source: Any, transform: Any) -> dict[str, Any]:
  """The first image, as a batch."""
  stream = pipeline.eval_batches(
    source, batch_size=1, transform=transforms.parse(transform)
  )
  batch = next(iter(stream))
  stream.close()
  return batch


def _check_fits(
  bench: Any, variables: Any, batch: Mapping[str, Any], any_size: bool
) -> None:
  """Raises UserError for images that the model can't or wasn't made to see."""
  shape = batch["image"].shape[1:]
  learned = bench.inputs[1]["image"].shape[1:]
  texts = [" x ".join(map(str, s)) for s in (shape, learned)]
  said = f"images of the data are {texts[0]}, of the run {texts[1]}"
  if shape[-1] != learned[-1]:
    raise UserError(f"{said}: other channels")
  if shape != learned and not any_size:
    raise UserError(f"{said}: give --transform 'resize({learned[-3]})'")
  task = bench.task
  plain = lambda batch: task.normalise(batch["image"])
  inputs = getattr(task, "inputs", plain)
  see = lambda v, b: bench.model.apply(v, inputs(b))
  try:
    jax.eval_shape(see, variables, batch)
  except (UserError, flax.errors.FlaxError, TypeError, ValueError) as error:
    reason = str(error).split("\n")[0]
    raise UserError(f"{said}: the model can't see them: {reason}") from error
