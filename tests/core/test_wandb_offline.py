"""The real Weights & Biases, offline: its file says what the log said."""

import json

import pytest

from vitscale.core import log

pytest.importorskip(
  "wandb.proto.wandb_internal_pb2",
  reason="the extra is not installed: pip install 'vitscale[wandb]'",
)
pytestmark = pytest.mark.slow

BLOCK = 32 * 1024  # bytes; the file is a log of LevelDB's format
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path):
  """Protocol buffers of a .wandb file, in order."""
  from wandb.proto import wandb_internal_pb2

  data = path.read_bytes()
  assert data[:4] == b":W&B"
  at, part, found = 7, b"", []
  while at + 7 <= len(data):
    left = BLOCK - at % BLOCK
    if left < 7:  # padding
      at += left
      continue
    size = int.from_bytes(data[at + 4 : at + 6], "little")
    kind = data[at + 6]
    part += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind in (FULL, LAST):
      found.append(wandb_internal_pb2.Record.FromString(part))
      part = b""
  return found


def logged(path):
  """Rows of the history, and the ids of the runs."""
  rows, ids = [], set()
  for record in records(path):
    kind = record.WhichOneof("record_type")
    if kind == "history":
      rows.append(
        {
          item.key or "/".join(item.nested_key): json.loads(item.value_json)
          for item in record.history.item
        }
      )
    elif kind == "run":
      ids.add(record.run.run_id)
  return rows, ids


def test_offline_runs_hold_the_rows_and_one_id(tmp_path, monkeypatch):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  workdir = tmp_path / "run"
  sessions = [[1, 2], [2, 3]]  # stopped after 2, resumed from 1
  for upto, steps in enumerate(sessions):
    workdir.mkdir(exist_ok=True)
    book = log.Log(workdir, upto=upto, mirrors={"wandb": True})
    for step in steps:
      book.write(
        {"step": step, "train/loss": 1 / step},
        {"step": step, "seconds": 0.5},
      )
    book.close()
  files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"))
  found = [logged(path) for path in files]
  by_steps = {tuple(row["_step"] for row in rows): rows for rows, _ in found}
  assert sorted(by_steps) == [(1, 2), (2, 3)]
  for rows in by_steps.values():
    for row in rows:
      assert row["step"] == row["_step"] and row["seconds"] == 0.5
      assert row["train/loss"] == 1 / row["step"]
  (identity,) = set.union(*(ids for _, ids in found))  # one run to sync
  assert identity
