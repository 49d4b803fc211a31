"""Signs: their indices, gradients, and the entropy that is asked for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.nn.bottlenecks import util
from vitscale.nn.bottlenecks import lfq

X = util.drawn(3, 8, 4)


def by_all_entries(y, temperature):
  """(mean entropy of a token per image, entropy of the mean), over 2^bits."""
  y = np.asarray(y, np.float64)
  entries = np.array(list(itertools.product((-1, 1), repeat=y.shape[-1])))
  far = np.square(y[:, :, None] - entries).sum(-1) / temperature
  q = np.exp(far.min(-1, keepdims=True) - far)
  q /= q.sum(-1, keepdims=True)
  h = lambda q: -(q * np.log(np.maximum(q, 1e-300))).sum(-1)
  return h(q).mean(-1), h(q.mean((0, 1)))


def penalties(text, x):
  made, variables = util.identity(text)
  return util.run(made, variables, x)[1]["penalties"]


def test_signs_and_their_index():
  made, variables = util.identity("lfq(4)")
  z, out = util.run(made, variables, X)
  np.testing.assert_array_equal(z, np.where(np.asarray(X) > 0, 1.0, -1.0))
  weights = np.array([1, 2, 4, 8])
  np.testing.assert_array_equal(
    out["indices"], ((np.asarray(X) > 0) * weights).sum(-1)
  )
  util.close(out["penalties"]["commit"], np.square(np.abs(X) - 1).mean((1, 2)))


def test_codes_of_every_index():
  made, variables = util.identity("lfq(4)")
  z = util.codes(made, variables, jnp.arange(16))
  assert len(np.unique(np.asarray(z), axis=0)) == 16
  _, out = util.run(made, variables, z[None])
  np.testing.assert_array_equal(out["indices"][0], np.arange(16))


def test_31_bits_fit():
  made, variables = util.identity("lfq(31)")
  z, out = util.run(made, variables, jnp.ones((1, 1, 31)))
  assert out["indices"][0, 0] == 2**31 - 1
  np.testing.assert_array_equal(util.codes(made, variables, out["indices"]), z)


def test_entropy_by_hand():
  """One bit: p = sigmoid(4 y)."""
  y = jnp.array([[[0.2], [-0.1]], [[1.0], [0.0]]])
  p = 1 / (1 + np.exp(-4 * np.asarray(y, np.float64)[..., 0]))
  h = lambda p: -(p * np.log(p) + (1 - p) * np.log(1 - p))
  want = h(p).mean(-1) - h(p.mean())
  util.close(penalties("lfq(1)", y)["entropy"], want)


def test_a_tokens_entropy_is_exact_and_the_batchs_an_upper_bound():
  for temperature in (0.5, 2.0):
    own, of_batch = by_all_entries(X, temperature)
    got = penalties(f"lfq(4, {temperature})", X)["entropy"]
    taken = own - np.asarray(got, np.float64)  # the batch's part
    util.close(taken, np.full(3, taken[0]), 1e-5)
    assert taken[0] > of_batch + 0.01  # not the same here
    # Of one token alone the mean is independent bits: nothing is left.
    util.close(penalties(f"lfq(4, {temperature})", X[:1, :1])["entropy"], 0)


def test_what_factorising_costs():
  """Two bits that always agree look as good as two free ones."""
  free = jnp.array([[a, b] for a in (-9.0, 9.0) for b in (-9.0, 9.0)])[None]
  tied = free.at[..., 1].set(free[..., 0])
  for y, exact in ((free, 2 * np.log(2)), (tied, np.log(2))):
    util.close(penalties("lfq(2)", y)["entropy"], -2 * np.log(2), 1e-4)
    util.close(by_all_entries(y, 1.0)[1], exact, 1e-4)
  # Bits that are all alike are as bad as can be.
  util.close(penalties("lfq(2)", jnp.full((1, 4, 2), 9.0))["entropy"], 0, 1e-4)


def test_gradients():
  """Straight through; finite far from 0; commit pulls y to its sign."""
  made, variables = util.identity("lfq(4)")
  weights = util.drawn(3, 8, 4, seed=2)

  @jax.jit
  def grads(x):
    z = lambda x: (weights * made.apply(variables, x, train=True)[0]).sum()
    of = lambda name: jax.grad(
      lambda x: made.apply(variables, x, train=True)[1]["penalties"][name].sum()
    )(x)
    return jax.grad(z)(x), of("commit"), of("entropy")

  through, commit, _ = grads(X)
  util.close(through, weights)
  util.close(commit, 2 * (X - np.sign(X)) / (8 * 4))
  for far in (0.0, 1e4, -1e4):
    assert all(np.isfinite(g).all() for g in grads(jnp.full(X.shape, far)))


def test_descent_on_entropy_makes_bits_sure_and_balanced():
  x = X + 0.8  # three quarters and more are 1
  made, variables = util.identity("lfq(4)")

  @jax.jit
  def descend(x):
    def loss(x):
      found = made.apply(variables, x, train=True)[1]["penalties"]
      return 24 * (found["entropy"] + found["commit"]).mean()

    step = lambda x, _: (x - 0.1 * jax.grad(loss)(x), None)
    return jax.lax.scan(step, x, None, 200)[0], loss(x)

  after, _ = descend(x)
  off = lambda x: np.abs((np.asarray(x) > 0).mean((0, 1)) - 0.5).mean()
  assert off(x) > 0.2 and off(after) < off(x) - 0.1
  assert lfq.entropy(4 * after).mean() < lfq.entropy(4 * x).mean()


def test_entropy_of_a_bit():
  logits = np.array([-200.0, -3.0, 0.0, 1.0, 40.0])
  p = 1 / (1 + np.exp(-logits))
  with np.errstate(divide="ignore", invalid="ignore"):
    want = np.nan_to_num(-p * np.log(p) - (1 - p) * np.log1p(-p))
  util.close(lfq.entropy(jnp.asarray(logits, jnp.float32)), want, 1e-6)
