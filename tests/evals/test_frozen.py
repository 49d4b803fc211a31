"""What is read off frozen features: nearest neighbours, linear maps, shots."""

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from tests import toys
from tests.evals.test_retrieval import noisy, seen, some
from vitscale import evals
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.evals import Features, few_shot, linear_probe, retrieval


def by_count(query, gallery, k):
  """Cosine distance, each neighbour counts one; ties: the lower class."""
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  far = 1 - unit(query.x.astype(float)) @ unit(gallery.x.astype(float)).T
  near = np.argsort(far, axis=1, kind="stable")[:, :k]
  said = [np.bincount(gallery.label[row]).argmax() for row in near]
  return float(np.mean(said == query.label))


# ------------------------------------------------------------------- solvers


@pytest.mark.parametrize("k", [1, 4, 10])
def test_a_uniform_vote_counts_heads(k):
  query, gallery = some(60), some(80)
  found = retrieval.knn(query, gallery, k=(k,), temperature=np.inf)[k]
  assert found == by_count(query, gallery, k)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_a_uniform_vote_is_scikit_learns(k):
  query, gallery = some(60), some(80)
  found = retrieval.knn(query, gallery, k=(k,), temperature=np.inf)[k]
  neighbors = pytest.importorskip("sklearn.neighbors")
  peer = neighbors.KNeighborsClassifier(k, metric="cosine", algorithm="brute")
  peer.fit(gallery.x.astype(float), gallery.label)
  assert found == pytest.approx(peer.score(query.x.astype(float), query.label))


def newton(x, label, classes, l2, steps=50):
  """Multinomial regression by Newton's method in float64, on inputs as given.

  w (d + 1, c), bias last: mean nll + l2 / 2 |w|^2, bias free.
  """
  n, d = x.shape
  x1 = np.concatenate([x, np.ones((n, 1))], 1)
  y, w = np.eye(classes)[label], np.zeros((d + 1, classes))
  pays = np.repeat(np.r_[np.full(d, l2), 0.0], classes)
  for _ in range(steps):
    z = x1 @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    slope = (x1.T @ (p - y) / n).ravel() + pays * w.ravel()
    own = p[:, :, None] * (np.eye(classes) - p[:, None, :])
    h = np.einsum("ni,nj,ncd->icjd", x1, x1, own) / n
    h = h.reshape(slope.size, slope.size) + np.diag(pays)
    w = w - (np.linalg.pinv(h) @ slope).reshape(w.shape)
  return w


def test_logistic_finds_the_optimum():
  gallery, query, l2 = some(120), some(500), 1e-2
  found = linear_probe.logistic(gallery, 4)(l2)
  x = (gallery.x - found.mean) / found.scale
  w = newton(x, gallery.label, 4, l2)
  centred = lambda w: w - w.mean(1, keepdims=True)  # nobody pays for the mean
  kernel = np.concatenate([found.kernel, found.bias[None]])
  np.testing.assert_allclose(centred(kernel), centred(w), atol=2e-3)
  said = (query.x - found.mean) / found.scale @ w[:-1] + w[-1]
  mine = linear_probe.accuracy(found(query.x), query.label)
  theirs = linear_probe.accuracy(said, query.label)
  assert abs(mine - theirs) <= 1e-3 and mine > 0.4


def test_logistic_is_scikit_learns():
  linear_model = pytest.importorskip("sklearn.linear_model")
  gallery, query, l2 = some(400), some(1000), 1e-3
  found = linear_probe.logistic(gallery, 4)(l2)
  peer = linear_model.LogisticRegression(
    C=1 / (len(gallery.x) * l2), max_iter=1000, tol=1e-6
  )
  peer.fit((gallery.x - found.mean) / found.scale, gallery.label)
  score = peer.score((query.x - found.mean) / found.scale, query.label)
  mine = linear_probe.accuracy(found(query.x), query.label)
  assert abs(mine - score) <= 1e-3


def test_sgd_descends_as_it_says():
  """Momentum .9, a cosine to zero, batches in a seeded order: by hand."""
  gallery, lr, epochs, seed = some(25), 0.5, 3, 7
  found = linear_probe.sgd(gallery, 4, epochs, seed)(lr)
  x = (gallery.x - found.mean) / found.scale
  x, y = np.pad(x, ((0, 0), (0, 1)), constant_values=1), np.eye(4)
  w, pace, batch, steps = np.zeros((7, 4)), 0.0, 3, 8  # 25 // 8; 25 // 3
  for epoch in range(epochs):
    key = jax.random.fold_in(jax.random.key(seed), epoch)
    order = np.asarray(jax.random.permutation(key, 25))
    for step in range(steps):
      rows = order[step * batch :][:batch]
      p = scipy.special.softmax(x[rows] @ w, 1) - y[gallery.label[rows]]
      pace = 0.9 * pace + x[rows].T @ p / batch
      done = (epoch * steps + step) / (epochs * steps)
      w = w - lr * batch / 256 * (1 + np.cos(np.pi * done)) / 2 * pace
  np.testing.assert_allclose(found.kernel, w[:-1], atol=1e-6)
  np.testing.assert_allclose(found.bias, w[-1], atol=1e-6)


def test_sgd_ends_where_the_optimum_is():
  gallery, query = some(400), some(1000)
  exact = linear_probe.logistic(gallery, 4)(1e-7)
  found, lr = linear_probe.fit(gallery, 4, solver="sgd", lr=0.3, epochs=50)
  assert lr == 0.3
  mine, theirs = (
    linear_probe.accuracy(map_(query.x), query.label) for map_ in (found, exact)
  )
  assert abs(mine - theirs) <= 0.01 and mine > 0.4


def test_a_rate_is_chosen_on_a_part_of_the_gallery():
  """Of a huge one, which is tried first, and a fair one: the second."""
  gallery = some(200)
  fit = lambda lr: linear_probe.fit(
    gallery, 4, solver="sgd", lr=lr, epochs=20, seed=3
  )
  order = np.random.default_rng(3).permutation(200)
  part, rest = (
    Features(gallery.x[at], gallery.label[at])
    for at in (order[:40], order[40:])
  )
  solve = linear_probe.sgd(rest, 4, 20, 3)
  wild, fair = (
    linear_probe.accuracy(solve(lr)(part.x), part.label) for lr in (1e4, 0.1)
  )
  assert wild < fair
  assert fit((1e4, 0.1))[1] == fit((0.1, 1e4))[1] == 0.1


@pytest.mark.parametrize("n", [5, 60])
def test_least_squares_on_either_side(n):
  """More examples than features, or fewer: one minimiser."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(n, 12)), rng.normal(size=(n, 3))
  found = linear_probe.least_squares(x, y)(0.7)
  want = np.linalg.solve(x.T @ x + 0.7 * np.eye(12), x.T @ y)
  np.testing.assert_allclose(found, want, rtol=1e-9)


def test_ridge_minimises_what_it_says():
  gallery, l2 = some(40), 0.3
  found = linear_probe.ridge(gallery, 4)(l2)
  x, y = (gallery.x - found.mean) / found.scale, np.eye(4)[gallery.label]

  def loss(w):
    w = w.reshape(7, 4)
    rest = x @ w[:-1] + w[-1] - y
    return np.square(rest).sum() / len(x) + l2 * np.square(w[:-1]).sum()

  least = scipy.optimize.minimize(loss, np.zeros(28), tol=1e-10)
  own = loss(np.concatenate([found.kernel, found.bias[None]]).ravel())
  assert own == pytest.approx(least.fun, abs=1e-6)


def test_a_constant_feature_is_no_trouble():
  gallery = some(40)
  gallery.x[:, 2] = 3.0
  for solver in linear_probe.SOLVERS:
    said = linear_probe.SOLVERS[solver](gallery, 4)(1e-2)(gallery.x + 1e-3)
    assert np.isfinite(said).all() and np.abs(said).max() < 100


def test_l2_is_chosen_on_a_part_of_the_gallery():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, 80).astype(np.int32)
  x = rng.normal(size=(80, 40)).astype("f4")
  x[:, :8] += 0.5 * (2 * label - 1)[:, None]
  grid, gallery = (1e-9, 1e-2, 1.0, 1e3), Features(x, label)
  found, l2 = linear_probe.fit(
    gallery, 2, solver="ridge", l2=grid, held_out=0.5, seed=3
  )
  order = np.random.default_rng(3).permutation(80)
  some, rest = (Features(x[at], label[at]) for at in (order[:40], order[40:]))
  solve = linear_probe.ridge(rest, 2)
  scores = {l2: linear_probe.accuracy(solve(l2)(some.x), some.label)
            for l2 in grid}  # fmt: skip
  assert len(set(scores.values())) > 1
  assert l2 == max(g for g in grid if scores[g] == max(scores.values()))
  again = linear_probe.ridge(gallery, 2)(l2)  # of the whole gallery
  np.testing.assert_array_equal(found.kernel, again.kernel)
  assert linear_probe.fit(gallery, 2, l2=0.5)[1] == 0.5


# ---------------------------------------------------------------- few shots


def test_shots_are_nested_and_of_each_class():
  label = np.repeat([0, 1, 4], 7)
  order = few_shot.draw(label, 0)
  assert [set(label[one]) for one in order] == [{0}, {1}, {4}]
  assert any((a != b).any() for a, b in zip(order, few_shot.draw(label, 1)))


def test_few_shots_as_published():
  """The normal equations with a constant 100 and targets of -1 and 1."""
  gallery, query, k = some(60), some(50), 3
  found = few_shot.correct(query, gallery, shots=(k,), seeds=2)[k]
  for seed in range(2):
    at = np.concatenate([one[:k] for one in few_shot.draw(gallery.label, seed)])
    x = gallery.x[at].astype(float)
    mean, std = x.mean(0), x.std(0) + 1e-5
    few, asked = (
      np.c_[(x - mean) / std, np.full(len(x), 100.0)] for x in (x, query.x)
    )
    y = 2 * np.eye(4)[gallery.label[at]] - 1
    w = np.linalg.solve(few.T @ few + 1024 * np.eye(7), few.T @ y)
    right = (asked @ w).argmax(1) == query.label
    np.testing.assert_array_equal(found[seed], right)
  assert 0.3 < found.mean() < 1


def test_l2_of_shots_is_chosen_on_the_rest():
  gallery, query = some(60), some(50)
  one = few_shot.correct(query, gallery, shots=(2,), l2=(1e-3, 1e9))[2]
  alone = [
    few_shot.correct(query, gallery, shots=(2,), l2=l2)[2] for l2 in (1e-3, 1e9)
  ]
  take = lambda at: Features(gallery.x[at], gallery.label[at])
  for seed, got in enumerate(one):
    order = few_shot.draw(gallery.label, seed)
    rest = take(np.concatenate([rows[2:] for rows in order]))
    solve = few_shot.fit(take(np.concatenate([r[:2] for r in order])), 4)
    said = [solve(l2)(rest.x) for l2 in (1e9, 1e-3)]  # of equal ones the first
    scores = [linear_probe.accuracy(y, rest.label) for y in said]
    best = (1, 0)[int(np.argmax(scores))]
    np.testing.assert_array_equal(got, alone[best][seed])


def test_errors_of_images_and_of_shots():
  right = np.array([[1.0, 1, 0, 0], [1, 1, 1, 0]])
  images = np.var([1, 1, 0.5, 0]) / 4
  shots = np.var([0.5, 0.75], ddof=1) / 2
  assert few_shot.error(right) == pytest.approx(np.sqrt(images + shots))
  assert few_shot.error(right[:1]) == pytest.approx(np.sqrt(0.25 / 4))


def test_too_few_images_of_a_class():
  gallery = Features(np.eye(5, dtype="f4"), np.array([0, 0, 0, 2, 2]))
  with pytest.raises(UserError, match="class 2 has 2 images in the gallery"):
    few_shot.correct(gallery, gallery, shots=(1, 3))


# ------------------------------------------------------------- as evaluations


@pytest.fixture(scope="module")
def bench():
  """All three of one run; batches of 24 don't divide 64 or 40 images."""
  made = toys.config()
  gallery = {"gallery": {"split": "train", "data": {"limit": 40}}}
  common = {"split": "val", "batch_size": 24, **gallery}
  made.evals = {
    "near": {"name": "knn", "k": (1, 3), "vote": "uniform", **common},
    "line": {"name": "linear_probe", "solver": "ridge", **common},
    "curve": {"name": "linear_probe", "l2": 1e-2, **common},
    "steps": {
      "name": "linear_probe",
      "solver": "sgd",
      "lr": 0.1,
      "epochs": 2,
      **common,
    },
    "few": {"name": "few_shot", "shots": (1, 2), "seeds": 2, **common},
    "own": {"name": "knn", "k": 3, "split": "train", "batch_size": 24},
    "rest": {"name": "knn", "k": 3, "split": "val", "batch_size": 24},
  }
  return build(made)


def test_as_evaluations_of_a_run(bench):
  state = noisy(bench)
  query = seen(bench, state["params"], "val")
  gallery = seen(bench, state["params"], "train", limit=40)
  near = bench.evals["near"].run(state)
  assert (near["examples"], near["gallery"]) == (64, 40)
  p = by_count(query, gallery, 3)
  assert near["knn3"] == pytest.approx(p)
  assert near["knn3_se"] == pytest.approx(np.sqrt(p * (1 - p) / 64))
  line = bench.evals["line"].run(state)
  fitted, l2 = linear_probe.fit(gallery, 4, solver="ridge")
  p = linear_probe.accuracy(fitted(query.x), query.label)
  assert line["probe"] == pytest.approx(p) and line["probe_l2"] == l2
  curve = bench.evals["curve"].run(state)
  fitted = linear_probe.logistic(gallery, 4)(1e-2)
  p = linear_probe.accuracy(fitted(query.x), query.label)
  assert curve["probe"] == pytest.approx(p, abs=1 / 64)
  steps = bench.evals["steps"].run(state)
  fitted = linear_probe.sgd(gallery, 4, epochs=2)(0.1)
  p = linear_probe.accuracy(fitted(query.x), query.label)
  assert steps["probe"] == pytest.approx(p) and steps["probe_lr"] == 0.1
  few = bench.evals["few"].run(state)
  right = few_shot.correct(query, gallery, shots=(1, 2), seeds=2)
  assert few["shot2"] == pytest.approx(right[2].mean())
  assert few["shot1_se"] == pytest.approx(few_shot.error(right[1]))


def test_the_gallery_is_train_or_the_others(bench):
  state = noisy(bench)
  train = seen(bench, state["params"], "train")
  own = bench.evals["own"].run(state)
  assert own["gallery"] == own["examples"] == len(train.x)
  loo = retrieval.knn(train, train, k=(3,), leave_one_out=True)
  assert own["knn3"] == pytest.approx(loo[3])
  rest = bench.evals["rest"].run(state)
  query = seen(bench, state["params"], "val")
  assert rest["knn3"] == pytest.approx(retrieval.knn(query, train, k=(3,))[3])


def test_features_that_are_not_finite(bench):
  state = noisy(bench)
  state["params"] = state["ema"] = jax.tree.map(
    lambda x: x * np.nan, state["params"]
  )
  with pytest.raises(UserError, match="features of the gallery are not finite"):
    bench.evals["line"].run(state)


@pytest.mark.parametrize(
  ("group", "says"),
  [
    ({"name": "knn", "k": ()}, "knn k=.*: write for example"),
    ({"name": "knn", "vote": "unifrm"}, "did you mean 'uniform'"),
    ({"name": "knn", "temperature": 0}, "temperature=0: is above 0"),
    ({"name": "linear_probe", "solver": "rigde"}, "did you mean 'ridge'"),
    ({"name": "linear_probe", "l2": (0.0, 1.0)}, "a number above 0"),
    ({"name": "linear_probe", "lr": 0.1}, "logistic has no lr"),
    ({"name": "linear_probe", "solver": "sgd", "l2": 1.0}, "sgd has no l2"),
    (
      {"name": "linear_probe", "solver": "sgd", "epochs": 0},
      "epochs=0: should be 1",
    ),
    ({"name": "linear_probe", "l2": ()}, "a number above 0"),
    ({"name": "few_shot", "l2": ()}, "a number above 0"),
    ({"name": "linear_probe", "held_out": 1.0}, "between 0 and 1"),
    ({"name": "linear_probe", "split": "train"}, "name a split other than"),
    (
      {"name": "few_shot", "gallery": {"split": "val"}},
      "the same split as its evaluation's: name a split other than 'val'",
    ),
    ({"name": "few_shot", "shots": 5}, "shots=5: write"),
    ({"name": "few_shot", "seeds": 0}, "seeds=0: should be 1"),
    ({"name": "few_shot", "l2": "much"}, "a number above 0"),
  ],
)
def test_mistakes_end_before_training(group, says):
  made = toys.config()
  made.evals = {"val": {"split": "val", **group}}
  with pytest.raises(UserError, match=says):
    build(made)


def test_other_tasks_have_no_images():
  with pytest.raises(UserError, match="'knn' wants a task of images"):
    evals.frozen(object(), None, "knn")
