"""Selection by inner extrapolation: what it picks, and what it cannot see."""

import json

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError

POWER = laws.power("x", exponent=(-3, 0))
FLOOR = laws.power_constant("x", exponent=(-3, 0))
SHIFTED = laws.shifted("x")
THREE = [POWER, FLOOR, SHIFTED]
TRUTH = {"L0": 0.5, "c": 40.0, "a": -0.5}


def table(seed=0, law=FLOOR, truth=TRUTH, n=16, noise=0.003):
  x = np.geomspace(1e3, 1e6, n)
  e = np.random.default_rng(seed).standard_normal(n)
  return {"x": x, "loss": law(truth, x=x) * np.exp(noise * e)}


def choose(data, laws_=THREE, **options):
  return laws.select(laws_, data, **{"bootstrap": 0, **options})


def test_the_true_law_ranks_first():
  found = choose(table())
  assert min(found.scores, key=found.scores.get) == "power_constant"
  assert "power_constant" in found.picked and "power" not in found.picked
  assert found.scores["power"] > 5 * found.scores["power_constant"]
  line = table(law=POWER, truth={"c": 3.0, "a": -0.1})
  assert "power" in choose(line).picked
  assert found.predict(x=1e8) == pytest.approx(0.5, rel=0.05)


def test_means_are_tried_best_first():
  found = choose(table())
  ranked = sorted(found.scores, key=found.scores.get)
  assert found.picked == tuple(ranked[: int(np.argmin(found.means)) + 1])
  assert found.means[0] == pytest.approx(found.scores[ranked[0]])
  inner = np.array(found.inner["power"])
  assert found.scores["power"] == pytest.approx(np.exp(np.log(inner).mean()))
  assert found.cuts == tuple(table()["x"][[8, 11]])


def test_held_out_rows_change_nothing():
  """Whatever happens beyond the cut, choice and fits stay the same."""
  data = table()
  rng = np.random.default_rng(0)
  first, check = laws.nested_holdout(THREE, data, bootstrap=0)
  assert 0 < check.n_test < 16
  for _ in range(3):
    loss = data["loss"].copy()
    loss[-check.n_test :] *= np.exp(rng.normal(0, 1, check.n_test))
    other, worse = laws.nested_holdout(
      THREE, {**data, "loss": loss}, bootstrap=0
    )
    assert other.as_dict() == first.as_dict()
    assert worse.rmse_log > check.rmse_log
  # The control: rows within the cut do count.
  loss = data["loss"].copy()
  loss[8] *= 1.5
  other, _ = laws.nested_holdout(THREE, {**data, "loss": loss}, bootstrap=0)
  assert other.scores != first.scores


def test_an_ensemble_predicts_the_log_mean():
  found = choose(table(), bootstrap=100)
  each = [f.predict(x=1e7) for f in found.fits]
  assert found.predict(x=1e7) == pytest.approx(np.exp(np.mean(np.log(each))))
  two = laws.Selection(**{
    **vars(found), "fits": tuple(laws.fit(v, table(), bootstrap=100)
                                 for v in (POWER, FLOOR)),
  })  # fmt: skip
  (low, high), ends = (
    two.predict_ci(x=1e7),
    [f.predict_ci(x=1e7) for f in two.fits],
  )
  # The mixture holds what the laws disagree on.
  assert low < two.fits[0].predict(x=1e7) and two.fits[1].predict(x=1e7) < high
  assert high - low > max(b - a for a, b in ends)
  wide = two.predict_ci(x=[1e7, 1e8], runs=1)
  assert wide[0].shape == (2,) and wide[0][0] < low < high < wide[1][0]


def test_nested_check_holds_as_often_as_it_says():
  inside = [
    laws.nested_holdout(THREE, table(s, noise=0.01), share=0.25, bootstrap=0)[1]
    for s in range(30)
  ]
  assert np.mean([c.inside for c in inside]) > 0.85


def test_what_was_no_candidate_is_said():
  data = {k: v[:8] for k, v in table().items()}
  found = choose(data, [POWER, FLOOR, laws.chinchilla()])
  assert set(found.scores) == {"power", "power_constant"}
  assert found.excluded["chinchilla"] == "the data have no column 'N'"
  assert any(
    w.startswith("chinchilla was no candidate") for w in found.warnings
  )
  assert any("rests on fits of 4 rows" in w for w in found.warnings)
  few = choose({k: v[:4] for k, v in data.items()}, [FLOOR, POWER])
  assert few.picked == ("power",) and few.scores == {}
  assert any("too few to choose by" in w for w in few.warnings)
  assert json.loads(json.dumps(few.as_dict(), allow_nan=False))["means"] == []


@pytest.mark.parametrize(
  ("candidates", "says"),
  [([], "no laws"), ([FLOOR, FLOOR], "two laws are called 'power_constant'")],
)
def test_bad_candidates(candidates, says):
  with pytest.raises(UserError, match=says):
    laws.select(candidates, table())
