"""Nearest neighbours against plain numpy, and as an evaluation of runs."""

import jax
import numpy as np
import pytest

from tests import toys
from tests.tasks.test_nested import config as nested_config
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.evals.retrieval import Features, knn


def some(n, d=6, classes=4, spread=1.0):
  """Other images for every n, whichever test asks and in whatever order."""
  rng = np.random.default_rng(n)
  label = rng.integers(0, classes, n).astype(np.int32)
  centre = np.eye(d)[label]
  return Features(
    (centre + spread * rng.normal(size=(n, d))).astype("f4"), label
  )


def by_hand(query, gallery, k, leave_one_out=False, temperature=0.07):
  """One query after another, sorted by similarity and then by place."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  q, g, right = unit(query.x.astype(float)), unit(gallery.x.astype(float)), 0
  for i, row in enumerate(q):
    s = g @ row
    if leave_one_out:
      s[i] = -np.inf
    near = np.argsort(-s, kind="stable")[:k]
    votes = np.zeros(10)
    for j in near:
      votes[gallery.label[j]] += np.exp(s[j] / temperature)
    right += votes.argmax() == query.label[i]
  return right / len(q)


@pytest.mark.parametrize("rows", [7, 16, 1024])
def test_as_by_hand_at_any_chunk(rows):
  query, gallery = some(37), some(50)
  found = knn(query, gallery, k=(1, 5, 20), rows=rows)
  assert found == {k: by_hand(query, gallery, k) for k in (1, 5, 20)}
  assert 0.3 < found[5] < 1.0


@pytest.mark.parametrize("rows", [7, 1024])
def test_leave_one_out(rows):
  both = some(40)
  found = knn(both, both, k=(1, 10), leave_one_out=True, rows=rows)
  assert found == {k: by_hand(both, both, k, True) for k in (1, 10)}
  assert knn(both, both, k=(1,), rows=rows) == {1: 1.0}  # each finds itself


def test_votes_are_weighted_by_similarity():
  """One near neighbour outvotes two far ones, unless all weigh the same."""
  gallery = Features(
    np.array([[1, 0], [0.5, 1], [0.5, 1]], "f4"), np.array([0, 1, 1])
  )
  query = Features(np.array([[1, 0]], "f4"), np.array([0]))
  assert knn(query, gallery, k=(3,)) == {3: 1.0}
  assert knn(query, gallery, k=(3,), temperature=1e6) == {3: 0.0}


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_ties_go_to_the_first(rows):
  """Four equal images: the first counts; equal votes: the lower class."""
  gallery = Features(
    np.array([[0, 1], [1, 0], [1, 0], [1, 0], [1, 0]], "f4"),
    np.array([3, 2, 0, 1, 0]),
  )
  query = Features(np.array([[2, 0]], "f4"), np.array([2]))
  assert knn(query, gallery, k=(1,), rows=rows) == {1: 1.0}
  lowest = Features(query.x, np.array([0]))
  assert knn(lowest, gallery, k=(2,), rows=rows) == {2: 1.0}
  third = Features(query.x, np.array([1]))  # 2, 0 and 1 once each
  assert knn(third, gallery, k=(3,), rows=rows) == {3: 0.0}


def test_other_widths_are_refused_or_share_a_prefix():
  query, gallery = some(20), some(30)
  narrow = Features(query.x[:, :4], query.label)
  with pytest.raises(UserError, match="queries have 4 features, the gallery 6"):
    knn(narrow, gallery)
  cut = Features(gallery.x[:, :4], gallery.label)
  assert knn(narrow, gallery, k=(3,), prefix=True) == knn(narrow, cut, k=(3,))
  # Lengths are those of the prefix, not of the whole.
  assert knn(narrow, gallery, k=(3,), prefix=True)[3] == by_hand(narrow, cut, 3)


@pytest.mark.parametrize(
  ("options", "says"),
  [
    ({"k": (51,)}, "should be 1 to 50"),
    ({"k": (0,)}, "should be 1 to 50"),
    ({"k": (1,), "leave_one_out": True}, "are not the 50 images"),
  ],
)
def test_bad_options(options, says):
  with pytest.raises(UserError, match=says):
    knn(some(37), some(50), **options)


def test_features_that_are_not_finite():
  bad = some(5)
  bad.x[2, 1] = np.nan
  with pytest.raises(UserError, match="features of queries are not finite"):
    knn(bad, some(8), k=(1,))


# ------------------------------------------------------------- as an evaluation


def config(made, **group):
  made.evals = {
    "val": {
      "name": "retrieval", "split": "val", "batch_size": 24, "k": (1, 3),
      "gallery": {"split": "train", "data": {"limit": 40}}, **group,
    }
  }  # fmt: skip
  return made


def noisy(bench):
  rng = np.random.default_rng(1)
  state = bench.init(np.uint32(0))
  params = jax.tree.map(
    lambda x: x + 0.2 * rng.normal(size=x.shape).astype(x.dtype),
    jax.device_get(state["params"]),
  )
  return {**state, "params": params, "ema": state["ema"] and params}


def seen(bench, params, split, text="full", **data):
  """Features by the plain call, all rows at once."""
  from vitscale.data import sources

  source = sources.make("strokes", split=split, size=8, n=64, **data)
  batch = source.read(np.arange(len(source)))
  model, variables = bench.model, {"params": params}
  if text != "full":
    model, variables = bench.task.part(model, variables, batch, text)
  run = lambda v: model.apply(v, bench.task.normalise(batch["image"]))[1]
  return Features(
    np.asarray(jax.jit(run)(variables)["pre_logits"]), batch["label"]
  )


def test_a_plain_run():
  bench = build(config(toys.config()))
  state = noisy(bench)
  scores = bench.evals["val"].run(state)
  query = seen(bench, state["params"], "val")
  gallery = seen(bench, state["params"], "train", limit=40)
  assert scores["examples"] == len(query.x) and scores["gallery"] == 40
  for k in (1, 3):
    p = by_hand(query, gallery, k)
    assert scores[f"knn{k}"] == pytest.approx(p)
    se = np.sqrt(p * (1 - p) / len(query.x))
    assert scores[f"knn{k}_se"] == pytest.approx(se)


def test_all_pairs_of_a_nested_run():
  made = config(nested_config(granularities=("ffn=1/4", "full")))
  bench = build(made)
  state = noisy(bench)
  scores = bench.evals["val"].run(state)
  for label, i, j in (
    ("", "full", "full"), ("ffn=1/4/", "ffn=1/4", "ffn=1/4"),
    ("ffn=1/4>full/", "ffn=1/4", "full"), ("full>ffn=1/4/", "full", "ffn=1/4"),
  ):  # fmt: skip
    query = seen(bench, state["params"], "val", i)
    gallery = seen(bench, state["params"], "train", j, limit=40)
    assert scores[f"{label}knn3"] == pytest.approx(by_hand(query, gallery, 3))
  assert len({scores[k] for k in scores if k.endswith("knn1")}) > 1


def test_without_a_gallery_each_is_left_out():
  made = config(toys.config())
  del made.evals.val["gallery"]
  bench = build(made)
  state = noisy(bench)
  both = seen(bench, state["params"], "val")
  scores = bench.evals["val"].run(state)
  assert scores["knn3"] == pytest.approx(by_hand(both, both, 3, True))


NARROW = ("ffn=1/2 heads=1/2 embed=1/2", "full")


@pytest.mark.parametrize(
  ("made", "group", "says"),
  [
    (toys.config(), {"k": ()}, "write for example"),
    (toys.config(), {"pairs": "al"}, "did you mean 'all'"),
    (
      toys.config(),
      {"galery": {"split": "train"}},
      "evals.val.galery' is read by nobody",
    ),
    (toys.config(), {"gallery": {"split": "val"}}, "the same split"),
    (nested_config(granularities=NARROW), {}, "16 features.* 8: want pairs"),
  ],
)
def test_mistakes_end_before_training(made, group, says):
  with pytest.raises(UserError, match=says):
    build(config(made, **group))


@pytest.mark.slow
def test_widths_ask_their_own():
  bench = build(config(nested_config(granularities=NARROW), pairs="same"))
  scores = bench.evals["val"].run(noisy(bench))
  assert f"{NARROW[0]}/knn1" in scores and not any(">" in k for k in scores)
  bench = build(config(nested_config(granularities=NARROW), prefix=True))
  assert f"{NARROW[0]}>full/knn1" in bench.evals["val"].run(noisy(bench))
