"""Where the tokens of an image lie: known to whoever mixes neighbours."""

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Grid:
  """Rows and columns of patches, behind tokens that have no place.

  Attributes:
    rows, columns: of patches, row-major; a sequence is one row.
    prefix: class token and registers in front.
  """

  rows: int
  columns: int
  prefix: int = 0

  @property
  def tokens(self) -> int:
    """All of them, prefix included."""
    return self.prefix + self.rows * self.columns

  def split(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(b, n, ...) -> prefix (b, prefix, ...), image (b, rows, columns, ...)."""
    image = x[:, self.prefix :]
    shape = (len(x), self.rows, self.columns, *x.shape[2:])
    return x[:, : self.prefix], image.reshape(shape)

  def join(self, prefix: jax.Array, image: jax.Array) -> jax.Array:
    """The inverse of `split`."""
    flat = image.reshape(len(image), -1, *image.shape[3:])
    return jnp.concatenate([prefix, flat], 1)
