"""Next scale: a real tokenizer, its codes, a run on them, and its samples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from vitscale import encode, workdir
from vitscale.bench import build
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.parent import Parent
from vitscale.sampling import scale_kv
from vitscale.tasks import next_scale
from vitscale.tokenizer import Tokenizer
from vitscale.train import train
from vitscale.warm_start import begin

SCALES, N = (1, 2, 4), 21
NECK = f"residual_vq(16, 4, {SCALES})"
STEPS = 150


def tokenizer_config(bottleneck=NECK):
  made = toys.config(total_steps=200, batch_size=32)
  made.data = {"source": "fashion_mnist", "size": 8, "limit": 2000}
  made.train.transform = ""
  made.model = {
    "family": "vitok", "variant": "mu/2", "bottleneck": bottleneck,
    "encoder_depth": 1, "decoder_depth": 1,
  }  # fmt: skip
  made.task = {"name": "reconstruct"}
  made.ema, made.evals = 0.0, {}
  made.log.every_steps = made.checkpoint.every_steps = 200
  return made


def config(folder, **changes):
  made = toys.config(total_steps=STEPS, batch_size=32, ema=0.0, optim__lr=1e-2)
  made.data = {"source": "latents", "path": str(folder)}
  made.train.transform = ""
  made.model = {
    "family": "var", "variant": "mu", "depth": 1, "channels": 4,
    "scales": SCALES,
  }  # fmt: skip
  made.task = {"name": "next_scale"}
  made.evals.val.name = "tokens"
  made.evals.val.every_steps = made.log.every_steps = STEPS
  made.checkpoint.every_steps = STEPS
  for key, value in changes.items():
    made.model[key] = value
  return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Codes that a trained tokenizer made of images, and its run beside."""
  here = tmp_path_factory.mktemp("codes")
  train(tokenizer_config(), here / "tokenizer")
  encode.encode(here / "tokenizer", here / "codes", splits=["train", "val"])
  return here / "codes"


@pytest.fixture(scope="module")
def parts(folder):
  """(bench, variables as a run begins with, a batch)."""
  bench = build(config(folder))
  state = begin(bench)
  batches = bench.batches(0, 0)
  batch = next(batches)
  batches.close()
  return bench, {"params": state["params"], **state["mutable"]}, batch


def moved(variables):
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
  return {**variables, "params": jax.tree.map(move, variables["params"])}


def rngs(seed=0):
  keys = jax.random.split(jax.random.key(seed))
  return {"dropout": keys[0], "mix": keys[1]}


def test_the_tokenizer_s_bottleneck_is_read(parts, folder):
  bench, variables, batch = parts
  tokenizer = Tokenizer(folder.parent / "tokenizer")
  want = tokenizer.variables["params"]["neck"]
  jax.tree.map(np.testing.assert_array_equal, variables["teacher"], want)
  assert bench.facts["tokens_per_example"] == N
  assert batch["image"].shape == (32, 1, N, 1)
  assert batch["image"].dtype == np.int32


def test_the_loss_by_hand(parts):
  """Cross-entropy of the tokenizer's codes, shown what it adds up to."""
  bench, variables, batch = parts
  variables = moved(variables)
  task = dataclasses.replace(bench.task, drop_label=0.0)
  run = jax.jit(lambda v, b: task.loss(bench.model, v, b, rngs(), {}))
  loss, aux = run(variables, batch)
  codes = batch["image"][:, 0, :, 0]
  shown = task.neck.apply(
    {"params": variables["teacher"]}, codes, method="inputs"
  )
  own = {"params": variables["params"]}
  logits, _ = bench.model.apply(own, shown, batch["label"])
  share = np.asarray(jax.nn.softmax(logits.astype(jnp.float32)), np.float64)
  nll = -np.log(np.take_along_axis(share, codes[..., None], -1))[..., 0]
  metrics = aux["metrics"]
  np.testing.assert_allclose(loss, nll.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["loss_last"], nll[:, 5:].mean(), rtol=1e-5)
  hits = share.argmax(-1) == codes
  np.testing.assert_allclose(metrics["accuracy"], hits.mean(), rtol=1e-5)

  said = jax.jit(functools.partial(task.predict, bench.model))(variables, batch)
  np.testing.assert_allclose(said["nll"], nll.mean(1), rtol=1e-4)
  np.testing.assert_allclose(said["correct"], hits.mean(1), rtol=1e-5)
  each = [nll[:, 0], nll[:, 1:5].mean(1), nll[:, 5:].mean(1)]
  np.testing.assert_allclose(said["losses"], np.stack(each, 1), rtol=1e-4)


def test_a_new_model_pays_the_logarithm_of_the_codebook(parts):
  bench, variables, batch = parts
  said = bench.task.predict(bench.model, variables, batch)
  np.testing.assert_allclose(said["nll"], np.log(16), rtol=1e-6)


class Spy:
  """A model that keeps the labels it is told and says that all are alike."""

  num_classes = 10

  def apply(self, variables, shown, label=None, **kwargs):
    self.saw = label
    return (jnp.zeros((len(shown), N, 16)), {}), {}


def test_a_share_of_labels_is_dropped(parts):
  bench, variables, batch = parts
  big = {k: np.tile(x, (50,) + (1,) * (x.ndim - 1)) for k, x in batch.items()}
  for share in (0.0, 0.25):
    task = dataclasses.replace(bench.task, drop_label=share)
    task.loss(spy := Spy(), variables, big, rngs(), {})
    label = np.asarray(spy.saw)
    assert abs((label == 10).mean() - share) < 0.05
    kept = label != 10
    np.testing.assert_array_equal(label[kept], big["label"][kept])


def test_nothing_moves_the_tokenizer(parts):
  bench, variables, batch = parts
  task = bench.task
  loss = lambda v: task.loss(bench.model, v, batch, rngs(), {})[0]
  grads = jax.jit(jax.grad(loss))(moved(variables))
  assert not any(np.any(g) for g in jax.tree.leaves(grads["teacher"]))
  assert any(np.any(g) for g in jax.tree.leaves(grads["params"]))


def test_a_run_learns_and_its_samples_are_images(folder, tmp_path):
  """Well below the cross-entropy of tokens that know nothing of each other."""
  done = train(config(folder), tmp_path / "run")["metrics"]
  codes = {
    split: sources.make("latents", split=split, path=str(folder))
    for split in ("train", "val")
  }
  rows = lambda s: s.read(np.arange(len(s)))["image"][:, 0, :, 0]
  seen, held_out = rows(codes["train"]), rows(codes["val"])
  counts = np.stack([np.bincount(x, minlength=16) for x in seen.T]) + 1.0
  share = counts / counts.sum(1, keepdims=True)
  alone = -np.log(share[np.arange(N), held_out]).mean()
  assert done["eval/val/nll"] < 0.85 * alone, (done["eval/val/nll"], alone)

  bench, variables, step = workdir.restored(tmp_path / "run")
  assert step == STEPS
  tokenizer = Tokenizer(folder.parent / "tokenizer")
  own = Parent(folder.parent / "tokenizer").read(tokenizer.variables["params"])
  np.testing.assert_array_equal(
    variables["teacher"]["codebook"], own["neck/codebook"]
  )
  shape = bench.inputs[1]["image"].shape[1:]
  label = np.arange(32) % 10
  made = bench.task.sample(
    bench.model, variables, jax.random.key(0), label, shape, guidance=2.0
  )
  assert made.shape == (32, 1, N, 1) and made.dtype == jnp.int32
  pixels = tokenizer.decode(made)
  assert pixels.shape == (32, 8, 8, 1) and pixels.dtype == np.uint8
  # Samples are nearer to the data's mean code use than uniform ones.
  drawn = np.stack(
    [np.bincount(x, minlength=16) for x in np.asarray(made)[:, 0, :, 0].T]
  )
  far = lambda p: np.abs(p - share).sum(1).mean()
  assert far(drawn / 32) < far(np.full((N, 16), 1 / 16))


def test_a_plan_says_which_tokens_are_kept(parts, tmp_path):
  bench, variables, _ = parts
  variables, label = moved(variables), np.arange(8)
  sample = functools.partial(
    bench.task.sample, bench.model, variables, jax.random.key(0), label,
    (1, N, 1),
  )  # fmt: skip
  files = []
  for rows in (((1,), (5,)), ((1,), (2,))):
    files.append(tmp_path / f"{rows[1][0]}.json")
    scale_kv.save(scale_kv.Plan(rows, window=1, start=0), files[-1])
  want = np.asarray(sample())
  full, less = (np.asarray(sample(cache=str(file))) for file in files)
  np.testing.assert_array_equal(full, want)
  np.testing.assert_array_equal(less[:, :, :5], want[:, :, :5])
  assert np.any(less != want)
  with pytest.raises(UserError, match=r"none\.json is not there"):
    sample(cache="none.json")


@pytest.mark.parametrize(
  "changes, text",
  [
    ({"family": "vit", "variant": "mu/4"}, r"use model\.family='var'"),
    ({"scales": (1, 4)}, r"set model\.scales=\(1, 2, 4\)"),
    ({"vocabulary": 8}, r"model\.vocabulary=8: .* are of 16"),
    ({"channels": 2}, r"set model\.channels=4"),
    ({"num_classes": 2}, "data have 10"),
  ],
)
def test_refuses_models(folder, changes, text):
  made = config(folder)
  made.model = {**made.model, **changes}
  if "family" in changes:
    made.model = changes
  with pytest.raises(UserError, match=text) as error:
    build(made)
  assert "\n" not in str(error.value)


def test_refuses_data(folder, tmp_path):
  codes = sources.make("latents", path=str(folder))
  pixels = sources.make("strokes", size=8, n=8)
  other = dataclasses.replace(codes.tokenizer, fingerprint="0" * 16)
  cases = [
    (pixels, {}, "wants codes of a tokenizer"),
    (dataclasses.replace(codes, tokenizer=other), {}, "not the tokenizer of"),
    (dataclasses.replace(codes, shape=(4, 4, 1)), {}, r"makes \(1, 21, 1\)"),
    (codes, {"drop_label": 1.0}, r"drop_label=1\.0"),
  ]
  for source, group, text in cases:
    with pytest.raises(UserError, match=text) as error:
      next_scale.make(Reader({"task": group}).group("task"), source)
    assert "\n" not in str(error.value)


def test_refuses_a_tokenizer_of_one_scale(folder, tmp_path):
  made = tokenizer_config("vq(16, 4)")
  made.total_steps = made.checkpoint.every_steps = made.log.every_steps = 1
  train(made, tmp_path / "run")
  codes = sources.make("latents", path=str(folder))
  origin = dataclasses.replace(codes.tokenizer, path=str(tmp_path / "run"))
  with pytest.raises(UserError, match=r"has 'vq\(16, 4\)', one scale"):
    next_scale.make({}, dataclasses.replace(codes, tokenizer=origin))


def test_refuses_samples(parts):
  bench, variables, _ = parts
  sample = functools.partial(
    bench.task.sample, bench.model, variables, jax.random.key(0), np.zeros(2)
  )
  with pytest.raises(UserError, match=r"make \(1, 21, 1\)"):
    sample((4, 4, 1))
  task = dataclasses.replace(bench.task, drop_label=0.0)
  with pytest.raises(UserError, match="trained with drop_label=0"):
    task.sample(
      bench.model, variables, jax.random.key(0), np.zeros(2), (1, N, 1),
      guidance=2.0,
    )  # fmt: skip
  with pytest.raises(UserError, match="codes of a tokenizer are no pixels"):
    task.normalise(jnp.zeros((1, 1, N, 1)))
  made = config_with_draw(bench)
  with pytest.raises(UserError, match=r"draws\.label: the task draws it"):
    build(made)


def config_with_draw(bench):
  made = config(bench.config["data"]["path"])
  made.draws = {"label": {"values": (0, 1), "weights": (1.0, 1.0)}}
  return made
