"""NaN -> skip -> rollback -> stop, on real runs."""

import jax
import numpy as np
import pytest

from tests import toys
from tests.runs import assert_same_run, complete, state_of
from tests.toy_poison import poisoned
from vitscale.bench import build
from vitscale.core import sharding, tree
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows
from vitscale.train import train


def guarded(*numbers, **changes):
  """A run of 8 steps, saved every second, with NaN at these batches."""
  config = toys.config(**changes)
  config.guard = {"max_skips": 2, "max_rollbacks": 1}
  return poisoned(config, *numbers)


def without(config, *numbers):
  """Every leaf after 8 updates on a stream that lacks these batches."""
  bench = build(config)
  state = bench.init(np.uint32(0))
  lrs = {p.name: np.float32(1e-2) for p in bench.task.players}
  batches, number = bench.batches(0, 0), 0
  while int(state["step"]) < 8:
    batch = next(batches)
    if number not in numbers:
      batch = sharding.shard_batch(batch, bench.mesh)
      state = bench.step(state, batch, np.uint32(0), lrs, draw=())
    number += 1
  batches.close()
  return {k: np.asarray(v) for k, v in tree.flatten(state).items()}


def assert_equal_but_for_counters(got, want):
  assert got.keys() == want.keys()
  for name in want:
    if name.startswith("guard/") or name in ("data_step", "window/count"):
      continue
    if not name.startswith("window/"):
      np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def events(workdir, kind):
  rows = read_rows(workdir / "events.jsonl")
  return [row for row in rows if row["event"] == kind]


def test_a_skipped_batch_equals_a_dropped_one(tmp_path, capfd):
  config, workdir = guarded(3), tmp_path / "run"
  result = train(config, workdir)
  assert result["status"] == "finished" and result["step"] == 8
  state = state_of(workdir)
  assert_equal_but_for_counters(state, without(config, 3))
  assert state["data_step"] == 9 and state["guard/skips"] == 1
  assert all(np.isfinite(x).all() for x in state.values())

  rows = read_rows(workdir / "metrics.jsonl")
  assert [r["step"] for r in rows] == [2, 3, 5, 7, 8]
  assert [r["data_step"] for r in rows[1:]] == [4, 6, 8, 9]
  assert all(np.isfinite(r["train/loss"]) for r in rows)
  (skip,) = events(workdir, "skip")
  assert skip["batches"] == [3] and skip["count"] == 1
  assert "skipped 1 of the batches" in capfd.readouterr().err  # loudly
  assert read_json(workdir / "run.json")["skipped_batches"] == 1


def test_without_trouble_the_guard_changes_only_roundings(tmp_path):
  config = guarded()
  train(config, tmp_path / "on")
  del config.guard
  train(config, tmp_path / "off")
  on, off = state_of(tmp_path / "on"), state_of(tmp_path / "off")
  assert {name for name in on if name not in off} == {
    f"guard/{k}" for k in ("skips", "streak", "tripped", "rollbacks", "recent")
  }
  for name in off:
    np.testing.assert_allclose(on[name], off[name], atol=1e-6, err_msg=name)
  rows = [
    read_rows(tmp_path / name / "metrics.jsonl") for name in ("on", "off")
  ]
  assert [r.keys() for r in rows[0]] == [r.keys() for r in rows[1]]


def interrupted(config, workdir, at):
  """Runs until the row of step `at`, then Ctrl-C twice; then to the end."""

  def report(state):
    if state["step"] >= at:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(config, workdir, report=report)
  assert train(config, workdir)["status"] == "finished"


@pytest.mark.parametrize("at", [2, 3, 5, 8])
def test_interrupted_around_a_skip(tmp_path, at):
  config = guarded(3)
  train(config, tmp_path / "whole")
  interrupted(config, tmp_path / "run", at)
  assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_too_many_in_a_row_roll_back(tmp_path):
  """Saved at batch 4; batch 4 trains, 5 and 6 are bad: all three are left."""
  config, workdir = guarded(5, 6), tmp_path / "run"
  result = train(config, workdir)
  assert result["status"] == "finished" and result["step"] == 8
  state = state_of(workdir)
  assert_equal_but_for_counters(state, without(config, 4, 5, 6))
  assert state["data_step"] == 11 and state["guard/rollbacks"] == 1
  (back,) = events(workdir, "rollback")
  assert back["step"] == 4 and back["data_step"] == 7
  run = read_json(workdir / "run.json")
  assert run["rollbacks"] == 1 and run["skipped_batches"] == 2
  steps = [r["step"] for r in read_rows(workdir / "metrics.jsonl")]
  assert steps == sorted(set(steps)) and steps[-1] == 8

  for at in (4, 7):
    interrupted(config, tmp_path / f"cut{at}", at)
    assert_same_run(tmp_path / f"cut{at}", workdir)


def test_a_second_failure_stops(tmp_path):
  config, workdir = guarded(5, 6, 9, 10), tmp_path / "run"
  for _ in range(2):  # the second goes on from its checkpoint to the same end
    with pytest.raises(UserError) as error:
      train(config, workdir)
    said = str(error.value)
    assert "after 4 skipped batches and 1 rollbacks; last good" in said
    assert "start a new workdir with a lower optim.lr (now 0.01)" in said
    assert read_json(workdir / "run.json")["status"] == "failed"
  assert complete(workdir)
  assert all(np.isfinite(x).all() for x in state_of(workdir).values())


def test_nothing_to_roll_back_to_stops(tmp_path):
  config = guarded(0, 1)
  with pytest.raises(UserError, match=r"since step 1, .*checkpoint: none"):
    train(config, tmp_path / "run")


def test_the_update_is_selected_not_multiplied():
  """The gradient alone is NaN; what is kept is kept bit for bit."""
  config = guarded(0)
  bench = build(config)
  lrs = {p.name: np.float32(1e-2) for p in bench.task.players}
  before = jax.device_get(bench.init(np.uint32(0)))
  batches = bench.batches(0, 0)
  batch = sharding.shard_batch(next(batches), bench.mesh)
  batches.close()
  after = bench.step(
    bench.init(np.uint32(0)), batch, np.uint32(0), lrs, draw=()
  )
  changed = {
    name
    for name, x in tree.flatten(jax.device_get(after)).items()
    if not np.array_equal(x, tree.flatten(before)[name])
  }
  assert changed == {
    "data_step", "guard/skips", "guard/streak", "guard/recent",
  }  # fmt: skip


@pytest.mark.parametrize("value", [-1, 0.5, True])
def test_bad_settings(value):
  config = toys.config()
  config.guard = {"max_skips": value}
  with pytest.raises(UserError, match=r"guard\.max_skips"):
    build(config)
