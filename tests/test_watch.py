"""The watch of a run: goodput over kills, profiles, recompiles, figures."""

import datetime
import signal
import time

import numpy as np
import pytest

from tests import toys
from tests.clock import patched
from tests.core.test_profiler import steps_of
from tests.runs import assert_same_run, command, complaint, complete, python
from tests.toy_poison import poisoned
from vitscale import train as train_lib
from vitscale.bench import build
from vitscale.core import goodput
from vitscale.core.errors import UserError
from vitscale.core.ledger import Ledger
from vitscale.core.log import read_json, read_rows
from vitscale.train import train
from vitscale.watch import Watch

KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests import toys
from vitscale.train import train

workdir, at, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def report(state):
  if state["step"] >= at:
    while len(list(workdir.glob("checkpoints/*/MANIFEST.json"))) < wanted:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

train(toys.everything(), workdir, report=report)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An ordinary run: draws, evaluations, checkpoints, nothing else."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  seen = []
  train(toys.everything(), workdir, report=seen.append)
  return workdir, seen


def wall_clock(workdir):
  """Seconds by events.jsonl alone, from the first start to the last event."""
  rows = read_rows(workdir / "events.jsonl")
  first, last = (
    datetime.datetime.fromisoformat(row["time"]) for row in (rows[0], rows[-1])
  )
  start = sum(rows[0]["spent"].values())  # it was noted after the start
  return (last - first).total_seconds() + start


def test_an_ordinary_run_compiles_each_draw_once(whole):
  workdir, _ = whole
  run = read_json(workdir / "run.json")
  assert run["recompiles"] == 0
  kinds = [row["event"] for row in read_rows(workdir / "events.jsonl")]
  assert kinds == ["start", "finished"]


def test_what_a_row_and_a_run_say(whole):
  workdir, seen = whole
  run, rows = (
    read_json(workdir / "run.json"), read_rows(workdir / "timing.jsonl"),
  )  # fmt: skip
  assert run["compute_dtype"] == "float32"
  assert run["gemm_flops_per_second"] > 1e6
  # A window's FLOPs are those of the patches drawn in it; a run's, the mean.
  spent = [row["flops"] for row in read_rows(workdir / "metrics.jsonl")]
  window = np.diff([0, *spent]) / (2 * 16)  # two steps of 16 examples
  assert len(set(window)) > 1
  for row, flops in zip([*rows, run], [*window, run["flops_per_example"]]):
    assert row["mfu"] is None and row["of_ceiling"] > 0
    expected = row["examples_per_second"] * flops
    expected /= run["gemm_flops_per_second"] * run["devices"][1]
    assert row["of_ceiling"] == pytest.approx(expected, rel=1e-3)
  assert all(state["goodput"] is None for state in seen)  # no restart
  assert seen[0]["row"]["of_ceiling"] == rows[0]["of_ceiling"]


def test_categories_add_up_to_the_wall_clock(whole):
  workdir, _ = whole
  found = read_json(workdir / "run.json")["goodput"]
  assert found["wall_clock"] == pytest.approx(wall_clock(workdir), abs=1.0)
  assert sum(found["seconds"].values()) == pytest.approx(
    found["wall_clock"], abs=0.01
  )
  assert {"start", "compile", "step", "evaluation", "checkpoint"} <= set(
    found["seconds"]
  )
  assert not {"lost", "down", "profile"} & set(found["seconds"])
  assert found["sessions"] == 1 and 0 < found["share"] < 1


@pytest.mark.slow
def test_goodput_of_a_run_that_was_killed_twice(whole, tmp_path):
  workdir = tmp_path / "run"
  for at, wanted in ((4, 0), (6, 1)):
    process = python("-c", KILLED, workdir, at, wanted)
    assert process.returncode == -signal.SIGKILL, process.stderr
    time.sleep(1.0)
  before = read_rows(workdir / "timing.jsonl")[-1]
  kept = complete(workdir)[-1]
  manifest = read_json(workdir / f"checkpoints/{kept}/MANIFEST.json")

  seen = []
  result = train(toys.everything(), workdir, report=seen.append)
  assert_same_run(workdir, whole[0])
  found = read_json(workdir / "run.json")["goodput"]
  assert result["goodput"] == found and found["sessions"] == 3
  seconds = found["seconds"]
  assert found["wall_clock"] == pytest.approx(wall_clock(workdir), abs=1.0)
  assert sum(seconds.values()) == pytest.approx(found["wall_clock"], abs=0.01)
  assert seconds["down"] > 2.0  # both pauses, and what came after a last row
  # All of the first session's steps, the second's behind its checkpoint.
  start = read_rows(workdir / "events.jsonl")[2]
  assert start["event"] == "start" and start["step"] == kept
  work = lambda spent: sum(spent.get(name, 0.0) for name in goodput.WORK)
  assert before["spent"]["lost"] > 0
  assert start["spent"]["lost"] == pytest.approx(
    before["spent"]["lost"] + work(before["spent"]) - work(manifest["spent"]),
    abs=0.01,
  )
  assert all(0 < state["goodput"] < 1 for state in seen)


def test_batches_that_came_to_nothing_are_lost(tmp_path):
  config = toys.config()
  config.guard = {"max_skips": 2, "max_rollbacks": 1}
  workdir = tmp_path / "run"
  train(poisoned(config, 1, 4, 5), workdir)
  run = read_json(workdir / "run.json")
  assert (run["skipped_batches"], run["rollbacks"]) == (3, 1)
  assert run["goodput"]["seconds"]["lost"] > 0
  assert run["goodput"]["wall_clock"] == pytest.approx(
    wall_clock(workdir), rel=0.03, abs=1.0
  )
  assert run["recompiles"] == 0  # nor after the rollback


# -------------------------------------------------------------------- waiting


class Device:
  """Stands for the step's counter: whether the devices are through."""

  def __init__(self, ready, clock):
    self.is_ready, self.clock = lambda: ready, clock

  def block_until_ready(self):
    self.clock.sleep(TAKES)
    return self


TAKES = 0.4  # seconds of a step, as the first one is found to take


@pytest.mark.parametrize(
  ("ready", "late", "waits"),
  [
    (False, 0.6, 0.0),  # it still works on the last one
    (True, 0.3, 0.0),  # through by now, but just
    (True, 0.6, 0.2),
  ],
)
def test_only_a_device_with_nothing_to_do_waits_for_data(
  tmp_path, monkeypatch, ready, late, waits
):
  clock = patched(monkeypatch)
  watch = Watch(tmp_path, build(toys.config()), Ledger(tmp_path))
  state = {"step": Device(ready, clock)}
  update = lambda state, draw: state
  with watch:
    for number in range(3):
      watch.enter("data")
      before = watch.chrono.totals().get("data", 0.0)
      clock.sleep(late if number == 2 else 0)
      watch.step(update, state, draw=(), number=number)
  spent = watch.chrono.totals()
  assert spent.get("data", 0.0) - before == pytest.approx(waits)
  assert spent["step"] >= TAKES + late - waits  # the first one, the rest of it
  assert sum(spent.values()) == pytest.approx(2 * TAKES + late)
  assert watch.recompiles == 0


# ----------------------------------------------------------------- recompiles


def test_a_batch_of_another_shape_is_reported(tmp_path, monkeypatch, capfd):
  bench = build(toys.config())
  original = bench.batches

  def batches(start, seed):
    for number, batch in enumerate(original(start, seed)):
      rows = {4: 12, 6: 8, 7: 12}.get(number, 16)
      yield {name: value[:rows] for name, value in batch.items()}

  bench.batches = batches
  monkeypatch.setattr(train_lib, "reuse", lambda _: bench)
  train(toys.config(), tmp_path / "run")
  assert read_json(tmp_path / "run" / "run.json")["recompiles"] == 2
  events = read_rows(tmp_path / "run" / "events.jsonl")
  found = [row for row in events if row["event"] == "recompile"]
  assert [row["step"] for row in found] == [4, 6]  # 12 rows are known by 7
  assert all(row["seconds"] > 0 for row in found)
  assert all("step" in name for row in found for name in row["functions"])
  said = capfd.readouterr().err
  assert said.count("warning: step 4 was compiled again") == 1


# ------------------------------------------------------------------- profiles


def test_a_profile_changes_nothing(whole, tmp_path):
  workdir = tmp_path / "run"
  train(toys.everything(), workdir, profile=(3, 5))
  assert steps_of(workdir / "profile") == [3, 4]
  assert_same_run(workdir, whole[0])
  run, plain = (read_json(w / "run.json") for w in (workdir, whole[0]))
  assert run["config_digest"] == plain["config_digest"]
  assert run["goodput"]["seconds"]["profile"] > 0
  assert run["recompiles"] == 0


@pytest.mark.slow
def test_the_command(tmp_path):
  config = tmp_path / "mine.py"
  config.write_text(
    "from tests import toys\n\n\ndef get_config(arg=None):\n"
    "  return toys.config()\n"
  )
  args = ["train", config, "--workdir", tmp_path / "run", "--profile"]
  for bad, match in (
    ("3:5", "should be steps=A:B"),
    ("steps=5:3", "holds no step"),
    ("steps=3:50", "the run has only 8 steps"),
  ):
    process = command(*args, bad)
    assert process.returncode == 2 and match in complaint(process.stderr)
  assert not (tmp_path / "run" / "run.json").exists()

  process = command(*args, "steps=6:8")
  assert process.returncode == 0, process.stderr
  *_, last = process.stderr.splitlines()
  assert last.startswith("goodput ") and "compile" in last
  assert "profile of steps 6:8: " in process.stderr
  assert "% of GEMM ceiling" in process.stderr
  assert steps_of(tmp_path / "run" / "profile") == [6, 7]

  process = command(*args, "steps=6:8")
  assert process.returncode == 0, process.stderr
  assert "the run is finished" in process.stderr


def test_a_window_behind_the_end_is_refused(tmp_path):
  with pytest.raises(UserError, match="only 8 steps"):
    train(toys.config(), tmp_path / "run", profile=(np.int64(6), 9))
  assert train(toys.config(), tmp_path / "run")["status"] == "finished"
