"""Vector quantisation: the nearest entry, who learns from what, usage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.bottlenecks import util
from vitscale.nn.bottlenecks import vq

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
