"""Reconstruction: its terms, its units, and a run that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from vitscale.bench import build
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.metrics import features, images
from vitscale.models import vitok
from vitscale.tasks import reconstruct
from vitscale.train import train


def config(weights=None, bottleneck="kl(4)", **changes):
  made = toys.config(**changes)
  made.data = {"source": "fields", "size": 16, "n": 512}
  made.train.transform = ""
  made.model = {
    "family": "vitok", "variant": "mu/8", "bottleneck": bottleneck,
  }  # fmt: skip
  made.task = {"name": "reconstruct"}
  if weights:
    made.task.weights = weights
  made.evals = {}
  return made


def source():
  return sources.make("fields", size=16, n=32)


def example(n=4):
  return {"image": source().read(np.arange(n))["image"]}


def setup(config_group, **options):
  """(task, model, variables, batch) of a toy."""
  kwargs = {**vitok.variant("mu/8"), "channels": 1, "bottleneck": "kl(4)"}
  model = vitok.Model(**{**kwargs, **options})
  task = reconstruct.make(config_group, source())
  batch = example()
  init = lambda key: axes.unbox(task.init(model, key, batch))
  return task, model, jax.jit(init)(jax.random.key(0)), batch


def loss_of(task, model, variables, batch, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  rngs = {"dropout": keys[0], "mix": keys[1]}
  return task.loss(model, variables, batch, rngs, {})


def test_the_loss_is_the_weighted_sum_of_what_is_logged():
  weights = {"l2": 1.0, "l1": 0.5, "charbonnier": 0.25, "kl": 0.125}
  task, *rest = setup({"weights": weights})
  loss, aux = loss_of(task, *rest)
  said = aux["metrics"]
  assert set(said) == {"loss", "mse", *weights}
  want = sum(weights[name] * said[name] for name in weights)
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  assert 0 < said["charbonnier"] < said["l1"]


def test_mse_is_in_pixels_of_0_to_1():
  """The same model and pixels: the unit of `l2` is the task's, `mse`'s not."""
  task, model, variables, batch = setup({})
  made = task.predict(model, variables, batch)
  again = np.square(
    np.asarray(model.apply(variables, task.normalise(batch["image"]))[0]) * 0.5
    + 0.5
    - batch["image"] / 255
  ).mean((1, 2, 3))
  np.testing.assert_allclose(made["mse"], again, rtol=1e-5)
  wide = reconstruct.make({"mean": (0.0,), "std": (1.0,)}, source())
  far = wide.normalise(batch["image"])
  np.testing.assert_allclose(far, batch["image"] / 255, atol=1e-6)


def test_predicted_pixels_are_those_of_8_bits():
  task, model, variables, batch = setup({})
  made = jax.jit(lambda v, b: task.predict(model, v, b))(variables, batch)
  np.testing.assert_allclose(made["original"] * 255, batch["image"], rtol=1e-6)
  pixels = np.asarray(made["reconstruction"]) * 255
  np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)
  assert pixels.min() >= 0 and pixels.max() <= 255
  assert made["kl"].shape == (4,)
  again = task.predict(model, variables, batch)
  np.testing.assert_allclose(made["mse"], again["mse"], rtol=1e-5)


def test_kl_of_an_image_is_that_of_a_float_times_their_number():
  task, *rest = setup({})
  whole, *_ = setup({"kl_per": "image"})
  floats = 2 * 2 * 4
  _, per_float = loss_of(task, *rest)
  _, per_image = loss_of(whole, *rest)
  np.testing.assert_allclose(
    per_image["metrics"]["kl"], floats * per_float["metrics"]["kl"], rtol=1e-5
  )


@pytest.mark.parametrize("name", ["perceptual", "ssim"])
def test_what_is_seen_is_a_term(name):
  """By its own metric; 0 for equal images, a gradient for unequal ones."""
  task, _, _, batch = setup({"weights": {"l2": 1.0, name: 0.5}})
  image = task.normalise(batch["image"])
  grey = lambda x: x / 2 + 0.5  # mean and std are .5
  measure = {
    "perceptual": features.distance,
    "ssim": lambda x, y: 1 - images.ssim(x, y),
  }[name]

  @jax.jit
  def run(made):
    term = lambda made: task.terms(image, made, {"penalties": {}})[name]
    video = lambda x: x.reshape(2, 2, *x.shape[1:])
    frames = task.terms(video(image), video(made), {"penalties": {}})[name]
    want = measure(grey(image), grey(made)).mean()
    return jax.value_and_grad(term)(made), frames, want

  other = jnp.flip(image, 1)
  (value, slope), frames, want = run(other)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  np.testing.assert_allclose(value, frames, rtol=1e-5)
  assert np.isfinite(slope).all() and jnp.abs(slope).max() > 0
  eps = 1e-3 / jnp.linalg.norm(slope)
  (down, _), *_ = run(other - eps * slope)
  fall = eps * jnp.square(slope).sum()
  np.testing.assert_allclose(value - down, fall, rtol=0.05)
  (same, slope), *_ = run(image)
  assert abs(same) < 1e-6 and np.isfinite(slope).all()
  assert jnp.isfinite(run(jnp.zeros_like(image) - 1)[0][1]).all()  # black


def test_what_is_seen_is_weighed():
  weights = {"l2": 1.0, "perceptual": 0.5, "ssim": 0.1}
  task, *rest = setup({"weights": weights, "perceptual": "random_conv"})
  loss, aux = loss_of(task, *rest)
  said = aux["metrics"]
  want = said["l2"] + 0.5 * said["perceptual"] + 0.1 * said["ssim"]
  np.testing.assert_allclose(loss, want + 1e-3 * said["kl"], rtol=1e-6)
  assert said["perceptual"] > 0 and 0 < said["ssim"] < 2


def test_latents_are_drawn_in_training_alone():
  task, model, variables, batch = setup({})
  one, other = (loss_of(task, model, variables, batch, s)[0] for s in (0, 1))
  assert one != other
  same = loss_of(task, model, variables, batch, 0)[0]
  assert one == same


@pytest.mark.parametrize(
  "group, text",
  [
    ({"weights": {"l2": -1.0}}, r"weights\.l2=-1\.0: should be 0 or more"),
    ({"weights": {"kl": 1.0}}, "no weight on pixels; give one of l2"),
    ({"weights": {"l2": 1.0, "kll": 1.0}}, r"weights\.kll: no such term.*'kl'"),
    ({"kl_per": "token"}, "kl_per 'token'"),
    ({"mean": (0.5, 0.5)}, "need 1 values, one per channel"),
    ({"std": (0.0,)}, "should be above 0"),
    ({"perceptual": "random_conv"}, r"say what it weighs, in task\.weights"),
    ({"weights": {"l2": 1.0, "perceptual": 1.0}, "perceptual": "randomconv"},
     r"task\.perceptual: .*'randomconv', did you mean 'random_conv'"),
    ({"weights": {"l2": 1.0, "perceptual": 1.0}, "perceptual": "lpips"},
     r"task\.perceptual: .*lpips needs 'path'"),
    ({"weights": {"perceptual": 1.0}}, "no weight on pixels"),
  ],
)  # fmt: skip
def test_refuses(group, text):
  with pytest.raises(UserError, match=text) as error:
    task, *rest = setup(group)
    loss_of(task, *rest)
  assert "\n" not in str(error.value)


def test_a_classifier_reconstructs_nothing():
  made = config()
  made.model = {"family": "vit", "variant": "mu/8"}
  with pytest.raises(UserError, match=r"use model\.family='vitok'"):
    build(made)


def test_a_run_learns_and_resumes(tmp_path):
  """With the mean alone a field keeps its variance; a run goes below it."""
  made = config(
    weights={"l2": 1.0, "kl": 1e-6}, total_steps=120, optim__lr=4e-3,
    log__every_steps=60, checkpoint__every_steps=60,
  )  # fmt: skip
  made.task.mean, made.task.std = (128 / 255,), (32 / 255,)
  done = train(made, tmp_path / "run")
  assert done["metrics"]["train/l2"] < 0.6  # 1 for the mean alone
  assert done["metrics"]["train/kl"] > 0
  assert jnp.isfinite(done["metrics"]["train/mse"])


def test_tokens_and_flops_are_known_before_a_step():
  facts = build(config()).facts
  assert facts["tokens_per_example"] == 4
  macs = vitok.flops_per_image(
    {**vitok.variant("mu/8"), "channels": 1, "bottleneck": "kl(4)"},
    (16, 16, 1),
  )
  # The gradient of the pixels themselves is nobody's: less than 3 passes.
  assert 2 * 2 * macs < facts["flops_per_example"] <= 3 * 2 * macs
