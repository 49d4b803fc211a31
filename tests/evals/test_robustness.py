"""Scores by image size and patch size, against the plain call of each."""

import jax
import numpy as np
import pytest

from tests import toys
from tests.evals.test_retrieval import noisy
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.data import sources, transforms
from vitscale.data.random import Rng
from vitscale.evals import classify, robustness


def config(**group):
  made = toys.config()
  made.evals = {
    "val": {"name": "robustness", "split": "val", "batch_size": 24, **group}
  }
  return made


def test_each_row_is_a_plain_call():
  bench = build(config(size=(8, 12), patch_size=(2, 4)))
  state = noisy(bench)
  scores = bench.evals["val"].run(state)
  source = sources.make("strokes", split="val", size=8, n=64)
  batch = source.read(np.arange(len(source)))
  for size in (8, 12):
    image = robustness.resized(batch["image"], size)
    x = bench.task.normalise(image)
    for patch in (2, 4):
      logits, _ = bench.model.apply(
        {"params": state["params"]}, x, patch_size=patch
      )
      hit = float((logits.argmax(-1) == batch["label"]).mean())
      row = f"size={size} patch_size={patch}"
      assert scores[f"{row}/accuracy"] == pytest.approx(hit)
      assert scores[f"{row}/examples"] == scores["examples"] == len(source)
  assert len({scores[k] for k in scores if k.endswith("/nll")}) == 4


def test_what_is_left_out_stays():
  bench = build(config(patch_size=(2,)))
  state = noisy(bench)
  scores = bench.evals["val"].run(state)
  plain = toys.config()
  plain.evals.val["draw"] = {"patch_size": 2}
  other = build(plain).evals["val"].run(state)
  assert scores == {
    **{f"patch_size=2/{k}": v for k, v in other.items()},
    "examples": other["examples"],
  }
  assert robustness.row(12, None) == "size=12"


@pytest.mark.parametrize("size", [5, 8, 20])
def test_resized_as_the_transform_does(size):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
  batch = {"image": image}
  want = transforms.parse(f"resize({size})")(batch, Rng(0, 0, np.arange(3)))
  got = np.asarray(jax.jit(robustness.resized, static_argnums=1)(image, size))
  gap = np.abs(got.astype(int) - want["image"].astype(int))
  assert got.dtype == np.uint8 and gap.max() <= 1


def test_top5_counts_ranks():
  scores = np.array([[5, 4, 3, 2, 1, 0], [1, 1, 1, 1, 1, 1]], "f4")
  for label, k, want in (
    ([4, 4], 5, [1, 1]), ([5, 5], 5, [0, 0]), ([0, 0], 1, [1, 1]),
    ([1, 1], 1, [0, 0]),
  ):  # fmt: skip
    found = classify.among(scores, np.array(label), k)
    np.testing.assert_array_equal(found, want)
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (40, 7)).astype("f4")  # many are equal
  label = rng.integers(0, 7, 40)
  order = np.argsort(-scores, axis=1, kind="stable")
  for k in (1, 3, 5):
    want = (order[:, :k] == label[:, None]).any(1)
    np.testing.assert_array_equal(classify.among(scores, label, k), want)


def test_top5_of_more_than_five_classes():
  p = np.full((4, 7), 0.1, "f4")
  p[:, 0] = 0.4
  weight = np.array([1, 1, 1, 0], "f4")
  batch = {"weight": weight, "label": np.array([0, 4, 6, 0])}
  said = {
    "nll": np.ones(4, "f4"), "correct": np.array([1, 0, 0, 1], "f4"),
    "probabilities": p,
  }  # fmt: skip
  sums = lambda _, batch: classify.totals(said, batch)
  scores = classify.evaluate(sums, {}, [batch])
  assert scores["top5"] == pytest.approx(2 / 3)
  assert scores["top5_se"] == pytest.approx(np.sqrt(2 / 27))
  few = {**said, "probabilities": p[:, :5]}
  batch = {**batch, "label": np.array([0, 4, 4, 0])}
  sums = lambda _, batch: classify.totals(few, batch)
  assert "top5" not in classify.evaluate(sums, {}, [batch])


@pytest.mark.parametrize(
  ("group", "says"),
  [
    ({}, "say size="),
    ({"size": (0,)}, "robustness size="),
    ({"size": (9,)}, "patch 4 does not divide image height 9"),
    ({"patch_size": (3,)}, "patch 3 does not divide"),
  ],
)
def test_mistakes_end_before_training(group, says):
  with pytest.raises(UserError, match=says):
    build(config(**group))
