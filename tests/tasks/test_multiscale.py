"""ResFormer's batch: several resolutions, the larger teaching the smaller."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tests.runs import assert_same_run
from vitscale.bench import build
from vitscale.core import axes
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.core.log import read_rows
from vitscale.models import vit
from vitscale.tasks import classify, multiscale
from vitscale.train import train

MODEL = vit.Model(
  num_classes=4, width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4,
  position="sincos2d",
)  # fmt: skip
RNG = np.random.default_rng(0)
SIZES = {"image": 12, "image@8": 8, "image@4": 4}
BATCH = {
  name: RNG.integers(0, 256, (6, size, size, 1), dtype=np.uint8)
  for name, size in SIZES.items()
} | {"label": RNG.integers(0, 4, 6).astype(np.int32)}
RNGS = {"dropout": jax.random.key(0), "mix": jax.random.key(1)}


class Source:
  classes, mean, std = 4, (0.5,), (0.25,)


def task(**changes):
  group = {"of": {"name": "classify"}, **changes}
  return multiscale.make(Reader(group), Source)


@functools.cache
def variables():
  boxed = task().init(MODEL, jax.random.key(0), BATCH)
  shift = lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape)
  return jax.tree.map(shift, axes.unbox(boxed))


def loss(made, batch=BATCH, params=None):
  given = variables() if params is None else {"params": params}
  return made.loss(MODEL, given, batch, RNGS, {})


def config(**changes):
  made = toys.config(**changes)
  made.task = {"name": "multiscale", "of": {"name": "classify"}}
  with made.ignore_type():
    made.train.transform = {
      "image": "flip_lr", "image@4": "flip_lr|resize(4)",
    }  # fmt: skip
  return made


# ----------------------------------------------------------------------- loss


def test_the_loss_is_the_mean_over_views_and_their_consistency():
  plain = classify.make(Reader({}), Source)
  each, features = [], []
  for name in SIZES:
    one = {"image": BATCH[name], "label": BATCH["label"]}
    value, aux = plain.loss(MODEL, variables(), one, RNGS, {})
    each.append(float(value))
    feature = np.asarray(aux["out"]["pre_logits"], np.float64)
    feature -= feature.mean(-1, keepdims=True)
    features.append(feature / np.sqrt((feature**2).mean(-1, keepdims=True)))
  gaps = np.abs(np.diff(features, axis=0))
  smooth = np.where(gaps < 1, gaps**2 / 2, gaps - 0.5).mean((1, 2))
  expected = (sum(each) + 0.5 * smooth.sum()) / 3
  value, aux = loss(task(weight=0.5))
  assert float(value) == pytest.approx(expected, rel=1e-4)
  metrics = {name: float(x) for name, x in aux["metrics"].items()}
  assert metrics["consistency"] == pytest.approx(smooth.mean(), rel=1e-3)
  assert [metrics[f"loss_{s}"] for s in (12, 8, 4)] == pytest.approx(each)
  assert metrics["loss"] == float(value)
  summed, _ = loss(task(weight=0.5, reduce="sum"))
  assert float(summed) == pytest.approx(3 * expected, rel=1e-4)
  assert smooth.min() > 0.01  # there is something to agree on


def test_the_larger_view_is_not_moved_by_the_smaller():
  """The gradient of consistency ends at its target."""
  two = {k: BATCH[k] for k in ("image", "image@8", "label")}

  def agree(made):
    return lambda image: made.loss(
      MODEL, variables(), {**two, "image": image}, RNGS, {}
    )[1]["metrics"]["consistency"]

  image = two["image"].astype(np.float32)
  assert not np.asarray(jax.grad(agree(task()))(jnp.asarray(image))).any()
  small = two["image@8"].astype(np.float32)
  moved = jax.grad(
    lambda x: task().loss(
      MODEL, variables(), {**two, "image@8": x}, RNGS, {}
    )[1]["metrics"]["consistency"]
  )(jnp.asarray(small))  # fmt: skip
  assert np.abs(np.asarray(moved)).max() > 0


def test_views_are_ordered_by_size_not_by_name():
  named = {"image": "image@4", "image@4": "image", "image@8": "image@8"}
  turned = {named.get(name, name): x for name, x in BATCH.items()}
  assert multiscale.views(turned) == ["image@4", "image@8", "image"]
  assert float(loss(task(), turned)[0]) == pytest.approx(
    float(loss(task())[0]), rel=1e-5
  )


def test_without_weight_it_is_the_mean_of_plain_losses():
  value, aux = loss(task(weight=0))
  each = [aux["metrics"][f"loss_{s}"] for s in (12, 8, 4)]
  assert float(value) == pytest.approx(float(sum(each)) / 3)


def test_all_views_mix_the_same_examples():
  """Cutmix boxes and partners correspond, so that features can agree."""
  mixed = multiscale.make(
    Reader({"of": {"name": "classify", "mixup": 0.5}}), Source
  )
  same = {"image": BATCH["image"], "label": BATCH["label"]}
  same["image@24"] = BATCH["image"].repeat(2, 1).repeat(2, 2)
  seen = []
  real = mixed.task.mix

  class Spy(classify.Task):
    def mix(self, image, target, key):
      found = real(image, target, key)
      seen.append(found)
      return found

  fields = {
    f.name: getattr(mixed.task, f.name)
    for f in dataclasses.fields(classify.Task)
  }
  spied = dataclasses.replace(mixed, task=Spy(**fields))
  loss(spied, same)
  (large, target), (small, other) = seen
  np.testing.assert_allclose(large[:, ::2, ::2], small, rtol=1e-5)
  np.testing.assert_array_equal(target, other)


# --------------------------------------------------------------------- errors


@pytest.mark.parametrize(
  "change, words",
  [
    ({"image@8": BATCH["image"]}, "'image' and 'image@8' are both 12x12 px"),
    ({"image@8": BATCH["image"][:, :6, :6]},
     "'image@8': patch 4 does not divide image height 6"),
  ],
)  # fmt: skip
def test_views_that_do_not_fit(change, words):
  two = {"image": BATCH["image"], "label": BATCH["label"], **change}
  with pytest.raises(UserError, match=words) as error:
    loss(task(), two)
  assert str(error.value).startswith("train.transform")
  assert "\n" not in str(error.value)


def test_one_view_is_refused():
  multi = {"name": "multiscale", "of": {"name": "classify"}}
  with pytest.raises(UserError, match=r"sees one view \(image\)"):
    build(toys.config(task=multi))


@pytest.mark.parametrize(
  "change, words",
  [
    ({"weight": -1}, "task.weight=-1: should be 0 or more"),
    ({"weight": "much"}, "task.weight='much'"),
    ({"reduce": "max"}, "task.reduce 'max'"),
  ],
)
def test_bad_options(change, words):
  with pytest.raises(UserError, match=words):
    task(**change)


def test_statistics_are_refused():
  with pytest.raises(UserError, match="'batch_stats': statistics of the views"):
    task().loss(MODEL, {**variables(), "batch_stats": {}}, BATCH, RNGS, {})


# ------------------------------------------------------------------------ run


def test_a_run_sees_two_sizes_and_resumes(tmp_path):
  made = config(total_steps=4, checkpoint__every_steps=2)
  made.evals["small"] = {
    "split": "val", "every_steps": 4, "transform": "resize(4)",
  }  # fmt: skip
  whole = train(made, tmp_path / "whole")
  row = read_rows(tmp_path / "whole" / "metrics.jsonl")[-1]
  assert {"train/loss_8", "train/loss_4", "train/consistency"} <= set(row)
  assert row["eval/val/nll"] != row["eval/small/nll"]
  bench = build(made)
  plain = build(toys.config())
  # Two tokens sizes: 4 + 1 tokens, and no less than the larger alone.
  both, one = (b.facts["flops_per_example"] for b in (bench, plain))
  assert one < both < 2 * one

  class Stop(Exception):
    pass

  def stop(state):
    if state["step"] == 2:
      raise Stop

  with pytest.raises(Stop):
    train(made, tmp_path / "cut", report=stop)
  again = train(made, tmp_path / "cut")
  assert again["metrics"] == whole["metrics"]
  assert_same_run(tmp_path / "whole", tmp_path / "cut")
