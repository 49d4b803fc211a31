"""Packed runs: loss and scores are per image, exact at uneven ends."""

import functools

import jax
import numpy as np
import pytest

from tests import toys
from tests.runs import assert_same_run
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows
from vitscale.data import pack, sources
from vitscale.tasks import classify
from vitscale.train import train

PACK = {"length": 40, "patch_size": 4, "segments": 4}
DATA = {"source": "fashion_aspects", "size": 14, "limit": 50}


def config(**changes):
  made = toys.config(
    data=DATA, model__position="learned", batch_size=4, total_steps=4,
    checkpoint__every_steps=2, **changes,
  )  # fmt: skip
  made.model.position_grid = (4, 4)
  made.pack = dict(PACK)
  made.evals.val.batch_size = 3
  return made


@functools.cache
def bench():
  return build(config())


def parts():
  """Task, model, parameters that are nowhere zero."""
  made = bench()
  shapes = jax.tree.map(lambda x: x.shape, made.abstract["params"],
                        is_leaf=lambda x: hasattr(x, "shape"))  # fmt: skip
  rng = np.random.default_rng(0)
  noise = lambda shape: 0.2 * rng.normal(size=shape).astype(np.float32)
  params = jax.tree.map(noise, shapes, is_leaf=lambda x: type(x) is tuple)
  return made.task, made.model, {"params": params}


@functools.cache
def alone():
  """(nll, right) of each image of `val`, in whole images of batch 1."""
  task, model, variables = parts()
  source = sources.make(split="val", **_source())
  plan = pack.plan(source, PACK)
  read = source.read(np.arange(50))
  found = []
  predict = jax.jit(functools.partial(task.predict, model))
  for i, image in enumerate(read["image"]):
    gh, gw = plan.grids[i]
    patches = pack._patches(image, (gh, gw), 4)
    whole = patches.reshape(gh, gw, 4, 4, 1).swapaxes(1, 2)
    whole = whole.reshape(1, 4 * gh, 4 * gw, 1)
    said = predict(
      variables, {"image": whole, "label": read["label"][i : i + 1]}
    )
    found.append((float(said["nll"][0]), float(said["correct"][0])))
  return np.array(found)


def _source():
  return {**{k: v for k, v in DATA.items() if k != "source"},
          "name": "fashion_aspects"}  # fmt: skip


# --------------------------------------------------------------------- scores


def test_an_evaluation_is_the_mean_over_images():
  """50 images in rows of three a batch, the last batch not full."""
  _, _, variables = parts()
  state = {"params": variables["params"], "ema": variables["params"],
           "mutable": {}}  # fmt: skip
  found = bench().evals["val"].run(state)
  nll, right = alone().T
  assert found["examples"] == 50
  assert found["nll"] == pytest.approx(nll.mean(), rel=1e-5)
  assert found["accuracy"] == pytest.approx(right.mean())
  assert found["nll_se"] == pytest.approx(nll.std() / 50**0.5, rel=1e-3)
  assert 0 < found["ece"] < 1


def test_the_loss_is_the_mean_over_images_and_empty_places_count_nothing():
  task, model, variables = parts()
  batch = next(bench().batches(0, 0))
  assert 0 < batch["weight"].sum() < batch["weight"].size
  rngs = {"dropout": jax.random.key(0), "mix": jax.random.key(1)}
  loss = jax.jit(lambda batch: task.loss(model, variables, batch, rngs, {})[0])
  predicted = task.predict(model, variables, batch)
  there = batch["weight"] > 0
  expected = np.asarray(predicted["nll"])[there].mean()
  assert float(loss(batch)) == pytest.approx(float(expected), rel=1e-5)
  other = {**batch, "label": np.where(there, batch["label"], 9)}
  assert float(loss(other)) == pytest.approx(float(expected), rel=1e-5)
  noise = np.where((batch["segment_ids"] > 0)[..., None], batch["image"], 200)
  seen = float(loss({**batch, "image": noise.astype(np.uint8)}))
  assert seen == pytest.approx(float(expected), rel=1e-5)


def test_pixels_are_normalised_by_channel():
  task = classify.Task(2, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
  image = np.random.default_rng(0).integers(0, 256, (1, 8, 4, 3), np.uint8)
  rows = np.stack([image[0, :4].reshape(-1), image[0, 4:].reshape(-1)])[None]
  zeros = np.zeros((1, 2), np.int32)
  batch = {"image": rows, "coordinates": zeros, "segment_ids": zeros + 1,
           "grids": zeros}  # fmt: skip
  made = task.inputs(batch)
  assert made.patch_size == 4
  expected = np.asarray(task.normalise(image)).reshape(1, 2, -1)
  np.testing.assert_allclose(made.patches, expected, rtol=1e-6)


# ----------------------------------------------------------------------- runs


def test_a_run_counts_rows_and_resumes(tmp_path):
  whole = train(config(), tmp_path / "whole")
  run = read_json(tmp_path / "whole" / "run.json")
  plan = pack.plan(sources.make(split="train", **_source()), PACK)
  assert run["rows"] == plan.rows and run["padding"] == plan.padding
  assert run["tokens_per_example"] == 40  # an example is a row
  assert run["train_examples"] == 50
  row = read_rows(tmp_path / "whole" / "metrics.jsonl")[-1]
  assert row["eval/val/examples"] == 50 and row["tokens"] == 4 * 4 * 40

  class Stop(Exception):
    pass

  def stop(state):
    if state["step"] == 2:
      raise Stop

  with pytest.raises(Stop):
    train(config(), tmp_path / "cut", report=stop)
  assert train(config(), tmp_path / "cut")["metrics"] == whole["metrics"]
  assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_an_epoch_is_as_many_steps_as_rows():
  made = config()
  del made.total_steps
  made.total_epochs = 2.0
  made.batch_size = 1
  assert build(made).total_steps == 2 * bench().facts["rows"]


def test_a_nested_run_packs_too():
  made = config()
  made.task = {
    "name": "nested", "of": {"name": "classify"},
    "granularities": ("ffn=1/2", "full"), "strategy": "sampled",
  }  # fmt: skip
  half, full = sorted(build(made).flops.values())
  assert half < full == bench().facts["flops_per_example"]


@pytest.mark.parametrize(
  "change, words",
  [
    ({"task__mixup": 0.2}, "packed images have no partner"),
    ({"task": {"name": "multiscale", "of": {"name": "classify"}}},
     "pack: task 'multiscale' takes whole images"),
    ({"model__position": "glpe"}, "position 'glpe' of packed images"),
    ({"model": {"family": "pattention_vit", "variant": "mu/4"}},
     "pack: model 'pattention_vit' can't"),
    ({"pack__length": 5}, r"pack: image \d+ .* a row 5"),
    ({"draws": {"patch_size": {"values": (2, 4)}}}, "they are cut already"),
    ({"evals__val__name": "nested"}, "evals.val: 'nested' takes no packed"),
  ],
)  # fmt: skip
def test_what_can_not_be_packed_is_one_line(change, words):
  made = config()
  with made.unlocked(), made.ignore_type():
    for key, value in change.items():
      *path, leaf = key.split("__")
      node = made
      for name in path:
        node = node[name]
      node[leaf] = value
  with pytest.raises(UserError, match=words) as error:
    build(made)
  assert "\n" not in str(error.value)
