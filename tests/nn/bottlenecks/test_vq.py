"""Vector quantisation: the nearest entry, who learns from what, usage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tests.nn.bottlenecks import util
from vitscale import workdir
from vitscale.bench import build
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import bottlenecks
from vitscale.nn.bottlenecks import vq
from vitscale.train import train

X = util.drawn(3, 11, 4)
BOOK = util.drawn(9, 4, seed=1)


def unit(x):
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("distance", vq.DISTANCES)
def test_nearest_by_brute_force(distance):
  made, variables = util.identity(f"vq(9, 4, {distance!r})", codebook=BOOK)
  z, out = util.run(made, variables, X)
  y, book = (
    (unit(a) if distance == "cosine" else np.asarray(a, np.float64))
    for a in (X, BOOK)
  )
  far = np.square(y[:, :, None] - book).sum(-1)
  np.testing.assert_array_equal(out["indices"], far.argmin(-1))
  util.close(z, book[far.argmin(-1)], 1e-6)
  # Both penalties are the same number: mean squares over tokens and floats.
  want = far.min(-1).mean(-1) / 4
  util.close(out["penalties"]["commit"], want)
  util.close(out["penalties"]["codebook"], want)
  assert len(set(far.argmin(-1).ravel())) > 4


def test_length_counts_in_one_distance_only():
  book = jnp.array([[1.0, 0.0], [0.0, 8.0]])
  y = jnp.array([[[0.1, 1.0]]])
  picked = [
    int(util.run(*util.identity(f"vq(2, 2, {d!r})", codebook=book), y)[1][
      "indices"
    ][0, 0])
    for d in vq.DISTANCES
  ]  # fmt: skip
  assert picked == [0, 1]


def test_near_ties_far_from_0_are_told_apart():
  """By products in bfloat16 or TF32 they would not be."""
  book = 10 + util.drawn(64, 4, seed=3, scale=0.05)
  made, variables = util.identity("vq(64, 4)", codebook=book)
  y = book[None] + util.drawn(1, 64, 4, seed=4, scale=1e-3)
  _, out = util.run(made, variables, y)
  a, b = np.asarray(y[0], np.float64), np.asarray(book, np.float64)
  far = np.square(a[:, None] - b).sum(-1)
  np.testing.assert_array_equal(out["indices"][0], far.argmin(-1))


def test_gradient_goes_straight_through():
  made, variables = util.identity("vq(9, 4)", codebook=BOOK)
  weights = util.drawn(3, 11, 4, seed=2)
  f = lambda v, x: (weights * made.apply(v, x, train=True)[0]).sum()
  of_book, of_x = jax.jit(jax.grad(f, (0, 1)))(variables, X)
  util.close(of_x, weights)
  assert not np.any(of_book["params"]["codebook"])


def test_cosine_passes_the_gradient_of_the_unit_vector():
  made, variables = util.identity("vq(9, 4, 'cosine')", codebook=BOOK)
  weights = util.drawn(3, 11, 4, seed=2)
  f = lambda x: (weights * made.apply(variables, x, train=True)[0]).sum()
  got = jax.jit(jax.grad(f))(X)
  direction, length = unit(X), np.linalg.norm(X, axis=-1, keepdims=True)
  along = (weights * direction).sum(-1, keepdims=True)
  util.close(got, (weights - along * direction) / length, 1e-4)


def test_who_learns_from_which_penalty():
  """Entries move to their tokens, tokens to their entry; unused ones stay."""
  made, variables = util.identity("vq(9, 4)", codebook=BOOK)

  @jax.jit
  def grads(v, x):
    of = lambda name: jax.grad(
      lambda v, x: made.apply(v, x, train=True)[1]["penalties"][name].sum(),
      (0, 1),
    )(v, x)
    return of("codebook"), of("commit"), made.apply(v, x, train=True)

  (a_book, a_x), (b_book, b_x), (z, out) = grads(variables, X)
  a_book, b_book = (g["params"]["codebook"] for g in (a_book, b_book))
  assert not np.any(a_x) and not np.any(b_book)
  util.close(b_x, 2 * (X - z) / (11 * 4))
  want = np.zeros((9, 4))
  pull = 2 * (np.asarray(z) - np.asarray(X)) / (11 * 4)
  np.add.at(want, np.asarray(out["indices"]), pull)
  util.close(a_book, want)
  unused = sorted(set(range(9)) - set(np.asarray(out["indices"]).ravel()))
  assert not np.any(np.asarray(a_book)[unused])


def test_perplexity_counts_entries():
  says = jax.jit(vq.perplexity, static_argnums=1)
  util.close(says(jnp.zeros((2, 6), int), 9), 1.0)
  util.close(says(jnp.arange(12).reshape(2, 6) % 4, 9), 4.0)
  share = np.array([0.75, 0.25])
  uneven = jnp.array([[0, 0, 0, 8]])
  util.close(says(uneven, 9), np.exp(-(share * np.log(share)).sum()))


def test_codes_of_every_entry():
  for distance in vq.DISTANCES:
    made, variables = util.identity(f"vq(9, 4, {distance!r})", codebook=BOOK)
    z = util.codes(made, variables, jnp.arange(9))
    util.close(z, unit(BOOK) if distance == "cosine" else BOOK, 1e-6)
    # An entry is its own nearest.
    _, out = util.run(made, variables, z[None])
    np.testing.assert_array_equal(out["indices"][0], np.arange(9))


# ----------------------------------------------------------------- averages


def averaged(text, book):
  """(module, variables) with y = x and an averaged codebook evenly used."""
  made, variables = util.identity(text)
  k = len(book)
  kept = {"share": jnp.full(k, 1 / k), "sums": jnp.asarray(book) / k}
  return made, {**variables, "codebook": kept}


def train_step(made):
  """Jitted `(variables, x, seed) -> (out, variables after)`."""

  @jax.jit
  def step(variables, x, seed):
    (_, out), new = made.apply(
      variables, x, train=True, mutable=["codebook"],
      rngs={"latent": jax.random.key(seed)},
    )  # fmt: skip
    return out, {**variables, **new}

  return step


@pytest.mark.parametrize("distance", vq.DISTANCES)
def test_entries_are_averages_of_their_tokens(distance):
  """By hand in float64, unused ones stay, and no gradient is wanted."""
  book = util.drawn(40, 4, seed=1)
  made, variables = averaged(f"vq(40, 4, {distance!r}, ema=0.9)", book)
  out, new = train_step(made)(variables, X, 0)
  assert set(out["penalties"]) == {"commit"}
  y = unit(X) if distance == "cosine" else np.asarray(X, np.float64)
  y, picked = y.reshape(-1, 4), np.asarray(out["indices"]).ravel()
  share, sums = np.full(40, 0.9 / 40), 0.9 / 40 * np.asarray(book, np.float64)
  np.add.at(share, picked, 0.1 / len(y))
  np.add.at(sums, picked, 0.1 / len(y) * y)
  util.close(new["codebook"]["share"], share)
  util.close(new["codebook"]["sums"], sums)
  after = util.codes(made, new, jnp.arange(40))
  want = sums / share[:, None]
  util.close(after, unit(want) if distance == "cosine" else want)
  unused = sorted(set(range(40)) - set(picked))
  assert unused
  old = util.codes(made, variables, jnp.asarray(unused))
  util.close(after[jnp.asarray(unused)], old, 1e-6)


def test_parts_of_a_batch_give_what_the_whole_gives():
  """So that `accumulate`, which takes means of new collections, may be on."""
  made, variables = averaged("vq(9, 4, ema=0.9)", BOOK)
  step, x = train_step(made), util.drawn(4, 11, 4)
  whole = step(variables, x, 0)[1]["codebook"]
  parts = [step(variables, x[i::2], 0)[1]["codebook"] for i in (0, 1)]
  mean = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
  jax.tree.map(util.close, whole, mean)


def test_entries_settle_on_clusters():
  centres = jnp.array([[2.0, 2], [-2, 2], [2, -2], [-2, -2]])
  made, variables = averaged("vq(4, 2, ema=0.8)", 0.4 * centres + 0.3)
  step = train_step(made)
  for seed in range(40):
    x = centres[:, None] + util.drawn(4, 8, 2, seed=seed, scale=0.1)
    _, variables = step(variables, x, seed)
  util.close(util.codes(made, variables, jnp.arange(4)), centres, atol=0.1)


def test_evaluation_changes_nothing():
  made, variables = averaged("vq(9, 4, ema=0.9, revive=0.5)", BOOK)
  kept = variables["codebook"]
  dead = {**variables, "codebook": {**kept, "share": kept["share"] * 1e-3}}
  run = jax.jit(
    lambda v, x: made.apply(v, x, train=False, mutable=["codebook"])
  )
  (z, _), new = run(dead, X)
  jax.tree.map(np.testing.assert_array_equal, new["codebook"], dead["codebook"])
  # Nor training where nothing is mutable: a frozen encoder's.
  again, _ = util.run(made, dead, X, train=True)
  np.testing.assert_array_equal(z, again)


def collapsed(entries=16):
  """A codebook of which one entry is near tokens, the others far away."""
  far = 100 + np.random.default_rng(0).standard_normal((entries, 4))
  return np.concatenate([np.zeros((1, 4)), far[1:]]).astype(np.float32)


@pytest.mark.parametrize("revive", [0.0, 0.25])
def test_a_collapsed_codebook_recovers(revive):
  """With `revive` its perplexity does, and not before its time."""
  made, variables = averaged(
    f"vq(16, 4, ema=0.8, revive={revive})", collapsed()
  )
  step, said = train_step(made), []
  for seed in range(30):
    x = util.drawn(8, 16, 4, seed=seed)
    out, variables = step(variables, x, seed)
    said.append(float(out["perplexity"]))
  # .8^7 < .25 <= .8^6: after 7 steps unused they are dead, the next revives.
  assert max(said[:8]) == pytest.approx(1)
  if revive:
    assert said[8] > 6 and min(said[20:]) > 8
  else:
    assert max(said) == pytest.approx(1)


def test_revived_entries_are_tokens_of_the_batch_drawn_by_the_seed():
  made, variables = averaged("vq(16, 4, ema=0.8, revive=0.25)", collapsed())
  share = variables["codebook"]["share"].at[1:].set(1e-4)
  sums = collapsed() * np.asarray(share)[:, None]
  variables["codebook"] = {"share": share, "sums": jnp.asarray(sums)}
  step, x = train_step(made), util.drawn(8, 16, 4)
  books = []
  for seed in (0, 0, 1):
    _, new = step(variables, x, seed)
    books.append(np.asarray(util.codes(made, new, jnp.arange(16))))
    util.close(new["codebook"]["share"][1:], 1 / 16)
  np.testing.assert_array_equal(books[0], books[1])
  assert np.abs(books[0] - books[2])[1:].max() > 0.1
  tokens = np.asarray(x).reshape(-1, 4)
  far = np.abs(books[0][1:, None] - tokens).max(-1).min(-1)
  assert far.max() < 1e-6
  assert len(np.unique(books[0][1:], axis=0)) > 8
  assert np.abs(books[0][0]).max() < 1  # the living one stays near


def test_an_entry_never_used_keeps_its_place_for_ever():
  """Its share would be 0 after 9,000 steps, and its place 0 / 0."""
  made, variables = averaged("vq(2, 2, ema=0.5)", [[0.0, 0.0], [9.0, 7.0]])
  step = train_step(made)
  for _ in range(60):
    _, variables = step(variables, jnp.zeros((1, 3, 2)), 0)
  util.close(util.codes(made, variables, jnp.arange(2)), [[0, 0], [9, 7]])
  assert 1e-13 < variables["codebook"]["share"][1] < 1e-12
  _, variables = step(variables, jnp.full((1, 3, 2), 8.0), 0)
  util.close(util.codes(made, variables, jnp.array([1])), [[8.0, 8.0]], 1e-4)


def test_codebooks_of_two_seeds_differ():
  made = vq.Bottleneck(8, 4, ema=0.9)
  init = jax.jit(lambda key: made.init(key, X, train=False))
  one, same, other = (book_of(init(jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 0.1
  assert 0.5 < one.std() < 1.5


def book_of(boxed):
  kept = axes.unbox(boxed)["codebook"]
  return np.asarray(kept["sums"] / kept["share"][:, None])


def test_a_run_keeps_its_codebook(tmp_path):
  """Through steps, parts of batches, a checkpoint and back; on two layouts."""
  made = toys.config(total_steps=3, evals={}, ema=0.0, accumulate=2)
  made.data = {"source": "fields", "size": 8, "n": 64}
  made.train.transform = ""
  made.model = {
    "family": "vitok", "variant": "mu/4", "encoder_depth": 1,
    "decoder_depth": 1, "bottleneck": "vq(8, 4, ema=0.9, revive=0.1)",
  }  # fmt: skip
  made.task = {"name": "reconstruct"}
  done = train(made, tmp_path / "run")
  assert np.isfinite(done["metrics"]["train/commit"])
  model, variables = workdir.load(tmp_path / "run")
  kept = variables["codebook"]["neck"]
  fresh = build(made).init(np.uint32(0))["mutable"]["codebook"]["neck"]
  assert np.abs(kept["sums"] - fresh["sums"]).max() > 1e-3
  image = jnp.zeros((2, 8, 8, 1))
  z, out = model.apply(variables, image, method=model.encode)
  look_up = lambda model, indices: model.neck.codes(indices)
  again = model.apply(variables, out["indices"], method=look_up)
  np.testing.assert_allclose(z, again, atol=1e-6)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("vq(8, 4, ema=1.0)", r"ema=1\.0 is in \[0, 1\)"),
    ("vq(8, 4, ema=-0.1)", r"ema=-0\.1 is in \[0, 1\)"),
    ("vq(8, 4, ema=0.9, revive=2.0)", r"revive=2\.0 is in \[0, 1\)"),
    ("vq(8, 4, revive=0.1)", r"revive goes with ema, such as ema=0\.99"),
  ],
)
def test_averages_refuse(text, said):
  made = bottlenecks.parse(text)()
  init = lambda key: made.init(key, X, train=False)
  with pytest.raises(UserError, match=said) as error:
    jax.eval_shape(init, jax.random.key(0))
  assert "\n" not in str(error.value)
