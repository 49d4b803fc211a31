"""Workdirs, event files and W&B exports become tables, or say what is wrong."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.laws.log_files import complaint, notes, write
from vitscale.laws.ingest import read_files

EVENTS = "events.out.tfevents"


def run_dir(home, *, status="finished", torn=""):
  run = {"status": status, "law_variables": {"params": 3e6, "patch": 4}}
  write(home / "run.json", json.dumps(run))
  rows = [
    {"step": s, "examples": 8 * s, "flops": 1e9 * s, "train/loss": 1 / s}
    for s in (1, 2)
  ]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  write(home / "metrics.jsonl", text + torn)


def test_workdirs(tmp_path):
  run_dir(tmp_path / "out" / "a")
  run_dir(tmp_path / "out" / "deep" / "001", status="failed", torn='{"st')
  write(tmp_path / "out" / "c" / "run.json", '{"status": "running"}')
  out = tmp_path / "out"

  table = read_files(out)
  assert table["run"].tolist() == ["a", "deep/001"]
  assert table["params"].tolist() == [3e6, 3e6]
  assert table["train/loss"].tolist() == [0.5, 0.5]
  assert table.provenance.row.tolist() == [2, 2]
  assert len(table.provenance.sha256) == 5
  for note in ("deep/001 is failed", "torn one", "c is left out"):
    assert note in notes(table)

  table = read_files(out, curves=True)
  assert table["run"].tolist() == ["a", "a", "deep/001", "deep/001"]
  assert table["step"].tolist() == [1, 2, 1, 2]
  assert table["patch"].tolist() == [4] * 4
  assert table.provenance.row.tolist() == [1, 2, 1, 2]

  one = read_files(out / "deep" / "001")
  assert one["run"].tolist() == ["001"]
  both = read_files([out / "a", out / "deep" / "001" / "run.json"])
  assert len(set(both["run"])) == 2  # never two runs of one name
  assert "none of its 1 runs has metrics" in complaint(out / "c")
  write(out / "c" / "run.json", "[1]")
  assert "not one of vitscale's" in complaint(out)


def events(folder, rows, *, start=None, name="1"):
  """Writes an event file with the package; returns its path."""
  pytest.importorskip("tensorboard")
  from tensorboard.compat.proto import event_pb2, summary_pb2
  from tensorboard.summary.writer.event_file_writer import EventFileWriter

  writer = EventFileWriter(str(folder), filename_suffix=f".{name}")
  if start is not None:
    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    writer.add_event(event_pb2.Event(step=start, session_log=log))
  for step, scalars in rows:
    values = [
      summary_pb2.Summary.Value(tag=k, simple_value=v)
      for k, v in scalars.items()
    ]
    summary = summary_pb2.Summary(value=values)
    writer.add_event(event_pb2.Event(step=step, summary=summary))
  writer.close()
  written = next(Path(folder).glob(f"*.{name}"))
  return written.rename(written.with_name(f"{EVENTS}.{name}"))


def test_event_files(tmp_path):
  first = [(s, {"loss": 1 / s}) for s in (1, 2, 3, 4)]
  events(tmp_path / "a", first)
  events(tmp_path / "a", [(3, {"loss": 9.0, "lr": 0.5})], start=3, name="2")
  events(tmp_path / "b", [(5, {"loss": 0.25})])
  table = read_files(tmp_path)
  assert table["run"].tolist() == ["a", "a", "a", "b"]
  assert table["step"].tolist() == [1, 2, 3, 5]
  np.testing.assert_array_equal(table["loss"], [1, 0.5, 9, 0.25])
  np.testing.assert_array_equal(table["lr"], [np.nan, np.nan, 0.5, np.nan])
  assert table.provenance.row.tolist() == [1, 2, 3, 1]
  assert len(table.provenance.sha256) == 3
  assert "a restart replaces 2 values" in notes(table)


def test_tensor_scalars_and_other_tags(tmp_path):
  pytest.importorskip("tensorboard")
  from tensorboard.compat.proto import event_pb2, summary_pb2
  from tensorboard.summary.writer.event_file_writer import EventFileWriter
  from tensorboard.util import tensor_util

  def value(tag, array, plugin):
    metadata = summary_pb2.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    tensor = tensor_util.make_tensor_proto(array)
    return summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)

  writer = EventFileWriter(str(tmp_path))
  summary = summary_pb2.Summary(
    value=[
      value("loss", np.float32(0.5), "scalars"),
      value("hist", np.ones((3, 3), np.float32), "histograms"),
    ]
  )
  writer.add_event(event_pb2.Event(step=7, summary=summary))
  writer.close()
  table = read_files(tmp_path)
  assert (table["step"][0], table["loss"][0]) == (7, 0.5)
  assert "no scalars left out: ['hist']" in notes(table)


def test_bad_event_files(tmp_path):
  path = events(tmp_path, [(s, {"loss": 1.0}) for s in range(5)])
  data = path.read_bytes()
  path.write_bytes(data[:-3])
  told = complaint(path)
  assert "is cut after record 5" in told
  keep = int(told.split("head -c ")[1].rstrip(")"))
  path.write_bytes(data[:keep])
  assert read_files(path)["step"].tolist() == [0, 1, 2, 3]  # the remedy works

  path.write_bytes(data[:-10] + b"\xff" + data[-9:])
  assert "record 6 of 6 is damaged" in complaint(path)
  path.write_bytes(b"not an event file at all, just text")
  assert "not an event file" in complaint(path)
  path.write_bytes(b"")
  assert "is empty" in complaint(tmp_path)
  path.unlink()
  events(tmp_path, [])
  assert "hold no scalars" in complaint(tmp_path)


def test_wandb_chart(tmp_path):
  header = ["Step"]
  for run in ("sweet-sun-1", "a - b"):
    for metric in ("_step", "train/loss"):
      header += [f"{run} - {metric}{m}" for m in ("", "__MIN", "__MAX")]
  path = tmp_path / "chart.csv"
  with open(path, "w", newline="") as file:
    out = csv.writer(file, quoting=csv.QUOTE_ALL)
    out.writerow(header)
    out.writerow([0, 0, 0, 0, 3, 3, 3, "", "", "", "", "", ""])
    out.writerow([10, 10, 10, 10, 2, 1, 2, 10, 10, 10, 4, 4, 4])
  table = read_files(path)
  assert list(table) == ["run", "step", "Step", "train/loss"]
  assert table["run"].tolist() == ["sweet-sun-1"] * 2 + ["a - b"]
  assert table["step"].tolist() == [0, 10, 10]
  assert table["train/loss"].tolist() == [3, 2, 4]
  assert table.provenance.row.tolist() == [1, 2, 2]
  assert "8 columns ending in __MIN or __MAX dropped" in notes(table)
  assert "1 of them differ from their metric" in notes(table)


def test_wandb_one_run_and_history(tmp_path):
  text = "epoch,loss,loss__MIN,loss__MAX\n1,3,3,3\n2,2,2,2\n"
  table = read_files(write(tmp_path / "lone.csv", text))
  assert list(table) == ["run", "step", "epoch", "loss"]
  assert table["run"].tolist() == ["lone", "lone"]
  assert "step is the export's first column, 'epoch'" in notes(table)

  rows = [{"_step": s, "_runtime": 2.0 * s, "loss": "NaN"} for s in (0, 1)]
  lines = "\n".join(map(json.dumps, rows))
  table = read_files(write(tmp_path / "history.jsonl", lines))
  assert list(table) == ["run", "step", "_runtime", "loss"]
  assert np.isnan(table["loss"]).all()
  for i, row in enumerate(rows):
    row["run_name"] = f"r{i}"
  table = read_files(write(tmp_path / "many.json", json.dumps(rows)))
  assert table["run"].tolist() == ["r0", "r1"]
