import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.evals import classify


class Task:
  """Scores are in the batch: what is tested is the averaging."""

  def predict(self, model, variables, batch):
    return {"nll": batch["nll"], "correct": batch["correct"]}


def batches(nll, correct, size):
  for start in range(0, len(nll), size):
    part = slice(start, start + size)
    pad = size - len(nll[part])
    # Padding rows hold nonsense: weight 0 must silence it.
    yield {
      "nll": np.pad(nll[part], (0, pad), constant_values=99.0),
      "correct": np.pad(correct[part], (0, pad), constant_values=1.0),
      "weight": np.pad(np.ones(len(nll[part])), (0, pad)),
    }


@pytest.mark.parametrize("size", [7, 10, 25, 64])
def test_exact_at_uneven_ends(size):
  rng = np.random.default_rng(0)
  nll, correct = rng.exponential(size=50), rng.integers(0, 2, 50).astype(float)
  out = classify.evaluate(
    classify.make(Task(), None), {}, batches(nll, correct, size)
  )
  assert out["examples"] == 50
  assert out["nll"] == pytest.approx(nll.mean(), rel=1e-6)
  assert out["nll_se"] == pytest.approx(nll.std() / 50**0.5, rel=1e-5)
  assert out["accuracy"] == pytest.approx(correct.mean())


# ---------------------------------------------------------------- calibration


class Softmax:
  """Probabilities are in the batch; accuracy follows from them."""

  def predict(self, model, variables, batch):
    p = batch["probabilities"]
    hit = p.argmax(-1) == batch["label"]
    nll = -jnp.log(jnp.take_along_axis(p, batch["label"][:, None], 1)[:, 0])
    return {
      "nll": nll, "correct": hit.astype(jnp.float32), "probabilities": p,
    }  # fmt: skip


def predicted(n=50, k=4):
  rng = np.random.default_rng(1)
  p = rng.dirichlet([0.4] * k, n).astype("f4")
  return p, rng.integers(0, k, n).astype(np.int32)


def ragged(p, label, size):
  for start in range(0, len(p), size):
    pad = max(0, start + size - len(p))
    part = slice(start, start + size)
    nonsense = np.full((pad, p.shape[1]), 0.9, "f4")
    yield {
      "probabilities": np.concatenate([p[part], nonsense]),
      "label": np.pad(label[part], (0, pad)),
      "weight": np.pad(np.ones(len(p[part]), "f4"), (0, pad)),
    }


def by_hand(p, label):
  """Guo et al. equation 3 and Brier's score, bin by bin."""
  p = p.astype(float)
  confidence, right = p.max(1), p.argmax(1) == label
  gap = 0.0
  for m in range(15):
    inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
    if inside.any():
      off = right[inside].mean() - confidence[inside].mean()
      gap += inside.mean() * abs(off)
  return gap, ((p - np.eye(p.shape[1])[label]) ** 2).sum(1).mean()


@pytest.mark.parametrize("size", [7, 10, 64])
def test_calibration_is_that_of_all_examples(size):
  p, label = predicted()
  out = classify.evaluate(
    jax.jit(classify.make(Softmax(), None)), {}, ragged(p, label, size)
  )
  ece, brier = by_hand(p, label)
  assert out["ece"] == pytest.approx(ece, rel=1e-5) and ece > 0.05
  assert out["brier"] == pytest.approx(brier, rel=1e-5)


def test_the_edge_of_a_bin_belongs_to_it():
  """1 is in the last bin, and bins are open below."""
  p = np.array([[1.0, 0.0], [0.6, 0.4]], "f4")
  found = classify.calibration(p, np.array([0, 1]), np.ones(2, "f4"))
  assert np.flatnonzero(found["bins"][0]).tolist() == [8, 14]
  np.testing.assert_allclose(found["bins"][:, 14], [1, 1, 1])
  np.testing.assert_allclose(found["bins"][:, 8], [1, 0.6, 0], rtol=1e-6)


def test_a_sure_and_right_model_has_neither():
  p, label = np.eye(3, dtype="f4"), np.arange(3)
  sums = classify.make(Softmax(), None)
  out = classify.evaluate(sums, {}, ragged(p, label, 2))
  assert out["ece"] == out["brier"] == 0.0


def test_a_task_without_probabilities_has_none():
  sums = classify.make(Task(), None)
  rows = batches(np.ones(4), np.ones(4), 4)
  assert not {"ece", "brier"} & set(classify.evaluate(sums, {}, rows))


def test_every_evaluation_of_a_run_has_it():
  bench = build(toys.config())
  scores = bench.evals["val"].run(bench.init(np.uint32(0)))
  assert scores["ece"] >= 0 and 0 < scores["brier"] < 2


def test_a_fixed_draw_is_evaluated_as_that_call():
  """`draw` of an evaluation: another patch of the same model."""
  config = toys.config(ema=0.0)
  config.evals["small"] = {"split": "val", "draw": {"patch_size": 2},
                           "batch_size": 64}  # fmt: skip
  bench = build(config)
  shapes, rng = bench.abstract["params"], np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), shapes
  )
  state = {"params": params, "mutable": {}}
  canonical, small = (bench.evals[k].run(state) for k in ("val", "small"))
  (batch,) = bench.evals["small"].batches()
  image = bench.task.normalise(batch["image"])
  logits, _ = bench.model.apply({"params": params}, image, patch_size=2)
  nll = bench.task.nll(logits, jax.nn.one_hot(batch["label"], 4))
  expected = (batch["weight"] * nll).sum() / batch["weight"].sum()
  assert small["nll"] == pytest.approx(float(expected), rel=1e-4)
  assert abs(small["nll"] - canonical["nll"]) > 1e-3


@pytest.mark.parametrize(
  "change, words",
  [
    ({"draw": {"patch": 2}}, "evals.val.draw.patch: .* no such argument"),
    ({"draw": {"patch_size": 2}, "name": "nested"}, "'nested' takes no draws"),
  ],
)
def test_bad_draws(change, words):
  config = toys.config()
  for key, value in change.items():
    config.evals.val[key] = value
  with pytest.raises(UserError, match=words):
    build(config)
