"""Positions on any grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import position


def apply(kind, grid, init_grid=None, scale=(1.0, 1.0)):
  x = lambda g: jnp.zeros((2, *g, 8))
  module = position.Position(kind)
  v = axes.unbox(module.init(jax.random.key(0), x(init_grid or grid)))
  return module.apply(v, x(grid), scale), v


@pytest.mark.parametrize("kind", position.KINDS)
def test_any_grid(kind):
  same, v = apply(kind, (3, 4))
  other, _ = apply(kind, (6, 5), init_grid=(3, 4))
  assert same.shape == (2, 3, 4, 8) and other.shape == (2, 6, 5, 8)
  assert bool(v) == (kind in ("learned", "factorized", "fractional", "glpe"))
  moves = np.abs(other).max() > 0
  assert moves == (kind not in ("rope2d", "none"))


def test_learned_table_is_used_as_it_is_on_its_own_grid():
  y, v = apply("learned", (3, 4))
  np.testing.assert_array_equal(y[0], v["params"]["table"])


def test_width_of_a_stored_table_is_checked():
  _, v = apply("learned", (3, 4))
  with pytest.raises(Exception, match="shape"):
    position.Position("learned").apply(v, jnp.zeros((1, 3, 4, 16)))


def test_resample_keeps_a_ramp():
  """Bilinear: a linear table stays linear between its ends."""
  ramp = jnp.arange(4.0)[:, None, None] * jnp.ones((4, 4, 1))
  fine = position.resample(ramp, (8, 4))
  np.testing.assert_allclose(fine[2:6, 0, 0], [0.75, 1.25, 1.75, 2.25])


def test_coordinates_in_canonical_patches():
  np.testing.assert_array_equal(
    position.coordinates((2, 2)), [[0, 0], [0, 1], [1, 0], [1, 1]]
  )
  # Half the patch, twice the grid: four points around each old one.
  fine = position.coordinates((4, 4), (0.5, 0.5)).reshape(2, 2, 2, 2, 2)
  np.testing.assert_allclose(
    fine.mean((1, 3)).reshape(-1, 2), position.coordinates((2, 2))
  )


def test_sincos_tells_all_places_apart():
  table = position.sincos2d(position.coordinates((5, 7)), 16)
  gap = np.linalg.norm(table[:, None] - table[None], axis=-1)
  assert (gap + np.eye(35) > 0.1).all()
  with pytest.raises(UserError, match="divisible by 4"):
    position.sincos2d(position.coordinates((2, 2)), 6)


def test_rope_depends_on_the_difference_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def logit(a, b):
    turn = lambda x, at: position.rotate(
      x, position.rope2d(np.array([at], float), 8)
    )
    return float((turn(q, a) * turn(k, b)).sum())

  assert logit((0, 0), (2, 1)) == pytest.approx(logit((3, 5), (5, 6)), abs=1e-5)
  assert abs(logit((0, 0), (2, 1)) - logit((0, 0), (1, 2))) > 1e-3


def test_rope_leaves_the_prefix_and_lengths_alone():
  x = jax.random.normal(jax.random.key(0), (2, 2 + 6, 3, 8))
  rope = position.rope2d(position.coordinates((2, 3)) + 1, 8, prefix=2)
  y = position.rotate(x, rope)
  np.testing.assert_array_equal(y[:, :2], x[:, :2])
  assert np.abs(y[:, 2:] - x[:, 2:]).max() > 0.1
  norm = lambda z: jnp.linalg.norm(z, axis=-1)
  np.testing.assert_allclose(norm(x), norm(y), rtol=1e-5)
  with pytest.raises(UserError, match="head_dim divisible by 4"):
    position.rope2d(position.coordinates((2, 2)), 6)


def test_unknown_kind():
  with pytest.raises(UserError, match="did you mean 'learned'"):
    apply("learnt", (2, 2))


@pytest.mark.parametrize("kind", ["learned", "factorized"])
def test_a_table_of_one_size_for_every_grid(kind):
  """Parameter-matched: 3 x 4 patches and 12 x 16 have one table, 6 x 6."""
  sizes = set()
  for grid in ((3, 4), (12, 16)):
    x = jnp.zeros((1, *grid, 8))
    module = position.Position(kind, grid=(6, 6))
    v = axes.unbox(module.init(jax.random.key(0), x))
    sizes.add(sum(p.size for p in jax.tree.leaves(v)))
    assert abs(module.apply(v, x)).max() > 0
  assert sizes == {8 * 36 if kind == "learned" else 2 * 8 * 6}


@pytest.mark.parametrize("kind", ["fractional", "glpe"])
def test_parts_of_the_image_know_no_pixels(kind):
  """The middle of any odd grid is the middle of the image."""
  if kind == "glpe":  # its convolution reaches the edge of a small grid
    at = lambda g: position.sincos2d(2 * np.pi * position.fractions(g), 8)
    small, large = at((3, 3))[4], at((9, 9))[40]
  else:
    (small, v) = apply(kind, (3, 3))
    large = position.Position(kind).apply(v, jnp.zeros((1, 9, 9, 8)))
    small, large = small[0, 1, 1], large[0, 4, 4]
  np.testing.assert_allclose(small, large, atol=1e-6)


def test_sincos1d_counts_along_rows():
  y, _ = apply("sincos1d", (2, 3))
  flat, _ = apply("sincos1d", (1, 6))
  np.testing.assert_array_equal(y.reshape(2, 6, 8), flat.reshape(2, 6, 8))


def test_a_grid_for_no_table_is_refused():
  with pytest.raises(UserError, match="'sincos2d' positions store no table"):
    position.Position("sincos2d", grid=(6, 6)).init(
      jax.random.key(0), jnp.zeros((1, 3, 4, 8))
    )
