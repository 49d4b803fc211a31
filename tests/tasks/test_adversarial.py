"""The second stage: who moves, what is paid, and a run that starts and goes on.

What released code got wrong is tested by name: gradients clipped before they
exist, an encoder that is frozen in words, a squared error that is overwritten.
"""

import functools
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tests.marks import mostly_slow
from tests.runs import assert_same_run
from vitscale import warm_start
from vitscale import workdir as workdir_lib
from vitscale.bench import build
from vitscale.core import axes, draws, tree
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.data import sources
from vitscale.models import vitok
from vitscale.tasks import adversarial, reconstruct
from vitscale.train import train

OF = {"name": "reconstruct", "weights": {"l2": 1.0, "l1": 0.1}}
GROUP = {"of": OF, "discriminator": "residual(4, 8)", "freeze": "encoder"}
SGD = {
  "name": "sgd", "lr": 1.0, "b1": 0.0, "weight_decay": 0.0,
  "schedule": {"kind": "constant"},
}  # fmt: skip


def plain(bottleneck="plain(4)", **changes):
  """A config of stage 1."""
  made = toys.config(
    total_steps=4, batch_size=8, evals={}, optim__weight_decay=0.5,
    optim__schedule={"kind": "constant"}, **{"ema": 0.0, **changes},
  )  # fmt: skip
  made.data = {"source": "fields", "size": 8, "n": 64}
  made.train.transform = ""
  made.model = {
    "family": "vitok", "variant": "mu/4", "bottleneck": bottleneck,
    "encoder_depth": 1, "decoder_depth": 1,
  }  # fmt: skip
  made.task = OF
  return made


def config(parent=None, bottleneck="plain(4)", task=None, **changes):
  made = plain(bottleneck, **changes)
  made.task = {"name": "adversarial", **GROUP, **(task or {})}
  made.optim_discriminator = {**made.optim, "lr": 1e-3}
  if parent:
    made.init = {"from": str(parent), "skip": "discriminator/.*"}
  return made


@functools.cache
def setup(loss="hinge"):
  """(task, model, variables, batch), everything paid for."""
  source = sources.make("fields", size=8, n=8)
  asked = {"loss": loss, "weight": 0.5, "r1": 10.0, "r1_every": 4}
  task = adversarial.make({**GROUP, **asked}, source)
  kwargs = vitok.variant("mu/4") | {"encoder_depth": 1, "decoder_depth": 1}
  model = vitok.Model(**kwargs, channels=1, bottleneck="plain(4)")
  batch = {"image": source.read(np.arange(4))["image"]}
  init = lambda key: axes.unbox(task.init(model, key, batch))
  return task, model, jax.jit(init)(jax.random.key(0)), batch


@functools.cache
def said(loss="hinge"):
  """What both players say with everything drawn or nothing: one program.

  Name of the method and draw -> (loss, metrics, gradient or None).
  """
  task, model, variables, batch = setup(loss)
  rngs = dict(zip(("dropout", "mix"), jax.random.split(jax.random.key(1))))

  @jax.jit
  def run(params):
    found = {}
    for name in ("loss", "discriminator_loss"):
      for drawn in (True, False):
        draw = {"r1": drawn, "adversarial": drawn}
        f = lambda p, name=name, draw=draw: getattr(task, name)(
          model, {"params": p}, batch, rngs, draw
        )
        if drawn and loss == "hinge":
          (value, aux), grads = jax.value_and_grad(f, has_aux=True)(params)
        else:
          (value, aux), grads = f(params), None
        found[f"{name} {drawn}"] = value, aux["metrics"], grads
    image = task.normalise(batch["image"])
    found["image"] = image
    found["made"] = model.apply({"params": params}, image)[0]
    return found

  return run(variables["params"])


# ------------------------------------------------------------------ formulas


def test_the_generators_loss_is_everything_weighed():
  """The squared error is in it, and so is the absolute one."""
  loss, metrics, _ = said()["loss True"]
  assert set(metrics) == {"loss", "mse", "l1", "l2", "adversarial"}
  want = metrics["l2"] + 0.1 * metrics["l1"] + 0.5 * metrics["adversarial"]
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  assert metrics["l2"] > 0
  unheard, metrics, _ = said()["loss False"]
  assert metrics["adversarial"] == 0
  want = metrics["l2"] + 0.1 * metrics["l1"]
  np.testing.assert_allclose(unheard, want, rtol=1e-6)


def test_no_term_is_lost_from_the_gradient():
  """Of the last bias by hand: squared and absolute error and score."""
  task, _, variables, _ = setup()
  image, made = (np.asarray(said()[k], np.float64) for k in ("image", "made"))
  of_score = jax.jit(jax.grad(lambda x: -scores(task, variables, x).mean()))
  pull = 2 * (made - image) / image.size
  pull += 0.1 * np.sign(made - image) / image.size
  pull += 0.5 * np.asarray(of_score(said()["made"]))
  want = np.asarray(vitok.patchify(pull, (1, 4, 4))).sum((0, 1, 2, 3))
  got = said()["loss True"][2]["pixels"]["bias"]
  np.testing.assert_allclose(got.reshape(-1), want, rtol=1e-3, atol=1e-6)


def scores(task, variables, x):
  params = {"params": variables["params"]["discriminator"]}
  return task.discriminator.apply(params, x)


@pytest.mark.parametrize("name", mostly_slow(adversarial.LOSSES, "hinge"))
def test_scores_make_the_losses(name):
  task, _, variables, _ = setup(name)
  of = jax.jit(lambda x: scores(task, variables, x))
  real, fake = (
    np.asarray(of(said(name)[k]), np.float64) for k in ("image", "made")
  )
  total, judged, _ = said(name)["discriminator_loss True"]
  _, heard, _ = said(name)["loss True"]
  if name == "hinge":
    want = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
    fool = -fake.mean()
  else:
    want = np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean()
    fool = np.log1p(np.exp(-fake)).mean()
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  close(judged["discriminator"], want)
  close(total, want + judged["r1"])
  close(heard["adversarial"], fool)
  close(judged["real"], real.mean())
  close(judged["fake"], fake.mean())
  plain_loss, cheap, _ = said(name)["discriminator_loss False"]
  assert cheap["r1"] == 0
  close(plain_loss, want)


def test_r1_is_the_squared_gradient_of_real_images():
  """By finite differences along the gradient itself, and `r1_every` times."""
  task, _, variables, _ = setup()
  image = said()["image"]
  f = lambda x: scores(task, variables, x).sum()
  value_and_grad = jax.jit(jax.value_and_grad(f))
  slope = value_and_grad(image)[1]
  squares = jnp.square(slope).sum()
  eps = 1e-3 / jnp.sqrt(squares)
  up, down = (value_and_grad(image + s * eps * slope)[0] for s in (1, -1))
  np.testing.assert_allclose((up - down) / (2 * eps), squares, rtol=1e-2)
  paid = said()["discriminator_loss True"][1]["r1"]
  np.testing.assert_allclose(paid, 4 * 10 / 2 * squares / 4, rtol=1e-4)


def test_a_gradient_reaches_its_player_alone():
  grads = dict(said()["discriminator_loss True"][2])
  judge = grads.pop("discriminator")
  assert not any(np.any(g) for g in jax.tree.leaves(grads))
  for path, g in tree.flatten(judge).items():
    # That of the last bias is 0: a hinge is all slope here, 1 and -1.
    assert np.isfinite(g).all() and np.any(g) != (path == "score/bias"), path
  still = adversarial.FREEZE["encoder"]
  for path, g in tree.flatten(said()["loss True"][2]).items():
    if not path.startswith("discriminator"):
      assert np.any(g) != bool(re.fullmatch(still, path)), path


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"latent_tokens": 3},
    {"encoder_table": True, "bottleneck": "vq(8, 4)"},
    {"hierarchy": "scales(1, blocks=1)"},
  ],
)
def test_the_encoder_is_all_in_front_of_the_decoder(options):
  """What is frozen is what decoding latents doesn't need, whatever its name."""
  made = {"channels": 1, "bottleneck": "plain(4)", **options}
  model = vitok.Model(**vitok.variant("mu/4"), **made)
  image = jnp.zeros((1, 8, 8, 1))
  variables = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  z = jnp.zeros((1, options.get("latent_tokens", 4), 4))
  decode = lambda v, z: model.apply(v, z, (8, 8, 1), method=model.decode)[0]
  traced = jax.make_jaxpr(decode)(variables, z).jaxpr
  read = {id(v) for eqn in traced.eqns for v in eqn.invars}
  paths = list(tree.flatten(variables["params"]))
  for path, v in zip(paths, traced.invars):
    frozen = re.fullmatch(adversarial.FREEZE["encoder"], path) is not None
    assert frozen == (id(v) not in read), path


# ---------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("stage1") / "run"
  train(plain("vq(8, 4, ema=0.9, revive=0.1)"), workdir)
  return workdir


def second(parent, **changes):
  return config(
    parent, "vq(8, 4, ema=0.9, revive=0.1)", {"r1": 1.0, "r1_every": 2},
    ema=0.5, **changes,
  )  # fmt: skip


@pytest.fixture(scope="module")
def child(parent, tmp_path_factory):
  """Stage 2, its bench and what it began with."""
  workdir = tmp_path_factory.mktemp("stage2") / "run"
  made = second(parent)
  done = train(made, workdir)
  bench = build(made)
  return workdir, done, bench, jax.device_get(warm_start.begin(bench))


def frozen(params):
  flat = tree.flatten(params)
  still = adversarial.FREEZE["encoder"]
  return {k: x for k, x in flat.items() if re.fullmatch(still, k)}


def test_the_encoder_does_not_move(parent, child):
  """Nor by weight decay, nor its codebook; the decoder and D do."""
  workdir, _, bench, begun = child
  _, before = workdir_lib.load(parent)
  _, after = workdir_lib.load(workdir)  # the average
  assert bench.config["optim"]["weight_decay"] == 0.5
  old, new = frozen(before["params"]), frozen(after["params"])
  assert old.keys() == new.keys() and len(old) > 10
  for path in old:
    np.testing.assert_array_equal(old[path], new[path], err_msg=path)
  for key in ("share", "sums"):
    a, b = (v["codebook"]["neck"][key] for v in (before, after))
    np.testing.assert_array_equal(a, b)
  moved = tree.flatten(begun["params"])
  for path, x in tree.flatten(after["params"]).items():
    still = path in old or path == "discriminator/score/bias"
    assert still != np.any(x != moved[path]), path


def test_stage_2_begins_where_stage_1_ended(parent, child):
  *_, bench, begun = child
  _, before = workdir_lib.load(parent)
  drawn = jax.device_get(bench.init(np.uint32(0)))["params"]
  for path, x in tree.flatten(begun["params"]).items():
    old = drawn if path.startswith("discriminator") else before["params"]
    np.testing.assert_array_equal(x, tree.flatten(old)[path], err_msg=path)
  sums = begun["mutable"]["codebook"]["neck"]["sums"]
  np.testing.assert_array_equal(sums, before["codebook"]["neck"]["sums"])
  assert not np.array_equal(sums, bench.init(np.uint32(0))["mutable"]
    ["codebook"]["neck"]["sums"])  # fmt: skip


def test_frozen_parameters_have_no_optimizer_state(child):
  *_, begun = child
  found = list(tree.flatten(begun["opt"]["generator"]))
  assert found and not any("encoder" in path for path in found)
  assert any("decoder" in path for path in found)
  judge = list(tree.flatten(begun["opt"]["discriminator"]))
  assert all("discriminator" in k for k in judge if "/" in k and "mu" in k)


def test_a_run_says_what_both_players_do(child):
  _, done, *_ = child
  names = ("loss", "l1", "l2", "commit", "adversarial", "discriminator", "r1")
  for name in names:
    assert np.isfinite(done["metrics"][f"train/{name}"]), name
  assert done["metrics"]["train/r1"] > 0


def test_it_resumes_as_if_nothing_had_been(parent, child, tmp_path):
  workdir, *_ = child
  again = tmp_path / "again"
  shutil.copytree(workdir, again)
  shutil.rmtree(again / "checkpoints/4")
  run = read_json(again / "run.json")
  write_json(again / "run.json", {**run, "status": "running"})
  train(second(parent), again)
  assert_same_run(workdir, again)


CLIP = {"generator": 1e-3, "discriminator": 2e-3}


@functools.cache
def stepped():
  """(parameters before, after) a step of both players by plain descent."""
  made = config(task={"weight": 1.0})
  made.optim = {**SGD, "clip_norm": CLIP["generator"]}
  made.optim_discriminator = {**SGD, "clip_norm": CLIP["discriminator"]}
  bench = build(made)
  state = bench.init(np.uint32(0))
  old = jax.device_get(state["params"])
  batch = next(bench.batches(0, 0))
  lrs = dict.fromkeys(CLIP, np.float32(1))
  new = bench.step(state, batch, np.uint32(0), lrs)["params"]
  return old, jax.device_get(new)


@pytest.mark.parametrize("player", CLIP)
def test_gradients_are_clipped_after_they_are_made(player):
  """A step of plain descent at rate 1 is as long as the clipped gradient."""
  old, new = (tree.flatten(params) for params in stepped())
  change = [
    np.square(np.asarray(x, np.float64) - old[path]).sum()
    for path, x in new.items()
    if path.startswith("discriminator/") == (player == "discriminator")
  ]
  np.testing.assert_allclose(sum(change) ** 0.5, CLIP[player], rtol=1e-3)


def test_draws_say_when_what_is_paid():
  asked = {"r1": 1.0, "r1_every": 3, "start_percent": 50.0}
  source = sources.make("fields", size=8, n=8)
  made = draws.over(adversarial.make({**GROUP, **asked}, source).draws, 4)
  told = [draws.at(made, 0, step) for step in range(4)]
  assert [s["r1"] for s in told] == [True, False, False, True]
  assert [s["adversarial"] for s in told] == [False, False, True, True]
  shares = {draw["r1"]: share for share, draw in draws.outcomes(made[:1])}
  assert shares == {True: pytest.approx(1 / 3), False: pytest.approx(2 / 3)}
  assert adversarial.make({**GROUP, "r1_every": 3}, source).draws == ()


@pytest.mark.parametrize(
  "group, text",
  [
    ({"loss": "hing"}, r"task\.loss 'hing', did you mean 'hinge'"),
    ({"freeze": "encoders"}, r"freeze 'encoders', did you mean 'encoder'"),
    ({"weight": -0.1}, r"task\.weight=-0\.1: should be 0 or more"),
    ({"weight": True}, r"task\.weight=True: should be 0 or more"),
    ({"r1": float("nan")}, r"task\.r1=nan: should be 0 or more"),
    ({"r1_every": 0}, r"r1_every=0: should be 1 step or more"),
    ({"start_percent": 100}, r"start_percent=100: should be in \[0, 100\)"),
    ({"discriminator": "patch(8, 3)"}, "images need 24 pixels a side"),
    ({"discriminator": "pach"}, "no such discriminator.*'patch'"),
    ({"of": {"name": "classify"}}, "'adversarial' wants 'reconstruct'"),
  ],
)  # fmt: skip
def test_refuses(group, text):
  made = config()
  made.task = {**made.task, **group}
  with pytest.raises(UserError, match=text) as error:
    build(made)
  assert "\n" not in str(error.value)


def test_reconstruct_is_what_is_predicted():
  task, model, variables, batch = setup()
  said = task.predict(model, variables, batch)
  own = {k: v for k, v in variables["params"].items() if k != "discriminator"}
  plain_task = reconstruct.make(OF, sources.make("fields", size=8, n=8))
  want = plain_task.predict(model, {"params": own}, batch)
  for name in want:
    np.testing.assert_array_equal(said[name], want[name])
