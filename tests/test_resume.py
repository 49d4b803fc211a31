"""Runs that are stopped: killed, terminated, out of disk, out of luck.

Each must go on from its last complete checkpoint and end bit for bit like a
run that was never stopped, wall-clock figures apart.
"""

import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import vitscale
from tests import toys
from tests.runs import (
  assert_same_run,
  command,
  complaint,
  complete,
  contents,
  python,
  state_of,
)
from vitscale import cli, doctor
from vitscale.core import draws
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows
from vitscale.data import sources
from vitscale.data.random import permutation
from vitscale.train import train

STOPPED = """
import os, signal, sys, time
from pathlib import Path
from tests import toys
from vitscale.train import train

workdir, at, wanted = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def report(state):
  if state["step"] >= at:
    while len(list(workdir.glob("checkpoints/*/MANIFEST.json"))) < wanted:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.{signal})

train(toys.everything(), workdir, report=report)
"""


def stopped(workdir, name, *, at, checkpoints):
  """Runs until `at` is logged and enough checkpoints are complete."""
  process = python("-c", STOPPED.format(signal=name), workdir, at, checkpoints)
  assert "Traceback" not in process.stderr, process.stderr
  return process.returncode


def finish(config, workdir):
  """Trains to the end; returns the steps that were logged."""
  seen = []
  result = train(config, workdir, report=lambda s: seen.append(s["step"]))
  assert result["status"] == "finished"
  return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  train(toys.everything(), workdir)
  return workdir


def test_the_run_draws_and_averages(whole):
  chosen = draws.make(toys.everything().draws)
  patches = {draws.at(chosen, 0, step)["patch_size"] for step in range(8)}
  assert patches == {2, 4}
  state = state_of(whole)
  assert any(name.startswith("ema/") for name in state)
  assert any(name.startswith("opt/") for name in state)


def test_killed_before_and_after_the_first_checkpoint(whole, tmp_path):
  workdir = tmp_path / "run"
  code = stopped(workdir, "SIGKILL", at=2, checkpoints=0)
  assert code == -signal.SIGKILL
  assert complete(workdir) == []
  assert [r["step"] for r in read_rows(workdir / "metrics.jsonl")] == [2]

  code = stopped(workdir, "SIGKILL", at=4, checkpoints=1)
  assert code == -signal.SIGKILL
  assert complete(workdir) == [2]
  assert read_json(workdir / "run.json")["status"] == "running"
  assert [r["step"] for r in read_rows(workdir / "metrics.jsonl")] == [2, 4]
  with open(workdir / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "exam')  # killed while it wrote a row

  assert finish(toys.everything(), workdir) == [4, 6, 8]
  assert_same_run(workdir, whole)


def test_terminated_saves_and_resumes(whole, tmp_path):
  workdir = tmp_path / "run"
  assert stopped(workdir, "SIGTERM", at=6, checkpoints=0) == 0
  run = read_json(workdir / "run.json")
  assert run["status"] == "interrupted"
  # The flag is seen after the step that was running.
  assert complete(workdir)[-1] == run["step"] < 8
  left = strangers(workdir / "checkpoints")
  assert train(toys.everything(), workdir)["status"] == "finished"
  assert_same_run(workdir, whole)
  assert all(path.exists() for path in left)
  assert not list(workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*"))
  found = doctor.examine(workdir)
  assert found["resumable_from"] == 8 and found["run"] == "finished"
  assert found["strays"] == ["9000", "notes"]


def strangers(checkpoints):
  """Leaves a folder that looks like a later step, a file, half a save."""
  half = checkpoints / "7000" / "state.orbax-checkpoint-tmp-1"
  half.mkdir(parents=True)
  (half / "d").write_text("half")
  (checkpoints / "9000").mkdir()
  left = [checkpoints / "9000" / "mine", checkpoints / "notes"]
  for path in left:
    path.write_text("a stranger's")
  return left


# ------------------------------------------------------------------ failures


def config_file(tmp_path, text):
  path = tmp_path / "mine.py"
  path.write_text(
    "from tests import toys\n\n\ndef get_config(arg=None):\n"
    f"  config = toys.config()\n  {text}\n  return config\n"
  )
  return path


def test_disk_full_while_a_checkpoint_is_written(tmp_path):
  config = config_file(tmp_path, "config.evals.val.name = 'tests.toy_disk'")
  workdir, other = tmp_path / "run", tmp_path / "whole"
  args = ["train", config, "--json", "--workdir"]
  process = command(*args, workdir, FULL=str(workdir / "checkpoints"))
  assert process.returncode == 2 and process.stdout == ""
  said = complaint(process.stderr, noise=True)
  assert str(workdir / "checkpoints" / "4") in said, said
  assert re.search("disk full|File too large", said), said
  assert read_json(workdir / "run.json")["status"] == "failed"
  assert complete(workdir) == [2]
  assert state_of(workdir)["step"] == 2
  rows = read_rows(workdir / "metrics.jsonl")
  assert [r["step"] for r in rows][:2] == [2, 4]
  assert len(rows) == (workdir / "metrics.jsonl").read_text().count("\n")

  for folder in (workdir, other):
    assert cli.main([*map(str, args), str(folder)]) == 0
  assert_same_run(workdir, other)


@pytest.mark.slow
def test_a_disk_that_was_full_for_a_while(tmp_path):
  """Full from step 5 to 10: the save at 8 fails, the one at 10 replaces it."""
  changes = ["total_steps=12", "checkpoint.every_steps=4"]
  config = config_file(
    tmp_path,
    "config.evals.val.name = 'tests.toy_disk';"
    " config.evals.val.every_steps = 5",
  )
  workdir, other = tmp_path / "run", tmp_path / "whole"
  args = ["train", config, *changes, "--json", "--workdir"]
  full = {"FULL": str(workdir / "checkpoints"), "FREED": "1"}
  process = command(*args, workdir, **full)
  assert process.returncode == 0, process.stderr
  said = re.findall("^warning: .*", process.stderr, re.MULTILINE)
  assert len(said) == 1 and said[0].endswith("trying again"), process.stderr
  assert str(workdir / "checkpoints" / "8") in said[0]
  # Not due before 12: the failure was told at the next row of the log.
  assert complete(workdir) == [10, 12]
  assert cli.main([*map(str, args), str(other)]) == 0
  assert_same_run(workdir, other)


def spoil(workdir, step):
  """Changes every 16th byte of a step's arrays: one alone may be unused."""
  state = workdir / "checkpoints" / str(step) / "state"
  files = [p for p in state.rglob("*") if p.is_file()]
  most = max(p.stat().st_size for p in files)
  for path in files:
    if path.stat().st_size > most / 4:
      data = bytearray(path.read_bytes())
      data[::16] = bytes(b ^ 1 for b in data[::16])
      path.write_bytes(bytes(data))


@pytest.mark.slow
def test_a_rotten_checkpoint_costs_only_time(whole, tmp_path, capfd):
  workdir = tmp_path / "run"
  assert stopped(workdir, "SIGKILL", at=6, checkpoints=2) == -9
  *before, last = complete(workdir)
  spoil(workdir, last)
  seen = finish(toys.everything(), workdir)
  assert seen[0] == before[-1] + 2  # from the step before it
  assert "is damaged" in capfd.readouterr().err
  assert (workdir / "checkpoints" / f"{last}.bad").is_dir()
  assert_same_run(workdir, whole)


def test_nothing_to_trust_does_not_begin_anew(tmp_path, capfd):
  workdir = tmp_path / "run"
  assert stopped(workdir, "SIGKILL", at=4, checkpoints=1) == -9
  spoil(workdir, 2)
  rows = (workdir / "metrics.jsonl").read_bytes()
  for _ in range(2):
    with pytest.raises(UserError, match=r"can be verified \(2.bad damaged\)"):
      train(toys.everything(), workdir)
  assert (workdir / "metrics.jsonl").read_bytes() == rows


def test_a_checkpoint_of_another_model_shows_the_difference(whole, tmp_path):
  """A folder copied by hand: run.json of one run, checkpoints of another."""
  other, config = tmp_path / "other", toys.everything()
  config.model.width = 24
  with pytest.raises(KeyboardInterrupt):
    train(config, other, report=lambda _: interrupt())
  shutil.copytree(whole / "checkpoints", other / "checkpoints")
  with pytest.raises(UserError) as error:
    train(config, other)
  said = str(error.value)
  assert "doesn't fit this model" in said and "~params/" in said
  assert "float32[16] -> float32[24]" in said and said.count("\n") == 0
  assert complete(other) == complete(whole)  # nothing was renamed
  with pytest.raises(UserError, match=r"doesn't fit this model .*~ema/"):
    vitscale.load(other)


def test_a_checkpoint_of_another_family_by_the_command(whole, tmp_path, capfd):
  other = tmp_path / "other"
  config = config_file(tmp_path, "config.model = {'family': 'tests.toy_fuse'}")
  made = toys.config()
  made.model = toys.ConfigDict({"family": "tests.toy_fuse"})
  with pytest.raises(KeyboardInterrupt):
    train(made, other, report=lambda _: interrupt())
  shutil.copytree(whole / "checkpoints", other / "checkpoints")
  before = contents(other / "checkpoints")
  assert cli.main(["train", str(config), "--workdir", str(other)]) == 2
  said = complaint(capfd.readouterr().err)
  assert "-params/embed/" in said and "+params/kernel float32[64, " in said
  assert re.search(r"and \d+ more -; \+", said), said
  assert contents(other / "checkpoints") == before


def interrupt():
  raise KeyboardInterrupt


def test_nan_names_the_checkpoint_before_it(tmp_path, capfd):
  """The loss is NaN at step 5; logged and saved every second step."""
  config = config_file(tmp_path, "config.model = {'family': 'tests.toy_fuse'}")
  workdir = tmp_path / "run"
  argv = ["train", str(config), "--workdir", str(workdir), "--json"]
  capfd.readouterr()
  for _ in range(2):  # the second goes on from step 4 and finds the same
    assert cli.main(argv) == 2
    out, err = capfd.readouterr()
    said = complaint(err)
    assert out == ""
    assert "not finite since step 5" in said
    good = workdir / "checkpoints"
    assert f"last good checkpoint: step 4 in {good}" in said
    assert complete(workdir)[-1] == 4 and not (good / "6").exists()
    assert "new workdir with a lower optim.lr (now 0.01)" in said
    assert read_json(workdir / "run.json")["status"] == "failed"
    rows = read_rows(workdir / "metrics.jsonl")
    assert [r["step"] for r in rows] == [2, 4]
  # To go on from the good one: it is all there, and finite.
  assert all(np.isfinite(x).all() for x in state_of(workdir).values())


def test_nan_without_any_checkpoint(tmp_path):
  config = toys.config(
    optim__lr=1e20, optim__clip_norm=0.0, optim__weight_decay=0.0
  )
  del config.optim["lr"]  # the message must not need what has a default
  config.optim.eps = 0.0
  config.model = toys.ConfigDict({"family": "tests.toy_fuse", "fuse": 2})
  with pytest.raises(UserError, match=r"since step 2; .*checkpoint: none"):
    train(config, tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
  """Two classes of noise, 32 to train on: 8 steps of 4 see each once."""
  rng = np.random.default_rng(0)
  for name in ("cat", "dog"):
    (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(20):
      pixels = rng.integers(0, 256, (8, 8), np.uint8)
      Image.fromarray(pixels).save(tmp_path / f"photos/{name}/{i:02}.png")
  return tmp_path / "photos"


@pytest.mark.slow
def test_data_that_break_late_lose_no_checkpoint(photos, tmp_path):
  data = {"source": "folder", "path": str(photos), "channels": 1, "val": 0.2}
  config = toys.config(
    data=data, batch_size=4, evals__val__batch_size=4, train__transform=""
  )
  paths = sources.make("folder", path=str(photos), channels=1, val=0.2)
  paths = paths.images.args[1]
  assert len(paths) == 32
  bad = photos / paths[permutation(0, 0, 32)[4 * 5]]  # read for step 6
  good = bad.read_bytes()
  bad.write_bytes(bytes(len(good)))
  with pytest.raises(UserError, match="cannot read image") as error:
    train(config, tmp_path / "run")
  # Saved a step before; committed by the time the error is told.
  assert complete(tmp_path / "run") == [2, 4]
  assert str(bad) in str(error.value)
  run = read_json(tmp_path / "run" / "run.json")
  assert run["status"] == "failed" and str(bad) in run["error"]

  bad.write_bytes(good)
  assert finish(config, tmp_path / "run") == [6, 8]
  train(config, tmp_path / "whole")
  assert_same_run(tmp_path / "run", tmp_path / "whole")
