"""Samples against held-out images: worse ones are further, by every damage."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tests.tasks.test_diffuse import config as diffuse_config
from vitscale import evals
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.data import source as source_lib
from vitscale.data import sources
from vitscale.evals import generation
from vitscale.metrics import features, moments

N = 320
FD, KID = "fd_random_conv", "kid_random_conv"


@pytest.fixture(autouse=True)
def anew():
  """What was said to another test is said again."""
  evals.warn.cache_clear()


@functools.cache
def clothes(split):
  data = sources.make("fashion_mnist", split=split, limit=N)
  return data.read(np.arange(N))


class Model:
  num_classes = 10


class Plain:
  num_classes = 0


class Task:
  """A generator that remembers: images of a class, with some damage."""

  def __init__(self):
    read = clothes("train")
    self.image, self.label = jnp.asarray(read["image"]), read["label"]
    self.told = []

  def sample(
    self, model, variables, key, label, shape, *, guidance=None, blur=0,
    noise=0.0, classes=10,
  ):  # fmt: skip
    assert shape == (28, 28, 1)
    self.told.append((np.asarray(label), guidance))
    pick, draw = jax.random.split(key)
    label = np.asarray(label) % classes
    same = jnp.asarray(label[:, None] == self.label)
    if not model.num_classes:
      same = jnp.ones_like(same)
    at = jax.random.categorical(pick, jnp.where(same, 0.0, -jnp.inf))
    x = self.image[at].astype(jnp.float32)
    for axis in (1, 2) * blur:
      near = jnp.roll(x, 1, axis) + jnp.roll(x, -1, axis)
      x = x / 2 + near / 4
    x += noise * 255 * jax.random.normal(draw, x.shape)
    return jnp.clip(jnp.rint(x), 0, 255).astype(jnp.uint8)


def batches(size=64, n=N):
  read = clothes("val")
  for start in range(0, n, size):
    part = {k: v[:n][start : start + size] for k, v in read.items()}
    pad = size - len(part["label"])
    whole = {
      k: np.concatenate([v, np.zeros((pad, *v.shape[1:]), v.dtype)])
      for k, v in part.items()
    }
    yield whole | {"weight": np.pad(np.ones(size - pad, "f4"), (0, pad))}


def scores(model=Model, task=None, size=64, n_data=N, **options):
  made = generation.make(task or Task(), model(), **options)
  return generation.evaluate(made, {}, batches(size, n_data), **options)


@functools.cache
def good():
  return scores()


def test_samples_of_the_data_are_near_the_floor():
  found = good()
  assert found["examples"] == N
  assert set(found) == {"examples"} | {
    f"{name}_random_conv{part}{se}"
    for name, parts in (("fd", ("", "_floor")), ("kid", ("",)),
                        ("precision", ("",)), ("recall", ("",)))
    for part in parts for se in ("", "_se")
  }  # fmt: skip
  assert all(np.isfinite(value) for value in found.values())
  assert found[FD] < found[f"{FD}_floor"] + 3 * found[f"{FD}_floor_se"]
  assert abs(found[KID]) < 4 * found[f"{KID}_se"]
  assert found["precision_random_conv"] > 0.7 < found["recall_random_conv"]


@pytest.mark.parametrize(
  "levels",
  [
    ("blur=1", "blur=3", "blur=9"),
    ("noise=0.05", "noise=0.15", "noise=0.5"),
    ("classes=7", "classes=4", "classes=1"),  # modes that are dropped
  ],
)
def test_damage_is_further_and_further(levels):
  steps = [good(), *(scores(sample=level) for level in levels)]
  for better, worse in itertools.pairwise(steps):
    assert worse[FD] > better[FD]
    assert worse[KID] > better[KID]
  error = np.hypot(steps[0][f"{FD}_se"], steps[-1][f"{FD}_se"])
  assert steps[-1][FD] - steps[0][FD] > 4 * error
  # What is dropped is missed, and damage is seen as such.
  which = "recall" if "classes" in levels[0] else "precision"
  name = f"{which}_random_conv"
  assert steps[-1][name] < steps[0][name] - 5 * steps[0][f"{name}_se"]


def test_classes_keys_and_options():
  label = clothes("val")["label"]
  task = Task()
  found = scores(task=task, size=128, guidance=2.0)
  told = np.concatenate([one for one, _ in task.told])
  np.testing.assert_array_equal(told[:N], label)
  assert [w for _, w in task.told] == [2.0] * 3 and len(told) == 384
  assert found == scores(size=128, guidance=2.0)
  assert found[FD] != scores(size=128, seed=1)[FD]
  # More and fewer samples, of classes as the data have them.
  for n in (330, 2 * N + 7, 40):
    drawn = generation._drawn(label, n, 0)
    assert len(drawn) == n
    counts, own = (np.bincount(x, minlength=10) for x in (drawn, label))
    assert ((counts >= n // N * own) & (counts <= (n // N + 1) * own)).all()
    assert np.abs(counts - n / 10).max() < 10 and n % N not in counts
  assert scores(n=330)["examples"] == 330
  plain = Task()
  scores(Plain, plain)
  assert not np.concatenate([one for one, _ in plain.told]).any()


def test_the_numbers_are_those_of_the_features():
  """All at once, by hand."""
  task, model = Task(), Model()
  read = clothes("val")
  made = generation.make(task, model)
  key = jax.random.fold_in(jax.random.key(3), 0)
  x = made({}, {**read, "key": key})
  see = lambda x: np.asarray(features.features(np.asarray(x, "f4") / 255))
  want = moments.frechet(moments.of(see(read["image"])), moments.of(see(x)))
  assert scores(size=N, seed=3)[FD] == pytest.approx(want, rel=1e-3)


def test_too_few_are_left_out(capfd):
  for _ in range(2):
    found = scores(n_data=64)
  assert FD not in found and KID in found and found["examples"] == 64
  assert capfd.readouterr().err == (
    "warning: evals: generation: fd_random_conv is left out: 64 images, it"
    " needs 300\n"
  )
  assert not scores(n_data=64, fd=False).keys() & {FD, f"{FD}_floor"}
  assert capfd.readouterr().err == ""
  generation.require(300), generation.require(400, n=300)
  generation.require(20, fd=False), generation.require(1, fd=False, kid=False)
  for found in ((299, None), (400, 299)):
    with pytest.raises(UserError, match=r"needs 300 images, there are 299"):
      generation.require(found[0], n=found[1])


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"sample": "blurr=1"}, "no 'blurr', did you mean 'blur'?"),
    ({"sample": "guidance=1"}, "no 'guidance' "),
    ({"sample": "3"}, "name the options, as steps=50"),
    ({"sample": "a=("}, "cannot read"),
    ({"n": 0}, "n=0: should be 1 or more"),
    ({"net": "inceptoin"}, "did you mean 'inception'?"),
  ],
)
def test_bad_options(options, says):
  with pytest.raises(UserError) as error:
    scores(**options)
  assert says in str(error.value) and "\n" not in str(error.value)


def test_latents_need_their_tokenizer():
  """With it, both sides are decoded."""

  class Latents(Task):
    def sample(self, *args, **kwargs):
      return super().sample(*args, **kwargs) / 255 - 0.5

  def turned():
    for one in batches():
      yield one | {"image": one["image"] / np.float32(255) - np.float32(0.5)}

  made = generation.make(Latents(), Model())
  with pytest.raises(UserError, match="the data are float32"):
    generation.evaluate(made, {}, turned())

  class Tokenizer:
    def decode(self, z):
      return np.rint((z + 0.5) * 255).astype(np.uint8)

  origin = source_lib.Origin("here", "0", (28, 28, 1))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generation, "_tokenizer", {origin: Tokenizer()}.__getitem__)
    found = generation.evaluate(made, {}, turned(), tokenizer=origin)
  assert found == good()


# ---------------------------------------------------------- as an evaluation


def bench_of(made, **group):
  made.evals = {
    "val": {"name": "generation", "split": "val", "batch_size": 12, **group}
  }
  return build(made)


def test_a_diffusion_run():
  made = diffuse_config()
  bench = bench_of(made, n=26, guidance=1.5, sample="steps=2, sampler='euler'")
  state = bench.init(np.uint32(0))
  found = bench.evals["val"].run(state)
  assert found["examples"] == 26
  assert 0 <= found["precision_random_conv"] <= 1
  assert found["kid_random_conv"] > 4 * found["kid_random_conv_se"]  # untrained
  with pytest.raises(UserError, match=r"evals\.val: .*sampler 'eular'"):
    bench_of(diffuse_config(), sample="sampler='eular'")


def test_a_task_that_makes_nothing():
  with pytest.raises(UserError, match="wants a task that makes samples"):
    bench_of(toys.config())
