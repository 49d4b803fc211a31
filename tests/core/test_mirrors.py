"""TensorBoard and Weights & Biases say what metrics.jsonl says.

One run to both, stopped after step 4 and resumed from the checkpoint of step 2.
"""

import json
import sys

import numpy as np
import pytest

from tests import toys
from vitscale.core.errors import UserError
from vitscale.core.log import read_rows
from vitscale.train import train

# What the loop uses of `wandb`, writing down how it is called.
WANDB = """
import json
from pathlib import Path

def note(*call):
  with open(Path(__file__).with_name("calls.jsonl"), "a") as file:
    file.write(json.dumps(call) + "\\n")

class Run:
  def log(self, row, step):
    note("log", step, row)

  def finish(self):
    note("finish")

def init(**kwargs):
  note("init", kwargs)
  return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
  """A module `wandb` first on the path; returns its calls so far."""
  (tmp_path / "wandb.py").write_text(WANDB)
  monkeypatch.syspath_prepend(tmp_path)
  hidden = sys.modules.pop("wandb", None)
  yield lambda: [
    json.loads(line)
    for line in (tmp_path / "calls.jsonl").read_text().splitlines()
  ]
  sys.modules.pop("wandb", None)
  if hidden:
    sys.modules["wandb"] = hidden


def stop_at_4(state):
  if state["step"] == 4:
    raise KeyboardInterrupt


def scalars(folder):
  """step -> {tag: value}, as TensorBoard reads them back."""
  from tensorboard.backend.event_processing import event_accumulator

  events = event_accumulator.EventAccumulator(
    str(folder), {event_accumulator.SCALARS: 0}
  ).Reload()
  found = {}
  for tag in events.Tags()["scalars"]:
    for event in events.Scalars(tag):
      found.setdefault(event.step, {})[tag] = event.value
  return found


def test_mirrors_equal_metrics_and_go_on_after_a_stop(tmp_path, wandb):
  pytest.importorskip("tensorboard", reason="the extra is not installed")
  workdir = tmp_path / "run"
  config = toys.config()
  config.log = {"every_steps": 2, "tensorboard": True, "wandb": True}
  with pytest.raises(KeyboardInterrupt):
    train(config, workdir, report=stop_at_4)
  train(config, workdir)
  rows = {row["step"]: row for row in read_rows(workdir / "metrics.jsonl")}
  assert list(rows) == [2, 4, 6, 8]

  calls = wandb()
  starts = [kwargs for name, kwargs in (c for c in calls if c[0] == "init")]
  assert len(starts) == 2 and starts[0] == starts[1]
  assert starts[0]["id"] and starts[0]["resume"] == "allow"
  assert [c[0] for c in calls].count("finish") == 2
  logged = [(step, row) for name, step, row in (
    c for c in calls if c[0] == "log"
  )]  # fmt: skip
  assert [step for step, _ in logged] == [2, 4, 4, 6, 8]
  for step, row in logged:
    assert {key: row[key] for key in rows[step]} == rows[step]

  shown = scalars(workdir / "tensorboard")
  assert list(shown) == [2, 4, 6, 8]
  for step, row in rows.items():
    for key, value in row.items():
      assert shown[step][key] == np.float32(value), (step, key)


def test_another_workdir_is_another_wandb_run(tmp_path, wandb):
  from vitscale.core import log

  for name in ("a", "b", "a"):
    log.wandb(tmp_path / name)
  ids = [kwargs["id"] for _, kwargs in wandb()]
  assert ids[0] == ids[2] != ids[1]


def test_a_mirror_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  config = toys.config()
  config.log = {"every_steps": 2, "wandb": True}
  with pytest.raises(UserError, match=r"pip install 'vitscale\[wandb\]'"):
    train(config, tmp_path / "run")
