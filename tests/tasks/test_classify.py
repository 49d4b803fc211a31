import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.tasks import classify


class Source:
  classes, mean, std = 3, (0.5,), (0.25,)


class Flat(nn.Module):
  """Logits are the first three pixels."""

  @nn.compact
  def __call__(self, image, *, train=False):
    self.param("scale", lambda _: jnp.ones(()))
    return image.reshape(len(image), -1)[:, :3], {}


def run(task, batch, key=0):
  rngs = {"dropout": jax.random.key(0), "mix": jax.random.key(key)}
  return task.loss(Flat(), {"params": {"scale": 1.0}}, batch, rngs, {})


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8),
    "label": rng.integers(0, 3, 8).astype(np.int32),
  }


def test_normalise_is_zero_mean_unit_variance():
  task = classify.make({}, Source)
  image = np.array([0, 127.5, 255], np.float32).reshape(1, 3, 1, 1)
  np.testing.assert_allclose(task.normalise(image).ravel(), [-2, 0, 2])


def test_loss_is_the_mean_cross_entropy(batch):
  task = classify.make({}, Source)
  loss, aux = run(task, batch)
  logits = np.asarray(task.normalise(batch["image"])).reshape(8, -1)[:, :3]
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  wanted = -np.log(p[np.arange(8), batch["label"]]).mean()
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  hits = (logits.argmax(-1) == batch["label"]).mean()
  np.testing.assert_allclose(aux["metrics"]["accuracy"], hits)


def test_label_smoothing_and_sigmoid(batch):
  logits = np.asarray(
    classify.make({}, Source).normalise(batch["image"])
  ).reshape(8, -1)[:, :3]
  hot = np.eye(3)[batch["label"]]
  smooth, _ = run(classify.make({"label_smoothing": 0.3}, Source), batch)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  np.testing.assert_allclose(
    smooth, -((0.7 * hot + 0.1) * log_p).sum(-1).mean(), rtol=1e-5
  )
  sigmoid, _ = run(classify.make({"kind": "sigmoid"}, Source), batch)
  bce = np.log1p(np.exp(-logits)) * hot + np.log1p(np.exp(logits)) * (1 - hot)
  np.testing.assert_allclose(sigmoid, bce.sum(-1).mean(), rtol=1e-5)


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_mixing_keeps_the_share_of_pixels_and_labels_equal(options):
  task = classify.make(options, Source)
  # Even images are 0, odd ones 1: the mean pixel is the neighbour's share.
  image = jnp.arange(8.0).reshape(8, 1, 1, 1) % 2 * jnp.ones((1, 16, 16, 1))
  label = jnp.arange(8) % 2
  target = jax.nn.one_hot(label, 3)
  shares = []
  for key in range(20):
    mixed, soft = task.mix(image, target, jax.random.key(key))
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(mixed.mean((1, 2, 3)), soft[:, 1], atol=1e-5)
    shares.append(float(soft[0, 1]))
  assert np.ptp(shares) > 0.2  # and it is random


def test_both_mixes_alternate():
  task = classify.make({"mixup": 0.5, "cutmix": 1.0}, Source)
  image = jnp.arange(8.0).reshape(8, 1, 1, 1) % 2 * jnp.ones((1, 16, 16, 1))
  kinds = set()
  for key in range(30):
    mixed, _ = task.mix(
      image, jax.nn.one_hot(jnp.arange(8) % 2, 3), jax.random.key(key)
    )
    kinds.add(bool(jnp.isin(mixed, jnp.array([0.0, 1.0])).all()))
  assert kinds == {True, False}


def test_predict_gives_one_value_per_example(batch):
  task = classify.make({}, Source)
  out = task.predict(Flat(), {"params": {"scale": 1.0}}, batch)
  loss, aux = run(task, batch)
  np.testing.assert_allclose(out["nll"].mean(), loss, rtol=1e-6)
  np.testing.assert_allclose(out["correct"].mean(), aux["metrics"]["accuracy"])


def test_bad_options():
  with pytest.raises(UserError, match=r"'sigmoidd'.*'sigmoid'"):
    classify.make({"kind": "sigmoidd"}, Source)
  with pytest.raises(UserError, match=r"label_smoothing=1.5"):
    classify.make({"label_smoothing": 1.5}, Source)
