"""Studies end to end on a stand-in for training; real processes throughout.

The last test runs the real loop at toy size.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vitscale import study
from vitscale.core.errors import UserError
from vitscale.core.lock import hold

FAKE = Path(__file__).parent / "launch" / "fake_train.py"
TRAIN = f"{FAKE}:train"

STUDY = """
'''A toy study: does the fake loss fall with the seed?'''

import json
from pathlib import Path

from ml_collections import ConfigDict

from vitscale.report.page import Table
from vitscale.study import Run

PLAN = json.loads((Path(__file__).parent / "plan.json").read_text())
SCALES = {"smoke": "two runs", "quick": "more"}


def runs(scale, done):
  def run(name, **config):
    config = ConfigDict({"act": "go", "steps": 3, "pause": 0.01} | config)
    return Run(name, config, {"seed": config.get("seed", 0)})

  first = [run(name, **config) for name, config in PLAN["first"].items()]
  if len(done) < len(first):
    return first
  best = min(
    (r for r in done.values() if r["status"] == "finished"),
    key=lambda r: r["metrics"]["eval/loss"],
  )
  if PLAN.get("second_breaks"):
    raise KeyError("no such thing")
  return first + [run("final/best", seed=best["law_variables"]["seed"])]


def analyse(results, scale):
  if PLAN.get("analyse_breaks"):
    raise ZeroDivisionError("no luck")
  good = [r for r in results.values() if r["status"] == "finished"]
  rows = [{"run": r["name"], "loss": r["metrics"]["eval/loss"]} for r in good]
  return {
    "title": "Toy",
    "text": "What a toy says.",
    "laws": [{"name": "toy", "params": {"a": 1.0}, "ci95": {"a": [0.5, 2.0]},
              "n": len(good)}],
    "verdicts": [{"claim": "it runs", "verdict": "supported",
                  "threshold": "2 runs", "measured": f"{len(good)} runs"}],
    "tables": [Table("Losses", rows)],
    "files": {"rates.json": {"best": 1}},
  }
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """A study folder and a function that runs it with a plan."""
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  folder = tmp_path / "toy"
  folder.mkdir()
  (folder / "study.py").write_text(textwrap.dedent(STUDY))

  def run(plan, *, scale="smoke", out=tmp_path / "out", **kwargs):
    (folder / "plan.json").write_text(json.dumps(plan))
    kwargs = {"workers": 2, "train": TRAIN} | kwargs
    return study.run_study(str(folder), scale=scale, out=out, **kwargs)

  run.folder, run.out = folder, tmp_path / "out"
  return run


TWO = {"first": {"a": {"seed": 1}, "b": {"seed": 2}}}


def starts(result):
  return {
    run["name"]: json.loads((Path(run["workdir"]) / "run.json").read_text())[
      "starts"
    ]
    for run in result["runs"]
  }


def test_a_study_from_runs_to_report(toy, capsys):
  result = toy(TWO)
  assert study.exit_code(result) == 0
  assert result["study"] == "toy"
  assert result["scale"] == "smoke"
  assert [run["name"] for run in result["runs"]] == ["a", "b", "final/best"]
  last = result["runs"][-1]
  # The second round chose from the first; the run's own facts are added.
  assert last["law_variables"] == {"params": 10, "seed": 2}
  assert last["metrics"]["eval/loss"] == pytest.approx(1 / 3)
  assert Path(last["workdir"]) == toy.out / "runs/final/best"
  assert set(last) >= {"status", "checkpoint", "elastic"}
  assert result["laws"][0]["n"] == 3
  assert result["verdicts"][0]["measured"] == "3 runs"
  page = Path(result["report"])
  assert page.is_absolute()
  assert "What a toy says" in page.read_text()
  assert json.loads((toy.out / "study.json").read_text()) == result
  assert (toy.out / "rates.json").exists()
  captured = capsys.readouterr()
  assert "Losses" in captured.out
  assert "supported: it runs" in captured.out
  assert captured.out.rstrip().endswith(str(page))
  assert "[3/3] final/best finished" in captured.err


def test_finished_runs_are_skipped_and_changed_ones_moved_aside(toy, capsys):
  toy(TWO)
  capsys.readouterr()
  again = toy(TWO)
  assert "2 runs: 2 finished before, 0 to resume, 0 new" in (
    capsys.readouterr().err
  )
  assert set(starts(again).values()) == {1}
  assert again["runs"][0]["metrics"]["eval/loss"] == 0.5

  changed = toy({"first": {"a": {"seed": 1, "steps": 4}, "b": {"seed": 2}}})
  assert "a runs afresh (steps: 3 -> 4)" in capsys.readouterr().err
  assert starts(changed) == {"a": 1, "b": 1, "final/best": 1}
  old = json.loads((toy.out / "runs/a.old-1/run.json").read_text())
  assert old["config"]["steps"] == 3


def test_force_keeps_old_runs(toy):
  toy(TWO)
  first = json.loads((toy.out / "runs/a/run.json").read_text())
  result = toy(TWO, force=True)
  assert starts(result)["a"] == 1
  kept = json.loads((toy.out / "runs/a.old-1/run.json").read_text())
  assert kept == first
  assert (toy.out / "runs/final/best.old-1").is_dir()
  toy(TWO, force=True)
  assert (toy.out / "runs/a.old-2").is_dir()


def test_failed_runs_are_reported_and_retried(toy, capsys):
  plan = {
    "first": {
      "a": {"seed": 1},
      "bad": {"act": "raise"},
      "dead": {"act": "die"},
      "c": {"seed": 3},
    }
  }
  result = toy(plan)
  assert study.exit_code(result) == 1
  status = {run["name"]: run["status"] for run in result["runs"]}
  assert status == {
    "a": "finished",
    "bad": "failed",
    "dead": "failed",
    "c": "finished",
    "final/best": "finished",
  }
  assert result["laws"][0]["n"] == 3
  out = capsys.readouterr().out
  assert "FAILED bad failed: ValueError: bad luck" in out
  assert "FAILED dead failed: killed by signal 9" in out
  page = Path(result["report"]).read_text()
  assert "2 of 5 runs did not finish" in page
  assert "ValueError: bad luck" in page

  plan["first"]["bad"] = plan["first"]["dead"] = {"seed": 0}
  mended = toy(plan)
  assert study.exit_code(mended) == 0
  assert starts(mended)["a"] == 1


@pytest.mark.parametrize("what", ["analyse_breaks", "second_breaks"])
def test_broken_study_code_loses_no_runs(toy, capsys, what):
  result = toy(TWO | {what: True})
  assert study.exit_code(result) == 1
  assert len(result["errors"]) == 1
  assert all(run["status"] == "finished" for run in result["runs"])
  page = Path(result["report"]).read_text()
  assert result["errors"][0].split(":")[1].strip() in page
  assert "FAILED " + result["errors"][0] in capsys.readouterr().out
  mended = toy(TWO)
  assert study.exit_code(mended) == 0
  assert starts(mended)["a"] == 1


SCRIPT = """
import sys
from vitscale import study

folder, out, train = sys.argv[1:]
result = study.run_study(folder, scale="smoke", out=out, train=train, workers=2)
sys.exit(study.exit_code(result))
"""


def start(toy, tmp_path):
  script = tmp_path / "main.py"
  script.write_text(SCRIPT)
  path = os.pathsep.join(x or os.getcwd() for x in sys.path)
  return subprocess.Popen(
    [sys.executable, str(script), str(toy.folder), str(toy.out), TRAIN],
    env={**os.environ, "PYTHONPATH": path},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_interrupt_then_resume(toy, tmp_path):
  slow = {"seed": 1, "steps": 100, "pause": 0.03}
  plan = {"first": {"a": slow, "b": slow | {"seed": 2}, "c": slow}}
  (toy.folder / "plan.json").write_text(json.dumps(plan))
  process = start(toy, tmp_path)
  deadline = time.monotonic() + 120
  while not (toy.out / "runs/b/run.json").exists():
    assert time.monotonic() < deadline
    time.sleep(0.05)
  process.send_signal(signal.SIGINT)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 75
  assert "interrupted with 3 runs left: the same command goes on" in out
  saved = json.loads((toy.out / "study.json").read_text())
  assert saved["status"] == "interrupted"
  assert {run["status"] for run in saved["runs"]} == {"interrupted"}

  process = start(toy, tmp_path)
  out, err = process.communicate(timeout=240)
  assert process.returncode == 0, err
  assert "3 runs: 0 finished before, 2 to resume, 1 new" in err
  for name in ("a", "b"):
    run = json.loads((toy.out / f"runs/{name}/run.json").read_text())
    assert run["first"] > 0
    assert run["starts"] == 2


def test_out_in_use_is_refused(toy):
  toy.out.mkdir(parents=True)
  with (
    hold(toy.out, "a study"),
    pytest.raises(UserError, match="another process is running a study"),
  ):
    toy(TWO)


def test_out_of_another_study_or_scale(toy, tmp_path):
  toy(TWO)
  before = (toy.out / "study.json").read_bytes()
  with pytest.raises(
    UserError, match="belongs to study 'toy' at scale 'smoke'"
  ):
    toy(TWO, scale="quick")
  assert (toy.out / "study.json").read_bytes() == before
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine/thesis.tex").write_text("precious")
  with pytest.raises(UserError, match="holds something else"):
    toy(TWO, out=tmp_path / "mine")
  assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
  with pytest.raises(UserError, match="holds something else"):
    toy(TWO, out=tmp_path / "mine/thesis.tex")


def test_bad_input(toy, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="did you mean 'quick'"):
    toy(TWO, scale="quik")
  with pytest.raises(UserError, match=r"no launcher 'here' .*local"):
    toy(TWO, launcher="here")
  with pytest.raises(UserError, match="workers=0"):
    toy(TWO, workers=0)
  with pytest.raises(UserError, match=r"run name '../a'"):
    toy({"first": {"../a": {}}}, out=tmp_path / "other")
  toy(TWO, out=tmp_path / "other")  # leaves a good plan
  monkeypatch.chdir(tmp_path)
  (tmp_path / "experiments").mkdir()
  toy.folder.rename(tmp_path / "experiments/toy")
  with pytest.raises(UserError, match="did you mean 'toy'"):
    study.run_study("toi", scale="smoke")
  result = study.run_study("toy", scale="smoke", train=TRAIN, workers=1)
  assert result["out"] == str(tmp_path / "out/toy-smoke")


def test_study_without_parts(tmp_path):
  (tmp_path / "study.py").write_text("SCALES = {'smoke': ''}\n")
  with pytest.raises(UserError, match="has no runs"):
    study.run_study(str(tmp_path), scale="smoke")


REAL = """
from ml_collections import ConfigDict

from vitscale import sweep
from vitscale.core import config as config_lib
from vitscale.study import Run

SCALES = {"smoke": "a toy"}


def runs(scale, done):
  spec = "vit_fashion:size=8,patch=4,width=32"
  base = config_lib.load(spec, ["batch_size=16"])
  base = base.copy_and_resolve_references()
  with base.unlocked():
    del base["total_epochs"]
    base.total_steps = 4
    base.evals = {"val": {"split": "val", "batch_size": 500}}
    base.log = {"every_steps": 2}
    base.checkpoint = {"keep": 1}
  points = sweep.product({"optim.lr": [1e-3, 2e-3]}, seed=[0, 1])
  return [
    Run(f"lr{p['optim.lr']:g}-s{p['seed']}", sweep.apply(base, p), p)
    for p in points
  ]


def analyse(results, scale):
  return {}
"""


def test_real_training_loop(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.setenv("JAX_LOG_COMPILES", "1")
  monkeypatch.chdir(Path(__file__).parents[1])
  folder = tmp_path / "real"
  folder.mkdir()
  (folder / "study.py").write_text(REAL)
  result = study.run_study(
    str(folder), scale="smoke", out=tmp_path / "out", workers=1
  )
  assert study.exit_code(result) == 0, result["runs"]
  for run in result["runs"]:
    assert run["metrics"]["step"] == 4
    assert run["law_variables"]["params"] > 1000
    assert Path(run["checkpoint"]).is_dir()
  # One worker compiles once; seed and rate are inputs of the step.
  logs = [path.read_text() for path in (tmp_path / "out/logs").glob("lr*.log")]
  assert len(logs) == 4
  assert sum("Compiling jit(step)" in text for text in logs) == 1


def test_a_study_in_this_process_takes_no_accelerator():
  """jax is imported here already, so its environment comes too late."""
  import jax

  before = jax.config.jax_platforms
  with study.study_report.no_accelerator():
    assert jax.config.jax_platforms == "cpu"
  assert jax.config.jax_platforms == before
