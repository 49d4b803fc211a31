"""Multi-scale residual quantisation: a map of tokens as a pyramid of codes.

    f^ = 0;  for every scale s, coarse to fine, of the map y = W x + b:
      k_s = nearest entries to down(y - f^, s)       s x s of one codebook
      f^ += phi_s(up(e_k, G))                        G x G, that of the map
    z = f^

(VAR, 2404.02905, section 3.2, algorithms 1 and 2.) `down` is the mean over
areas, `up` bicubic; phi_s(h) = (1 - r) h + r conv(h), r = 1/2, a few 3 x 3
convolutions shared by neighbouring scales. So each scale corrects what the
coarser ones left, and a generator that says scale after scale is shown f^,
made as small as the scale that it says next.

    codebook = mean over tokens, floats and scales of (sg[y] - f^)^2
    commit   = mean over tokens, floats and scales of (y - sg[f^])^2

f^ after each scale, as in the release. The gradient of z goes straight through
to y: entries and convolutions learn from `codebook` alone.

What it loses: all but sum(s^2) log2(entries) bits of an image. Coarse scales
are means of many tokens, fine ones residuals, and both are small: entries
start at a quarter of a token's spread. As in vq.py nothing revives unused ones.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.bottlenecks import MOST, straight_through
from vitscale.nn.bottlenecks.vq import distances, perplexity
from vitscale.nn.linear import Linear

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of 256 pixels, as published
RATIO = 0.5  # of the convolution in phi


class Bottleneck(nn.Module):
  """Codes of all scales.

  Attributes:
    entries: of the codebook.
    code: c, floats of an entry.
    scales: sides of the maps, rising; the last is G, n = G G tokens.
    phis: convolutions; fewer where there are fewer scales.
    dtype: compute type of the linear map; the rest is float32.
  """

  entries: int = 4096
  code: int = 32
  scales: tuple[int, ...] = SCALES
  phis: int = 4
  dtype: str = "float32"

  def setup(self):
    what = f"residual_vq({self.entries}, {self.code}, {self.scales!r})"
    check_scales(self.scales, what)
    if not 2 <= self.entries <= MOST:
      raise UserError(f"{what}: entries are 2 to {MOST}")
    if self.code < 1 or self.phis < 1:
      raise UserError(f"{what}: code and phis are 1 or more")
    self.project = Linear(
      "embed -> code", (self.code,), init=axes.lecun, dtype=self.dtype
    )
    self.codebook = axes.param(
      self, "codebook", "code@entries code", (self.entries, self.code),
      axes.normal(0.25),
    )  # fmt: skip
    count = min(self.phis, len(self.scales))
    self.phi = [Conv(self.code) for _ in range(count)]

  @property
  def side(self) -> int:
    """G."""
    return self.scales[-1]

  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c), `indices` (b, N) int32, and `perplexity`.

    `indices` are those of all scales, N = sum(s^2), coarse to fine, a scale's
    row by row. The penalties are `codebook` and `commit`; `perplexity` as in
    vq.py, over all scales.

    Raises:
      UserError: the tokens are no map of G x G.
    """
    del train
    if x.shape[1] != self.side**2:
      fits = math.isqrt(x.shape[1])
      said = f"end scales in {fits}" if fits**2 == x.shape[1] else "no square"
      raise UserError(
        f"residual_vq: scales end in {self.side}, so an image has"
        f" {self.side**2} tokens; these are {x.shape[1]}: {said}"
      )
    y = self.project(x).astype(jnp.float32)
    fixed = jax.lax.stop_gradient
    far = lambda a, b: jnp.square(a - b).mean((1, 2))
    total, indices, codebook, commit = jnp.zeros_like(y), [], 0.0, 0.0
    for k, scale in enumerate(self.scales):
      rest = self._map(fixed(y - total))
      rest = down(rest, (scale, scale)).reshape(len(x), -1, self.code)
      found = jnp.argmin(distances(rest, fixed(self.codebook)), -1)
      indices.append(found.astype(jnp.int32))
      total = total + self._decoded(indices[-1], k)
      codebook += far(fixed(y), total) / len(self.scales)
      commit += far(y, fixed(total)) / len(self.scales)
    indices = jnp.concatenate(indices, 1)
    return straight_through(total, y), {
      "indices": indices,
      "perplexity": perplexity(indices, self.entries),
      "penalties": {"codebook": codebook, "commit": commit},
    }

  def codes(self, indices: jax.Array) -> jax.Array:
    """Indices (b, N) -> z (b, n, c), the sum over all scales."""
    parts = split(indices, self.scales)
    return sum(self._decoded(part, k) for k, part in enumerate(parts))

  def inputs(self, indices: jax.Array) -> jax.Array:
    """What a generator is shown: (b, N) -> (b, N - first, c).

    For every scale but the first the sum of the coarser ones, in its size.
    """
    total, shown = None, []
    for k, part in enumerate(split(indices, self.scales)[:-1]):
      total, following = self.add(total, part, k)
      shown.append(following)
    if not shown:
      return jnp.zeros((len(indices), 0, self.code))
    return jnp.concatenate(shown, 1)

  def add(
    self, total: jax.Array | None, indices: jax.Array, k: int
  ) -> tuple[jax.Array, jax.Array | None]:
    """One scale more, and what is shown to the next.

    Args:
      total: (b, n, c), the sum of the scales before; None before the first.
      indices: (b, s^2) of this one.
      k: number of this one, static.

    Returns:
      the new sum, and (b, t^2, c), it in the size t of the next scale; None
      after the last.
    """
    new = self._decoded(indices, k)
    total = new if total is None else total + new
    if k + 1 == len(self.scales):
      return total, None
    side = self.scales[k + 1]
    shown = down(self._map(total), (side, side))
    return total, shown.reshape(len(total), -1, self.code)

  def _decoded(self, indices: jax.Array, k: int) -> jax.Array:
    """phi(up(e)) of one scale: (b, s^2) -> (b, n, c)."""
    scale, last = self.scales[k], len(self.scales) - 1
    entries = self.codebook[indices]
    h = entries.reshape(len(entries), scale, scale, self.code)
    h = up(h, (self.side, self.side))
    h = (1 - RATIO) * h + RATIO * self.phi[shared(k, last, len(self.phi))](h)
    return h.reshape(len(h), -1, self.code)

  def _map(self, x: jax.Array) -> jax.Array:
    return x.reshape(len(x), self.side, self.side, self.code)


def check_scales(scales: tuple[int, ...], what: str) -> None:
  """Raises UserError unless scales are rising integers from 1 on."""
  whole = isinstance(scales, tuple) and all(type(s) is int for s in scales)
  if not whole or not scales or scales[0] < 1:
    raise UserError(f"{what}: scales are sides of maps, such as (1, 2, 4)")
  if list(scales) != sorted(set(scales)):
    raise UserError(f"{what}: scales {scales} do not rise")


def split(x: jax.Array, scales: tuple[int, ...]) -> list[jax.Array]:
  """(b, N, ...) into the tokens of every scale, coarse to fine.

  Raises:
    UserError: another number of tokens.
  """
  ends = np.cumsum(np.square(scales))
  if x.shape[1] != ends[-1]:
    raise UserError(
      f"scales {scales} have {ends[-1]} tokens, these are {x.shape[1]}"
    )
  return jnp.split(x, ends[:-1], 1)


def shared(k: int, last: int, phis: int) -> int:
  """Which of `phis` convolutions scale k of 0..last has.

  They stand evenly on 0..1, a third of their distance from its ends, and a
  scale takes the nearest (VAR, released code).
  """
  where = np.linspace(1 / 3 / phis, 1 - 1 / 3 / phis, phis)
  return int(np.abs(where - k / max(last, 1)).argmin())


class Conv(nn.Module):
  """A 3 x 3 convolution of a map, zeros beyond its edge."""

  code: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(b, h, w, c) -> (b, h, w, c), float32."""
    kernel = axes.param(
      self, "kernel", "kernel_h kernel_w code@in -> code",
      (3, 3, self.code, self.code), axes.lecun,
    )  # fmt: skip
    bias = axes.param(self, "bias", "code", (self.code,), axes.zeros)
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    return y + bias


# ------------------------------------------------------------------ resizing


def down(x: jax.Array, to: tuple[int, int]) -> jax.Array:
  """Means over areas: (b, h, w, c) -> (b, *to, c)."""
  return resized(x, *(area(n, m) for n, m in zip(x.shape[1:3], to)))


def up(x: jax.Array, to: tuple[int, int]) -> jax.Array:
  """Bicubic: (b, h, w, c) -> (b, *to, c)."""
  return resized(x, *(bicubic(n, m) for n, m in zip(x.shape[1:3], to)))


def resized(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
  """A map (b, h, w, c) times (r, h) and (s, w): (b, r, s, c)."""
  dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  return dot("sw,brwc->brsc", columns, dot("rh,bhwc->brwc", rows, x))


@functools.cache
def area(n: int, m: int) -> np.ndarray:
  """(m, n) float32: cell i is the mean of all cells that it touches."""
  made = np.zeros((m, n), np.float32)
  for i in range(m):
    start, end = i * n // m, -(-(i + 1) * n // m)
    made[i, start:end] = 1 / (end - start)
  return made


@functools.cache
def bicubic(n: int, m: int) -> np.ndarray:
  """(m, n) float32: Keys' cubic convolution, a = -3/4, edges repeated."""
  made = np.zeros((m, n), np.float64)
  where = (np.arange(m) + 0.5) * n / m - 0.5
  for near in range(-1, 3):
    at = np.floor(where) + near
    weight = _cubic(np.abs(where - at))
    at = np.clip(at, 0, n - 1).astype(int)
    np.add.at(made, (np.arange(m), at), weight)
  return made.astype(np.float32)


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
  inside = ((a + 2) * x - (a + 3)) * x * x + 1
  outside = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, inside, np.where(x < 2, outside, 0.0))
