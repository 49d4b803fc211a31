"""Draws of a vocabulary: their frequencies, and what truncation leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.sampling.categorical import check, draw

CHANCES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
MANY = 20_000


def frequencies(chances=CHANCES, **options):
  logits = jnp.broadcast_to(np.log(chances), (MANY, len(chances)))
  drawn = np.asarray(draw(jax.random.key(0), logits, **options))
  assert drawn.shape == (MANY,) and drawn.dtype == np.int32
  return np.bincount(drawn, minlength=len(chances)) / MANY


def close(found, want):
  """Within four standard errors of a share; exact where it is 0."""
  want = np.asarray(want) / np.sum(want)
  assert (np.abs(found - want) <= 4 * np.sqrt(want * (1 - want) / MANY)).all()


def test_draws_by_the_probabilities():
  close(frequencies(), CHANCES)


def test_temperature_raises_them_to_a_power():
  close(frequencies(temperature=2.0), CHANCES**0.5)
  close(frequencies(temperature=0.5), CHANCES**2)
  np.testing.assert_array_equal(frequencies(temperature=0), [0, 1, 0, 0, 0])


def test_the_k_likeliest():
  close(frequencies(top_k=2), [0, 0.4, 0, 0.3, 0])
  close(frequencies(top_k=5), CHANCES)
  np.testing.assert_array_equal(frequencies(top_k=1), [0, 1, 0, 0, 0])
  # Of equals the first, and no more than k.
  close(frequencies(np.full(5, 0.2), top_k=3), [1, 1, 1, 0, 0])


@pytest.mark.parametrize(
  "p, kept",
  [(0.3, [1]), (0.65, [1, 3]), (0.75, [1, 3, 4]), (1.0, [0, 1, 2, 3, 4])],
)
def test_a_nucleus_is_the_smallest_set_that_holds_p(p, kept):
  close(frequencies(top_p=p), CHANCES * np.isin(np.arange(5), kept))


def test_a_nucleus_is_of_what_top_k_and_temperature_left():
  """Of .4 and .3 the first has .57 of what is left: below .6, above .5."""
  close(frequencies(top_k=2, top_p=0.6), [0, 0.4, 0, 0.3, 0])
  close(frequencies(top_k=2, top_p=0.5), [0, 1, 0, 0, 0])
  # Squared .4 has .56 of all.
  close(frequencies(temperature=0.5, top_p=0.55), [0, 1, 0, 0, 0])


def test_rows_and_keys_are_apart():
  logits = jnp.zeros((3, 4, 50))
  drawn = draw(jax.random.key(1), logits, top_p=0.9)
  assert drawn.shape == (3, 4) and len(np.unique(drawn)) > 6
  assert np.any(drawn != draw(jax.random.key(2), logits, top_p=0.9))


@pytest.mark.parametrize(
  "options, text",
  [
    ({"temperature": -1.0}, r"temperature=-1\.0: should be 0 or more"),
    ({"temperature": float("nan")}, "temperature=nan"),
    ({"top_k": 0}, r"top_k=0: should be in 1\.\.5"),
    ({"top_k": 6}, r"top_k=6: should be in 1\.\.5"),
    ({"top_k": 2.0}, r"top_k=2\.0"),
    ({"top_p": 0.0}, r"top_p=0\.0: should be above 0, 1 at most"),
    ({"top_p": 1.5}, r"top_p=1\.5"),
  ],
)
def test_refuses(options, text):
  check(5, 0.7, 3, 0.9)
  with pytest.raises(UserError, match=text) as error:
    check(5, **options)
  assert "\n" not in str(error.value)
