"""What the command says to bad input: one line, exit code 2, nothing written.

In process where it can be: an import of jax costs more than all else here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitscale import cli


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
  """Runs `vitscale train ... --workdir run` in an empty folder.

  Returns the one line of complaint; the workdir may hold an empty lock.
  """
  monkeypatch.chdir(tmp_path)

  def run(*args, workdir="run"):
    code = cli.main(["train", *args, "--workdir", workdir])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert err.startswith("vitscale: ") and err.count("\n") == 1, err
    assert {p.name for p in (tmp_path / "run").glob("*")} <= {".lock"}
    return err

  return run


def photos(root, *, classes=("cat", "dog"), count=3, size=16):
  """Class folders of grey squares."""
  for name in classes:
    (root / name).mkdir(parents=True)
    for i in range(count):
      image = Image.fromarray(np.full((size, size, 3), 40 * i, np.uint8))
      image.save(root / name / f"{i}.png")
  return root


# --------------------------------------------------------------- configs


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["vit_fashio"], "no config 'vit_fashio', did you mean 'vit_fashion'?"),
    (["vit_fashion:pach=2"], "argument 'pach', did you mean 'patch'?"),
    (["vit_fashion:patch=two"], "patch=two is str, should be int like 7"),
    (["vit_fashion", "optim.lrr=1"], "'optim.lrr', did you mean 'optim.lr'?"),
    (["vit_fashion", "optim.lr=high"], "optim.lr=high is str, should be float"),
    (["vit_fashion", "total_epochs"], "'total_epochs' is not key=value"),
    (["vit_folder"], "vit_folder needs a folder of images"),
    (["vit_fashion:size=30"], "fashion_mnist has 28 px, got size=30"),
    (["vit_fashion:patch=5"], "patch 5 does not divide image height 28"),
    (["vit_fashion", "train.transform=flip_rl"], "'flip_rl', did you mean"),
    (["vit_fashion", "task.name=clasify"], "did you mean 'classify'?"),
    (["vit_fashion", "model.family=vti"], "did you mean 'vit'?"),
    (["vit_fashion", "optim.name=adam"], "did you mean 'adamw'?"),
    (["vit_fashion", "model.position=sincos"], "did you mean 'sincos2d'?"),
  ],
)
def test_config_mistakes(command, args, message):
  assert message in command(*args)


def mine(path, *changes):
  """A config file of the user's: vit_fashion with some lines changed."""
  lines = "".join(f"  config.{change}\n" for change in changes)
  (path / "mine.py").write_text(
    "from vitscale.core import config as config_lib\n"
    "def get_config(arg=None):\n"
    "  config = config_lib.load('vit_fashion:runlocal').unlock()\n"
    f"{lines}  return config\n"
  )
  return "mine.py"


def test_key_that_nobody_reads(command, tmp_path):
  text = command(mine(tmp_path, "task.label_smothing = 0.1"))
  assert "'task.label_smothing' is read by nobody" in text


NAMELESS = """
import flax.linen as nn

class Model(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, image, *, train=False):
    flat = image.reshape(len(image), -1)
    return nn.Dense(self.num_classes, name="head")(flat), {
      "features": [(image, (1, 1))],
    }
"""


def test_parameter_without_axis_names(command, tmp_path, monkeypatch):
  (tmp_path / "zoo_of_mine").mkdir()
  (tmp_path / "zoo_of_mine" / "nameless.py").write_text(NAMELESS)
  monkeypatch.syspath_prepend(tmp_path)
  text = command(mine(tmp_path, "model = {'family': 'zoo_of_mine.nameless'}"))
  assert "2 variables have no axis names" in text
  assert "params/head/kernel" in text and "axes.param" in text


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("rules = {'params': {'expert': 'fsdp'}}",
     "rule 'expert' matches no parameter"),
    ("rules = {'params': {'embd': 'fsdp'}}",
     "rule for unknown axis 'embd', did you mean 'embed'?"),
    ("optim.freeze = ('haed/.*',)", "optim.freeze: 'haed/.*' fits no"),
  ],
)  # fmt: skip
def test_rules_that_match_nothing(command, tmp_path, change, message):
  assert message in command(mine(tmp_path, change))


def test_rule_on_the_command_line_that_matches_nothing(command):
  text = command("vit_fashion:runlocal", "optim.lr_mult=[('haed/.*', 10.0)]")
  assert "optim.lr_mult: 'haed/.*' fits no" in text


# --------------------------------------------------------------- folders


def folder_line(command, path):
  return command(f"vit_folder:path={path},runlocal")


def test_folder_that_is_missing_or_empty(command, tmp_path):
  assert "image folder nowhere does not exist" in folder_line(
    command, "nowhere"
  )
  (tmp_path / "empty").mkdir()
  assert "nothing to read; expected PATH/train/CLASS" in folder_line(
    command, "empty"
  )
  (tmp_path / "classes" / "cat").mkdir(parents=True)
  assert "no images below classes" in folder_line(command, "classes")


def test_folder_that_cannot_be_listed(command, tmp_path, monkeypatch):
  """Deeper than a path can be: not even root may list the innermost."""
  here = tmp_path / "deep" / "cat"
  here.mkdir(parents=True)
  for _ in range(20):
    monkeypatch.chdir(here)
    here = Path("d" * 250)
    here.mkdir()
  monkeypatch.chdir(tmp_path)
  assert "cannot list deep/cat/ddd" in folder_line(command, "deep")


def test_link_that_leads_nowhere(command, tmp_path):
  """A link to itself can't be followed; it must not end in a traceback."""
  (tmp_path / "loop").mkdir()
  (tmp_path / "loop" / "cat").symlink_to("cat")
  assert "loop" in folder_line(command, "loop")


def test_folder_without_classes(command, tmp_path):
  photos(tmp_path / "loose", classes=(".",))
  text = folder_line(command, "loose")
  assert "loose holds 3 images and no class folders" in text


def test_file_that_cannot_be_read(command, tmp_path):
  root = photos(tmp_path / "torn")
  for path in root.rglob("*.png"):
    path.write_bytes(path.read_bytes()[:20])
  spec = "vit_folder:path=torn,runlocal"
  text = command(spec, "data.skip_corrupt=False")
  assert "cannot read image torn/" in text and ".png" in text
  assert "skip_corrupt=True" in text
  text = folder_line(command, "torn")
  assert "4 of 4 samples can't be read" in text


def test_patch_that_does_not_divide_photos(command, tmp_path):
  photos(tmp_path / "good")
  text = command("vit_folder:path=good,size=30,variant=mu/8")
  assert "patch 8 does not divide image height 30" in text


# --------------------------------------------------------------- workdirs


def test_workdir_of_another_config(command, tmp_path):
  """The difference is shown and nothing in the workdir changes."""
  from vitscale import record
  from vitscale.core import config as config_lib

  config = config_lib.load("vit_fashion:runlocal")
  workdir = tmp_path / "old"
  workdir.mkdir()
  run = {
    "config": config_lib.to_dict(config),
    "config_digest": config_lib.digest(config),
    "status": "running",
  }
  (workdir / "run.json").write_text(json.dumps(run))
  before = (workdir / "run.json").read_bytes()
  assert record.claim(workdir, config)["status"] == "running"  # it is ours
  text = command("vit_fashion:runlocal", "optim.lr=0.5", workdir="old")
  assert "old belongs to another config (optim.lr: 0.001 -> 0.5)" in text
  assert [p.name for p in workdir.iterdir()] == ["run.json"]
  assert (workdir / "run.json").read_bytes() == before


def test_workdir_that_is_a_file(command, tmp_path):
  (tmp_path / "file").write_text("x")
  assert "can't make workdir" in command("vit_fashion", workdir="file")


# ------------------------------------------------------------ the process


NOISY = """
import os
from vitscale.core import config as config_lib

def get_config(arg=None):
  print("a library prints")
  os.write(1, b"and one in C, past sys.stdout\\n")
  return config_lib.load("vit_fashion:runlocal")
"""


def test_json_is_alone_on_stdout(tmp_path):
  """One process through the real entry: noise, one JSON object.

  The run has finished before, so that nothing needs compiling.
  """
  from vitscale.core import config as config_lib

  (tmp_path / "noisy.py").write_text(NOISY)
  config = config_lib.load("vit_fashion:runlocal")
  run = {
    "config_digest": config_lib.digest(config), "status": "finished",
    "step": 4, "params": 10, "flops_per_example": 20.0, "mfu": float("nan"),
    "metrics": {"train/loss": 1.5},
  }  # fmt: skip
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "run.json").write_text(json.dumps(run))
  process = subprocess.run(
    [
      sys.executable, "-m", "vitscale.cli", "train", "noisy.py", "--workdir",
      "run", "--json",
    ],
    capture_output=True, text=True, timeout=300, cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  assert process.stdout.count("\n") == 1
  assert json.loads(process.stdout) == {
    "status": "finished", "step": 4, "metrics": {"train/loss": 1.5},
    "params": 10, "flops_per_example": 20.0, "mfu": None, "goodput": None,
    "workdir": str(tmp_path / "run"),
  }  # fmt: skip
  for noise in ("a library prints", "and one in C"):
    assert noise in process.stderr


def test_bad_input_with_json_leaves_stdout_empty(tmp_path, capfd):
  code = cli.main(["train", "nothing", "--workdir", str(tmp_path), "--json"])
  out, err = capfd.readouterr()
  assert code == 2 and out == "" and "no config 'nothing'" in err


@pytest.mark.parametrize(
  "argv", [["train", "vit_fashion"], ["trian"], [], ["train", "x", "--wd", "y"]]
)
def test_usage_errors_are_one_line(argv, capsys):
  with pytest.raises(SystemExit) as error:
    cli.main(argv)
  text = capsys.readouterr().err
  assert error.value.code == 2 and text.count("\n") == 1
  assert "--help" in text
