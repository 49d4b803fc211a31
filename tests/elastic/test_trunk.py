"""Shared layers give what each cut model gives alone, and run once."""

import functools
import itertools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes, tree
from vitscale.elastic import mixes as mixes_lib
from vitscale.elastic import score
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.score import Judge, Nest, Soft
from vitscale.elastic.slice import nest
from vitscale.elastic.space import Space
from vitscale.elastic.trunk import NotShared, Trunk, layers_run
from vitscale.models import vit
from vitscale.nn import block, layers
from vitscale.tasks import classify

LEVELS = [Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1)]
TASK = classify.Task(4, (0.5,), (0.25,))
MODEL = vit.Model(
  num_classes=4, width=16, depth=3, mlp_dim=32, num_heads=2, patch_size=4
)
RNG = np.random.default_rng(0)


def batches(*sizes):
  """Batches of 4, the last ones filled up."""
  made = []
  rng = np.random.default_rng(1)
  for size in sizes:
    image = rng.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    label = rng.integers(0, 4, 4).astype(np.int32)
    weight = (np.arange(4) < size).astype(np.float32)
    made.append({"image": image, "label": label, "weight": weight})
  return lambda: iter(made)


DATA = batches(4, 3)


def shapes_of(model):
  init = lambda key: TASK.init(model, key, next(DATA()))
  boxed = jax.eval_shape(init, jax.random.key(0))
  return axes.unbox(boxed)["params"], axes.names_of(boxed)["params"]


def parameters(model):
  shapes, _ = shapes_of(model)
  rng = np.random.default_rng(2)
  return jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype("f4"), shapes
  )


@functools.cache
def whole(**options):
  model = MODEL.clone(**options)
  return Nest(TASK, model, parameters(model), shapes_of(model)[1])


def trunk(big, **asked):
  return Trunk(
    big.task, big.model, big.params, big.names, LEVELS, next(DATA()), **asked
  )


def alone(big, mix, batch):
  """Predictions of the cut model."""
  spec = spec_lib.ElasticSpec(ffn=tuple(LEVELS[level] for level in mix))
  little, layers = spec_lib.small(big.model, spec)
  params = nest(big.params, big.names, shapes_of(little)[0], layers)
  run = jax.jit(functools.partial(TASK.predict, little))
  return run({"params": params}, batch)


def space(model=MODEL):
  return Space(model, [f"ffn={part}" for part in LEVELS], lambda m: 1.0)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"scan": True, "ffn": "swiglu", "pool": "map"},
    {"position": "rope2d", "registers": 2, "pool": "cls", "layer_scale": 0.3},
    {"mlp_dim": (32, 64, 32), "head_dim": 8, "remat": "full"},
  ],
)
def test_equals_each_cut_model_alone(options):
  big, batch = whole(**options), next(DATA())
  every = mixes_lib.shape("all", 4, 3)
  found = dict(trunk(big).predictions(every, batch))
  assert sorted(found) == list(range(len(every)))
  for i in (7, 57):
    want = alone(big, every[i], batch)
    for name in ("logits", "nll"):
      np.testing.assert_allclose(found[i][name], want[name], atol=1e-5)
  assert len({float(one["nll"].sum()) for one in found.values()}) == 64


def test_layers_run_once_and_compile_once():
  calls = []

  def ask(task, model, variables, batch):
    calls.append(model)
    return task.predict(model, variables, batch)

  one, every = trunk(whole(), ask=ask), mixes_lib.shape("all", 4, 3)
  ran = []
  block_of = one._block
  one._block = lambda *args, like, levels: (
    ran.extend(levels), block_of(*args, like=like, levels=levels)
  )[1]  # fmt: skip
  for batch in DATA():
    list(one.predictions(every, batch))
  assert len(ran) == 2 * layers_run(every) == 2 * (4 + 16 + 64)
  assert len(calls) == 1 and block_of._cache_size() == 1
  # Rising mixes run a level by itself where not all are wanted.
  rising = mixes_lib.shape("increasing", 4, 3)
  list(one.predictions(rising, next(DATA())))
  assert block_of._cache_size() == 4 and len(calls) == 1


def test_what_rising_mixes_of_twelve_layers_save():
  every = mixes_lib.shape("increasing", 4, 12)
  assert score.saving(every) == {"layers_run": 1819, "layers": 12 * 455}
  assert layers_run(mixes_lib.shape("all", 4, 6)) == 5460


def test_all_rising_mixes_of_twelve_layers():
  big = whole(depth=12)
  every = mixes_lib.shape("increasing", 4, 12)
  found = dict(trunk(big).predictions(every, next(DATA())))
  assert len(found) == 455
  for i in (201,):
    want = alone(big, every[i], next(DATA()))
    np.testing.assert_allclose(found[i]["logits"], want["logits"], atol=1e-5)


def test_a_level_costs_its_own_flops():
  one = trunk(whole())
  x, who = one._stem(one._stem_params, next(DATA()))
  flops = [
    one._block.lower(one._params[0], x, who, like=0, levels=levels)
    .compile()
    .cost_analysis()["flops"]
    for levels in ((0,), (3,), (0, 1, 2, 3))
  ]
  tokens, width, hidden = 4 * 4, 16, 32
  ffn = lambda part: 2 * 2 * tokens * width * hidden * part
  assert flops[1] - flops[0] > ffn(7 / 8)
  # Attention once, all four FFNs: less than four layers of the least.
  assert flops[2] < 4 * flops[0] + ffn(1 / 8 + 3 / 8 + 7 / 8) * 1.5
  assert flops[2] - flops[1] < 1.5 * ffn(7 / 8)


# -------------------------------------------------------------------- scores


def test_losses_are_means_over_real_rows():
  big = whole()
  judge = score.judge(big, space(), DATA)
  every = mixes_lib.shape("least_slope", 4, 3)
  losses = judge(every)
  assert judge.scored == len(every) == 10
  for i in (5,):
    rows = [
      np.asarray(alone(big, every[i], batch)["nll"])[batch["weight"] > 0]
      for batch in DATA()
    ]
    assert losses[i] == pytest.approx(np.concatenate(rows).mean(), abs=1e-5)
  found = score.tables(trunk(big), every, DATA)
  assert found["nll"].shape == found["correct"].shape == (10, 7)
  np.testing.assert_allclose(found["nll"].mean(1), losses, atol=1e-5)


class Loose(nn.Module):
  """A family whose layers are in no stack."""

  num_classes: int = 4
  depth: int = 2
  mlp_dim: int | tuple[int, ...] = 16

  @nn.compact
  def __call__(self, image, *, train: bool = False):
    x = image.reshape(len(image), -1)[:, :8]
    sizes = block.per_layer(self.mlp_dim, self.depth, "mlp_dim")
    for i, size in enumerate(sizes):
      name = layers.layer_name(i)
      up = axes.param(self, f"{name}_up", "embed -> mlp", (8, size), axes.lecun)
      down = axes.param(
        self, f"{name}_down", "mlp -> embed", (size, 8), axes.lecun
      )
      x = x + nn.gelu(x @ up) @ down
    return x[:, : self.num_classes], {}


def test_a_family_without_a_stack_is_scored_one_by_one(capsys, monkeypatch):
  model = Loose()
  big = Nest(TASK, model, parameters(model), shapes_of(model)[1])
  with pytest.raises(NotShared, match="runs 0 stacks of blocks"):
    trunk(big)
  # Its layers are no folders of parameters: name them for the masks.
  monkeypatch.setattr(
    score, "layer_of", lambda path: int(path[len("block_") :][:2])
  )
  judge = score.judge(big, space(model), DATA)
  losses = judge([(3, 3), (0, 2)])
  assert "one by one" in capsys.readouterr().err
  full = [TASK.predict(model, {"params": big.params}, b) for b in DATA()]
  rows = [np.asarray(f["nll"])[b["weight"] > 0] for f, b in zip(full, DATA())]
  assert losses[0] == pytest.approx(np.concatenate(rows).mean(), abs=1e-5)
  assert losses[1] != losses[0]


def test_granularities_that_do_not_mix_are_scored_as_cut():
  big = whole()
  narrow = Space(MODEL, ("heads=1/2 embed=1/2 ffn=1/2", "full"), lambda m: 1)
  losses = score.judge(big, narrow, DATA)(narrow.specs)
  every = score.judge(big, space(), DATA)([(3, 3, 3)])
  assert losses[1] == pytest.approx(every[0], abs=1e-5)
  assert losses[0] != losses[1]


# --------------------------------------------------------------------- masks


@pytest.mark.parametrize("scan", [False, True])
def test_masked_scores_what_is_cut(scan):
  big, batch = whole(scan=scan, pool="map", ffn="swiglu"), next(DATA())
  params = score.masked(big.params, big.names, (8, 32, 16))
  got = jax.jit(functools.partial(TASK.predict, big.model))(
    {"params": params}, batch
  )
  want = alone(big, (1, 3, 2), batch)
  np.testing.assert_allclose(got["logits"], want["logits"], atol=1e-5)


def test_soft_is_hard_at_the_corners_and_a_mixture_between():
  big = whole()
  soft = Soft(big, space(), DATA)
  batch, *_, again = itertools.islice(soft.batches(), 3)
  np.testing.assert_array_equal(again["image"], batch["image"])
  loss = jax.jit(soft.loss)
  corner = jax.nn.one_hot(jnp.array([1, 3, 2]), 4)
  want = np.asarray(alone(big, (1, 3, 2), batch)["nll"]).mean()
  assert loss(corner, batch) == pytest.approx(want, abs=1e-5)
  # One block's FFN between two levels is between their outputs.
  scales = lambda w: score.scaled(
    big.params, big.names,
    lambda layer, width: w[layer] @ np.stack(
      [np.arange(width) < part * width for part in LEVELS]
    ).astype("f4"),
  )  # fmt: skip
  path = "encoder/block_00/mlp"
  hidden = RNG.random(32).astype("f4")

  def out(weights):
    flat = tree.flatten(scales(np.tile(weights, (3, 1)).astype("f4")))
    kernel = [
      v for k, v in flat.items()
      if k.startswith(path) and v.shape == (32, 16)
    ]  # fmt: skip
    return hidden @ np.asarray(kernel[0])

  half = out(np.array([0.5, 0, 0, 0.5]))
  ends = out(np.eye(4)[0]), out(np.eye(4)[3])
  np.testing.assert_allclose(half, sum(ends) / 2, rtol=1e-5)


def test_a_judge_says_what_it_trains_on():
  judge = score.judge(whole(), space(), DATA)
  assert isinstance(judge, Judge) and isinstance(judge.soft, Soft)
