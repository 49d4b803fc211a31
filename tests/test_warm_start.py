"""Runs that start from another run: what they take, carry, skip and refuse."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests import toys
from tests.runs import assert_same_run, python
from vitscale import cli, study, warm_start
from vitscale import train as train_lib
from vitscale import workdir as workdir_lib
from vitscale.bench import build
from vitscale.core import axes, tree
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.elastic import grow
from vitscale.models import vit
from vitscale.parent import Parent
from vitscale.train import train


def config(parent=None, **changes):
  made = toys.config(total_steps=2, evals={}, **changes)
  if parent is not None:
    made.init = {"from": str(parent)}
  return made


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("parent") / "run"
  train(config(), workdir)
  return workdir


def begun(made):
  return jax.device_get(warm_start.begin(build(made)))


def gap(a, b):
  a, b = tree.flatten(a), tree.flatten(b)
  assert list(a) == list(b)
  return max(float(np.abs(a[k] - b[k]).max()) for k in a)


def test_a_child_starts_where_its_parent_ended(parent):
  state, saved = begun(config(parent, seed=1)), Parent(parent)
  _, variables = workdir_lib.load(parent)
  assert saved.weights == "ema" and saved.step == 2
  assert gap(state["params"], variables["params"]) == 0
  assert gap(state["ema"], variables["params"]) == 0
  assert state["step"] == state["data_step"] == 0
  counts = [x for k, x in tree.flatten(state["opt"]).items() if "mu/" in k]
  assert counts and not any(np.any(x) for x in counts)


def test_runs_that_share_a_compiled_step_keep_their_seed_and_parent(parent):
  configs = config(seed=0), config(seed=1), config(parent, seed=1)
  benches = [train_lib.reuse(made) for made in configs]
  assert len({id(bench.step) for bench in benches}) == 1
  one, two, child = (warm_start.begin(b)["params"] for b in benches)
  drawn = build(configs[1]).init(np.uint32(1))["params"]
  assert gap(two, drawn) == 0 and gap(one, two) > 1e-2
  assert gap(child, begun(configs[2])["params"]) == 0 < gap(child, two)


def test_one_step_of_a_parent_can_be_named(parent):
  made = config(parent / "checkpoints/2")
  assert Parent(made.init["from"]).facts["step"] == 2
  assert (
    Parent(parent).facts["digest"] == Parent(made.init["from"]).facts["digest"]
  )


def test_what_is_skipped_starts_from_the_seed(parent):
  made = config(parent, seed=1)
  made.data = {"source": "fashion_mnist", "size": 8}
  made.init["skip"] = "head/.*"
  bench = build(made)
  state = jax.device_get(warm_start.begin(bench))
  drawn = jax.device_get(bench.init(np.uint32(1)))["params"]
  _, variables = workdir_lib.load(parent)
  assert gap(state["params"]["head"], drawn["head"]) == 0
  for params in (state["params"], variables["params"]):
    params.pop("head")
  assert gap(state["params"], variables["params"]) == 0


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_another_patch_and_image(parent, tmp_path, position):
  """The child is its parent at that patch: PI-resized, tables resampled."""
  if position == "learned":
    parent = tmp_path / "parent"
    train(config(model__position="learned"), parent)
  made = config(parent, seed=1, model__position=position)
  made.init["how"] = "resize"
  made.model.patch_size = 2
  made.data.size = 12
  if position == "sincos2d":
    made.model.position_patch = 4
  bench = build(made)
  params = jax.device_get(warm_start.begin(bench)["params"])
  model, variables = workdir_lib.load(parent)
  image = np.random.default_rng(0).normal(size=(2, 12, 12, 1)).astype("f4")
  mine, _ = bench.model.apply({"params": params}, image)
  theirs, _ = model.apply(variables, image, patch_size=2)
  np.testing.assert_allclose(mine, theirs, atol=1e-5)
  assert params["embed"]["kernel"].shape == (4, 16)
  del made.init["how"]
  with pytest.raises(UserError, match="embed/kernel"):
    begun(made)


@pytest.mark.parametrize(
  ("key", "value"), [("model__width", 32), ("data__channels", 3)]
)
def test_resizing_is_of_patches_and_positions_alone(parent, key, value):
  made = config(parent)
  made.init["how"], made.model.patch_size = "resize", 2
  group, name = key.split("__")
  if name == "channels":
    made.data = {"source": "fields", "size": 8, "n": 64, "channels": value}
    made.init["skip"] = "head/.*"
  else:
    made[group][name] = value
  with pytest.raises(UserError, match="embed/kernel"):
    begun(made)


def test_an_optimizer_can_be_carried(parent):
  made = config(parent)
  made.init["optimizer"] = "carry"
  state = begun(made)
  bench = build(config())
  saved, _ = CheckpointStore(parent / "checkpoints").restore(bench.abstract)
  assert gap(state["opt"], jax.device_get(saved["opt"])) == 0


def test_a_child_resumes_without_its_parent(parent, tmp_path):
  gone = tmp_path / "gone"
  shutil.copytree(parent, gone)
  made = config(gone)
  made.checkpoint = {"every_steps": 1, "keep": 3}
  train(made, tmp_path / "whole")
  train(made, tmp_path / "again")
  shutil.rmtree(tmp_path / "again/checkpoints/2")
  run = read_json(tmp_path / "again/run.json")
  assert run["parents"]["init.from"]["step"] == 2
  write_json(tmp_path / "again/run.json", {**run, "status": "running"})
  shutil.rmtree(gone)
  train(made, tmp_path / "again")
  assert_same_run(tmp_path / "whole", tmp_path / "again")
  assert read_json(tmp_path / "again/run.json")["parents"] == run["parents"]


def test_a_study_runs_the_child_of_another_parent_afresh(parent, tmp_path):
  copy = tmp_path / "parent"
  shutil.copytree(parent, copy)
  run = study.Run("child", config(copy))
  train(run.config, tmp_path / "runs/child")
  said = []
  assert study.find_old(run, tmp_path, False, said.append)
  shutil.rmtree(copy)
  assert study.find_old(run, tmp_path, False, said.append)  # gone, not another
  train(config(seed=5), copy)
  assert study.find_old(run, tmp_path, False, said.append) is None
  assert "the run it started from changed" in said[0]


def test_important_units_come_first(parent):
  made = config(parent)
  made.init["rewire"] = ("mlp", "heads")
  bench = build(made)
  plain, moved = begun(config(parent)), warm_start.begin(bench)
  image = np.zeros((1, *bench.inputs[1]["image"].shape[1:]), np.float32)
  image += np.linspace(-1, 1, image.size).reshape(image.shape)
  apply = lambda params: bench.model.apply({"params": params}, image)[0]
  before, after = apply(plain["params"]), apply(moved["params"])
  np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)
  assert gap(plain["params"], jax.device_get(moved["params"])) > 1e-3


# -------------------------------------------------------------------- growth

SMALL = {
  "family": "pattention_vit", "width": 16, "depth": 1, "num_heads": 2,
  "patch_size": 4, "tokens": 12, "ffn_tokens": 24, "scale_tokens": 12,
  "ffn_scale_tokens": 24,
}  # fmt: skip


WIDE = {
  "family": "vit", "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24,
  "patch_size": 4, "head_dim": 8,
}  # fmt: skip


def logits(bench, params):
  image = np.random.default_rng(0).normal(
    size=(2, *bench.inputs[1]["image"].shape[1:])
  )
  return bench.model.apply({"params": params}, image.astype("f4"))[0]


def grown(parent, small, large, how):
  """(bench and params of the parent, of the child) of one growth."""
  first = config(model=small, ema=0.0)
  train(first, parent)
  second = config(model=large, ema=0.0, seed=3)
  second.init = {"from": str(parent), "how": how, "optimizer": "carry"}
  bench = build(second)
  state = warm_start.begin(bench)
  old = build(first)
  saved = Parent(parent)
  params = saved.read(old.abstract["params"])
  opt = saved.read(old.abstract["opt"], "opt")
  return old, tree.like(old.abstract["params"], params), opt, bench, state


@pytest.mark.parametrize(
  ("how", "small", "changes"),
  [
    ("append", SMALL, {"tokens": 20, "ffn_tokens": 40}),
    (
      "net2net",
      {"family": "vit", "width": 16, "depth": 1, "num_heads": 2,
       "mlp_dim": 24, "patch_size": 4, "head_dim": 8},
      {"num_heads": 3, "mlp_dim": 56},
    ),
    (
      "hypercloning",
      WIDE,
      {"num_heads": 4, "mlp_dim": 48, "width": 32},
    ),
  ],
)  # fmt: skip
def test_a_grown_run_starts_as_good_as_its_parent(
  tmp_path, how, small, changes
):
  old, params, opt, bench, state = grown(
    tmp_path / "small", small, {**small, **changes}, how
  )
  before, after = logits(old, params), logits(bench, state["params"])
  gap = np.abs(before - after).max() / np.abs(before).max()
  assert gap < 2e-6
  moments = tree.flatten(state["opt"])
  assert set(moments) == set(opt)
  for path, x in opt.items():
    if x.ndim == 0:  # the step count of the bias correction
      assert moments[path] == x
  for path, x in tree.flatten(bench.abstract["opt"]).items():
    assert moments[path].shape == x.shape
    assert moments[path].sharding == x.sharding


@pytest.mark.slow
def test_copied_moments_are_those_of_the_copies():
  """What Adam would have gathered, had the large model been trained."""
  small = vit.Model(
    num_classes=3, width=8, depth=1, num_heads=2, mlp_dim=12, patch_size=4,
    head_dim=4,
  )  # fmt: skip
  image = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("f4")
  boxed = small.init(jax.random.key(0), image)
  params, names = axes.unbox(boxed)["params"], axes.names_of(boxed)["params"]
  params = jax.tree.map(
    lambda x: x + 0.1 * np.random.default_rng(1).normal(size=x.shape), params
  )

  def gradient(model, params):
    def loss(params):
      return jax.nn.log_softmax(model.apply({"params": params}, image)[0])[
        :, 0
      ].sum()

    return jax.grad(loss)(params)

  index = {"mlp": grow.copies(12, 30), "heads": grow.copies(2, 3)}
  large = small.clone(mlp_dim=30, num_heads=3)
  wanted = gradient(large, grow.copy(params, names, index))
  g = gradient(small, params)
  found = grow.copy_moments(
    {"mu": g, "nu": jax.tree.map(np.square, g)}, names, index
  )
  assert gap(found["mu"], wanted) < 1e-5
  assert gap(found["nu"], jax.tree.map(np.square, wanted)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("how", ["append", "hypercloning"])
def test_growing_on_eight_devices(tmp_path, how):
  """Placed over a mesh, the grown model and its moments are the same."""
  small = SMALL if how == "append" else WIDE
  more = {"tokens": 24} if how == "append" else {
    "num_heads": 4, "mlp_dim": 48, "width": 32,
  }  # fmt: skip
  train(config(model=small, ema=0.0), tmp_path / "small")
  done = python(
    "-c", EIGHT, tmp_path / "small", json.dumps({**small, **more}), how,
    JAX_PLATFORMS="cpu",
    XLA_FLAGS="--xla_force_host_platform_device_count=8",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["devices"] == 8 and found["gap"] < 1e-6
  assert "warning: init" not in done.stderr


EIGHT = """
import json, sys
import jax, numpy as np
from tests.test_warm_start import config
from vitscale import warm_start
from vitscale.bench import build
from vitscale.core import tree

made = config(model=json.loads(sys.argv[2]), ema=0.0, seed=3)
made.init = {"from": sys.argv[1], "how": sys.argv[3], "optimizer": "carry"}
states = [
  warm_start.begin(build(made, devices=jax.devices()[:n])) for n in (1, 8)
]
one, all_ = (tree.flatten({k: s[k] for k in ("params", "opt")}) for s in states)
gap = max(float(np.abs(np.asarray(one[k]) - np.asarray(all_[k])).max())
          for k in one)
devices = len(next(iter(all_.values())).sharding.device_set)
print(json.dumps({"gap": gap, "devices": devices}))
"""


def test_growing_that_changes_the_function_is_loud(tmp_path, capfd):
  small = {**SMALL, "scale_tokens": None, "ffn_scale_tokens": None}
  large = {**small, "tokens": 24, "ffn_tokens": 48}
  grown(tmp_path / "free", small, large, "append")
  assert "the grown model doesn't compute what" in capfd.readouterr().err
  grown(tmp_path / "kept", SMALL, {**SMALL, "tokens": 24}, "append")
  assert "grown" not in capfd.readouterr().err


# ----------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  ("init", "message"),
  [
    ({"how": "same"}, "config.init wants 'from'"),
    ({"from": "nowhere"}, "nowhere is not a run"),
    ({"hwo": "same"}, "unknown config key 'init.hwo'.*how"),
    ({"how": "clone"}, "init.how 'clone'"),
    ({"how": ["append"]}, r"init.how \['append'\]"),
    ({"optimizer": None}, "init.optimizer None"),
    ({"optimizer": "keep"}, "init.optimizer 'keep'"),
    ({"rewire": ("embed",)}, "init.rewire 'embed'"),
    ({"skip": "haed/.*"}, "skip='haed/.*' fits no parameter"),
    ({"skip": "head/.*", "how": "append"}, "goes with init.how=same"),
    ({"skip": "head/.*", "optimizer": "carry"}, "no moments to carry"),
    ({"skip": "head/*("}, r"init.skip='head/\*\('"),
    ({"rewire": ("mlp",), "optimizer": "carry"}, "in another order"),
  ],
)
def test_bad_init(parent, init, message):
  made = config()
  made.init = init if init == {"how": "same"} else {"from": str(parent)} | init
  with pytest.raises(UserError, match=message):
    begun(made)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"model__mlp_dim": 48}, r"~.*mlp.*\[16, 32\] -> float32\[16, 48\]"),
    ({"model__pool": "map"}, r"\+.*only in the model"),
  ],
)
def test_parents_that_do_not_fit(parent, changes, message):
  with pytest.raises(UserError) as error:
    begun(config(parent, **changes))
  assert "doesn't fit this model" in str(error.value)
  assert "\n" not in str(error.value)


def test_statistics_are_not_left_behind(tmp_path):
  """They come along, or it is an error."""
  made = config(model={"family": "tests.toys"}, ema=0.0)
  train(made, tmp_path / "run")
  _, variables = workdir_lib.load(tmp_path / "run")
  made.init = {"from": str(tmp_path / "run")}
  state = begun(made)
  mean = variables["batch_stats"]["mean"]
  assert np.any(mean) and state["mutable"]["batch_stats"].keys() == {"mean"}
  np.testing.assert_array_equal(state["mutable"]["batch_stats"]["mean"], mean)
  made.init["how"] = "append"
  with pytest.raises(UserError, match="keeps 'batch_stats' beside"):
    begun(made)


def test_a_state_of_another_optimizer_is_not_carried(parent):
  made = config(parent, optim__name="lion")
  made.init["optimizer"] = "carry"
  with pytest.raises(UserError, match="has another optimizer"):
    begun(made)


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ("append", r"init.how=append: .*axis 'mlp' shrinks from 32 to 16"),
    ("net2net", "init.how=net2net: axis 'mlp' shrinks from 32 to 16"),
    ("hypercloning", "init.how=hypercloning: axis 'mlp' shrinks from 32"),
  ],
)
def test_a_parent_larger_than_its_child(parent, how, message):
  made = config(parent, model__mlp_dim=16)
  made.init["how"] = how
  with pytest.raises(UserError, match=message):
    begun(made)


# -------------------------------------------------------- the command line


def test_the_command_grows_a_run_and_a_refusal_leaves_its_workdir_free(
  tmp_path, capsys
):
  """From a config without `init`: small, then bad tries, then large."""
  small, large = tmp_path / "small", tmp_path / "large"
  spec = "pattention:runlocal,depth=1,width=16,tokens={},born=8"

  def command(tokens, workdir, *changes):
    argv = ["train", spec.format(tokens), "--workdir", str(workdir), *changes]
    return cli.main([*argv, "total_steps=2"])

  assert command(8, small) == 0
  capsys.readouterr()
  start, append = f"init.from={small}", "init.how=append"
  for tokens, changes, message in (
    (12, (f"init.from={tmp_path / 'nowhere'}", append), "is not a run"),
    (4, (start, append), "shrinks from 8 to 4"),
    (
      12,
      (start, append, "init.optimizer=carry", "optim.name=lion"),
      "has another optimizer",
    ),
  ):
    assert command(tokens, large, *changes) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error
  assert command(12, large, start, append, "init.optimizer=carry") == 0
  run = read_json(large / "run.json")
  assert run["config"]["init"]["how"] == "append"
  assert run["parents"]["init.from"]["path"] == str(small)
  assert run["config"]["model"]["scale_tokens"] == 8
