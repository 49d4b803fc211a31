"""Images to patch tokens, at any patch size.

Patchifying is a reshape and a matrix product, never a convolution: the same
code serves a patch of 1 x 1 and of 48 x 48, and the kernel has a "patch" axis
that can be mapped linearly. `resize_kernel` is that map for another patch
size: the pseudo-inverse resize of FlexiViT (Beyer et al., 2212.08013), which
keeps the inner product of kernel and patch when the patch is upsampled.
Always resize from the canonical kernel: two resizes in a row lose what one
would keep.
"""

import functools
from collections.abc import Sequence

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.core.errors import UserError

Size = int | Sequence[int]


def pair(size: Size) -> tuple[int, int]:
  """`16` -> (16, 16); `(8, 16)` stays."""
  h, w = (size, size) if isinstance(size, int) else size
  if h < 1 or w < 1:
    raise UserError(f"patch size {size}: both sides must be 1 or more")
  return int(h), int(w)


def grid_of(image: tuple[int, int], patch: Size) -> tuple[int, int]:
  """Rows and columns of patches of an image of (height, width) pixels.

  Raises:
    UserError: a side is no multiple of the patch (names the nearest sizes).
  """
  grid = []
  for side, p, what in zip(image, pair(patch), ("height", "width")):
    if side % p:
      near = [s for s in (side // p * p, (side // p + 1) * p) if s]
      fits = [q for q in range(1, side + 1) if side % q == 0]
      fits = sorted(fits, key=lambda q: abs(q - p))[:2]
      raise UserError(
        f"patch {p} does not divide image {what} {side}: use {what}"
        f" {' or '.join(map(str, near))}, or patch"
        f" {' or '.join(map(str, sorted(fits)))}"
      )
    grid.append(side // p)
  return grid[0], grid[1]


def patchify(image: jax.Array, patch: Size) -> jax.Array:
  """(b, h, w, c) -> (b, gh, gw, ph * pw * c), each patch row-major."""
  ph, pw = pair(patch)
  grid_of(image.shape[1:3], patch)  # refuses a patch that doesn't divide
  return einops.rearrange(
    image, "b (gh ph) (gw pw) c -> b gh gw (ph pw c)", ph=ph, pw=pw
  )


def unpatchify(x: jax.Array, patch: Size) -> jax.Array:
  """The inverse of `patchify`: (b, gh, gw, ph * pw * c) -> (b, h, w, c)."""
  ph, pw = pair(patch)
  return einops.rearrange(
    x, "b gh gw (ph pw c) -> b (gh ph) (gw pw) c", ph=ph, pw=pw
  )


def resize_matrix(old: int, new: int) -> np.ndarray:
  """(new, old) float64 matrix of 1-D bilinear resizing.

  Half-pixel centres, edges clamped, no smoothing when shrinking: what
  FlexiViT resizes with.
  """
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  centre = np.clip(centre, 0, old - 1)
  low = np.minimum(np.floor(centre).astype(int), max(old - 2, 0))
  high = np.minimum(low + 1, old - 1)
  matrix = np.zeros((new, old))
  rows = np.arange(new)
  np.add.at(matrix, (rows, low), 1 - (centre - low))
  np.add.at(matrix, (rows, high), centre - low)
  return matrix


@functools.cache
def pi_matrix(old: int, new: int) -> np.ndarray:
  """(new, old): pseudo-inverse of the transposed resize, one dimension.

  The 2-D resize is a Kronecker product of two 1-D ones, and so is its
  pseudo-inverse: two small matrices stand for one of (new^2, old^2).
  """
  return np.linalg.pinv(resize_matrix(old, new).T)


def resize_kernel(kernel: jax.Array, old: Size, new: Size) -> jax.Array:
  """PI-resize of a patch kernel.

  Args:
    kernel: (ph * pw * c, d) at patch size `old`.
    old, new: patch sizes, one number or (rows, columns).

  Returns:
    (nh * nw * c, d), same type; `kernel` itself when the sizes agree.
  """
  old, new = pair(old), pair(new)
  if old == new:
    return kernel
  k = kernel.reshape(*old, -1, kernel.shape[-1]).astype(jnp.float32)
  rows, columns = (
    jnp.asarray(pi_matrix(o, n), jnp.float32) for o, n in zip(old, new)
  )
  # Full precision: the TPU default would round the matrices to bfloat16.
  k = jnp.einsum("ya,xb,abcd->yxcd", rows, columns, k, precision="highest")
  return k.reshape(-1, kernel.shape[-1]).astype(kernel.dtype)


class PatchEmbed(nn.Module):
  """Linear embedding of patches, at the canonical patch size or another.

  Attributes:
    width: d.
    patch_size: canonical patch, the one the kernel is stored at.
    dtype: compute type.
  """

  width: int
  patch_size: Size
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: jax.Array, patch_size: Size | None = None
  ) -> jax.Array:
    """(b, h, w, c) float -> (b, gh, gw, d) at `patch_size` (or canonical)."""
    old = pair(self.patch_size)
    new = old if patch_size is None else pair(patch_size)
    size = old[0] * old[1] * image.shape[-1]
    kernel = axes.param(
      self, "kernel", "patch -> embed", (size, self.width), axes.lecun
    )
    bias = axes.param(self, "bias", "embed", (self.width,), axes.zeros)
    dtype = jnp.dtype(self.dtype)
    kernel = resize_kernel(kernel, old, new).astype(dtype)
    return patchify(image.astype(dtype), new) @ kernel + bias.astype(dtype)
