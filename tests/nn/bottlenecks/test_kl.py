"""The Gaussian bottleneck: its price, its draws, its gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.nn.bottlenecks import util
from vitscale.nn import bottlenecks
from vitscale.nn.bottlenecks import kl

MEAN = np.array([0.5, -2.0, 0.0], np.float32)
LOG_VARIANCE = np.array([-1.0, 0.7, 0.0], np.float32)


def constant(mean=MEAN, log_variance=LOG_VARIANCE):
  """(module, variables) that gives every token these moments."""
  made = bottlenecks.parse(f"kl({len(mean)})")()
  bias = jnp.stack([jnp.asarray(mean), jnp.asarray(log_variance)])
  kernel = jnp.zeros((4, *bias.shape))
  return made, {"params": {"moments": {"kernel": kernel, "bias": bias}}}


def test_price_is_the_divergence_of_the_textbook():
  mean, spread = util.drawn(40), util.drawn(40, seed=1)
  by_hand = (
    np.log(1 / np.exp(spread / 2))
    + (np.exp(spread) + np.square(mean)) / 2
    - 0.5
  )  # ln(1 / sigma) + (sigma^2 + mu^2) / 2 - 1/2
  util.close(kl.divergence(mean, spread), by_hand, 1e-6)
  assert (kl.divergence(mean, spread) > 0).all()
  assert kl.divergence(jnp.zeros(1), jnp.zeros(1)) == 0


def test_price_by_monte_carlo_and_moments_of_draws():
  """E ln q(z) / p(z) over draws; what is drawn has the mean and variance."""
  made, variables = constant()
  n = 20_000
  z, out = util.run(made, variables, jnp.zeros((2, n, 4)), train=True)
  z = np.asarray(z, np.float64)
  sigma = np.exp(LOG_VARIANCE / 2)
  ln_ratio = -np.square((z - MEAN) / sigma) / 2 - np.log(sigma) + z**2 / 2
  per_token = ln_ratio.mean(-1)  # mean over floats
  error = per_token.std() / np.sqrt(per_token.size)
  want = float(kl.divergence(MEAN, LOG_VARIANCE).mean())
  assert error < 0.01 and abs(per_token.mean() - want) < 5 * error
  util.close(out["penalties"]["kl"], [want, want])
  flat = z.reshape(-1, 3)
  far = np.abs(flat.mean(0) - MEAN) / (sigma / np.sqrt(len(flat)))
  assert (far < 5).all()
  util.close(flat.var(0), sigma**2, rtol=5 * np.sqrt(2 / len(flat)), atol=0)
  # Draws of floats, tokens and images are independent of each other.
  noise = (z - MEAN) / sigma
  for a, b in (
    (noise[..., 0], noise[..., 1]),
    (noise[:, :-1], noise[:, 1:]),
    (noise[0], noise[1]),
  ):
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03


def test_price_is_a_mean_per_image():
  """Nats per float of each image, whatever tokens and floats there are."""
  made, variables = util.initial("kl(6)")
  x = util.drawn(3, 7, 16)
  _, out = util.run(made, variables, x)
  each = kl.divergence(out["mean"], out["log_variance"])
  sums = np.asarray(each, np.float64).sum((1, 2))
  util.close(out["penalties"]["kl"], sums / (7 * 6))
  twice = jnp.concatenate([x, x], 1)
  _, more = util.run(made, variables, twice)
  util.close(more["penalties"]["kl"], out["penalties"]["kl"])


def test_the_mean_otherwise():
  made, variables = util.initial("kl(6)")
  x = util.drawn(3, 7, 16)
  z, out = util.run(made, variables, x)
  np.testing.assert_array_equal(z, out["mean"])

  @jax.jit
  def draw(key):
    return made.apply(variables, x, train=True, rngs={"latent": key})[0]

  first, same, other = (draw(jax.random.key(s)) for s in (0, 0, 1))
  np.testing.assert_array_equal(first, same)
  assert jnp.abs(first - other).min() > 0 and jnp.abs(first - z).min() > 0


def test_gradient_of_a_draw():
  """dz/dmu = 1, dz/d ln sigma^2 = (z - mu) / 2."""
  made, variables = constant()
  keys = {"latent": jax.random.key(0)}
  x = jnp.zeros((1, 5, 4))

  @jax.jit
  def both(variables):
    f = lambda v: made.apply(v, x, train=True, rngs=keys)[0].sum((0, 1))
    return f(variables), jax.jacobian(f)(variables)

  z, jacobian = both(variables)
  by_bias = jacobian["params"]["moments"]["bias"]  # (c, 2, c)
  util.close(by_bias[:, 0], 5 * np.eye(3))
  util.close(by_bias[:, 1], np.diag(np.asarray(z - 5 * MEAN) / 2), 1e-4)


def test_log_variance_stays_in_its_range():
  low, high = kl.LOG_VARIANCE
  made, variables = constant([0.0, 0.0], [-99.0, 99.0])
  z, out = util.run(made, variables, jnp.zeros((1, 2, 4)), train=True)
  util.close(out["log_variance"][0, 0], [low, high])
  assert np.isfinite(z).all() and np.isfinite(out["penalties"]["kl"]).all()
