"""The table of a nested run's parts, and what is concluded from one."""

import json
import math

import numpy as np
import pytest

from tests.runs import complaint, contents
from tests.tasks.test_nested import config
from vitscale import cli
from vitscale.core.errors import UserError
from vitscale.elastic import cut, evaluate
from vitscale.elastic import spec as spec_lib
from vitscale.evals import retrieval
from vitscale.train import train

NARROW = "heads=1/2 embed=1/2 ffn=1/2"


def measured(models, *, image, batch, repeats):
  """Milliseconds that say which model was asked for how."""
  assert image == (8, 8, 1)
  per_layer = [np.sum(np.broadcast_to(m.mlp_dim, m.depth)) for m in models]
  return [float(width + 100 * batch + repeats) for width in per_layer]


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("nested") / "run"
  train(config(granularities=("ffn=1/4", "full"), total_steps=6), workdir)
  return workdir


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("narrow") / "run"
  made = config(
    granularities=(NARROW, "full"), total_steps=2, model__num_heads=4,
  )  # fmt: skip
  train(made, workdir)
  return cut.open_run(workdir, nested=True)


# -------------------------------------------------------------------- frontier


def test_rows_are_the_models_that_cut_writes(nested, tmp_path):
  specs = ("full", "ffn=1/4,1", "ffn=1/2", "ffn=1/4")
  before = contents(nested)
  found = evaluate.frontier(
    nested, specs, batch_size=2, repeats=7, measure=measured
  )
  assert contents(nested) == before
  assert found["on"] == "val" and found["batch_size"] == 2
  rows = {row["spec"]: row for row in found["rows"]}
  assert {spec: row["kind"] for spec, row in rows.items()} == {
    "full": "trained", "ffn=1/4": "trained", "ffn=1/4,1": "mix",
    "ffn=1/2": "unseen",
  }  # fmt: skip
  macs = [row["macs"] for row in found["rows"]]
  assert macs == sorted(macs) and len(set(macs)) == 4
  for number, spec in enumerate(("ffn=1/4,1", "ffn=1/2")):
    alone = cut.cut(nested, tmp_path / str(number), spec=spec)
    assert rows[spec]["params"] == alone["params"]
    assert rows[spec]["macs"] / 1e9 == alone["gmacs_per_image"]
    for name, value in alone["metrics"]["cut"].items():
      mine = rows[spec][name.removeprefix("val/")]
      assert mine == pytest.approx(value, rel=1e-5), name
  # Of the small models themselves: 32 hidden units in each of two layers.
  assert [rows[spec]["latency"] for spec in specs] == [271, 247, 239, 223]
  best = evaluate.efficient([(r["macs"], r["accuracy"]) for r in found["rows"]])
  assert sum(row["efficient"] for row in found["rows"]) == len(best)


@pytest.mark.slow
def test_the_ledger_of_a_sampled_run(nested):
  """Half of the steps train each of two: the mean, half of the sum."""
  big = cut.open_run(nested, nested=True)
  paid = evaluate.paid(big)
  share = paid["of one whole"]
  assert 0.5 < share < 1 and paid["models"] == 2
  assert paid["of all separate"] == pytest.approx(0.5)
  assert (paid["updates"], paid["images"], paid["unique"]) == (6, 96, 64)


def test_mixes_grow_steeper_until_there_are_enough(nested):
  class Big:
    class bench:
      pass

  Big.bench.model = cut.open_run(nested, nested=True).bench.model.clone(depth=4)
  Big.bench.task = type("Task", (), {"granularities": (
    "ffn=1/8", "ffn=1/4", "ffn=1/2", "full")})  # fmt: skip
  least = evaluate.mixes(Big, least=9)
  assert len(least) == 4 + 9  # neighbours: 3 pairs of levels, 3 places
  slopes = least[4:]
  assert all(list(spec.ffn) == sorted(spec.ffn) for spec in slopes)
  assert all(len(set(spec.ffn)) == 2 for spec in slopes)
  more = evaluate.mixes(Big)
  assert set(least) <= set(more) and len(more) == 4 + 9 + 2 * 6
  assert len(set(more)) == len(more)


def test_what_was_trained_of_widths(narrow):
  kind = lambda text: evaluate.kind(narrow, spec_lib.parse(text))
  assert kind(NARROW) == kind("full") == kind("heads=4") == "trained"
  assert kind("ffn=1/2") == "mix"
  assert kind("heads=3/4 embed=3/4 ffn=3/4") == "unseen"
  assert [str(s) for s in evaluate.mixes(narrow)] == [
    str(spec_lib.parse(NARROW)), "full",
  ]  # fmt: skip


def test_an_unseen_width_is_scored_and_has_its_own_features(narrow):
  batches = narrow.bench.evals["val"].batches
  odd = "heads=3/4 embed=3/4 ffn=3/4"
  found = evaluate.scores(narrow, odd, batches())
  assert found["examples"] == 64 and np.isfinite(found["nll"])
  seen = {s: evaluate.features(narrow, s, batches()) for s in (odd, "full")}
  assert {s: f.x.shape for s, f in seen.items()} == {
    odd: (64, 12),
    "full": (64, 16),
  }
  with pytest.raises(UserError, match="queries have 12 features"):
    retrieval.matrix({odd: seen[odd]}, {"full": seen["full"]}, k=(1,))


# ------------------------------------------------------------------ judgement


def test_only_what_nothing_beats_is_efficient():
  points = [(4, 0.7), (1, 0.5), (2, 0.5), (2, 0.4), (3, 0.7), (1, 0.3)]
  assert evaluate.efficient(points) == [(1, 0.5), (3, 0.7)]
  assert evaluate.efficient([]) == []


POINTS = [(1.0, 0.5), (2.0, 0.7), (4.0, 0.6), (8.0, 0.8)]


@pytest.mark.parametrize(
  ("low", "high", "stairs", "line"),
  [
    (1, 2, 0.5, 0.6),
    (1, 8, (0.5 + 0.7 + 0.7) / 3, (0.6 + 2 * 0.75) / 3),
    (2, 8, 0.7, 0.75),
    (8, 64, 0.8, 0.8),  # nothing better is known beyond the last
    (1, 16, (0.5 + 0.7 + 0.7 + 0.8) / 4, (0.6 + 2 * 0.75 + 0.8) / 4),
    (math.sqrt(2), 2, 0.5, 0.65),  # between models
  ],
)
def test_areas_by_hand(low, high, stairs, line):
  area = evaluate.pareto_area
  assert area(POINTS, low, high) == pytest.approx(stairs)
  assert area(POINTS, low, high, how="line") == pytest.approx(line)
  assert area(POINTS[::-1], low, high) == pytest.approx(stairs)


@pytest.mark.parametrize(
  ("points", "args", "says"),
  [
    (POINTS, (0.5, 8), "no model is that cheap, the cheapest costs 1"),
    ([], (1, 8), "there are none"),
    (POINTS, (8, 8), "want 0 < low < high"),
    (POINTS, (0, 8), "want 0 < low < high"),
  ],
)
def test_areas_of_nothing(points, args, says):
  with pytest.raises(UserError, match=says):
    evaluate.pareto_area(points, *args)
  with pytest.raises(UserError, match="did you mean 'stairs'"):
    evaluate.pareto_area(POINTS, 1, 8, how="stair")


def test_gaps_are_paired_by_seed():
  nested = {"S": {2: 0.7, 0: 0.5, 1: 0.6}}
  separate = {"S": {0: 0.4, 1: 0.5, 2: 0.6, 9: 0.0}}
  found = evaluate.gaps(nested, separate)["S"]
  assert found.n == 3 and found.mean == pytest.approx(0.1)
  assert found.ci == pytest.approx((0.1, 0.1))  # unpaired: far wider
  with pytest.raises(UserError, match="gap at S: no seed"):
    evaluate.gaps(nested, {"S": {9: 0.1}})
  with pytest.raises(UserError, match="gap at S: no seed"):
    evaluate.gaps(nested, {})


def test_agreement_by_hand():
  rng = np.random.default_rng(0)
  one, two = rng.normal(size=(2, 30, 4))
  p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (one, two))
  found = evaluate.agreement(one, two)
  assert found["agreement"] == (one.argmax(1) == two.argmax(1)).mean()
  kl = (p * np.log(p / q)).sum(1).mean()
  assert found["kl"] == pytest.approx(kl)
  assert evaluate.agreement(one, one) == {"agreement": 1.0, "kl": 0.0}
  with pytest.raises(UserError, match="agreement of logits"):
    evaluate.agreement(one, two[:5])


def test_the_ceiling_is_the_mean_over_pairs_of_seeds():
  rng = np.random.default_rng(1)
  seeds = {seed: rng.normal(size=(40, 3)) for seed in range(3)}
  found = evaluate.ceiling(seeds)
  pairs = [(0, 1), (0, 2), (1, 2)]
  same = [evaluate.agreement(seeds[a], seeds[b]) for a, b in pairs]
  back = [evaluate.agreement(seeds[b], seeds[a]) for a, b in pairs]
  assert found["agreement"] == pytest.approx(
    np.mean([x["agreement"] for x in same])
  )
  assert found["kl"] == pytest.approx(np.mean([x["kl"] for x in same + back]))
  with pytest.raises(UserError, match="1 given"):
    evaluate.ceiling({0: seeds[0]})


# ----------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_command(nested, capfd):
  args = ["frontier", str(nested), "--specs", "ffn=1/4", "full"]
  assert cli.main([*args, "--repeats", "1", "--json"]) == 0
  result = json.loads(capfd.readouterr().out)
  assert [row["spec"] for row in result["rows"]] == ["ffn=1/4", "full"]
  assert cli.main([*args, "--repeats", "2", "--batch-size", "3"]) == 0
  said = capfd.readouterr().out
  assert "trained" in said and "latency of 3 on" in said
  assert "of all 2 sizes apart" in said  # no gain without its cost


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["--specs", "ffn=1/3"], "not whole: nearest"),
    (["--specs", "heads=1/2"], "cuts heads, the run nests ffn only"),
    (["--score-on", "vall"], "no evals.vall to score on, did you mean 'val'"),
    (["--repeats", "0"], "both 1 or more"),
  ],
)
def test_bad_input_is_one_line(nested, capfd, args, says):
  assert cli.main(["frontier", str(nested), *args]) == 2
  assert says in complaint(capfd.readouterr().err)
