"""Generated ListOps against a parser and a naive generator of its own."""

import random
import statistics

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import listops, sources
from vitscale.data.source import SPLITS

SHORT = {"n": 3000, "min_length": 10, "max_length": 60}


@pytest.fixture(scope="module")
def short():
  return {s: listops.listops(s, **SHORT) for s in SPLITS}


def rows(source):
  return source.read(np.arange(len(source)))["image"][:, 0, :, 0]


def words(row):
  return [listops.TOKENS[t] for t in row[row > 0]]


def parse(tokens):
  """A tree as nested lists [operator, argument, ...]; all tokens are used."""

  def node():
    token = tokens.pop(0)
    if token in "0123456789":
      return int(token)
    assert token.startswith("["), token
    made = [token]
    while tokens[0] != "]":
      made.append(node())
    tokens.pop(0)
    return made

  tree = node()
  assert not tokens
  return tree


def value(tree):
  if isinstance(tree, int):
    return tree
  args = [value(x) for x in tree[1:]]
  return {
    "[MIN": min, "[MAX": max, "[MED": lambda x: int(statistics.median(x)),
    "[SM": lambda x: sum(x) % 10,
  }[tree[0]](args)  # fmt: skip


def depth(tree):
  return 1 if isinstance(tree, int) else 1 + max(map(depth, tree[1:]))


def operators(tree):
  if isinstance(tree, int):
    return []
  return [tree, *(x for child in tree[1:] for x in operators(child))]


def test_the_published_example():
  text = "[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]"
  assert value(parse(text.split())) == 5


def test_labels_are_what_a_parser_of_its_own_computes(short):
  for source in short.values():
    trees = [parse(words(row)) for row in rows(source)[:500]]
    assert [value(tree) for tree in trees] == source.label[:500].tolist()
  assert {name for t in trees for (name, *_) in operators(t)} == {
    f"[{name}" for name in listops.OPERATORS
  }
  args = {len(x) - 1 for t in trees for x in operators(t)}
  assert args == set(range(2, 11))


def test_the_published_lengths_and_depth():
  source = listops.listops("val", n=64)
  x = rows(source)
  assert source.shape == (1, 2000, 1) and x.max() < listops.VOCABULARY
  lengths = (x > 0).sum(1)
  assert ((lengths > 500) & (lengths < 2000)).all() and np.ptp(lengths) > 500
  assert (np.diff((x > 0).astype(int)) <= 0).all()  # padding at the end only
  trees = [parse(words(row)) for row in x]
  assert [value(tree) for tree in trees] == source.label.tolist()
  assert max(map(depth, trees)) == 10


def test_depth_and_arguments_are_bounded():
  source = listops.listops(n=300, min_length=5, max_length=30, depth=3, args=4)
  trees = [parse(words(row)) for row in rows(source)]
  assert max(map(depth, trees)) == 3
  assert max(len(x) - 1 for t in trees for x in operators(t)) == 4


def naive(rng, lowest, highest):
  """One expression by the published rules: nested lists."""

  def tree(level):
    if level == 10 or rng.random() > 0.25:
      return rng.randrange(10)
    args = [tree(level + 1) for _ in range(rng.randint(2, 10))]
    return [rng.choice(["[MIN", "[MAX", "[MED", "[SM"]), *args]

  def size(t):
    return 1 if isinstance(t, int) else 2 + sum(map(size, t[1:]))

  while True:
    made = tree(1)
    if lowest < size(made) < highest:
      return made, size(made)


def test_drawn_as_a_naive_generator_draws(short):
  """Labels, lengths, operators and arguments: chi-square, 4 sigma."""
  rng = random.Random(0)
  pairs = [naive(rng, 10, 60) for _ in range(1500)]
  trees = [parse(words(row)) for row in rows(short["train"])[:1500]]

  def features(trees, sizes):
    every = [x for t in trees for x in operators(t)]
    return [
      [value(t) for t in trees],
      [min(s // 8, 6) for s in sizes],
      [["[MIN", "[MAX", "[MED", "[SM"].index(x[0]) for x in every],
      [len(x) - 1 for x in every],
      [depth(t) for t in trees],
    ]

  theirs = features(*zip(*pairs))
  ours = features(trees, (rows(short["train"])[:1500] > 0).sum(1))
  for a, b in zip(theirs, ours):
    counts = np.stack([np.bincount(x, minlength=12) for x in (a, b)])
    counts = counts[:, counts.min(0) > 5]
    total, share = counts.sum(0), counts.sum(1, keepdims=True) / counts.sum()
    chi = ((counts - share * total) ** 2 / (share * total)).sum()
    free = counts.shape[1] - 1
    # Operators of one tree are no independent draws: twice the variance.
    assert chi < 2 * (free + 4 * (2 * free) ** 0.5), (chi, free)


def test_every_class_is_there(short):
  share = short["train"].counts / len(short["train"])
  assert share.min() > 0.03 and share.max() < 0.2


def test_splits_share_no_expression(short):
  keys = {s: {row.tobytes() for row in rows(x)} for s, x in short.items()}
  assert not keys["train"] & (keys["val"] | keys["test"])
  assert not keys["val"] & keys["test"]
  # They would by chance: short expressions come again and again.
  tiny = {
    s: rows(listops.listops(s, n=2000, min_length=1, max_length=6))
    for s in SPLITS
  }
  keys = {s: {row.tobytes() for row in x} for s, x in tiny.items()}
  assert len(keys["train"]) < 2000
  assert not keys["train"] & keys["val"] and not keys["val"] & keys["test"]


def test_a_sample_depends_on_seed_split_and_number_alone(short):
  few = listops.listops("test", **{**SHORT, "n": 37})
  np.testing.assert_array_equal(rows(few), rows(short["test"])[:37])
  assert few.label.tolist() == short["test"].label[:37].tolist()
  assert listops.listops("test", **{**SHORT, "n": 37}).fingerprint == (
    few.fingerprint
  )
  other = listops.listops("test", **{**SHORT, "n": 37}, seed=1)
  assert (rows(other) != rows(few)).any(1).mean() > 0.9
  assert (rows(short["val"])[:37] != rows(few)).any(1).mean() > 0.9


def test_the_values_are_fixed():
  """A change here changes everybody's data."""
  source = sources.make("listops", n=4, min_length=4, max_length=14)
  texts = [" ".join(words(row)) for row in rows(source)]
  assert texts == FIXED


FIXED = [
  "[SM [MED 5 9 8 ] 0 ]",
  "[MED 4 0 3 0 8 5 9 7 3 ]",
  "[MED 7 9 2 2 ]",
  "[MIN 7 2 2 ]",
]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": "dev"}, "no split 'dev'"),
    ({"n": 0}, "n=0"),
    ({"min_length": 30, "max_length": 31}, "min_length < max_length - 1"),
    ({"depth": 2, "min_length": 50, "max_length": 80}, "hardly any expression"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    listops.listops(**{"n": 4, **options})
