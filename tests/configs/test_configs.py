"""Every example config: its header, its arguments, and a run of a few steps."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from vitscale import warm_start, workdir
from vitscale.bench import build
from vitscale.core import accounting, axes, schedule
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.models import vit
from vitscale.train import train

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))
ladder = config_lib.load_module(CONFIGS / "ladder.py")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
  """Two classes of small images of unequal shapes, no split folders."""
  root = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for label in ("cat", "dog"):
    (root / label).mkdir()
    for i in range(6):
      pixels = rng.integers(0, 256, (20 + i, 40 - i, 3), np.uint8)
      Image.fromarray(pixels).save(root / label / f"{i}.png")
  return root


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_header_says_command_hardware_time_and_score(path):
  text = config_lib.load_module(path).__doc__
  assert re.search(rf"^  vitscale train {path.stem}\b", text, re.MULTILINE)
  assert f"vitscale train {path.stem}:" in text and "runlocal" in text
  for word in ("hardware", "time", "score"):
    assert word in text.lower(), word
  assert max(map(len, text.splitlines())) <= 80


# One per branch of a config: data sets, recipes, scan. Compiling is what takes
# time, so a branch that adds no more than keys is only built.
RUNS = (
  "vit_fashion:runlocal",
  "vit_nested:runlocal",
  "vit_thinking:runlocal",
  "pattention:runlocal",
  "vit_folder:runlocal,path={photos}",
  "vit_finetune:runlocal,path={photos}",
  "vit_i1k:runlocal,path={photos},variant=B/16",
  "ladder:runlocal,rung=flops2e19,path={photos}",
  "vit_pod:runlocal,path={photos}",
  "lra:runlocal",
  "dit:runlocal",
  "vitok:runlocal",
  "vitok_fashion:runlocal",
  "vitok_gan:runlocal",
  "vitok_video:runlocal",
)
# Their programs are those of others, longer, or tried elsewhere.
LONG = (
  "vit_pod:runlocal,path={photos}", "vit_thinking:runlocal",
  "vitok_gan:runlocal", "vitok:runlocal",
)  # fmt: skip
BUILDS = (
  "vit_fashion:runlocal,patch=2,size=12,width=32,depth=1",
  "vit_nested:runlocal,nest=hydravit:4,strategy=joint",
  "vit_i1k:runlocal,path={photos}",
  "ladder:flops2e13,runlocal",
)


def test_every_config_runs_locally():
  assert {run.partition(":")[0] for run in RUNS} == {p.stem for p in FILES}


@pytest.mark.parametrize(
  "spec",
  [pytest.param(s, marks=pytest.mark.slow) if s in LONG else s for s in RUNS],
)
def test_runlocal(spec, photos, tmp_path):
  config = config_lib.load(spec.format(photos=photos))
  result = train(config, tmp_path / "run")
  assert result["status"] == "finished" and result["step"] <= 4
  scored = {"vitok": "mse", "dit": "loss"}.get(
    re.match("[a-z]+", spec)[0], "nll"
  )
  assert np.isfinite(result["metrics"][f"eval/val/{scored}"])


@pytest.mark.parametrize("spec", BUILDS)
def test_every_key_is_read(spec, photos):
  assert build(config_lib.load(spec.format(photos=photos))).total_steps <= 4


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_arguments_are_strict(path):
  with pytest.raises(UserError, match=r"argument 'runlocl'.*'runlocal'"):
    config_lib.load(f"{path}:runlocl")


@pytest.mark.parametrize("name", ["vit_folder", "vitok"])
def test_folder_needs_a_path(name):
  with pytest.raises(UserError, match=f"{name}:path="):
    config_lib.load(name)


def test_stage_2_takes_its_model_and_weights_from_stage_1(tmp_path):
  with pytest.raises(UserError, match="vitok_gan:from=out/tokenizer,path="):
    config_lib.load("vitok_gan:path=photos")
  one = tmp_path / "one"
  config = config_lib.load("vitok:runlocal,bottleneck=vq(8)")
  config.task.weights = {"l2": 1.0, "l1": 0.5}
  train(config, one)
  config = config_lib.load(f"vitok_gan:runlocal,from={one}")
  assert config.model.bottleneck == "vq(8)"
  assert config.task.of.weights.to_dict() == {"l2": 1.0, "l1": 0.5}
  train(config, tmp_path / "two")
  old, new = (workdir.load(tmp_path / name)[1] for name in ("one", "two"))
  for part in ("embed", "encoder", "encoder_norm", "neck"):
    a, b = (axes.unbox(v["params"][part]) for v in (old, new))
    jax.tree.map(np.testing.assert_array_equal, a, b)
  a, b = (v["params"]["pixels"]["kernel"] for v in (old, new))
  assert np.any(a != b)


def test_finetuning_takes_model_and_weights_of_a_run(photos, tmp_path):
  with pytest.raises(UserError, match="vit_finetune:from=out/s16,path="):
    config_lib.load("vit_finetune:path=photos")
  with pytest.raises(UserError, match="drop freeze"):
    config_lib.load("vit_finetune:runlocal,path=photos,lora=2,freeze=embed/.*")
  first = tmp_path / "first"
  config = config_lib.load(f"vit_folder:runlocal,path={photos}")
  config.total_steps, config.evals = 1, {}
  with config.unlocked():
    config.model.update({"width": 16, "position": "learned"})
    config.task.update({"mean": (0.5,) * 3, "std": (0.25,) * 3})
  train(config, first)
  start = f"vit_finetune:runlocal,from={first},path={photos}"
  _, variables = workdir.load(first)
  old = variables["params"]

  config = config_lib.load(f"{start},patch=4")
  assert config.task.mean == (0.5,) * 3 and config.model.width == 16
  bench = build(config)
  assert "0.75" in bench.parameters  # of the last block
  state = warm_start.begin(bench)
  new = jax.device_get(state["params"])
  assert new["embed"]["kernel"].shape == (48, 16)
  assert new["positions"]["table"].shape == (8, 8, 16)
  jax.tree.map(np.testing.assert_array_equal, new["encoder"], old["encoder"])

  bench = build(config_lib.load(f"{start},lora=2"))
  new = jax.device_get(warm_start.begin(bench)["params"])
  jax.tree.map(np.testing.assert_array_equal, new["encoder"], old["encoder"])
  assert bench.facts["params"] > sum(x.size for x in jax.tree.leaves(old))

  bench = build(config_lib.load(f"{start},freeze=embed/.*|positions/.*"))
  rows = [line.split() for line in bench.parameters.splitlines()]
  frozen = {row[0] for row in rows if row and row[-1] == "frozen"}
  assert frozen == {"embed/bias", "embed/kernel", "positions/table"}


# -------------------------------------------------------------------- i1k


def test_plain_recipe_is_the_published_one():
  config = config_lib.load("vit_i1k")
  assert config.batch_size == 1024 and config.total_epochs == 90
  assert config.model.variant == "S/16" and config.model.pool == "mean"
  assert config.task.mixup == 0.2
  transform = "inception_crop(224)|flip_lr|randaug(2, 10)"
  assert config.train.transform == transform
  # The published decay is not multiplied by the learning rate.
  assert config.optim.lr * config.optim.weight_decay == pytest.approx(1e-4)
  assert config_lib.load("vit_i1k:epochs=300").total_epochs == 300


@pytest.mark.parametrize(
  ("name", "epochs", "drop"), [("B", 300, 0.1), ("L", 200, 0.2)]
)
def test_strong_recipe_from_base_on(name, epochs, drop):
  config = config_lib.load(f"vit_i1k:variant={name}/16")
  assert config.batch_size == 4096 and config.total_epochs == epochs
  assert config.model.drop_path == drop and config.ema == 0.9999
  assert (config.optim.lr, config.optim.weight_decay) == (1.6e-3, 0.3)
  steps = epochs * 1_281_167 // 4096
  factor = schedule.schedule(config.optim.schedule.to_dict(), steps)
  assert factor(steps * 20 / epochs - 1) == pytest.approx(1, abs=1e-3)
  assert factor(steps * 10 / epochs) == pytest.approx(0.5, abs=1e-3)


# ----------------------------------------------------------------- ladder


def test_each_rung_is_ten_times_the_one_below():
  rungs = list(ladder.LADDER.values())
  for name, rung in ladder.LADDER.items():
    assert name == f"flops{rung['flops']:.0e}".replace("+", "")
    assert rung["width"] % rung["num_heads"] == 0
    assert rung["width"] // rung["num_heads"] in (32, 64, 128)
    assert f"| {name} | {rung['width']} x {rung['depth']} |" in ladder.__doc__
  for below, above in itertools.pairwise(rungs):
    assert above["flops"] == pytest.approx(10 * below["flops"])
    assert 2.4 < above["params"] / below["params"] < 4.1  # about 10 ** 0.5


@pytest.mark.parametrize("name", ["flops2e12", "flops2e17", "flops2e22"])
def test_table_counts_the_parameters_that_are_made(name):
  config = config_lib.load(f"ladder:{name}")
  kwargs = {k: v for k, v in config.model.items() if k != "family"}
  model = vit.Model(**{**kwargs, "scan": True, "num_classes": 10})
  boxed = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 28, 28, 1), "f4")
  )["params"]
  counted = accounting.params_by_role(axes.unbox(boxed), axes.names_of(boxed))
  assert ladder.LADDER[name]["params"] == counted["non_embedding"]


def test_rung_ends_at_its_flops():
  for spec in ("ladder:flops2e12", "ladder:flops2e12,width=64,depth=2,patch=7"):
    config = config_lib.load(spec)
    bench = build(config)
    step = bench.facts["flops_per_example"] * bench.batch_size
    assert abs(bench.total_steps * step - 2e12) <= step / 2


def test_unknown_rung_names_the_nearest():
  with pytest.raises(UserError, match=r"no rung 'flops2e33'.*'flops2e"):
    config_lib.load("ladder:rung=flops2e33")
