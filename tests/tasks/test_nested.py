"""Nested training: parts cost what they cost, in the one loop."""

import functools

import jax
import numpy as np
import pytest

from tests import toys
from tests.contract.families import gap
from tests.marks import mostly_slow
from tests.runs import assert_same_run
from vitscale import facts as facts_lib
from vitscale.bench import build
from vitscale.core import axes, draws, sharding, tree
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.core.log import read_rows
from vitscale.elastic import presets
from vitscale.models import vit
from vitscale.tasks import nested
from vitscale.train import train

FOUR = ("ffn=1/8", "ffn=1/4", "ffn=1/2", "full")


def config(strategy="sampled", granularities="matvit", draws=None, **changes):
  made = toys.config(**changes)
  made.task = {
    "name": "nested", "of": {"name": "classify"}, "strategy": strategy,
    "granularities": granularities,
  }  # fmt: skip
  if "val" in made.evals:
    made.evals.val.name = "nested"
  made.draws = draws or {}
  return made


class Source:
  classes, mean, std = 4, (0.5,), (0.25,)


def task(**changes):
  group = {"of": {"name": "classify"}, "granularities": FOUR, **changes}
  return nested.make(Reader(group), Source)


MODEL = vit.Model(
  num_classes=4, width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=4
)
RNG = np.random.default_rng(0)
BATCH = {
  "image": RNG.integers(0, 256, (4, 8, 8, 1), dtype=np.uint8),
  "label": RNG.integers(0, 4, 4).astype(np.int32),
}


@functools.cache
def variables():
  init = lambda: task().init(MODEL, jax.random.key(0), BATCH)
  return jax.tree.map(
    lambda x: x + 0.1 * RNG.normal(size=x.shape).astype("f4"),
    axes.unbox(jax.jit(init)()),
  )


def loss(made, *texts):
  key = jax.random.key(0)
  run = lambda v: made.loss(
    MODEL, v, BATCH, {"dropout": key, "mix": key}, {"nest": texts}
  )
  (value, aux), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(
    variables()
  )
  return value, aux["metrics"], grads


# ----------------------------------------------------------------------- loss


def test_joint_is_the_sum_or_the_mean_of_its_parts():
  parts = [loss(task(), text) for text in FOUR]
  values = [value for value, _, _ in parts]
  assert len({float(v) for v in values}) == 4
  total, metrics, grads = loss(task(), *FOUR)
  np.testing.assert_allclose(total, sum(values), rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"], total / 4, rtol=1e-6)
  summed = jax.tree.map(lambda *x: sum(x), *[g for _, _, g in parts])
  assert gap(grads, summed) < 1e-5
  mean, _, _ = loss(task(reduce="mean"), *FOUR)
  np.testing.assert_allclose(mean, total / 4, rtol=1e-6)


@pytest.mark.parametrize(
  "case",
  mostly_slow(
    [
      (d, k) for d in ("inplace", "progressive") for k in ("softmax", "sigmoid")
    ],
    ("progressive", "softmax"),
  ),
)
def test_larger_parts_teach_smaller_ones(case):
  """By hand from the logits of the parts; teachers get no gradient of it."""
  distil, kind = case
  texts, of = ("ffn=1/8", "ffn=1/2", "full"), {"name": "classify", "kind": kind}
  plain = task(strategy="joint", of=of)
  image = plain.normalise(BATCH["image"])
  logits = []
  for text in texts:
    little, own = plain.part(MODEL, variables(), BATCH, text)
    logits.append(jax.jit(little.apply)(own, image)[0])
  small, middle, large = logits
  teachers = (
    [(small, large), (middle, large)]
    if distil == "inplace"
    else [(small, middle), (middle, large)]
  )
  soft = sum(
    plain.task.nll(student, plain.task.probabilities(teacher)).mean()
    for student, teacher in teachers
  )
  own, _, _ = loss(plain, *texts)
  taught = task(strategy="joint", of=of, distil=distil, distil_weight=0.5)
  got, metrics, grads = loss(taught, *texts)
  np.testing.assert_allclose(got, own + 0.5 * soft, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], own / 3, rtol=1e-5)
  # Hidden units of the largest alone feel its own loss only.
  _, _, alone = loss(plain, "full")
  last = lambda g: g["params"]["encoder"]["block_01"]["mlp"]["down"]["kernel"]
  np.testing.assert_allclose(last(grads)[16:], last(alone)[16:], atol=1e-6)


def test_a_part_is_the_plain_task_on_the_small_model():
  little, own = task().part(MODEL, variables(), BATCH, "ffn=1/4")
  assert little == MODEL.clone(mlp_dim=8)
  key = jax.random.key(0)
  value, _ = jax.jit(
    lambda v: task().task.loss(
      little, v, BATCH, {"dropout": key, "mix": key}, {}
    )
  )(own)
  np.testing.assert_allclose(value, loss(task(), "ffn=1/4")[0], rtol=1e-6)


def test_the_preset_is_the_same():
  assert task(granularities="matvit") == task()
  assert presets.preset("matvit") == FOUR


def test_a_family_with_statistics_is_refused():
  with pytest.raises(UserError, match="with 'batch_stats': statistics"):
    task().part(toys.Model(4), {"params": {}, "batch_stats": {}}, BATCH, "full")


# ----------------------------------------------------------------------- cost


def flops(draw, big=MODEL, size=8):
  """Training FLOPs of an image, counted on the jaxpr of the step's loss."""
  made = task()
  batch = {
    "image": jax.ShapeDtypeStruct((2, size, size, 1), "uint8"),
    "label": jax.ShapeDtypeStruct((2,), "int32"),
  }
  zeros = {k: np.zeros(x.shape, x.dtype) for k, x in batch.items()}
  boxed = jax.eval_shape(lambda: made.init(big, jax.random.key(0), zeros))

  class Data(Source):
    fingerprint = ""

    def __len__(self):
      return 2

  found, _ = facts_lib.facts(
    made, big, Data(), batch, axes.unbox(boxed), axes.names_of(boxed), (draw,)
  )
  return found["flops_per_example"]


@pytest.mark.slow
def test_a_step_costs_what_it_draws():
  """Sampled: the mean of the sizes. Joint: their sum, 2.66 XL steps or less
  for a B/16 (masks cost 4)."""
  one = {text: flops(draws.Draw("nest", ((text,),), (1.0,))) for text in FOUR}
  sampled, joint = task().draws[0], task(strategy="joint").draws[0]
  assert flops(sampled) == pytest.approx(sum(one.values()) / 4, rel=1e-9)
  assert flops(joint) == pytest.approx(sum(one.values()), rel=1e-9)
  heavy = task(weights=(1.0, 1.0, 1.0, 5.0)).draws[0]
  assert flops(heavy) > flops(sampled)
  base = vit.Model(num_classes=4, scan=True, **vit.variant("B/16"))
  whole = flops(draws.Draw("nest", (("full",),), (1.0,)), base, 224)
  assert flops(joint, base, 224) / whole < 2.66


@pytest.mark.slow
def test_four_granularities_and_three_patches_compile_twelve_steps():
  made = build(
    config(
      draws={"patch_size": {"values": (2, 4, 8)}}, evals={}, total_steps=60,
      model__depth=1,
    )
  )  # fmt: skip
  state, stream = made.init(np.uint32(0)), made.batches(0, 0)
  lrs = {"model": np.float32(1e-3)}
  seen, compiled = set(), []
  for step in range(60):
    draw = tuple(sorted(draws.at(made.draws, 0, step).items()))
    seen.add(draw)
    batch = sharding.shard_batch(next(stream), made.mesh, made.rules)
    state = made.step(state, batch, np.uint32(0), lrs, draw=draw)
    compiled.append(made.step.__wrapped__._cache_size())
    assert compiled[-1] == len(seen)
  stream.close()
  assert len(seen) == 12 == compiled[-1]


# ---------------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_run_logs_every_granularity_and_resumes(tmp_path):
  whole = train(config(), tmp_path / "a")
  row = read_rows(tmp_path / "a" / "metrics.jsonl")[-1]
  for text in FOUR[:3]:
    assert row[f"eval/val/{text}/examples"] == row["eval/val/examples"]
    assert row[f"eval/val/{text}/nll"] != row["eval/val/nll"]
  assert whole["status"] == "finished"

  def stop(progress):
    if progress["step"] >= 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(config(), tmp_path / "b", report=stop)
  train(config(), tmp_path / "b")
  assert_same_run(tmp_path / "a", tmp_path / "b")


def test_what_a_step_does_not_touch_can_be_frozen():
  """Momentum, decay and moments of a dropped hidden unit stand still."""
  made = config(("sampled"), ("ffn=1/2", "full"), model__depth=1, evals={})
  made.task.untouched = "frozen"
  bench = build(made)
  state, lrs = bench.init(np.uint32(0)), {"model": np.float32(1e-2)}
  batches = bench.batches(0, 0)
  seen = lambda: {  # copies: the step's arrays are used again
    k: np.array(x)
    for k, x in tree.flatten(state["params"] | {"o": state["opt"]}).items()
  }
  moved = {}
  for text in ("full", "full", "ffn=1/2"):  # the head is zero at first
    before = seen()
    batch = sharding.shard_batch(next(batches), bench.mesh, bench.rules)
    draw = (("nest", (text,)),)
    state = bench.step(state, batch, np.uint32(0), lrs, draw=draw)
    after = seen()
    moved[text] = {k: after[k] != before[k] for k in before}
  batches.close()
  up = [k for k in moved["full"] if k.endswith("mlp/up/kernel")]
  assert len(up) == 3  # the parameter, two moments
  for path in up:
    assert moved["full"][path].mean() > 0.9
    assert moved["ffn=1/2"][path][:, :16].mean() > 0.9
    assert not moved["ffn=1/2"][path][:, 16:].any()
  assert moved["ffn=1/2"]["head/kernel"].all()


@pytest.mark.parametrize("strategy", ["joint", "round_robin", "sandwich"])
def test_other_strategies_build(strategy):
  made = config(strategy, ("ffn=1/4", "heads=1/2", "full"), model__depth=1)
  if strategy == "sandwich":
    made.task.middle = 1
  made = build(made)
  assert made.draws[0].name == "nest"


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"granularities": "matvti"}, "did you mean 'matvit'"),
    ({"granularities": ("ffn=1/2",)}, "want two or more that differ"),
    ({"granularities": ("ffn=1/2", "ffn=0.5")}, "want two or more that differ"),
    ({"granularities": ("fnn=1/2", "full")}, "did you mean 'ffn'"),
    ({"strategy": "jiont"}, "did you mean 'joint'"),
    ({"reduce": "summ"}, "did you mean 'sum'"),
    ({"weights": (1.0,)}, "one positive weight"),
    ({"untouched": "freeze"}, "did you mean 'frozen'"),
    ({"distil": "in-place"}, "did you mean 'inplace'"),
    ({"distil": "inplace"}, "one part and no teacher: use joint or sandwich"),
    ({"of": {"name": "tests.toys"}}, "several players"),
  ],
)
def test_bad_tasks(changes, says):
  with pytest.raises(UserError, match=says):
    task(**changes)


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (("heads=1/4", "full"), "heads=1/4 of 2 is 0.5, not whole"),
    (("ffn=1/2x3", "full"), "deeper than the model: ffn names 3 layers"),
  ],
)
def test_specs_that_do_not_fit_are_errors_before_a_step(change, says):
  with pytest.raises(UserError, match=says):
    build(config(granularities=change))


def test_an_option_of_another_strategy_is_read_by_nobody():
  made = config("joint")
  made.task.weights = (1.0, 1.0, 1.0, 1.0)
  with pytest.raises(UserError, match=r"'task\.weights' is read by nobody"):
    build(made)


def test_nested_evaluation_wants_a_nested_task():
  made = toys.config()
  made.evals.val.name = "nested"
  with pytest.raises(UserError, match=r"wants task\.name 'nested'"):
    build(made)
