"""A class for every pixel, with and without a decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import toys
from vitscale import bench as bench_lib
from vitscale import train
from vitscale.core.errors import UserError
from vitscale.evals import dense as evals
from vitscale.heads import dense as heads


def config(**changes):
  made = toys.config(
    data={"source": "scenes", "size": 8, "n": 64},
    task={"name": "dense"},
    model__num_classes=0,
  )
  made.evals.val.name = "dense"
  made.train.transform = "flip_lr"
  for key, value in changes.items():
    group, _, leaf = key.partition("__")
    made[group][leaf] = value
  return ConfigDict(made)


def test_it_trains(tmp_path):
  """A run from the config to its scores; loss falls."""
  made = config(task__head="decoder", task__width=8)
  made.total_steps = 12
  result = train.train(made, tmp_path)
  row = result["metrics"]
  assert row["eval/val/nll"] < np.log(4)
  assert 0 < row["eval/val/miou"] < 1 and row["eval/val/miou_se"] > 0


@pytest.mark.parametrize("head", heads.HEADS)
def test_every_pixel_has_logits(head):
  """Any grid of tokens, also one that is no power of two."""
  made = heads.HEADS[head](4, 8)
  for grid, image in (((4, 4), (8, 8)), ((2, 3), (10, 15)), ((8, 8), (8, 8))):
    x = jnp.ones((2, *grid, 5))
    v = made.init(jax.random.key(0), x, image)
    assert made.apply(v, x, image).shape == (2, *image, 4)
  with pytest.raises(UserError, match="for an image of"):
    made.init(jax.random.key(0), jnp.ones((1, 9, 9, 5)), (8, 8))


def test_linear_at_a_patch_of_one_is_a_map_of_each_token():
  """No neighbour is looked at."""
  made = heads.LinearHead(4)
  x = jax.random.normal(jax.random.key(0), (1, 4, 4, 5))
  v = made.init(jax.random.key(1), x, (4, 4))
  v = jax.tree.map(
    lambda p: p + jax.random.normal(jax.random.key(2), p.shape), v
  )
  moved = made.apply(v, x.at[0, 1, 2].add(1.0), (4, 4)) - made.apply(
    v, x, (4, 4)
  )
  assert (abs(moved[0]).max(-1) > 0).tolist() == [
    [(i, j) == (1, 2) for j in range(4)] for i in range(4)
  ]


def test_the_model_never_sees_the_classes():
  bench = bench_lib.build(config())
  state = bench.init(np.uint32(0))
  batch = next(bench.batches(0, 0))
  variables = {"params": state["params"]}
  run = jax.jit(lambda b: bench.task.predict(bench.model, variables, b))
  other = {**batch, "image": batch["image"].copy()}
  other["image"][..., -1] = 0
  a, b = run(batch), run(other)
  # The same predictions (columns), however the truth is counted (rows).
  np.testing.assert_array_equal(a["confusion"].sum(1), b["confusion"].sum(1))
  assert not np.array_equal(a["confusion"], b["confusion"])


def test_miou():
  """Two classes of four, one confused half of the time; one is nowhere."""
  confusion = np.zeros((4, 4))
  confusion[0, 0], confusion[1, 1], confusion[1, 0] = 10, 5, 5
  want = np.mean([10 / 15, 5 / 10])
  assert evals.miou(confusion) == pytest.approx(want)
  assert evals.miou(np.zeros((4, 4))) == 0.0


def test_the_standard_error_knows_no_batches():
  """The same images in batches of 16, of 5 and of 1; fewer than parts too."""
  bench = bench_lib.build(config())
  variables = {"params": bench.init(np.uint32(0))["params"]}
  sums = jax.jit(evals.make(bench.task, bench.model))
  stream = bench.batches(0, 0)
  images = np.concatenate([next(stream)["image"] for _ in range(2)])
  for count in (32, 9):
    found = []
    for size in (16, 5, 1):
      batches = [
        {"image": part, "weight": np.ones(len(part), "f4")}
        for part in np.split(images[:count], range(size, count, size))
      ]
      found.append(evals.evaluate(sums, variables, batches)["miou_se"])
    assert found[0] > 0
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


def test_padding_counts_nothing():
  bench = bench_lib.build(config())
  variables = {"params": bench.init(np.uint32(0))["params"]}
  sums = jax.jit(evals.make(bench.task, bench.model))
  batch = dict(next(bench.batches(0, 0)))
  half = {k: v[:9] for k, v in batch.items()}
  weight = np.r_[np.ones(9), np.zeros(7)].astype("f4")
  padded = evals.evaluate(sums, variables, [{**batch, "weight": weight}])
  alone = evals.evaluate(sums, variables, [{**half, "weight": weight[:9]}])
  assert padded.keys() == alone.keys()
  for name, value in padded.items():
    assert value == pytest.approx(alone[name], abs=1e-6), name


def test_refuses():
  with pytest.raises(UserError, match="did you mean 'linear'"):
    bench_lib.build(config(task__head="liner"))
  with pytest.raises(UserError, match=r"such as data\.source='scenes'"):
    bench_lib.build(toys.config(task={"name": "dense"}))
  made = toys.config()
  made.evals.val.name = "dense"
  with pytest.raises(UserError, match=r"wants task\.name 'dense'"):
    bench_lib.build(made)
