"""Rounds of one nested model, each fed with what the last one saw."""

import functools

import jax
import numpy as np
import pytest

from tests import toys
from tests.contract.families import gap
from tests.runs import assert_same_run
from vitscale.bench import build
from vitscale.core import accounting, axes
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.core.log import read_rows
from vitscale.elastic import cascade, exits, space
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.cut import cut
from vitscale.models import pattention_vit, vit
from vitscale.tasks import nested, thinking
from vitscale.train import train

HALF = "ffn=1/2 heads=1/2 embed=1/2"
ROUNDS = (HALF, "full")
IMAGE = (8, 8, 1)
MODEL = vit.Model(
  num_classes=4, width=16, depth=1, mlp_dim=32, num_heads=2, patch_size=4
)
RNG = np.random.default_rng(0)
BATCH = {
  "image": RNG.integers(0, 256, (6, *IMAGE), dtype=np.uint8),
  "label": RNG.integers(0, 4, 6).astype(np.int32),
}


def config(**changes):
  made = toys.config(**changes)
  made.task = {"name": "thinking", "of": {"name": "classify"}, "rounds": ROUNDS}
  if "val" in made.evals:
    made.evals.val.name = "rounds"
  return made


class Source:
  classes, mean, std = 4, (0.5,), (0.25,)


def task(**changes):
  group = {"of": {"name": "classify"}, "rounds": ROUNDS, **changes}
  return thinking.make(Reader(group), Source)


@functools.cache
def boxed():
  return jax.eval_shape(lambda: task().init(MODEL, jax.random.key(0), BATCH))


@functools.cache
def variables(omega=0.5):
  """Nowhere zero but for omega, which is as asked."""
  rng = np.random.default_rng(1)
  made = jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype("f4"),
    axes.unbox(boxed()),
  )
  made["params"]["recycle"]["round_2"]["omega"] = np.float32(omega)
  return made


@functools.cache
def logits(omega):
  """Of every round, compiled once."""
  said = _predictions(variables(omega))
  return [np.asarray(one["logits"]) for one in said]


_predictions = jax.jit(lambda v: task().predictions(MODEL, v, BATCH))


@functools.cache
def gradients(omega, weights=(0.5, 0.5)):
  key = jax.random.key(0)
  made = task(weights=weights)
  run = lambda v: made.loss(MODEL, v, BATCH, {"dropout": key, "mix": key}, {})
  (value, aux), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(
    variables(omega)
  )
  return float(value), aux["metrics"], grads["params"]


# ------------------------------------------------------------------ recycling


def test_it_starts_as_the_paper_has_it():
  init = jax.jit(lambda: task().init(MODEL, jax.random.key(0), BATCH))
  own = axes.unbox(init())["params"]["recycle"]
  assert list(own) == ["round_2"]
  assert own["round_2"]["omega"] == 0
  kernel = own["round_2"]["projection"]["kernel"]
  assert kernel.shape == (8, 16) and np.abs(kernel).mean() > 0.01
  names = axes.names_of(boxed())["params"]["recycle"]["round_2"]
  assert str(names["projection"]["kernel"]) == "embed@previous -> embed"


def test_without_recycling_the_rounds_are_the_nested_parts():
  made = task()
  parts = nested.Task(made.task, ROUNDS, ())

  @jax.jit
  def alone(v):
    each = [parts.part(MODEL, v, BATCH, text) for text in ROUNDS]
    image = made.normalise(BATCH["image"])
    return [little.apply(own, image)[0] for little, own in each]

  for said, want in zip(logits(0.0), alone(variables())):
    assert gap(said, want) < 1e-6


def test_a_round_is_the_formula():
  """E' = omega Proj(z) + E by hand: position tables take what is added."""
  made = task()
  parts = nested.Task(made.task, ROUNDS, ())

  @jax.jit
  def by_hand(own):
    image = made.normalise(BATCH["image"][:1])
    little, small = parts.part(MODEL, own, BATCH, HALF)
    z = little.apply(small, image)[1]["tokens"]
    projection = own["params"]["recycle"]["round_2"]["projection"]
    added = z @ projection["kernel"] + projection["bias"]
    table = own["params"]["positions"]["table"]
    moved = table + 0.5 * added[0].reshape(table.shape)
    params = {**own["params"], "positions": {"table": moved}}
    return MODEL.apply({"params": params}, image)[0]

  said = logits(0.5)[1]
  assert gap(said[:1], by_hand(variables())) < 1e-5
  assert gap(said, logits(0.0)[1]) > 1e-2


def test_gradients_reach_the_projection_once_omega_has_moved():
  _, _, start = gradients(0.0)
  recycle = start["recycle"]["round_2"]
  assert abs(float(recycle["omega"])) > 1e-6
  assert float(np.abs(recycle["projection"]["kernel"]).max()) == 0
  _, _, later = gradients(0.5)
  assert np.abs(later["recycle"]["round_2"]["projection"]["kernel"]).max() > 0


def test_the_last_round_teaches_the_first_through_what_it_recycles():
  """With alpha = (0, 1) the small part learns to be read."""
  _, _, grads = gradients(0.5, (0.0, 1.0))
  _, _, without = gradients(0.0, (0.0, 1.0))
  kernel = lambda g: np.asarray(g["encoder"]["block_00"]["mlp"]["up"]["kernel"])
  assert gap(kernel(grads)[:8, :16], kernel(without)[:8, :16]) > 1e-6


def test_the_loss_is_weighted():
  value, metrics, _ = gradients(0.5, (0.25, 2.0))
  first, last = metrics["loss_round_1"], metrics["loss_round_2"]
  np.testing.assert_allclose(value, 0.25 * first + 2 * last, rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
  assert float(first) != float(last)


# ---------------------------------------------------------------------- costs


def test_rounds_cost_what_they_run():
  found = exits.costs(task().stages(MODEL), variables(), IMAGE)
  small, large = (
    space.cost("macs", spec_lib.small(MODEL, spec_lib.parse(text))[0], IMAGE)
    for text in ROUNDS
  )
  projection = 4 * 8 * 16  # tokens, widths
  assert found.tried().tolist() == [small, small + projection + large]


def test_a_step_costs_both_rounds_and_the_projection():
  """Forward and two gradients, three products of the projection's size."""
  made, batch = task(), {k: v[:2] for k, v in BATCH.items()}
  abstract = axes.unbox(boxed())
  key = jax.eval_shape(lambda: jax.random.key(0))

  def flops(loss):
    return accounting.train_flops(loss, abstract, batch, key).matmul

  def alone(v, batch, key):
    rngs = {"dropout": key, "mix": key}
    draw = {"nest": ROUNDS}
    parts = nested.Task(made.task, ROUNDS, ())
    return parts.loss(MODEL, v, batch, rngs, draw)

  def both(v, batch, key):
    return made.loss(MODEL, v, batch, {"dropout": key, "mix": key}, {})

  assert flops(both) - flops(alone) == 3 * 2 * 2 * (4 * 8 * 16)


def test_another_family_recycles_too():
  model = pattention_vit.Model(
    num_classes=4, width=16, depth=1, num_heads=2, tokens=8, ffn_tokens=8,
    patch_size=4, pool="cls",
  )  # fmt: skip
  made = task(rounds=("heads=1/2 embed=1/2", "full", "full"))
  init = lambda: made.init(model, jax.random.key(0), BATCH)
  shapes = axes.unbox(jax.eval_shape(init))
  own = shapes["params"]["recycle"]
  kernels = [own[f"round_{i}"]["projection"]["kernel"].shape for i in (2, 3)]
  assert kernels == [(8, 16), (16, 16)]
  said = jax.eval_shape(lambda v: made.predictions(model, v, BATCH), shapes)
  assert [one["logits"].shape for one in said] == [(6, 4)] * 3


def test_stages_are_the_rounds():
  stages = task().stages(MODEL)
  found, _ = exits.everything(stages, variables(), BATCH["image"], size=6)
  for k, want in enumerate(logits(0.5)):
    assert gap(found[:, k], want) < 1e-6
  doubt = cascade.entropy(found)
  limit = float(np.median(doubt[:, 0]))
  ran = cascade.run(stages, variables(), BATCH["image"], limit, size=6)
  np.testing.assert_array_equal(ran.exits, cascade.by_threshold(doubt, limit))
  assert set(ran.exits) == {0, 1}


# ---------------------------------------------------------------------- a run


def test_a_run_logs_every_round_and_resumes(tmp_path):
  train(config(total_steps=4), tmp_path / "a")
  row = read_rows(tmp_path / "a" / "metrics.jsonl")[-1]
  assert row["eval/val/round_1/nll"] != row["eval/val/nll"]
  assert row["eval/val/round_1/examples"] == row["eval/val/examples"]
  assert row["train/loss_round_1"] != row["train/loss_round_2"]
  # The last round without what it recycles is no model of this run.
  with pytest.raises(UserError, match="was not trained nested"):
    cut(tmp_path / "a", tmp_path / "cut", spec=HALF)

  def stop(progress):
    if progress["step"] >= 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(config(total_steps=4), tmp_path / "b", report=stop)
  train(config(total_steps=4), tmp_path / "b")
  assert_same_run(tmp_path / "a", tmp_path / "b")


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"rounds": (HALF,)}, "want two or more"),
    ({"rounds": "hydravti"}, "did you mean 'hydravit'"),
    ({"weights": (1.0,)}, "one weight to each of the 2"),
    ({"weights": (1.0, -1.0)}, "one weight to each of the 2"),
    ({"of": {"name": "tests.toys"}}, "several players"),
  ],
)
def test_bad_tasks(changes, says):
  with pytest.raises(UserError, match=says):
    task(**changes)


def test_families_that_cannot_recycle_are_refused_before_a_step():
  made = task(rounds=("full", "full"))
  with pytest.raises(UserError, match=r"tests\.toys has no stack of blocks"):
    made.init(toys.Pair(4), jax.random.key(0), BATCH)


def test_rounds_are_evaluated_of_thinking_tasks():
  made = toys.config()
  made.evals.val.name = "rounds"
  with pytest.raises(UserError, match=r"wants task\.name 'thinking'"):
    build(made)
