"""A frozen teacher: what it adds to the loss, and that nothing moves it."""

import shutil

import jax
import numpy as np
import pytest

from tests import toys
from tests.contract.families import gap
from tests.runs import assert_same_run
from vitscale import workdir as workdir_lib
from vitscale.bench import build
from vitscale.core import tree
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows, write_json
from vitscale.parent import Parent
from vitscale.train import train
from vitscale.warm_start import begin


def config(teacher=None, nested=None, of=None, **options):
  made = toys.config(total_steps=4, ema=0.0)
  made.evals.val.every_steps = 4
  made.model.depth = 1
  if teacher is not None:
    made.task = {
      "name": "distil", "of": {"name": "classify", **(of or {})},
      "teacher": str(teacher), **options,
    }  # fmt: skip
  if nested:
    made.task = {"name": "nested", "of": made.task.to_dict(), **nested}
    made.evals.val.name = "nested"
  return made


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """A wider run that keeps an average: its weights are the average."""
  workdir = tmp_path_factory.mktemp("teacher") / "run"
  made = config()
  made.model.width, made.ema = 24, 0.5
  train(made, workdir)
  return workdir


def parts(made):
  bench = build(made)
  state = begin(bench)
  batches = bench.batches(0, 0)
  batch = next(batches)
  batches.close()
  variables = {"params": state["params"], **state["mutable"]}
  key = jax.random.key(3)
  rngs = {"dropout": key, "mix": key}
  return bench, variables, batch, rngs


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_teacher_adds_its_softened_targets(teacher, kind):
  """By hand, from the teacher's logits of the images as they were mixed."""
  of = {"kind": kind, "mixup": 0.4}
  made = config(teacher, of=of, weight=0.5, temperature=2.0)
  bench, variables, batch, rngs = parts(made)
  plain = bench.task.task
  loss, aux = bench.task.loss(bench.model, variables, batch, rngs, {})
  student = {"params": variables["params"]}
  own, own_aux = plain.loss(bench.model, student, batch, rngs, {})
  one_hot = jax.nn.one_hot(batch["label"], plain.classes)
  image, _ = plain.mix(plain.normalise(batch["image"]), one_hot, rngs["mix"])
  model, loaded = workdir_lib.load(teacher)
  logits, _ = model.apply(loaded, image)
  soft = plain.probabilities(logits / 2)
  taught = 4 * plain.nll(own_aux["logits"] / 2, soft).mean()
  np.testing.assert_allclose(loss, own + 0.5 * taught, rtol=1e-5)
  np.testing.assert_allclose(aux["metrics"]["taught"], taught, rtol=1e-5)
  assert float(aux["metrics"]["loss"]) == float(own)


def test_hidden_states_are_drawn_together(teacher):
  """Zero for a student that is the teacher; a part compares its prefix."""
  made = config(teacher, weight=0.0, hidden=2.0)
  made.model.width = 24
  made.init = {"from": str(teacher)}
  bench, variables, batch, rngs = parts(made)
  loss, aux = bench.task.loss(bench.model, variables, batch, rngs, {})
  np.testing.assert_allclose(loss, aux["metrics"]["loss"], rtol=1e-6)
  bench, variables, batch, rngs = parts(config(teacher, weight=0.0, hidden=2.0))
  loss, aux = bench.task.loss(bench.model, variables, batch, rngs, {})
  assert loss > aux["metrics"]["loss"] + 0.1


def test_a_run_leaves_its_teacher_alone_and_resumes(teacher, tmp_path):
  away = tmp_path / "teacher"
  shutil.copytree(teacher, away)
  made = config(away)
  train(made, tmp_path / "whole")

  def stop(progress):
    if progress["step"] >= 4:  # before the last save
      shutil.rmtree(away / "checkpoints")  # a resumed run has what it needs
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(made, tmp_path / "again", report=stop)
  train(made, tmp_path / "again")
  assert_same_run(tmp_path / "whole", tmp_path / "again")
  saved, parent = Parent(tmp_path / "again"), Parent(teacher)
  kept = saved.read(parent.shapes(), "mutable/teacher")
  for path, x in parent.read(parent.shapes()).items():
    np.testing.assert_array_equal(kept[path], x)
  shutil.rmtree(away)  # the model needs no teacher
  _, variables = workdir_lib.load(tmp_path / "again")
  assert list(variables) == ["params"]
  run = read_json(tmp_path / "again/run.json")
  assert run["parents"]["task.teacher"]["step"] == 4
  plain = read_json(teacher / "run.json")
  assert run["params"] < plain["params"]
  # The student's steps and the teacher's forward passes.
  alone = build(config()).facts["flops_per_example"]
  assert run["flops_per_example"] == pytest.approx(
    alone + plain["flops_per_example"] / 3, rel=0.02
  )
  assert read_rows(tmp_path / "again/metrics.jsonl")[-1]["train/taught"] > 0


def test_every_part_is_taught(teacher, tmp_path):
  """Depth cut and layers renumbered: the teacher's layers are its own."""
  options = {"granularities": ("layers=1-1", "full"), "strategy": "joint"}
  made = config(teacher, nested=options)
  made.model.depth = 2
  bench, variables, batch, rngs = parts(made)
  little, own = bench.task.part(bench.model, variables, batch, "layers=1-1")
  assert gap(own["teacher"], variables["teacher"]) == 0
  loss, _ = bench.task.loss(
    bench.model, variables, batch, rngs, {"nest": ("layers=1-1", "full")}
  )
  one, _ = bench.task.task.loss(little, own, batch, rngs, {})
  whole, _ = bench.task.task.loss(bench.model, variables, batch, rngs, {})
  np.testing.assert_allclose(loss, one + whole, rtol=1e-5)
  # One forward pass of the teacher, for all parts of a step.
  untaught = config(nested={**options, "of": {"name": "classify"}})
  untaught.model.depth = 2
  plain = build(untaught).facts["flops_per_example"]
  forward = read_json(teacher / "run.json")["flops_per_example"] / 3
  assert bench.facts["flops_per_example"] == pytest.approx(
    plain + forward, rel=0.02
  )


def test_microbatches_leave_the_teacher_bit_for_bit(teacher):
  made = config(teacher)
  made.accumulate, made.batch_size = 3, 18
  bench = build(made)
  state = begin(bench)
  before = {k: np.array(x) for k, x in tree.flatten(state["mutable"]).items()}
  batches = bench.batches(0, 0)
  lrs = {"model": np.float32(1e-2)}
  after = bench.step(state, next(batches), np.uint32(0), lrs, draw=())
  batches.close()
  for path, x in tree.flatten(jax.device_get(after["mutable"])).items():
    np.testing.assert_array_equal(before[path], x)


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"teacher": "nowhere"}, "nowhere is not a run"),
    ({"temperature": 0.0}, "temperature 0.0 is above 0"),
    ({"weight": -1.0}, "weight -1.0"),
    ({"temperature": "hot"}, "task.temperature='hot': should be a number"),
    ({"of": {"name": "tests.toys"}}, "has no soft targets"),
    ({"wieght": 1.0}, "task.wieght"),
  ],
)
def test_bad_teachers(teacher, changes, says):
  made = config(teacher)
  made.task.update(changes)
  with pytest.raises(UserError, match=says):
    build(made)


def test_a_teacher_that_does_not_fit_is_told_when_the_run_begins(
  teacher, tmp_path
):
  other = tmp_path / "other"
  shutil.copytree(teacher, other)
  run = read_json(other / "run.json")
  run["config"]["model"]["mlp_dim"] = 40
  write_json(other / "run.json", run)
  with pytest.raises(UserError, match=r"doesn't fit this model .*mlp"):
    begin(build(config(other)))
