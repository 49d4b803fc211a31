"""Training logs: our workdirs, TensorBoard event files, W&B exports."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows
from vitscale.laws.table import Array, Provenance, Table, parsed, stacked

EVENTS = "events.out.tfevents*"


def digest(path: Path) -> str:
  """sha256 of a file's bytes, in hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def rows_to_columns(rows: list[Mapping[str, Any]]) -> dict[str, list]:
  """Row dicts of any keys -> columns; what a row lacks is None."""
  names = dict.fromkeys(k for row in rows for k in row)
  return {k: [row.get(k) for row in rows] for k in names}


def labelled(folder: Path, inside: Path, several: bool) -> str:
  """A run's name: its path below `folder`, whole when many are given."""
  if several:
    return str(inside)
  name = str(inside.relative_to(folder))
  return folder.resolve().name if name == "." else name


# ----------------------------------------------------------------- workdirs


def read_workdirs(folder: Path, *, several: bool, curves: bool) -> Table:
  """One row per run, or with `curves` one per row of its metrics.

  Raises:
    UserError: a run.json that is none, or no run has logged anything.
  """
  from vitscale import workdir  # imports flax

  try:
    runs = workdir.runs(folder)
  except (AttributeError, TypeError) as error:
    raise UserError(
      f"{folder}: a run.json there is not one of vitscale's ({error})"
    ) from error
  out, source, number, sha, notes = [], [], [], {}, []
  for run in runs:
    home = folder / run.pop("name")
    label, metrics = labelled(folder, home, several), home / "metrics.jsonl"
    if run["status"] != "finished":
      notes.append(f"run {label} is {run['status'] or 'of unknown status'}")
    for path in filter(Path.is_file, (home / "run.json", metrics)):
      sha[str(path)] = digest(path)
    rows = read_rows(metrics)
    if not rows:
      notes.append(f"run {label} is left out: no metrics yet")
      continue
    lost = len(metrics.read_text().splitlines()) - len(rows)
    if lost:
      notes.append(f"{metrics}: {lost} lines from a torn one on left out")
    if not curves:
      out.append({"run": label, **run})
      number.append(len(rows))
    else:
      law = read_json(home / "run.json").get("law_variables", {})
      out += [{"run": label, **law, **row} for row in rows]
      number += range(1, len(rows) + 1)
    source += [str(metrics)] * (len(number) - len(source))
  if not out:
    raise UserError(f"{folder}: none of its {len(runs)} runs has metrics yet")
  columns = parsed(rows_to_columns(out), notes)
  columns["run"] = np.array([row["run"] for row in out])  # 001 stays 001
  origin = Provenance(np.array(source), np.array(number), sha, notes)
  return Table(columns, origin)


# -------------------------------------------------------------- event files


def read_events(path: Path, *, several: bool) -> Table:
  """Scalars of event files: `run`, `step` and a column per tag.

  A folder with event files is a run; its files are merged by step, the last
  written value wins, and a restart drops what was written beyond it.

  Raises:
    UserError: a file is cut, damaged or none; no scalars; no tensorboard.
  """
  try:
    from tensorboard.backend.event_processing import event_file_loader
  except ImportError as error:
    raise UserError(
      f"{path}: event files need the extra: pip install 'vitscale[tensorboard]'"
    ) from error
  # EventAccumulator would stop at a cut or damaged record without a word.
  load = event_file_loader.LegacyEventFileLoader
  files = sorted(path.rglob(EVENTS)) if path.is_dir() else [path]
  base = path if path.is_dir() else path.parent
  rows, source, sha, notes = [], [], {}, []
  for home in dict.fromkeys(file.parent for file in files):
    scalars: dict[str, dict[int, float]] = {}
    mine = [file for file in files if file.parent == home]
    for file in mine:
      sha[str(file)] = digest(file)
      _add_events(file, load, scalars, notes)
    label = labelled(base, home, several)
    if not any(scalars.values()):
      notes.append(f"run {label} is left out: no scalars in its event files")
    for step in sorted({s for tag in scalars.values() for s in tag}):
      here = {k: v[step] for k, v in scalars.items() if step in v}
      rows.append({"run": label, "step": step} | here)
      source.append(str(home if len(mine) > 1 else mine[0]))
  if not rows:
    raise UserError(f"{path}: its event files hold no scalars")
  columns = {
    k: np.array([np.nan if v is None else v for v in values])
    for k, values in rows_to_columns(rows).items()
  }
  columns["step"] = columns["step"].astype(np.float64)
  number = np.concatenate(
    [np.arange(1, source.count(s) + 1) for s in dict.fromkeys(source)]
  )
  return Table(columns, Provenance(np.array(source), number, sha, notes))


def _add_events(
  file: Path, load: Any, scalars: dict[str, dict[int, float]], notes: list[str]
) -> None:
  from tensorboard.util import tensor_util

  count, other, gone, again = _records(file), set(), 0, 0
  done = 0
  try:
    for event in load(str(file)).Load():
      done += 1
      if event.session_log.status == event.session_log.START:
        for values in scalars.values():
          late = [s for s in values if s >= event.step]
          gone += len(late)
          for step in late:
            del values[step]
      for item in event.summary.value:
        kind = item.metadata.plugin_data.plugin_name
        if item.HasField("simple_value"):
          value = item.simple_value
        elif item.HasField("tensor") and kind in ("", "scalars"):
          value = tensor_util.make_ndarray(item.tensor)
          if value.size != 1 or value.dtype.kind not in "fiub":
            other.add(item.tag)
            continue
          value = value.item()
        else:
          other.add(item.tag)
          continue
        values = scalars.setdefault(item.tag, {})
        again += event.step in values
        values[event.step] = float(value)
  except Exception as error:  # protobuf's errors differ between versions
    raise UserError(
      f"{file}: record {done + 1} is not a TensorBoard event: copy the file"
      " again or leave it out"
    ) from error
  if done < count:
    raise UserError(
      f"{file}: record {done + 1} of {count} is damaged (checksum): copy the"
      " file again or leave it out"
    )
  if other:
    notes.append(f"{file}: tags that are no scalars left out: {sorted(other)}")
  if gone:
    notes.append(f"{file}: a restart replaces {gone} values written before it")
  if again:
    notes.append(f"{file}: {again} values written twice, the later one kept")


def _records(file: Path) -> int:
  """How many records a file holds; UserError when the last one is cut.

  A record is its length (8 bytes, little endian), a checksum (4), the bytes
  and their checksum (4).
  """
  at, count, size = 0, 0, file.stat().st_size
  if not size:
    raise UserError(f"{file} is empty: an event file has one record at least")
  with open(file, "rb") as raw:
    while at < size:
      raw.seek(at)
      end = at + 16 + int.from_bytes(raw.read(8), "little")
      if end > size and not count:
        raise UserError(
          f"{file} is not an event file, or cut in its first record"
        )
      if end > size:
        raise UserError(
          f"{file} is cut after record {count}: copy it again, or keep its"
          f" first {at} of {size} bytes (head -c {at})"
        )
      at, count = end, count + 1
  return count


# -------------------------------------------------------------- W&B exports

BOUNDS = ("__MIN", "__MAX")
RUN_NAMES = ("run_name", "run_id", "name", "Name")


def is_export(columns: Mapping[str, Any]) -> bool:
  """History exports, by their column names."""
  first, *rest = columns or [""]
  return (
    "_step" in columns
    or any(k.endswith(BOUNDS) and k[:-5] in columns for k in columns)
    or (first == "Step" and any(" - " in k for k in rest))
  )


def melt(table: Table, run: str) -> Table:
  """A W&B export -> columns `run`, `step` and one per metric.

  Charts export a column per run and metric, `run - metric`, with `__MIN` and
  `__MAX` beside it, over a shared first column; histories are long already.
  `run` is the name where the export gives none.
  """
  bounds = [k for k in table if k.endswith(BOUNDS) and k[:-5] in table]
  notes = []
  if bounds:
    notes.append(
      f"W&B export: {len(bounds)} columns ending in __MIN or __MAX dropped"
    )
    apart = sum(
      bool(np.any((table[k] != table[k[:-5]]) & ~_blank(table[k])))
      for k in bounds
    )
    if apart:
      notes.append(
        f"{apart} of them differ from their metric: the chart averaged runs or"
        " steps, export the history for single values"
      )
  kept = {k: v for k, v in table.items() if k not in bounds}
  pairs = {k: k.rsplit(" - ", 1) for k in kept if " - " in k}
  shared = {k: v for k, v in kept.items() if k not in pairs}
  parts = []
  for name in dict.fromkeys(label for label, _ in pairs.values()):
    own = {m: kept[k] for k, (label, m) in pairs.items() if label == name}
    there = ~np.all([_blank(v) for k, v in own.items() if k != "_step"], axis=0)
    labels = np.full(table.n, name)
    parts.append({"run": labels, **shared, **own} | {"": there})
  if not pairs:
    given = next((k for k in ("run", *RUN_NAMES) if k in kept), None)
    labels = kept[given].astype(str) if given else np.full(table.n, run)
    parts = [{"run": labels, **kept, "": np.ones(table.n, bool)}]
    if given != "run":
      notes.append(f"run is {given or 'the name of the file'}")
  first = next(iter(kept))
  axis = next((k for k in ("step", "_step", "Step") if k in parts[0]), first)
  if axis == first and axis not in ("step", "_step", "Step"):
    notes.append(f"step is the export's first column, {axis!r}")
  names = dict.fromkeys(k for part in parts for k in part if k)
  sizes = [part[""].sum() for part in parts]
  out = {
    k: stacked([p[k][p[""]] if k in p else None for p in parts], sizes)
    for k in names
  }
  out = {"run": out.pop("run"), "step": out[axis].copy()} | out
  if axis in ("_step", "Step"):
    del out[axis]
  if pairs:
    notes.append(
      f"{table.n} rows of {len(parts)} runs side by side made"
      f" {len(out['run'])} rows, one per run and step"
    )
  where = np.concatenate([np.flatnonzero(part[""]) for part in parts])
  origin = table.take(where, notes).provenance
  return Table(out, dataclasses.replace(origin))


def _blank(values: Array) -> Array:
  if values.dtype.kind == "f":
    return np.isnan(values)
  return values.astype(str) == ""
