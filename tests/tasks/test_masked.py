"""Filling in what is hidden, and starting from a run that did."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from vitscale import warm_start
from vitscale.bench import build
from vitscale.core import axes, tree
from vitscale.core.config import Reader
from vitscale.core.errors import UserError
from vitscale.models import vit
from vitscale.parent import Parent
from vitscale.tasks import masked
from vitscale.train import train

SIZES = {"width": 16, "depth": 1, "mlp_dim": 32, "num_heads": 2}
TOKENS = vit.Model(
  num_classes=3, vocabulary=10, patch_size=1, pad_token=0, pool="cls",
  position="sincos1d", **SIZES,
)  # fmt: skip
PIXELS = vit.Model(num_classes=3, patch_size=2, position="sincos2d", **SIZES)
RNG = np.random.default_rng(0)


class Source:
  classes, mean, std = 3, (0.0,), (1 / 255,)


def task(**changes):
  return masked.make(Reader(changes), Source)


def batch(model, n=6):
  if model is PIXELS:
    image = RNG.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
  else:
    image = RNG.integers(1, 9, (n, 1, 12, 1)).astype(np.uint8)
    for i in range(n):
      image[i, :, 12 - i :] = 0  # padding; the first has none
  return {"image": image, "label": np.zeros(n, np.int32)}


@functools.cache
def variables(model):
  return axes.unbox(task().init(model, jax.random.key(0), batch(model)))


def loss(model, some, mix=0, **changes):
  rngs = {"dropout": jax.random.key(0), "mix": jax.random.key(mix)}
  return task(**changes).loss(model, variables(model), some, rngs, {})


def test_parameters_are_the_model_s_and_what_fills_in():
  for model, shape in ((TOKENS, (16, 10)), (PIXELS, (16, 4))):
    own = dict(variables(model)["params"])
    assert own.pop("masked")["out"]["kernel"].shape == shape
    x = batch(model)["image"].astype(np.float32)
    plain = jax.eval_shape(lambda m=model, x=x: m.init(jax.random.key(0), x))
    plain = axes.unbox(plain)["params"]
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(
      lambda s: s.shape, plain
    )


@pytest.mark.parametrize("share", [0.15, 0.5, 0.9])
def test_the_share_that_is_hidden(share):
  luck = jax.random.uniform(jax.random.key(0), (400, 1, 12))
  image = np.full((400, 1, 12, 1), 3.0, np.float32)
  image[:, :, 8:] = 0
  hidden = task(share=share)._hidden(TOKENS, image, luck)
  assert not hidden[:, :, 8:].any()  # padding never is
  assert hidden.any((1, 2)).all()  # one at least
  want = share + (1 - share) ** 8 / 8
  assert float(hidden[:, :, :8].mean()) == pytest.approx(want, abs=0.03)
  kept = masked.hide(TOKENS, jnp.asarray(image), hidden, {})
  np.testing.assert_array_equal(kept[..., 0] == 9, hidden)  # the last token
  np.testing.assert_array_equal(kept[~hidden], image[~hidden])


def test_whole_patches_are_hidden():
  x = jnp.ones((2, 8, 8, 1))
  hidden = jnp.zeros((2, 4, 4), bool).at[1, 2, 3].set(True)
  kept = masked.hide(PIXELS, x, hidden, {})
  assert kept[0].all() and not kept[1, 4:6, 6:].any() and kept[1].sum() == 60


def by_hand(model, some, hidden):
  """Loss of every token, (b, rows, columns)."""
  x = task().normalise(some["image"])
  _, out = model.apply(variables(model), masked.hide(model, x, hidden, {}))
  last = variables(model)["params"]["masked"]["out"]
  made = out["features"][-1][0] @ last["kernel"] + last["bias"]
  if model is TOKENS:
    ids = np.asarray(some["image"])[..., 0].astype(int)
    log = jax.nn.log_softmax(made)
    return -jnp.take_along_axis(log, ids[..., None], -1)[..., 0]
  rows = np.asarray(x)[..., 0].reshape(len(x), 4, 2, 4, 2)
  pixels = rows.transpose(0, 1, 3, 2, 4).reshape(len(x), 4, 4, 4)
  return ((made - pixels) ** 2).mean(-1) / 2


@pytest.mark.parametrize("model", [TOKENS, PIXELS], ids=["tokens", "pixels"])
def test_the_loss_is_that_of_hidden_tokens_alone(model):
  some = batch(model)
  grid = (6, 4, 4) if model is PIXELS else (6, 1, 12)
  luck = jax.random.uniform(jax.random.key(5), grid)
  x = task().normalise(some["image"])
  hidden = task()._hidden(model, x, luck)
  nll = by_hand(model, some, hidden)
  value, aux = loss(model, some, mix=5)
  want = (nll * hidden).sum() / hidden.sum()
  assert float(value) == pytest.approx(float(want), rel=1e-4)
  assert 0 <= float(aux["metrics"]["accuracy"]) <= 1
  assert float(loss(model, some, mix=6)[0]) != float(value)  # others hidden


def test_nothing_leaks_from_what_is_hidden():
  """The prediction for a hidden token doesn't depend on what it was."""
  some = batch(TOKENS)
  hidden = jnp.zeros((6, 1, 12), bool).at[:, 0, 4].set(True)
  made = []
  for value in (2, 7):
    image = some["image"].copy()
    image[:, 0, 4] = value
    x = masked.hide(TOKENS, task().normalise(image), hidden, {})
    made.append(TOKENS.apply(variables(TOKENS), x)[1]["features"][-1][0])
  np.testing.assert_array_equal(*made)


def test_scores_depend_on_the_example_alone():
  some = batch(TOKENS)
  said = task().predict(TOKENS, variables(TOKENS), some)
  turned = {k: v[::-1] for k, v in some.items()}
  again = task().predict(TOKENS, variables(TOKENS), turned)
  for key in ("nll", "correct"):
    assert said[key].shape == (6,)
    np.testing.assert_allclose(said[key], again[key][::-1], atol=1e-5)


# ---------------------------------------------------------------------- runs


def config(tmp_path, name, **changes):
  made = toys.config(
    ema=0.0, total_steps=4, data__size=8, train__transform="",
    log__every_steps=4, checkpoint__every_steps=4,
  )  # fmt: skip
  made.evals.val.every_steps = 4
  made.task = {"name": name}
  for key, value in changes.items():
    made[key] = value
  return made


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("masked")
  result = train(config(folder, "masked"), folder / "spt")
  return folder / "spt", result


def test_a_run_fills_in(pretrained):
  _, result = pretrained
  assert result["status"] == "finished"
  assert 0 < result["metrics"]["eval/val/nll"] < 2
  assert "eval/val/ece" not in result["metrics"]


def test_fine_tuning_starts_from_it_and_says_what_is_new(
  pretrained, tmp_path, capsys
):
  path, _ = pretrained
  start = {"from": str(path), "skip": "head/.*|masked/.*"}
  bench = build(config(tmp_path, "classify", init=start))
  state = warm_start.begin(bench)
  mine = tree.flatten(state["params"])
  drawn = tree.flatten(bench.init(np.uint32(bench.config["seed"]))["params"])
  theirs = Parent(path).read(bench.abstract["params"], skip=start["skip"])
  for name, x in mine.items():
    want = drawn if name.startswith("head/") else theirs
    np.testing.assert_array_equal(x, want[name])
  assert set(mine) - set(theirs) == {"head/kernel", "head/bias"}
  text = capsys.readouterr().err
  assert "from the seed: head/bias, head/kernel" in text
  assert "masked/out/bias, masked/out/kernel" in text.split("left behind:")[1]


def test_without_skip_the_difference_is_an_error(pretrained, tmp_path):
  start = {"from": str(pretrained[0])}
  bench = build(config(tmp_path, "classify", init=start))
  with pytest.raises(UserError, match="masked/"):
    warm_start.begin(bench)


@pytest.mark.parametrize(
  ("group", "message"),
  [
    ({"share": 0}, "task.share=0: should be between 0 and 1"),
    ({"share": 1.0}, r"task\.share=1\.0"),
    ({"share": "half"}, "task.share='half'"),
    ({"mixup": 0.1}, "has no labels: drop task.mixup"),
    ({"label_smoothing": 0.1}, "drop task.label_smoothing"),
  ],
)
def test_bad_options(group, message):
  with pytest.raises(UserError, match=message):
    task(**group)


def test_a_family_without_patches_is_refused():
  some = {"image": np.zeros((1, 8, 8, 1), np.uint8)}
  with pytest.raises(UserError, match="toys has no patches to hide"):
    task().init(toys.Model(3), jax.random.key(0), some)
