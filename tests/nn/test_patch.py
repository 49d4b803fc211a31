"""Patches are rows of pixels, and PI-resize keeps inner products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.nn import patch


@pytest.mark.parametrize("size", [1, 2, (2, 3), (4, 6)])
def test_patchify_and_back(size):
  image = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  tokens = patch.patchify(image, size)
  ph, pw = patch.pair(size)
  assert tokens.shape == (2, 4 // ph, 6 // pw, ph * pw * 3)
  np.testing.assert_array_equal(
    tokens[1, -1, -1], image[1, -ph:, -pw:].reshape(-1)
  )
  np.testing.assert_array_equal(patch.unpatchify(tokens, size), image)


def test_embedding_is_a_strided_convolution():
  image = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
  embed = patch.PatchEmbed(5, (4, 6))
  y, variables = embed.init_with_output(jax.random.key(1), image)
  kernel = variables["params"]["kernel"].value.reshape(4, 6, 3, 5)
  want = jax.lax.conv_general_dilated(
    image, kernel, (4, 6), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_error_names_sizes_that_fit():
  with pytest.raises(UserError, match="height 28: use height 16 or 32, or p"):
    patch.grid_of((28, 28), 16)
  with pytest.raises(UserError, match="or patch 7 or 14"):
    patch.grid_of((28, 28), 16)
  with pytest.raises(UserError, match="width 30"):
    patch.grid_of((32, 30), 16)
  with pytest.raises(UserError, match="1 or more"):
    patch.pair(0)


@pytest.mark.parametrize("new", [4, 6, 7, (8, 5)])
def test_resize_up_keeps_the_inner_product(new):
  """<resize(x), pi_resize(w)> = <x, w> for every patch x."""
  old, (nh, nw) = (4, 4), patch.pair(new)
  x = jax.random.normal(jax.random.key(0), (*old, 3))
  w = jax.random.normal(jax.random.key(1), (4 * 4 * 3, 5))
  up = [jnp.asarray(patch.resize_matrix(4, n), jnp.float32) for n in (nh, nw)]
  big = jnp.einsum("ya,xb,abc->yxc", *up, x)
  got = big.reshape(-1) @ patch.resize_kernel(w, old, new)
  np.testing.assert_allclose(got, x.reshape(-1) @ w, atol=1e-4)


def test_resize_identity_and_inside_jit():
  w = jax.random.normal(jax.random.key(0), (6 * 6 * 2, 3))
  assert patch.resize_kernel(w, 6, (6, 6)) is w
  resize = jax.jit(lambda w: patch.resize_kernel(w, 6, 4))
  got = resize(w)
  assert got.shape == (4 * 4 * 2, 3)
  # Against the definition: one pseudo-inverse of the whole 2-D resize.
  b = patch.resize_matrix(6, 4)
  full = np.linalg.pinv(np.kron(b, b).T)
  want = np.einsum("nm,mcd->ncd", full, np.asarray(w).reshape(36, 2, 3))
  np.testing.assert_allclose(got, want.reshape(32, 3), atol=1e-5)


def test_resizes_do_not_chain():
  """Down and up again has lost what one resize from the original keeps."""
  w = jax.random.normal(jax.random.key(0), (4 * 4, 3))
  there = patch.resize_kernel(w, 4, 2)
  assert np.abs(patch.resize_kernel(there, 2, 4) - w).max() > 0.1


@pytest.mark.parametrize("old, new", [(4, 8), (8, 4), (5, 7), (6, 1), (1, 3)])
def test_resize_matrix_is_bilinear(old, new):
  want = jax.image.resize(jnp.eye(old), (new, old), "linear", antialias=False)
  np.testing.assert_allclose(patch.resize_matrix(old, new), want, atol=1e-6)


@pytest.mark.parametrize("new", [24, 15, 8])
def test_pi_resize_is_flexivits_matrix(new):
  """Section 3.4 of 2212.08013, as written: resize every basis image of the
  stored 32 x 32 patch bilinearly, pseudo-invert the transposed matrix."""
  basis = jnp.eye(32 * 32).reshape(-1, 32, 32)
  resized = jax.image.resize(
    basis, (len(basis), new, new), "bilinear", antialias=False
  )
  matrix = np.asarray(resized, np.float64).reshape(len(basis), -1).T
  published = np.linalg.pinv(matrix.T)
  ours = np.kron(patch.pi_matrix(32, new), patch.pi_matrix(32, new))
  np.testing.assert_allclose(ours, published, atol=2e-5)
  # Exact in its least-squares sense: nothing is nearer to <x, w> over all x.
  w = np.random.default_rng(0).normal(size=32 * 32)
  best, *_ = np.linalg.lstsq(matrix.T, w, rcond=None)
  np.testing.assert_allclose(ours @ w, best, atol=2e-3)
