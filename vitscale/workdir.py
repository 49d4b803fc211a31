"""Workdirs as a notebook sees them: load a model back, table the runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows

if TYPE_CHECKING:
  from vitscale.bench import Bench


def load(
  path: str | Path, *, step: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
  """The model and variables of a trained run.

  Args:
    path: a workdir, its checkpoints/ folder or one step folder.
    step: which checkpoint; the last that can be verified by default.

  Returns:
    `(model, variables)`, so that `model.apply(variables, image)` runs; the
    averaged weights when the run kept an EMA.

  Raises:
    UserError: no run or no complete checkpoint there.
  """
  bench, variables, _ = restored(path, step=step)
  return bench.model, variables


def restored(
  path: str | Path, *, step: int | None = None
) -> tuple["Bench", dict[str, Any], int]:
  """A run's bench without its evaluations, its variables, and their step.

  As `load`; all on the devices that are here.
  """
  from vitscale.bench import build
  from vitscale.core.checkpoint import CheckpointStore

  workdir, named = root(Path(path))
  run = read_json(workdir / "run.json")
  config = untaught(run["config"])
  config = {k: v for k, v in config.items() if k not in ("mesh", "evals")}
  try:
    bench = build(config)  # on the devices that are here
  except UserError:  # model or batch don't divide over them
    bench = build(config, devices=jax.local_devices()[:1])
  store = CheckpointStore(workdir / "checkpoints")
  kept = "ema" if bench.abstract["ema"] else "params"
  mutable = bench.abstract["mutable"]
  wanted = {kept: bench.abstract[kept], "step": bench.abstract["step"]}
  sources = [kept, "step", *(f"mutable/{k}" for k in mutable)]
  part = store.part(
    {**wanted, "mutable": mutable},
    {name: name for name in sources},
    named if step is None else step,
  )
  variables = {"params": part[kept], **part["mutable"]}
  if merged := getattr(bench.task, "merged", None):
    variables = merged(variables)
  return bench, variables, int(part["step"])


def untaught(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config whose task has no teacher: all that its trained model needs."""

  def plain(task: Mapping[str, Any]) -> dict[str, Any]:
    if task["name"] == "distil":
      return plain(task["of"])
    return {**task, "of": plain(task["of"])} if "of" in task else dict(task)

  return {**config, "task": plain(config["task"])}


def root(path: Path) -> tuple[Path, int | None]:
  """(workdir, step or None) of a path at or inside a run."""
  for folder in (path, path.parent, path.parent.parent):
    if (folder / "run.json").is_file():
      inside = folder / "checkpoints" == path.parent and path.name.isdigit()
      return folder, int(path.name) if inside else None
  raise UserError(f"{path} is not a run: no run.json there")


def runs(folder: str | Path) -> list[dict[str, Any]]:
  """One row per run at any depth of `folder`, for `pandas.DataFrame`.

  Returns:
    `name`, `status`, `workdir`, the run's law variables and the last row of
    its metrics.

  Raises:
    UserError: the folder doesn't exist.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise UserError(f"no folder {folder}")
  rows = []
  for path in sorted(folder.rglob("run.json")):
    run = read_json(path)
    rows.append(
      {
        "name": str(path.parent.relative_to(folder)),
        "status": run.get("status"),
        "workdir": str(path.parent.absolute()),
        **run.get("law_variables", {}),
        **_last(path.parent),
      }
    )
  return rows


def _last(workdir: Path) -> Mapping[str, Any]:
  rows = read_rows(workdir / "metrics.jsonl")
  return rows[-1] if rows else {}


def curve(workdir: str | Path, metric: str) -> dict[str, list[float]]:
  """`step`, `examples`, `flops` and `metric` of the rows that have it."""
  rows = [
    row
    for row in read_rows(Path(workdir) / "metrics.jsonl")
    if row.get(metric) is not None
  ]
  keys = ("step", "examples", "flops", metric)
  return {key: [row[key] for row in rows] for key in keys}
