"""Next token: its loss, labels, samples against exact chances, and a run."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from vitscale.bench import build
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.evals import tokens
from vitscale.models import raster
from vitscale.tasks import next_token
from vitscale.train import train

SIZES = {**raster.variant("mu"), "depth": 1}


def source():
  return sources.make("strokes", size=8, n=32)


def config(**changes):
  made = toys.config(**changes)
  made.train.transform = ""
  made.model = {
    "family": "raster", "variant": "mu", "depth": 1, "vocabulary": 4,
  }  # fmt: skip
  made.task = {"name": "next_token", "levels": 4}
  made.data = {"source": "fashion_mnist", "size": 8, "val": 1000}
  made.evals = {
    "val": {
      "name": "tokens", "split": "val", "every_steps": 1000, "batch_size": 250,
    }
  }  # fmt: skip
  return made


def example(n=6):
  one = source()
  rows = np.arange(n)
  return {"image": one.read(rows)["image"], "label": one.label[rows]}


@functools.cache
def toy(vocabulary=4, shape=(8, 8, 1), classes=4, by=0.2):
  """(model, variables off zero by so much)."""
  model = raster.Model(**SIZES, num_classes=classes, vocabulary=vocabulary)
  zeros = jnp.zeros((1, *shape), jnp.int32)
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), zeros))
  rng = np.random.default_rng(1)
  move = lambda x: x + by * rng.normal(size=x.shape).astype(np.float32)
  return model, jax.tree.map(move, variables)


class Spy:
  """A model that keeps what it is called with and says 0."""

  num_classes = 4

  def apply(self, variables, codes, label=None, **kwargs):
    self.saw = codes, label
    n = codes[0].size
    said = jnp.zeros((len(codes), n, 4)), {}
    return (said, {}) if "mutable" in kwargs else said


def loss_of(task, model, variables, batch, seed=0):
  keys = jax.random.split(jax.random.key(seed))
  rngs = {"dropout": keys[0], "mix": keys[1]}
  return task.loss(model, variables, batch, rngs, {})


# ------------------------------------------------------------------ training


def test_levels_are_equally_wide_and_samples_their_middles():
  task = next_token.make({"levels": 16}, source())
  every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  found = np.asarray(task.inputs({"image": every})).ravel()
  np.testing.assert_array_equal(found, np.repeat(np.arange(16), 16))
  whole = next_token.make({}, source())
  np.testing.assert_array_equal(
    whole.inputs({"image": every}).ravel(), np.arange(256)
  )


def test_the_loss_is_a_mean_of_logs():
  """Of nothing learned the log of the levels; else summed by hand."""
  task, batch = next_token.make({"levels": 4}, source()), example()
  loss, aux = loss_of(task, Spy(), {}, batch)
  np.testing.assert_allclose(loss, np.log(4), rtol=1e-5)
  np.testing.assert_allclose(
    aux["metrics"]["accuracy"], (batch["image"] < 64).mean(), rtol=1e-6
  )
  model, variables = toy()
  task = dataclasses.replace(task, drop_label=0.0)
  loss = jax.jit(lambda b: loss_of(task, model, variables, b)[0])(batch)
  codes = batch["image"] // 64
  logits, _ = jax.jit(model.apply)(
    variables, codes.astype(np.int32), batch["label"]
  )
  logs = jax.nn.log_softmax(logits)
  flat = codes.reshape(6, 64, 1).astype(np.int32)
  nll = -np.take_along_axis(np.asarray(logs), flat, -1)[..., 0]
  np.testing.assert_allclose(loss, nll.mean(), rtol=1e-5)
  said = task.predict(model, variables, batch)
  np.testing.assert_allclose(said["nll"], nll.mean(1), rtol=1e-5)


def test_a_share_of_labels_is_dropped():
  batch = {name: np.tile(x, (200,) + (1,) * (x.ndim - 1)) for name, x in
           example().items()}  # fmt: skip
  for share in (0.0, 0.25):
    task = next_token.make({"drop_label": share, "levels": 4}, source())
    loss_of(task, spy := Spy(), {}, batch)
    label = np.asarray(spy.saw[1])
    assert abs((label == 4).mean() - share) < 0.05
    kept = label != 4
    np.testing.assert_array_equal(label[kept], batch["label"][kept])
  spy.num_classes = 0
  loss_of(task, spy, {}, batch)
  assert spy.saw[1] is None


# ------------------------------------------------------------------ sampling


def chances(model, variables, label, guidance=None):
  """Exact probabilities of all images of 1 x 2 pixels: (v, v)."""
  v = model.vocabulary
  every = np.array(list(itertools.product(range(v), repeat=2)), np.int32)
  every = every.reshape(-1, 1, 2, 1)
  ask = lambda k: np.asarray(
    model.apply(variables, every, jnp.full(len(every), k))[0], np.float64
  )
  logits = ask(label)
  if guidance is not None:
    none = ask(model.num_classes)
    logits = none + guidance * (logits - none)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  rows = np.arange(len(every))
  joint = p[rows, 0, every[:, 0, 0, 0]] * p[rows, 1, every[:, 0, 1, 0]]
  return joint.reshape(v, v)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_samples_come_by_the_model_s_chances(guidance):
  """4,000 images of two tokens of three: chi-squared over the nine."""
  model, variables = toy(3, (1, 2, 1), 2, by=0.3)
  task = next_token.Task(2, 3, pixels=False)
  codes = task.sample(
    model, variables, jax.random.key(0), np.full(4000, 1), (1, 2, 1),
    guidance=guidance,
  )  # fmt: skip
  assert codes.shape == (4000, 1, 2, 1) and codes.dtype == jnp.int32
  at = np.asarray(codes)[:, 0, :, 0] @ [3, 1]
  seen = np.bincount(at, minlength=9)
  far = lambda p: ((seen - 4000 * p) ** 2 / (4000 * p)).sum()
  assert far(chances(model, variables, 1, guidance).ravel()) < 26.1  # p .001
  other = 3.0 if guidance is None else None
  assert far(chances(model, variables, 1, other).ravel()) > 50


def test_the_likeliest_is_what_the_parallel_call_says():
  """Temperature 0, three channels, scanned layers: argmax at every place."""
  model = raster.Model(**SIZES, scan=True, num_classes=0, vocabulary=8)
  shape = (3, 2, 3)
  zeros = jnp.zeros((1, *shape), jnp.int32)
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), zeros))
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32)
  variables = jax.tree.map(move, variables)
  variables["params"]["head"]["bias"] *= 0
  task = next_token.Task(4, 8)
  image = task.sample(
    model, variables, jax.random.key(0), np.zeros(2, int), shape,
    temperature=0.0,
  )  # fmt: skip
  assert image.dtype == jnp.uint8 and image.shape == (2, *shape)
  assert set(np.unique(image)) <= set(range(16, 256, 32))  # middles of 8
  codes = task.inputs({"image": image})
  logits, _ = jax.jit(model.apply)(variables, codes)
  assert len(np.unique(codes)) > 2
  np.testing.assert_array_equal(codes.reshape(2, -1), logits.argmax(-1))


def test_a_sample_is_drawn_by_its_key_and_guidance_1_changes_nothing():
  model, variables = toy()
  task = next_token.Task(4, 4)
  draw = lambda seed, **k: task.sample(
    model, variables, jax.random.key(seed), np.arange(5), (8, 8, 1), **k
  )
  first = draw(0)
  np.testing.assert_array_equal(first, draw(0))
  assert np.any(first != draw(1))
  same = np.mean(np.asarray(first) == draw(0, guidance=1.0))
  assert same > 0.95  # a rounding error may turn a draw
  none = task.sample(model, variables, jax.random.key(0), [4], (8, 8, 1))
  assert none.shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
  "options, text",
  [
    ({"label": [5]}, r"label 5: should be in 0\.\.4, 4 for no class"),
    ({"top_k": 5}, r"top_k=5: should be in 1\.\.4"),
    ({"temperature": -1.0}, "temperature"),
  ],
)
def test_refuses_to_sample(options, text):
  asked = {"label": [0], **options}
  with pytest.raises(UserError, match=text):
    next_token.Task(4, 4).sample(*toy(), None, shape=(8, 8, 1), **asked)


@pytest.mark.parametrize(
  "classes, drop, text", [(4, 0.0, "drop_label=0"), (0, 0.1, "has no classes")]
)
def test_guidance_needs_a_model_that_knows_no_class(classes, drop, text):
  model = raster.Model(**SIZES, num_classes=classes, vocabulary=4)
  task = next_token.Task(4, 4, drop_label=drop)
  with pytest.raises(UserError, match=rf"guidance=2\.0: .*{text}"):
    task.sample(model, {}, None, [0], (8, 8, 1), guidance=2.0)


# ------------------------------------------------------------------- configs


@pytest.mark.parametrize(
  "group, text",
  [
    ({"levels": 1}, r"task\.levels=1: should be in 2\.\.256"),
    ({"levels": 16.0}, r"task\.levels=16\.0"),
    ({"drop_label": 1.0}, r"drop_label=1\.0: should be in \[0, 1\)"),
  ],
)
def test_refuses(group, text):
  with pytest.raises(UserError, match=text) as error:
    next_token.make(group, source())
  assert "\n" not in str(error.value)


def test_codes_have_their_own_vocabulary():
  codes = dataclasses.replace(source(), vocabulary=40)
  task = next_token.make({}, codes)
  assert task.vocabulary == 40 and not task.pixels
  batch = {"image": np.full((1, 2, 2, 1), 39, np.int32)}
  np.testing.assert_array_equal(task.inputs(batch), batch["image"])
  with pytest.raises(UserError, match="the data are codes"):
    next_token.make({"levels": 4}, codes)


@pytest.mark.parametrize(
  "model, text",
  [
    ({"family": "vit", "variant": "mu/4"}, r"use model\.family='raster'"),
    ({"family": "raster", "variant": "mu"}, r"set model\.vocabulary=4"),
    ({"family": "raster", "vocabulary": 4, "num_classes": 2}, "data have 10"),
  ],
)
def test_refuses_models(model, text):
  made = config()
  made.model = model
  with pytest.raises(UserError, match=text) as error:
    build(made)
  assert "\n" not in str(error.value)


def test_bits_are_of_whole_pixels_only():
  batch = {**example(), "weight": np.array([1, 1, 1, 1, 0, 0], np.float32)}
  for levels, bits in ((4, False), (256, True)):
    task = next_token.make({"levels": levels}, source())
    model, variables = toy(levels)
    rows = jax.jit(tokens.make(task, model))
    found = tokens.evaluate(rows, variables, [batch])
    assert ("bits_per_dim" in found) == bits and found["examples"] == 4
    nll = np.asarray(task.predict(model, variables, batch)["nll"])[:4]
    np.testing.assert_allclose(found["nll"], nll.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["nll_se"], nll.std() / 2, rtol=1e-5)
    np.testing.assert_allclose(found["nats_per_image"], 64 * found["nll"])
    if bits:
      per_dim = found["nll"] / np.log(2)
      np.testing.assert_allclose(found["bits_per_dim"], per_dim, rtol=1e-6)


def test_tokens_want_this_task():
  made = config()
  made.model, made.task = toys.config().model, toys.config().task
  with pytest.raises(UserError, match=r"wants task\.name='next_token'"):
    build(made)


def test_a_run_learns(tmp_path):
  """Below the entropy of a pixel that knows of no other."""
  made = config(total_steps=60, optim__lr=1e-2, log__every_steps=60,
                checkpoint__every_steps=60)  # fmt: skip
  done = train(made, tmp_path / "run")["metrics"]
  image = sources.make("fashion_mnist", split="val", size=8, val=1000)
  pixels = image.read(np.arange(len(image)))["image"]
  share = np.bincount(pixels.ravel() // 64, minlength=4) / pixels.size
  alone = -(share * np.log(np.maximum(share, 1e-9))).sum()
  assert done["eval/val/examples"] == len(image)
  assert done["eval/val/nll"] < 0.8 * alone
  assert 0 < done["eval/val/nll_se"] < done["eval/val/nll"]
  assert 0.3 < done["eval/val/accuracy"] < 1
