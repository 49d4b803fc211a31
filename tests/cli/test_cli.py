"""The command: light to start, one JSON object, exit codes."""

import json
import subprocess
import sys

import pytest

from vitscale import cli


def python(code):
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
  )


def test_importing_and_asking_for_help_loads_no_jax():
  code = """
import sys
import vitscale
from vitscale import cli
try:
  cli.main(["--help"])
except SystemExit:
  pass
heavy = {"jax", "flax", "numpy", "matplotlib", "grain"} & set(sys.modules)
assert not heavy, heavy
"""
  process = python(code)
  assert process.returncode == 0, process.stderr
  assert "vitscale study patchify" in process.stdout


@pytest.mark.parametrize(
  "verb",
  [one.__name__.rpartition(".")[2].rstrip("_") for one in cli.VERBS],
)
def test_every_verb_has_help_with_an_example(verb, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main([verb, "--help"])
  assert stop.value.code == 0
  assert f"example: vitscale {verb}" in capsys.readouterr().out


def test_unknown_verb_is_one_line_and_exit_2(capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(["trian"])
  assert stop.value.code == 2
  assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_overrides_stand_before_or_after_options(tmp_path, capsys):
  workdir = str(tmp_path / "run")
  for argv in (
    ["train", "vit_fashion", "optim.lrr=1", "--workdir", workdir],
    ["train", "vit_fashion", "--workdir", workdir, "optim.lrr=1"],
  ):
    assert cli.main(argv) == 2
    assert "'optim.lrr', did you mean 'optim.lr'" in capsys.readouterr().err
  with pytest.raises(SystemExit) as stop:
    cli.main(["train", "vit_fashion", "--workdir", workdir, "--forse"])
  assert stop.value.code == 2
  assert "'--forse'" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()


def test_runs_lists_what_is_there(tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "run.json").write_text(
    json.dumps({"status": "finished", "law_variables": {"params": 7}})
  )
  (tmp_path / "a" / "metrics.jsonl").write_text(
    '{"step": 3, "train/loss": 0.5, "eval/val/nll": 0.25}\n'
  )
  assert cli.main(["runs", str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert "finished" in out and "0.25" in out
  assert cli.main(["runs", str(tmp_path / "none")]) == 2


def test_an_interrupt_is_not_a_traceback(monkeypatch, capsys):
  def stopped(args):
    """Stops."""
    raise KeyboardInterrupt

  monkeypatch.setattr(cli.runs, "run", stopped)
  assert cli.main(["runs", "."]) == cli.INTERRUPTED
  assert "interrupted" in capsys.readouterr().err
