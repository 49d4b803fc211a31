"""LoRA: the start changes nothing, pairs alone move, merged is what is seen."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tests.runs import assert_same_run
from vitscale import warm_start, workdir
from vitscale.bench import build
from vitscale.core import axes, tree
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows, write_json
from vitscale.elastic import cut
from vitscale.parent import Parent
from vitscale.tasks import lora
from vitscale.train import train

TASK = {"name": "lora", "of": {"name": "classify"}, "rank": 2, "alpha": 4.0}


def config(parent=None, scan=False, skip="lora/.*", **task):
  made = toys.config(total_steps=4, model__scan=scan, model__position="learned")
  if parent is not None:
    made.init = {"from": str(parent), "skip": skip}
    made.task = {**TASK, **task}
  return made


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
  folder = tmp_path_factory.mktemp("parent") / "run"
  train(config(), folder)
  return folder


@pytest.fixture(scope="module")
def child(parent, tmp_path_factory):
  folder = tmp_path_factory.mktemp("child") / "run"
  train(config(parent), folder)
  return folder


def test_a_run_begins_where_its_parent_ended(parent):
  bench = build(config(parent))
  state = warm_start.begin(bench)
  scores = bench.evals["val"].run(state)
  last = read_rows(parent / "metrics.jsonl")[-1]
  assert scores["nll"] == pytest.approx(last["eval/val/nll"], rel=1e-5)
  pairs = tree.flatten(state["params"]["lora"])
  assert len(pairs) == 2 * 2 * 2  # a, b; qkv, out; two blocks
  for path, x in pairs.items():
    assert np.any(x) == path.endswith("/a")


def test_only_pairs_and_head_move(parent, child):
  before = Parent(parent).read(Parent(parent).shapes())
  last = Parent(child)
  after = {
    branch: last.read(last.shapes(branch), branch)
    for branch in ("params", "ema", "opt")
  }
  for path, x in after["params"].items():
    moved = path.startswith(("lora/", "head/"))
    if path in before:
      assert np.any(x != before[path]) == moved, path
  b = [x for path, x in after["params"].items() if path.endswith("/b")]
  assert b and all(np.any(x) for x in b)
  owned = [path for path in after["opt"] if "kernel" in path]
  assert owned and all("/lora/" in p or "/head/" in p for p in owned)


def test_who_loads_it_sees_merged_weights(parent, child):
  model, variables = workdir.load(child)
  _, old = workdir.load(parent)
  old, new = (tree.flatten(v["params"]) for v in (old, variables))
  assert list(old) == list(new)
  kept = tree.unflatten(Parent(child).read(Parent(child).shapes()))
  pairs, scale = tree.flatten(kept["lora"]), 4.0 / 2
  for path, w in new.items():
    if f"{path}/a" not in pairs:
      assert np.any(w != old[path]) == path.startswith("head/")
      continue
    a, b = pairs[f"{path}/a"], pairs[f"{path}/b"]
    flat = a.reshape(-1, 2) @ b.reshape(2, -1)
    want = old[path] + scale * flat.reshape(w.shape)
    np.testing.assert_allclose(w, want, rtol=1e-5, atol=1e-6)
  bench = build(config(parent))
  rows = [r for r in read_rows(child / "metrics.jsonl") if "eval/val/nll" in r]
  state = {"ema": kept, "params": kept, "mutable": {}}
  nll = bench.evals["val"].run(state)["nll"]
  assert nll == pytest.approx(rows[-1]["eval/val/nll"], rel=1e-5)
  batch = next(iter(bench.evals["val"].batches()))
  said = bench.task.predict(bench.model, {"params": kept}, batch)["logits"]
  seen, _ = model.apply(variables, bench.task.normalise(batch["image"]))
  np.testing.assert_allclose(said, seen, atol=1e-5)


@pytest.mark.parametrize("again", [False, True], ids=["plain", "adapted"])
def test_whoever_starts_from_it_starts_from_merged_weights(child, again):
  made = config(child)
  if not again:
    made = config()
    made.init = {"from": str(child)}
  params = tree.flatten(warm_start.begin(build(made))["params"])
  _, merged = workdir.load(child)
  for path, want in tree.flatten(merged["params"]).items():
    np.testing.assert_allclose(params.pop(path), want, rtol=1e-5, atol=1e-7)
  assert all(path.startswith("lora/") for path in params)
  assert bool(params) == again
  for path, x in params.items():  # pairs of its own, which add nothing yet
    assert np.any(x) == path.endswith("/a")


def test_it_is_cut_with_its_pairs_merged(child, tmp_path):
  cut.cut(child, tmp_path / "cut", spec="ffn=1/2", by="importance")
  _, whole = workdir.load(child)
  model, variables = workdir.load(tmp_path / "cut")
  assert model.mlp_dim == 16 and "lora" not in variables["params"]
  find = lambda v, name: v["params"]["encoder"]["block_00"]["attention"][name]
  for name in ("qkv", "out"):
    np.testing.assert_array_equal(
      find(variables, name)["kernel"], find(whole, name)["kernel"]
    )


def test_it_resumes(parent, child, tmp_path):
  shutil.copytree(child, tmp_path / "again")
  shutil.rmtree(tmp_path / "again/checkpoints/4")
  run = read_json(tmp_path / "again/run.json")
  write_json(tmp_path / "again/run.json", {**run, "status": "running"})
  train(config(parent), tmp_path / "again")
  assert_same_run(child, tmp_path / "again")


def test_scanned_layers_have_pairs_of_their_own():
  """The sum by layer, and axis names that say so."""
  made = config("unused", scan=True, kernels=".*/(attention|mlp)/.*kernel")
  del made.init
  bench = build(made)
  names, params = tree.flatten(bench.names), bench.init(np.uint32(0))["params"]
  root = "lora/encoder/blocks/attention"
  assert str(names[f"{root}/qkv/kernel/a"]) == "layers embed -> rank@lora"
  assert (
    str(names[f"{root}/qkv/kernel/b"])
    == "layers rank@lora -> qkv heads head_dim"
  )
  assert str(names[f"{root}/out/kernel/a"]) == "layers heads head_dim -> " + (
    "rank@lora"
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype), jax.device_get(params)
  )
  merged = tree.flatten(lora.merge(params, 2.0))
  flat = tree.flatten(params)
  for name in ("attention/qkv", "attention/out", "mlp/up", "mlp/down"):
    path = f"encoder/blocks/{name}/kernel"
    for i in range(2):
      a, b = (flat[f"lora/{path}/{x}"][i] for x in "ab")
      more = (a.reshape(-1, 2) @ b.reshape(2, -1)).reshape(
        merged[path][i].shape
      )
      want = flat[path][i] + 2 * more
      np.testing.assert_allclose(merged[path][i], want, rtol=1e-5, atol=1e-5)
  assert lora.merge(lora.merge(params, 2.0), 2.0).keys() == (
    params.keys() - {"lora"}
  )


def test_a_step_costs_two_thirds():
  """No gradient of frozen kernels is computed."""
  made = config("unused", rank=1)
  del made.init
  adapted = build(made).facts["flops_per_example"]
  plain = build(config()).facts["flops_per_example"]
  assert 0.6 < adapted / plain < 0.8


def test_what_is_drawn_has_variance_one_over_fan_in():
  kernel = axes.Named(jnp.zeros((400, 3, 5)), axes.parse("embed -> qkv heads"))
  a, b = lora.pair(kernel, 50, jax.random.key(0), "kernel")
  assert a.value.shape == (400, 50) and b.value.shape == (50, 3, 5)
  assert np.var(a.value) * 400 == pytest.approx(1, rel=0.05)
  assert not np.any(b.value)


@pytest.mark.parametrize(
  ("task", "says"),
  [
    ({"rank": 0}, "task.rank=0: should be 1 or more"),
    ({"alpha": -1.0}, "task.alpha=-1.0: should be a number above 0"),
    ({"kernels": "qkv"}, "task.kernels='qkv' fits no parameter"),
    ({"kernels": "head/bias"}, "head/bias .classes. is no matrix"),
    ({"kernels": "("}, "task.kernels='.': missing"),
    ({"train": "haed/.*"}, "task.train='haed/.*' fits no parameter"),
    ({"of": {"name": "tests.toys"}}, "'tests.toys' can't be adapted"),
  ],
)
def test_mistakes_end_before_training(task, says):
  made = config("unused", **task)
  del made.init
  with pytest.raises(UserError, match=says):
    build(made)
