"""Sequences of integers: looked up, padded, pooled without the padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import vit
from vitscale.nn import tokens

SHORT = np.array([5, 3, 2, 0, 4])
LONG = np.array([5, 3, 2, 0, 4, 0, 0, 0])


def model(**changes):
  toy = {**vit.variant("mu"), "width": 16, "mlp_dim": 32}
  return vit.Model(
    3,
    **{
      **toy, "patch_size": 1, "vocabulary": 6, "pad_token": 0,
      "position": "sincos1d", **changes,
    },
  )  # fmt: skip


def image(ids):
  return jnp.asarray(ids, jnp.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize("pool", vit.POOLS)
def test_padding_changes_nothing(pool):
  toy = model(pool=pool, registers=2)
  v = axes.unbox(toy.init(jax.random.key(0), image(LONG)))
  run = jax.jit(lambda v, x: toy.apply(v, x)[1]["pre_logits"])
  padded, alone = run(v, image(LONG)), run(v, image(SHORT))
  np.testing.assert_allclose(padded, alone, atol=1e-5)
  other = np.where(LONG == 4, 1, LONG)
  assert abs(run(v, image(other)) - alone).max() > 1e-3  # it does look


def test_without_a_pad_token_zeros_count():
  toy = model(pad_token=None)
  v = axes.unbox(toy.init(jax.random.key(0), image(LONG)))
  run = lambda ids: toy.apply(v, image(ids))[1]["pre_logits"]
  assert abs(run(LONG) - run(SHORT)).max() > 1e-3


def test_lengths():
  both = jnp.concatenate([image(LONG), image(np.arange(8)), image(0 * LONG)])
  assert tokens.lengths_of(both, 0).tolist() == [5, 8, 1]


def test_a_value_beyond_the_vocabulary_is_loud():
  toy = model()
  v = axes.unbox(toy.init(jax.random.key(0), image(LONG)))
  assert np.isnan(toy.apply(v, image(LONG + 2))[1]["pre_logits"]).all()


def test_refuses():
  with pytest.raises(UserError, match="patch 1, got 1 channels and patch 2x2"):
    model(patch_size=2).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
  with pytest.raises(UserError, match="got 3 channels"):
    model().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
