"""Two sequences, one encoder, one answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitscale.bench import build
from vitscale.core import axes
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.data.listops import sequences
from vitscale.models import vit
from vitscale.tasks import pairs
from vitscale.train import train

MODEL = vit.Model(
  num_classes=0, width=16, depth=1, mlp_dim=32, num_heads=2, vocabulary=12,
  patch_size=1, pad_token=0, position="sincos1d",
)  # fmt: skip
LENGTH = 10


def same_or_not(n, seed):
  """Pairs (n, 2, LENGTH): label 1 where both start with the same token."""
  rng = np.random.default_rng(seed)
  x = rng.integers(1, 5, (n, 2, LENGTH)).astype(np.uint8)
  label = np.arange(n) % 2
  x[label == 1, 1, 0] = x[label == 1, 0, 0]
  other = x[:, 0, 0] % 4 + 1
  x[label == 0, 1, 0] = other[label == 0]
  for i in range(n):
    x[i, 1, 6 + i % 4 :] = 0  # padding
  return x, label


def batch(n=6, seed=0):
  x, label = same_or_not(n, seed)
  return {"image": x[..., None], "label": label.astype(np.int32)}


class Source:
  classes, mean, std = 2, (0.0,), (1 / 255,)


def task(**changes):
  return pairs.make(Reader({"hidden": 8, **changes}), Source)


@functools.cache
def variables():
  made = axes.unbox(task().init(MODEL, jax.random.key(0), batch()))
  made["params"]["pair"]["out"]["kernel"] += 0.3 * jax.random.normal(
    jax.random.key(1), (4, 2)
  )
  return made


def test_parameters_are_the_model_s_and_a_head():
  boxed = task().init(MODEL, jax.random.key(0), batch())
  plain = MODEL.init(jax.random.key(0), jnp.ones((1, 1, LENGTH, 1)))
  own = dict(boxed["params"])
  head = axes.unbox(own.pop("pair"))
  assert jax.tree.structure(own) == jax.tree.structure(plain["params"])
  shapes = {k: v["kernel"].shape for k, v in head.items()}
  assert shapes == {"first": (64, 8), "second": (8, 4), "out": (4, 2)}
  assert not head["out"]["kernel"].any()


def test_features_are_combined_as_published():
  x = task().features(MODEL, variables(), batch())
  u, v = (
    MODEL.apply(variables(), batch()["image"][:, i : i + 1].astype(float))[0]
    for i in (0, 1)
  )
  np.testing.assert_allclose(x[:, 0], u, atol=1e-6)
  np.testing.assert_allclose(x[:, 1], v, atol=1e-6)
  head = variables()["params"]["pair"]
  y = jnp.concatenate([u, v, u - v, u * v], -1)
  for name in ("first", "second", "out"):
    y = y @ head[name]["kernel"] + head[name]["bias"]
    y = jnp.maximum(y, 0) if name != "out" else y
  said = task().predict(MODEL, variables(), batch())
  np.testing.assert_allclose(said["logits"], y, atol=1e-5)
  target = -jax.nn.log_softmax(y)[jnp.arange(6), batch()["label"]]
  np.testing.assert_allclose(said["nll"], target, atol=1e-5)


def test_order_matters_and_rows_are_apart():
  predict = jax.jit(lambda b: task().predict(MODEL, variables(), b)["logits"])
  one = batch()
  turned = {**one, "image": one["image"][:, ::-1]}
  assert abs(predict(one) - predict(turned)).max() > 1e-3
  changed = {**one, "image": one["image"].copy()}
  changed["image"][3, 0, 2] = 5
  moved = abs(predict(one) - predict(changed)).max(1)
  assert moved[3] > 1e-5 and np.delete(moved, 3).max() < 1e-6


def test_loss_is_the_mean_of_what_is_predicted():
  rngs = {"dropout": jax.random.key(0), "mix": jax.random.key(1)}
  loss, aux = task().loss(MODEL, variables(), batch(), rngs, {})
  said = task().predict(MODEL, variables(), batch())
  assert loss == pytest.approx(float(said["nll"].mean()), abs=1e-5)
  hit = float(said["correct"].mean())
  assert aux["metrics"]["accuracy"] == pytest.approx(hit)


def config(**changes):
  made = ConfigDict(
    {
      "seed": 0, "batch_size": 32, "total_steps": 250,
      "data": {"source": "toy_pairs"},
      "train": {"split": "train"},
      "model": {
        "family": "vit", "width": 16, "depth": 1, "mlp_dim": 32,
        "num_heads": 2, "patch_size": 1, "vocabulary": 12, "pad_token": 0,
        "num_classes": 0, "position": "sincos1d", "pool": "cls",
      },
      "task": {"name": "pairs", "hidden": 32},
      "optim": {
        "name": "adamw", "lr": 1e-2,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {"test": {"split": "test", "batch_size": 64}},
    }
  )  # fmt: skip
  for key, value in changes.items():
    made[key].update(value)
  return made


@pytest.fixture
def toy(monkeypatch):
  def toy_pairs(split="train"):
    x, label = same_or_not(512, seed=len(split))
    return sequences(x, label, ("other", "same"))

  known = sources.makers()
  monkeypatch.setattr(
    sources, "makers", lambda: {**known, "toy_pairs": toy_pairs}
  )


def test_a_run_learns_what_only_a_comparison_tells(toy, tmp_path):
  result = train(config(), tmp_path / "run")
  assert result["metrics"]["eval/test/accuracy"] > 0.9
  assert result["metrics"]["eval/test/ece"] < 0.2


def test_facts_count_both_encodings(toy):
  bench = build(config())
  one = vit.flops_per_image(
    {k: v for k, v in config().model.items() if k != "family"},
    (1, LENGTH, 1),
  )
  head = 64 * 32 + 32 * 16 + 16 * 2
  # A table is looked up, not multiplied; three times two FLOPs a product.
  assert bench.facts["flops_per_example"] / 6 == pytest.approx(
    2 * one + head, rel=0.02
  )


@pytest.mark.parametrize(
  ("group", "message"),
  [
    ({"hidden": 1}, "task.hidden=1: should be 2 or more"),
    ({"mixup": 0.2}, "mixes no examples"),
    ({"kind": "cosine"}, "task.kind 'cosine'"),
  ],
)
def test_bad_options(group, message):
  with pytest.raises(UserError, match=message):
    task(**group)


def test_wrong_shapes_are_refused():
  with pytest.raises(UserError, match=r"want model\.num_classes=0, got 2"):
    task().init(MODEL.clone(num_classes=2), jax.random.key(0), batch())
  single = {"image": batch()["image"][:, :1], "label": batch()["label"]}
  with pytest.raises(UserError, match="two rows, a sequence each, got 1 rows"):
    task().init(MODEL, jax.random.key(0), single)
