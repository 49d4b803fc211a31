"""Where a patch is: tables added to the tokens, or rotations of q and k.

Every kind works on any grid. `learned` and `factorized` tables are resampled
bilinearly (`jax.image.resize`, smoothed when shrinking) from the grid they
were initialised with; `sincos2d` and `rope2d` are functions of coordinates,
measured in patches of the canonical size, so that a smaller patch moves
between the old positions and not beyond them. `fractional` and `glpe` count in
parts of the image: every grid spans the same range.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.core.errors import UserError, nearest
from vitscale.nn.depthwise import Depthwise
from vitscale.nn.packed import Packed

KINDS = (
  "learned", "sincos2d", "sincos1d", "factorized", "fractional", "glpe",
  "rope2d", "none",
)  # fmt: skip
Rope = tuple[jax.Array, jax.Array]
Grid = tuple[int, int]
Scale = tuple[float, float]


def coordinates(grid: Grid, scale: Scale = (1.0, 1.0)) -> np.ndarray:
  """(gh * gw, 2) float64 row and column of each patch centre.

  `scale` is patch size / canonical patch size per side; at 1 the coordinates
  are 0, 1, 2, ...
  """
  y, x = ((np.arange(n) + 0.5) * s - 0.5 for n, s in zip(grid, scale))
  return np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)


def sincos2d(
  where: np.ndarray | jax.Array, width: int, temperature: float = 10_000.0
) -> np.ndarray | jax.Array:
  """(..., n, 2) coordinates -> (..., n, width) sines and cosines, float32.

  The table of MoCo v3 (2104.02057): a quarter of the width each for sin and
  cos of the column, then of the row.

  Raises:
    UserError: the width is no multiple of 4.
  """
  if width % 4:
    raise UserError(f"sincos2d needs a width divisible by 4, got {width}")
  omega = temperature ** (-np.arange(width // 4) / max(width // 4 - 1, 1))
  xp = np if isinstance(where, np.ndarray) else jnp
  y, x = (where[..., i, None] * omega for i in (0, 1))
  table = [xp.sin(x), xp.cos(x), xp.sin(y), xp.cos(y)]
  return xp.concatenate(table, -1).astype(np.float32)


def sincos1d(count: int, width: int) -> np.ndarray:
  """(count, width) sines, then cosines, of 0, 1, ... (1706.03762, 3.5).

  Raises:
    UserError: the width is odd.
  """
  if width % 2:
    raise UserError(f"sincos1d needs an even width, got {width}")
  half = width // 2
  omega = 10_000.0 ** (-np.arange(half) / max(half - 1, 1))
  angle = np.arange(count)[:, None] * omega
  return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def fractions(grid: Grid) -> np.ndarray:
  """(gh * gw, 2) row and column of each patch centre, in parts of the image."""
  return (coordinates(grid) + 0.5) / np.asarray(grid)


# --------------------------------------------------------------- rotations


def rope(
  where: np.ndarray | jax.Array,
  head_dim: int,
  *,
  prefix: int = 0,
  temperature: float = 100.0,
) -> Rope:
  """Cosines and sines that `rotate` takes, axial over any number of axes.

  Args:
    where: (..., n, k) coordinates of each token on k axes.
    head_dim: width of a head, 2 k or more. Each axis turns as many of its
      pairs; those left over stay, as do all of the prefix.
    prefix: class token and registers in front, left unturned.
    temperature: base of the frequencies (100: a grid is far shorter than
      a text).

  Returns:
    (cos, sin), each (..., prefix + n, head_dim / 2) float32.

  Raises:
    UserError: head_dim is odd or below 2 k.
  """
  k = where.shape[-1]
  each = head_dim // 2 // k
  if head_dim % 2 or not each:
    raise UserError(
      f"rope over {k} axes needs an even head_dim of {2 * k} or more, got"
      f" {head_dim}"
    )
  omega = temperature ** (-np.arange(each) / each)
  angle = where[..., None] * omega  # (..., n, k, each)
  angle = angle.reshape(*angle.shape[:-2], k * each)
  still = [(0, 0)] * (angle.ndim - 2)
  still += [(prefix, 0), (0, head_dim // 2 - k * each)]
  angle = jnp.pad(jnp.asarray(angle, jnp.float32), still)
  return jnp.cos(angle), jnp.sin(angle)


def rope2d(
  where: np.ndarray | jax.Array, head_dim: int, *, prefix: int = 0
) -> Rope:
  """`rope` of (..., n, 2) rows and columns (axial RoPE, 2403.13298).

  Raises:
    UserError: head_dim is no multiple of 4.
  """
  if head_dim % 4:
    raise UserError(f"rope2d needs head_dim divisible by 4, got {head_dim}")
  return rope(where, head_dim, prefix=prefix)


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
  """Turns (b, n, h, hd) by `rope`; pairs are (i, i + hd / 2)."""
  cos, sin = (t[..., None, :] for t in rope)  # the same for every head
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
  return y.astype(x.dtype)


# ------------------------------------------------------------------ tables

_TABLES = {
  "table": "pos@row pos@column embed",
  "rows": "pos@row embed",
  "columns": "pos@column embed",
}


class Position(nn.Module):
  """Adds positions to a grid of tokens.

  Attributes:
    kind: one of KINDS. "fractional" are learned Fourier features (2106.02795,
      in the fractions of 2307.06304), "glpe" the global part of ResFormer's
      (2212.00776 section 3.3); "rope2d" and "none" add nothing here.
    stddev: of the learned tables at initialisation.
    grid: (rows, columns) that learned tables are stored at, whatever the
      patch, so that models of several patches have equally many parameters;
      None for the grid they are initialised on.
  """

  kind: str
  stddev: float = 0.02
  grid: Grid | None = None

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    scale: Scale = (1.0, 1.0),
    packed: Packed | None = None,
  ) -> jax.Array:
    """(b, gh, gw, d), or (b, L, d) of packed images, to the same shape.

    The first call (init) fixes the grid of a table; `scale` is patch size /
    canonical patch size and only `sincos2d` needs it.
    """
    if packed is not None:
      return self._packed(x, scale, packed)
    if self.grid is not None and self.kind not in ("learned", "factorized"):
      raise UserError(
        f"position_grid: {self.kind!r} positions store no table: leave it out"
      )
    _, gh, gw, d = x.shape
    rows, columns = self.grid or (gh, gw)
    if self.kind == "sincos2d":
      table = sincos2d(coordinates((gh, gw), scale), d)
    elif self.kind == "sincos1d":
      table = sincos1d(gh * gw, d)
    elif self.kind == "learned":
      table = resample(self._table("table", (rows, columns), d), (gh, gw))
    elif self.kind == "factorized":
      of_row = resample(self._table("rows", (rows,), d), (gh,))
      of_column = resample(self._table("columns", (columns,), d), (gw,))
      table = of_row[:, None] + of_column
    elif self.kind == "fractional":
      table = self._fourier(fractions((gh, gw)), d)
    elif self.kind == "glpe":
      where = 2 * np.pi * fractions((gh, gw))
      table = jnp.asarray(sincos2d(where, d), x.dtype).reshape(1, gh, gw, d)
      table = Depthwise("embed", d, dtype=str(x.dtype), name="near")(table)
    elif self.kind in KINDS:
      return x
    else:
      raise UserError(f"position {self.kind!r}{nearest(self.kind, KINDS)}")
    return x + jnp.asarray(table, x.dtype).reshape(gh, gw, d)

  def _packed(self, x: jax.Array, scale: Scale, packed: Packed) -> jax.Array:
    """Each token's position in its own image, as that image alone has it."""
    d = x.shape[-1]
    if self.kind == "sincos2d":
      table = sincos2d(packed.where(scale), d)
    elif self.kind == "fractional":
      table = self._fourier(packed.fractions(), d)
    elif self.kind == "learned":
      table = packed.read(self._table("table", self.grid, d))
    elif self.kind == "factorized":
      rows, columns = self.grid or (None, None)
      table = packed.read(self._table("rows", rows and (rows,), d), 0)
      table += packed.read(self._table("columns", columns and (columns,), d), 1)
    elif self.kind in ("rope2d", "none"):
      return x
    else:
      kinds = [k for k in KINDS if k not in ("sincos1d", "glpe")]
      raise UserError(
        f"position {self.kind!r} of packed images{nearest(self.kind, kinds)}"
      )
    return x + table.astype(x.dtype)

  def _fourier(self, where: np.ndarray | jax.Array, d: int) -> jax.Array:
    """(..., n, 2) parts -> (n, d), frequencies and amplitudes learned."""
    if d % 2:
      raise UserError(f"fractional positions need an even width, got {d}")
    turns = axes.param(
      self, "frequencies", "pos embed@half", (2, d // 2), axes.normal(4.0)
    )
    init = jax.nn.initializers.constant(self.stddev)
    amplitude = axes.param(self, "amplitude", "embed", (d,), init)
    angle = 2 * jnp.pi * jnp.asarray(where, jnp.float32) @ turns
    return amplitude * jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)

  def _table(self, name: str, grid: tuple[int, ...] | None, d: int):
    """A stored table (*grid, d), as large as it was made."""
    if self.has_variable("params", name):
      box = self.get_variable("params", name)
      grid = axes.unbox(box).shape[:-1]
    if grid is None:
      raise UserError(
        f"position {self.kind!r} of packed images has no grid of its own: set"
        " model.position_grid"
      )
    init = axes.normal(self.stddev)
    return axes.param(self, name, _TABLES[name], (*grid, d), init)


def resample(table: jax.Array, grid: tuple[int, ...]) -> jax.Array:
  """(*old, d) -> (*grid, d), bilinear with smoothing when shrinking."""
  if table.shape[:-1] == tuple(grid):
    return table
  resize = functools.partial(jax.image.resize, method="bilinear")
  return resize(table, (*grid, table.shape[-1]), precision="highest")
