"""Processes: their levels, times and targets, against what papers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.sampling import process
from vitscale.sampling.process import Process


def test_flow_is_a_line_and_its_target_the_line_s_slope():
  x, noise = jnp.ones((2, 3)), jnp.full((2, 3), 5.0)
  shown, target = process.noised(Process(), x, noise, jnp.asarray([0.0, 0.25]))
  np.testing.assert_allclose(shown, [[1.0] * 3, [2.0] * 3])
  np.testing.assert_allclose(target, 4.0)


@pytest.mark.parametrize("schedule", process.SCHEDULES)
def test_ddpm_keeps_variance_and_predicts_the_noise(schedule):
  one = Process("ddpm", schedule)
  t = jnp.arange(process.STEPS) / process.STEPS
  alpha, sigma = process.levels(one, t)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
  assert (np.diff(alpha) < 0).all() and alpha[0] > 0.999 and alpha[-1] < 0.01
  noise = jnp.full((1, 2), 3.0)
  shown, target = process.noised(one, jnp.ones((1, 2)), noise, t[500:501])
  np.testing.assert_allclose(shown, alpha[500] + 3 * sigma[500], rtol=1e-6)
  np.testing.assert_array_equal(target, noise)


def test_published_schedules():
  linear, cosine = (process.alphas_bar(name) for name in process.SCHEDULES)
  # Step by step (2006.11239, section 4), and in closed form (2102.09672, 17).
  kept = 1.0
  for i in range(1000):
    kept *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
  np.testing.assert_allclose(linear[-1], kept, rtol=1e-9)
  level = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2
  level /= np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  np.testing.assert_allclose(cosine[499], level, rtol=1e-9)


def test_a_shift_scales_the_odds_of_noise():
  t = jnp.asarray([0.0, 0.2, 0.5, 1.0])
  moved = process.shifted(t, 3.0)
  np.testing.assert_allclose(moved[jnp.asarray([0, 3])], [0, 1])
  inner = slice(1, 3)
  odds = lambda t: np.asarray(t[inner] / (1 - t[inner]))
  np.testing.assert_allclose(odds(moved), 3 * odds(t), rtol=1e-6)
  np.testing.assert_allclose(process.times(Process(shift=3.0), t), moved)
  assert process.shift_of((16, 16, 64)) == 2.0


def test_times_of_ddpm_are_its_steps():
  u = jnp.asarray([0.0, 0.00099, 0.0015, 0.9999, 1.0])
  got = process.times(Process("ddpm"), u) * 1000
  np.testing.assert_allclose(got, [0, 0, 1, 999, 999], rtol=1e-6)


@pytest.mark.parametrize(
  "options, text",
  [
    ({"kind": "flows"}, "process 'flows'.*'flow'"),
    ({"kind": "ddpm", "schedule": "sine"}, "schedule 'sine'"),
    ({"schedule": "cosine"}, "flow has one, 'linear'"),
    ({"shift": 0}, "shift=0: should be above 0"),
    ({"shift": "dims"}, "shift='dims': should be above 0"),
    ({"kind": "ddpm", "shift": 2.0}, "ddpm has none"),
  ],
)
def test_refuses(options, text):
  with pytest.raises(UserError, match=text) as error:
    Process(**options)
  assert "\n" not in str(error.value)


# ---------------------------------------------------------------- steps back


def test_a_step_back_is_bayes_rule():
  """Two normal densities multiplied, in one dimension."""
  bar = process.alphas_bar("linear")[[3, 40, 400, 999]]
  found = process.back(bar)
  before = np.append(1.0, bar[:-1])[1:]
  alpha = bar[1:] / before
  precision = alpha / (1 - alpha) + 1 / (1 - before)
  np.testing.assert_allclose(found["low"][1:], -np.log(precision), rtol=1e-9)
  x, shown = 0.3, -1.2
  mean = (
    np.sqrt(alpha) / (1 - alpha) * shown + np.sqrt(before) / (1 - before) * x
  )
  want = mean / precision
  made = found["data"][1:] * x + found["noised"][1:] * shown
  np.testing.assert_allclose(made, want, rtol=1e-9)
  np.testing.assert_allclose(found["high"][1:], np.log(1 - alpha), rtol=1e-9)
  # To the data: all of them, nothing of what is shown.
  assert found["data"][0] == pytest.approx(1) and found["noised"][0] == 0


def test_the_bound_is_a_divergence_and_trains_the_variance_alone():
  ddpm = Process("ddpm")
  rng = np.random.default_rng(0)
  x, noise, said, off = rng.normal(size=(4, 6, 3)).astype(np.float32)
  t = jnp.asarray([0, 1, 10, 200, 600, 999]) / 1000
  shown, _ = process.noised(ddpm, x, noise, t)
  see = lambda eps, said: process.bound(ddpm, x, shown, t, eps, said)
  exact = see(jnp.asarray(noise), -jnp.ones_like(x))
  np.testing.assert_allclose(exact, 0, atol=2e-4)
  # By hand, in float64: two normals of other mean and variance.
  at, bar = 200, process.alphas_bar("linear")
  tables = process.back(bar)
  low, high = tables["low"][at], tables["high"][at]
  mine = (said[3] + 1) / 2 * high + (1 - said[3]) / 2 * low
  apart = tables["data"][at] * np.sqrt(1 - bar[at]) / np.sqrt(bar[at]) * off[3]
  want = (mine - low + np.exp(low - mine) + apart**2 / np.exp(mine) - 1) / 2
  made = see(jnp.asarray(noise + off), jnp.asarray(said))
  np.testing.assert_allclose(made[3], want.mean() / np.log(2), rtol=1e-3)
  assert made[0] == 0 and (made[1:] > 0).all()
  of_eps, of_said = jax.grad(lambda *a: see(*a).sum(), (0, 1))(
    jnp.asarray(noise + off), jnp.asarray(said)
  )
  assert not of_eps.any() and of_said[1:].any()
