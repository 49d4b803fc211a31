"""Diffusion: its loss, its dropped labels, its held-out loss, and a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitscale as vs
from tests import toys
from vitscale.bench import build
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.models import dit
from vitscale.sampling import process as process_lib
from vitscale.tasks import diffuse
from vitscale.train import train


def source():
  return sources.make("strokes", size=8, n=32)


def config(**changes):
  made = toys.config(**changes)
  made.train.transform = ""
  made.model = {"family": "dit", "variant": "mu/4", "depth": 1}
  made.task = {"name": "diffuse"}
  made.evals = {
    "val": {
      "name": "denoise", "split": "val", "every_steps": 1000, "batch_size": 24,
    }
  }  # fmt: skip
  return made


def example(n=6):
  one = source()
  rows = np.arange(n)
  return {"image": one.read(rows)["image"], "label": one.label[rows]}


@functools.cache
def toy():
  """(model, variables off zero)."""
  kwargs = {**dit.variant("mu/4"), "num_classes": 4, "channels": 1, "depth": 1}
  model = dit.Model(**kwargs)
  variables = axes.unbox(
    jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
  )
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
  return model, jax.tree.map(move, variables)


class Spy:
  """A model that keeps what it is called with and says 0."""

  num_classes = 4

  def apply(self, variables, x, t, label=None, **kwargs):
    self.saw = x, t, label
    said = jnp.zeros_like(x), {}
    return (said, {}) if "mutable" in kwargs else said


def loss_of(task, model, variables, batch, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  rngs = {"dropout": keys[0], "mix": keys[1]}
  return task.loss(model, variables, batch, rngs, {})


@pytest.mark.parametrize("process", process_lib.KINDS)
def test_the_loss_of_nothing_is_the_mean_square_of_the_target(process):
  """Noise has square 1; a velocity that of the image besides."""
  task = diffuse.make({"process": process}, source())
  batch = {
    name: np.tile(x, (100,) + (1,) * (x.ndim - 1))
    for name, x in example().items()
  }
  loss, _ = loss_of(task, spy := Spy(), {}, batch)
  x = np.asarray(task.normalise(batch["image"]))
  want = 1 + (np.square(x).mean() if process == "flow" else 0)
  assert abs(loss - want) < 0.05
  shown, t, _ = spy.saw
  assert t.shape == (600,) and 0 <= t.min() < 0.02 and 0.98 < t.max() <= 1
  alpha, sigma = process_lib.levels(task.process, t)
  wide = lambda z: np.asarray(z)[:, None, None, None]
  noise = (np.asarray(shown) - wide(alpha) * x)[t > 0.1] / wide(sigma)[t > 0.1]
  assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_a_variance_is_learned_beside_the_noise(tmp_path):
  made = config(total_steps=6)
  made.model.learn_sigma = True
  made.task = {"name": "diffuse", "process": "ddpm"}
  result = train(made, tmp_path / "run")
  assert np.isfinite(result["metrics"]["train/bound"])
  model, variables = vs.load(tmp_path / "run")
  task = diffuse.make({"process": "ddpm"}, source())
  label = np.array([0, 3], np.int32)
  draw = lambda sampler: task.sample(
    model, variables, jax.random.key(0), label, (8, 8, 1), steps=3,
    sampler=sampler, guidance=2.0,
  )  # fmt: skip
  drawn = np.asarray(draw("ancestral"))
  assert drawn.shape == (2, 8, 8, 1) and drawn.dtype == np.uint8
  assert (drawn != np.asarray(draw("ddim"))).any()


def test_times_of_a_logit_normal():
  u = diffuse.TIMES["logit_normal"](jax.random.key(0), (4000,))
  logit = np.log(u / (1 - u))
  assert abs(logit.mean()) < 0.05 and abs(logit.std() - 1) < 0.05
  task = diffuse.make({"times": "logit_normal"}, source())
  batch = {
    name: np.tile(x, (200,) + (1,) * (x.ndim - 1))
    for name, x in example().items()
  }
  loss_of(task, spy := Spy(), {}, batch)
  t = np.asarray(spy.saw[1])  # a quarter lies beyond .663, as of no uniform
  assert abs((t > 0.6626).mean() - 0.25) < 0.04


def test_a_share_of_labels_is_dropped():
  batch = {name: np.tile(x, (200,) + (1,) * (x.ndim - 1)) for name, x in
           example().items()}  # fmt: skip
  for share in (0.0, 0.25):
    task = diffuse.make({"drop_label": share}, source())
    loss_of(task, spy := Spy(), {}, batch)
    label = np.asarray(spy.saw[2])
    assert abs((label == 4).mean() - share) < 0.05
    kept = label != 4
    np.testing.assert_array_equal(label[kept], batch["label"][kept])


def test_a_step_draws_from_its_key_alone():
  task, batch = diffuse.make({}, source()), example()
  asked = task, *toy(), batch
  run = jax.jit(lambda seed: loss_of(*asked, seed)[0])
  assert run(0) == run(0) and run(0) != run(1)


@pytest.mark.parametrize("process", process_lib.KINDS)
def test_held_out_loss_is_of_the_image_not_of_its_batch(process):
  task = diffuse.make({"process": process, "schedule": "linear"}, source())
  model, variables = toy()
  run = jax.jit(lambda v, b: task.predict(model, v, b))
  batch = example()
  said = run(variables, batch)
  assert said["losses"].shape == (6, diffuse.HELD_OUT)
  np.testing.assert_allclose(said["loss"], said["losses"].mean(1), rtol=1e-6)
  turned = run(variables, {name: x[::-1] for name, x in batch.items()})
  np.testing.assert_allclose(turned["losses"][::-1], said["losses"], rtol=1e-4)
  # Two images have noise of their own, as have two times.
  spy = diffuse.make({}, source())
  white = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, int)}
  white["image"][1, 0, 0] = 1
  of_noise = np.asarray(spy.predict(Spy(), {}, white)["losses"])
  assert len(np.unique(of_noise.round(5))) == of_noise.size


def test_held_out_loss_is_training_s_on_average():
  """The mean over many draws of time and noise, to 5 %."""
  task, batch = diffuse.make({"drop_label": 0.0}, source()), example(32)
  model, variables = toy()
  run = jax.jit(lambda seed: loss_of(task, model, variables, batch, seed)[0])
  drawn = np.mean([run(seed) for seed in range(40)])
  fixed = task.predict(model, variables, batch)["loss"].mean()
  assert abs(fixed / drawn - 1) < 0.05, (fixed, drawn)


@pytest.mark.parametrize(
  "group, text",
  [
    ({"process": "flows"}, r"task\.process 'flows'.*'flow'"),
    ({"schedule": "cosine"}, r"task\.schedule 'cosine'"),
    ({"shift": -1.0}, r"task\.shift=-1\.0: should be above 0"),
    ({"times": "normal"}, r"task\.times 'normal'.*'logit_normal'"),
    ({"times": "logit_normal", "process": "ddpm"}, "are flow's"),
    ({"drop_label": 1.0}, r"drop_label=1\.0: should be in \[0, 1\)"),
    ({"mean": (0.5, 0.5)}, "need 1 values, one per channel, got 2"),
  ],
)
def test_refuses(group, text):
  with pytest.raises(UserError, match=text) as error:
    diffuse.make(group, source())
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "model, text",
  [
    ({"family": "vit", "variant": "mu/4"}, r"use model\.family='dit'"),
    ({"family": "dit", "variant": "mu/4", "learn_sigma": True}, "no variance"),
    ({"family": "dit", "variant": "mu/4", "num_classes": 2}, "data have 4"),
  ],
)
def test_refuses_models(model, text):
  made = config()
  made.model = model
  with pytest.raises(UserError, match=text) as error:
    build(made)
  assert "\n" not in str(error.value)


def test_what_the_task_draws_is_nobody_else_s():
  made = config()
  made.draws = {"time": {"values": (0.1, 0.2), "weights": (1.0, 1.0)}}
  with pytest.raises(UserError, match=r"draws\.time: the task draws it"):
    build(made)


def test_a_shift_by_the_size_of_the_images():
  assert diffuse.make({"shift": "dim"}, source()).process.shift == 0.125


def test_denoise_wants_this_task():
  made = config()
  made.model, made.task = toys.config().model, toys.config().task
  with pytest.raises(UserError, match=r"wants task\.name='diffuse'"):
    build(made)


def test_a_run_learns(tmp_path):
  made = config(total_steps=60, optim__lr=4e-3, log__every_steps=60,
                checkpoint__every_steps=60)  # fmt: skip
  done = train(made, tmp_path / "run")["metrics"]
  # The prediction 0, on the same images: 1 for the noise, and theirs.
  image = sources.make("strokes", split="val", size=8, n=64)
  pixels = image.read(np.arange(len(image)))["image"]
  nothing = 1 + np.square(pixels / 127.5 - 1).mean()
  assert done["eval/val/examples"] == len(image)
  loss = done["eval/val/loss"]
  assert loss < 0.8 * nothing
  each = [done[f"eval/val/loss_{i + 1}"] for i in range(diffuse.HELD_OUT)]
  np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)
  assert 0 < done["eval/val/loss_se"] < loss
