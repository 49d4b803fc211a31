"""Rows of tokens that hold several images each, as a model sees them.

What data/pack.py puts into a batch, and what changes for a model: a patch is
embedded by itself, a position is that of a token in its own image, attention
is told `segment_ids`, and every image is pooled by itself. A packed image has
the logits that it has alone.
"""

import jax
import jax.numpy as jnp
from flax import struct

from vitscale.core.errors import UserError
from vitscale.nn.patch import Size, pair


@struct.dataclass
class Packed:
  """b rows of L tokens and up to S images.

  Attributes:
    patches: (b, L, ph * pw * c) float, normalised.
    coordinates: (b, L, 2) row and column of a patch in its image.
    segment_ids: (b, L) int, 1 to S; 0 is padding.
    grids: (b, S, 2) rows and columns of patches of each image.
    patch_size: that the images are cut at.
  """

  patches: jax.Array
  coordinates: jax.Array
  segment_ids: jax.Array
  grids: jax.Array
  patch_size: Size = struct.field(pytree_node=False)

  def column(self) -> jax.Array:
    """(b, L * ph, pw, c): images of one column of patches, to embed."""
    ph, pw = pair(self.patch_size)
    b, n, size = self.patches.shape
    return self.patches.reshape(b, n * ph, pw, size // (ph * pw))

  def where(self, scale: tuple[float, float]) -> jax.Array:
    """(b, L, 2) row and column of patch centres, see `position.coordinates`."""
    return (self.coordinates + 0.5) * jnp.asarray(scale, jnp.float32) - 0.5

  def sizes(self) -> jax.Array:
    """(b, L, 2) rows and columns of the image that a token is of, from 1 on."""
    grids = jnp.pad(self.grids, ((0, 0), (1, 0), (0, 0)))
    index = self.segment_ids[..., None]
    return jnp.maximum(jnp.take_along_axis(grids, index, 1), 1)

  def fractions(self) -> jax.Array:
    """(b, L, 2) row and column of patch centres, in parts of their image."""
    return (self.coordinates + 0.5) / self.sizes()

  def read(self, table: jax.Array, axis: int | None = None) -> jax.Array:
    """What resampling a table to each image's grid gives at its tokens.

    Args:
      table: (rows, columns, d), or of one side, (rows or columns, d).
      axis: the side of the latter: 0 for rows, 1 for columns.

    Returns:
      (b, L, d).
    """
    sides = (0, 1) if axis is None else (axis,)
    sizes = self.sizes()
    weights = [
      _weights(self.coordinates[..., side], sizes[..., side], n)
      for side, n in zip(sides, table.shape)
    ]
    whole = weights[0]
    if axis is None:
      whole = weights[0][..., :, None] * weights[1][..., None, :]
      whole = whole.reshape(*whole.shape[:2], -1)
    flat = table.reshape(-1, table.shape[-1])
    return jnp.einsum("bln,nd->bld", whole, flat, precision="highest")

  def mean(self, x: jax.Array) -> jax.Array:
    """(b, L, d) -> (b, S, d) float32: each image's mean, 0 for none."""
    count = self.grids.shape[1]
    own = self.segment_ids[:, None] == jnp.arange(1, count + 1)[:, None]
    own = own.astype(jnp.float32)  # (b, S, L)
    total = jnp.einsum(
      "bsl,bld->bsd", own, x.astype(jnp.float32), precision="highest"
    )
    return total / jnp.maximum(own.sum(-1, keepdims=True), 1)


def _weights(at: jax.Array, size: jax.Array, stored: int) -> jax.Array:
  """What `jax.image.resize` weighs a side's entries with, a row per token.

  Args:
    at: (b, L) which of the new entries.
    size: (b, L) how many new entries.
    stored: how many old ones.

  Returns:
    (b, L, stored): a triangle, stretched when shrinking, that sums to one.
  """
  ratio = stored / size.astype(jnp.float32)
  centre = (at + 0.5) * ratio - 0.5
  distance = jnp.abs(centre[..., None] - jnp.arange(stored))
  weight = jnp.maximum(1 - distance / jnp.maximum(ratio, 1)[..., None], 0)
  return weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-6)


def check(
  pool: str, registers: int, vocabulary: int | None, patch_size: Size | None
) -> None:
  """Refuses what has no meaning in a row of several images.

  Raises:
    UserError: options of a model, or a patch for this call.
  """
  why_not = {
    f"pool {pool!r}: a row has several images; use 'mean'": pool != "mean",
    f"{registers} registers: a row would share them; use none": registers,
    "a vocabulary: they have pixels": vocabulary is not None,
    f"patch {patch_size}: they are cut already": patch_size is not None,
  }
  for text, wrong in why_not.items():
    if wrong:
      raise UserError(f"packed images with {text}")
