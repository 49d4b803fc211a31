"""A tokenizer of videos from data to scores."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.runs import complaint
from tests.tasks import test_reconstruct
from vitscale import cli, evals, evaluate, plan_data
from vitscale.bench import build
from vitscale.core import config as config_lib
from vitscale.core.log import read_rows
from vitscale.evals import reconstruction
from vitscale.metrics import images
from vitscale.models import vitok
from vitscale.train import train


def config(**changes):
  made = test_reconstruct.config(**changes)
  made.data = {"source": "moving_fields", "size": 16, "n": 64, "frames": 6}
  made.train.transform = "random_frames(4)|flip_lr"
  made.model.variant = "mu/2x8"
  made.evals = {
    "val": {
      "name": "reconstruction", "split": "val", "every_percent": 50.0,
      "batch_size": 16, "transform": "central_frames(4)",
    },
  }  # fmt: skip
  return made


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """Trained for 30 steps on clips of 4 x 16 x 16, tubelets of 2 x 8 x 8."""
  folder = tmp_path_factory.mktemp("videos") / "run"
  train(config(total_steps=30), folder)
  return folder


def test_it_learns(tokenizer):
  rows = [r for r in read_rows(tokenizer / "metrics.jsonl") if "eval/val/mse"
          in r]  # fmt: skip
  first, last = rows[0], rows[-1]
  assert last["eval/val/mse"] < first["eval/val/mse"]
  assert last["eval/val/examples"] == 64
  assert np.isfinite(last["eval/val/psnr"]) and last["eval/val/ssim"] < 1
  assert "eval/val/rfd_random_conv" not in last


def test_facts_count_tubelets():
  bench = build(config())
  facts = bench.facts
  assert facts["tokens_per_example"] == 2 * 2 * 2
  options = {**vitok.variant("mu/2x8"), "channels": 1, "bottleneck": "kl(4)"}
  forward = 2 * vitok.flops_per_image(options, (4, 16, 16, 1))
  # Backward twice as much, but for the input's gradient of the embedding.
  embed = 2 * 4 * 16 * 16 * options["encoder_width"]
  assert facts["flops_per_example"] == 3 * forward - embed
  shape = bench.inputs[1]["image"].shape
  assert shape == (16, 4, 16, 16, 1)


def test_videos_that_are_not_here_can_be_planned_for():
  made = config_lib.load("vitok_video:path=/nowhere,sizes=xs-xs,window=20")
  asked = {"config": "vitok_video", "classes": 1, "examples": 999}
  source, said = plan_data.source(made, asked)
  assert not said["here"] and len(source) == 999
  (clip,) = source.read(np.array([0]))["image"]
  assert clip.shape == (20, 128, 128, 3)
  bench = build(made, source=source)
  assert bench.inputs[1]["image"].shape == (256, 16, 128, 128, 3)
  assert bench.facts["tokens_per_example"] == 1024


def test_scores_are_means_over_frames():
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(3, 4, 12, 12, 1)).astype(np.float32)
  y = np.clip(x + rng.normal(size=x.shape) * 0.1, 0, 1).astype(np.float32)
  said = {"original": x, "reconstruction": y, "mse": np.ones(3, np.float32)}
  found = jax.jit(reconstruction.per_image)(said)
  flat = [a.reshape(-1, *a.shape[2:]) for a in (x, y)]
  for name, score in (("psnr", images.psnr), ("ssim", images.ssim)):
    want = np.asarray(score(*flat)).reshape(3, 4).mean(1)
    np.testing.assert_allclose(found[name], want, rtol=1e-5)
  assert "original" not in found


def test_the_distance_is_left_out_with_a_warning(capfd):
  bench = build(config())
  capfd.readouterr()
  evals.warn.cache_clear()
  rows = reconstruction.make(bench.task, bench.model)
  variables = {"params": bench.abstract["params"]}
  shape = (2, 4, 16, 16, 1)
  batch = {
    "image": jax.ShapeDtypeStruct(shape, np.uint8),
    "weight": jax.ShapeDtypeStruct(shape[:1], np.float32),
  }
  found = jax.eval_shape(rows, variables, batch)
  assert found["psnr"].shape == (2,) and "pixels" not in found
  said = capfd.readouterr().err
  assert "frames of a video are no sample of images: left out" in said


def clips(root, count, size=(16, 16), n=3):
  for i in range(n):
    folder = root / f"{i}"
    folder.mkdir(parents=True)
    for t in range(count):
      grey = np.full(size, 60 + 40 * i + 5 * t, np.uint8)
      Image.fromarray(grey).save(folder / f"{t}.png")


def scored(tokenizer, *args):
  return cli.main(["eval", str(tokenizer), *map(str, args), "--json"])


def test_eval_of_the_runs_data_and_of_other_videos(tokenizer, tmp_path, capfd):
  command = ("--evals", "reconstruction(rfd=False)", "--split")
  assert scored(tokenizer, *command, "val") == 0
  result = json.loads(capfd.readouterr().out)
  row = read_rows(tokenizer / "metrics.jsonl")[-1]
  for name in ("psnr", "ssim", "mse", "kl"):
    want = pytest.approx(row[f"eval/val/{name}"], rel=1e-4)
    assert result["metrics"][name]["value"] == want, name
  # 8 tokens of 4 floats for 4 x 16 x 16 pixels.
  assert result["E"] == 32 and result["pixels_per_float"] == 32
  assert result["data"]["shape"] == [4, 16, 16, 1]
  assert "feature_net" not in result
  clips(tmp_path / "own", 5)
  data = ("--data", tmp_path / "own", *command[:2])
  assert scored(tokenizer, *data) == 0
  result = json.loads(capfd.readouterr().out)
  assert result["data"]["images"] == 3 and result["metrics"]["psnr"]["n"] == 3


def test_other_videos_are_cut_as_the_runs_own():
  """A run of every second frame is not scored on every frame."""
  own = {"source": "video", "path": "a", "stride": 2, "size": 16, "window": 9}
  data = lambda own: evaluate._data(own, {}, ["b"], "val", (4, 16, 16, 1))[0]
  want = {"source": "video", "path": "b", "frames": 4, "channels": 1}
  assert data(own) == {**want, "stride": 2, "size": 16}
  assert data({"source": "moving_fields", "size": 16}) == want


@pytest.mark.parametrize(
  "count, size, more, says",
  [
    (3, (16, 16), (), "it has 3 frames, data.frames=4 needs 4"),
    (5, (12, 20), (), "4 x 12 x 20 x 1, of the run 4 x 16 x 16 x 1: the model"),
    (5, (16, 16), ("frames=3",), "tubelet 2 does not divide 3 frames"),
  ],
)
def test_eval_of_videos_that_do_not_fit(
  tokenizer, tmp_path, capfd, count, size, more, says
):
  clips(tmp_path / "own", count, size)
  transform = "" if more else "central_frames(4)"
  data = ("--data", tmp_path / "own", *more, "--transform", transform)
  evals = ("--evals", "reconstruction(rfd=False)")
  assert scored(tokenizer, *data, *evals) == 2
  assert says in complaint(capfd.readouterr().err)
