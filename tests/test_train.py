"""The one loop: what a run leaves, and every way it must refuse."""

import itertools

import numpy as np
import pytest

from tests import toys
from tests.runs import state_of
from vitscale.bench import build
from vitscale.core import sharding
from vitscale.core.errors import UserError
from vitscale.core.lock import hold
from vitscale.core.log import read_json, read_rows
from vitscale.train import train
from vitscale.workdir import load, runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  result = train(toys.config(), workdir)
  return workdir, result


def test_result_and_files(whole):
  workdir, result = whole
  assert result["status"] == "finished" and result["step"] == 8
  assert result["mfu"] is None  # a CPU has no peak in the table
  assert result["params"] == sum(
    x.size for k, x in state_of(workdir).items() if k.startswith("params/")
  )
  run = read_json(workdir / "run.json")
  assert run["law_variables"]["tokens_per_example"] == 4
  assert run["attention"] == {"reference": [4]}  # back end -> keys
  rows = read_rows(workdir / "metrics.jsonl")
  assert [r["step"] for r in rows] == [2, 4, 6, 8]
  assert rows[1]["eval/val/examples"] == 64  # 24 does not divide 64
  assert "seconds" not in rows[0]
  assert rows[0]["flops"] == 2 * 16 * result["flops_per_example"]
  timing = read_rows(workdir / "timing.jsonl")
  assert [r["step"] for r in timing] == [2, 4, 6, 8]


def test_finished_run_is_not_touched(whole):
  workdir, result = whole
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
  assert train(toys.config(), workdir) == result
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_load_gives_the_averaged_weights(whole):
  workdir, _ = whole
  model, variables = load(workdir)
  leaves = state_of(workdir)
  kernel = variables["params"]["head"]["kernel"]
  np.testing.assert_array_equal(kernel, leaves["ema/head/kernel"])
  logits, _ = model.apply(variables, np.zeros((1, 8, 8, 1), np.float32))
  assert logits.shape == (1, 4)
  assert runs(workdir.parent)[0]["eval/val/nll"] > 0


def test_workdir_of_another_config_is_refused(whole):
  workdir, _ = whole
  before = (workdir / "run.json").read_bytes()
  with pytest.raises(UserError, match=r"optim.lr: 0.01 -> 0.02"):
    train(toys.config(optim__lr=0.02), workdir)
  assert (workdir / "run.json").read_bytes() == before


def test_disk_full_while_logging(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / "timing.jsonl").symlink_to("/dev/full")
  with pytest.raises(UserError, match=r"disk full while writing .*timing"):
    train(toys.config(), workdir)
  (workdir / "timing.jsonl").unlink()
  assert train(toys.config(), workdir)["status"] == "finished"


def test_unread_key_is_an_error(tmp_path):
  config = toys.config()
  config.model.widht = 32
  with pytest.raises(UserError, match=r"model.widht.*'width'"):
    train(config, tmp_path / "a")
  config = toys.config()
  config.batch_sizes = 3
  with pytest.raises(UserError, match=r"batch_sizes.*read by nobody"):
    train(config, tmp_path / "b")


def test_patch_that_does_not_divide(tmp_path):
  with pytest.raises(UserError, match="patch"):
    train(toys.config(model__variant="mu/3"), tmp_path / "run")


def test_seed_and_rate_share_one_compiled_step(tmp_path, monkeypatch):
  from vitscale import train as train_lib

  built = []
  real = train_lib.build
  monkeypatch.setattr(train_lib, "build", lambda c: built.append(1) or real(c))
  monkeypatch.setattr(train_lib, "_benches", {})
  last = [
    train(toys.config(seed=s, optim__lr=lr), tmp_path / f"{s}-{lr}")["metrics"]
    for s, lr in ((0, 1e-2), (1, 1e-2), (0, 1e-3))
  ]
  assert len(built) == 1
  assert len({m["train/loss"] for m in last}) == 3


def test_batch_statistics_go_through_the_loop(tmp_path):
  config = toys.config(model={"family": "tests.toys", "width": 8})
  result = train(config, tmp_path / "run")
  assert result["status"] == "finished"
  state = state_of(tmp_path / "run")
  assert np.abs(state["mutable/batch_stats/mean"]).max() > 0
  _, variables = load(tmp_path / "run")
  assert "batch_stats" in variables


def two_players(**task):
  config = toys.config(
    model={"family": "tests.toy_pair"}, task={"name": "tests.toys", **task}
  )
  config.critic_optim = {
    "name": "sgd", "lr": 0.5, "b1": 0.0, "schedule": {"kind": "constant"},
  }  # fmt: skip
  return config


def test_two_players(tmp_path):
  train(two_players(), tmp_path / "run")
  rows = read_rows(tmp_path / "run" / "metrics.jsonl")
  assert rows[-1]["train/critic_loss"] < rows[0]["train/critic_loss"]
  assert "train/loss" in rows[0]


def test_a_player_plays_every_kth_step():
  bench = build(two_players())
  state, critic = bench.init(np.uint32(0)), []
  lrs = {"student": np.float32(0.1), "critic": np.float32(0.5)}
  batches = bench.batches(0, 0)
  for _ in range(4):
    batch = sharding.shard_batch(next(batches), bench.mesh)
    state = bench.step(state, batch, np.uint32(0), lrs, draw=())
    critic.append(np.asarray(state["params"]["critic"]))
  batches.close()
  changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(critic)]
  assert changed == [False, True, False]


def test_every_parameter_needs_one_player():
  with pytest.raises(UserError, match=r"'critic' belongs to no player"):
    build(two_players(forget_critic=True))


def test_draws_are_compiled_once_each_and_replayed(tmp_path):
  config = toys.config()
  config.draws = {"patch_size": {"values": (2, 4), "weights": (1.0, 1.0)}}
  train(config, tmp_path / "a")
  config = toys.config()
  config.draws = {"patch_siz": {"values": (2, 4)}}
  with pytest.raises(UserError, match=r"patch_siz.*'patch_size'"):
    train(config, tmp_path / "b")


def test_accumulation_equals_the_full_batch(tmp_path):
  one = train(toys.config(), tmp_path / "one")["metrics"]
  four = train(toys.config(accumulate=4), tmp_path / "four")["metrics"]
  assert four["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)


def test_a_workdir_in_use_is_refused(tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  with (
    hold(workdir, "a run"),
    pytest.raises(UserError, match="another process is running a run"),
  ):
    train(toys.config(), workdir)


def test_where_a_run_logs_is_not_reused_from_another(tmp_path):
  train(toys.config(), tmp_path / "a")
  train(toys.config(log__every_steps=3), tmp_path / "b")
  rows = read_rows(tmp_path / "b" / "metrics.jsonl")
  assert [r["step"] for r in rows] == [3, 4, 6, 8]  # 4: evaluation


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"log__every_steps": 0}, r"log\.every_\* is 0"),
    ({"optim__lr": -1.0}, r"optim\.lr = -1\.0"),
    ({"model__num_heads": 0}, r"model\.num_heads=0"),
    ({"task__mean": (0.1, 0.2, 0.3)}, "1 values, one per channel"),
    ({"accumulate": 3}, "accumulate=3"),
    ({"seed": -1}, "seed=-1"),
    ({"ema": 2.0}, "ema=2.0"),
    ({"draws": {"patch_size": {"values": (4, 3)}}}, "patch 3"),
  ],
)
def test_bad_values_are_named_before_anything_is_compiled(change, match):
  with pytest.raises(UserError, match=match):
    build(toys.config(**change))
