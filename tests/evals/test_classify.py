import numpy as np
import pytest

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
