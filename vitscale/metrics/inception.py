"""The Inception network of FID, from a user's file.

Heusel et al. (1706.08500) took the 2048 features before the classifier of the
TensorFlow graph of 2015-12-05. Its weights go round as a torch state dict,
`pt_inception-2015-12-05-6726825d.pth` (pytorch-fid, torch-fidelity). What
differs from other Inceptions v3, and moves FID: images are resized to 299 as
TensorFlow 1 did, without half-pixel centres; values are (x - 128) / 128;
average pools leave the padding out of the mean; the last block's pool takes
the maximum.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.metrics.weights import Get, batch_norm, conv, max_pool

NAME = "inception"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
DIM = 2048
LEAST = 1
SIDE = 299


def features(get: Get, images: jax.Array) -> jax.Array:
  """(b, h, w, 3) float of 0..1 -> (b, DIM) float32."""
  return trunk(get, (resized(images * 255) - 128) / 128).mean((1, 2))


def resized(x: jax.Array) -> jax.Array:
  """(b, h, w, c) -> (b, SIDE, SIDE, c) as TensorFlow 1 did it.

  Pixel i is read at i times the ratio of the sizes; two neighbours are
  weighed linearly, and nothing is filtered.
  """
  for axis in (1, 2):
    n = x.shape[axis]
    at = np.arange(SIDE, dtype=np.float32) * np.float32(n / SIDE)
    low = at.astype(np.int32)
    shape = [1] * x.ndim
    shape[axis] = SIDE
    share = (at - low).reshape(shape)
    a = jnp.take(x, low, axis)
    x = a + (jnp.take(x, np.minimum(low + 1, n - 1), axis) - a) * share
  return x


def trunk(get: Get, x: jax.Array) -> jax.Array:
  """(b, 299, 299, 3) -> (b, 8, 8, 2048): all that lies before the mean."""
  x = _unit(get, x, "Conv2d_1a_3x3", 32, stride=2)
  x = _unit(get, x, "Conv2d_2a_3x3", 32)
  x = _unit(get, x, "Conv2d_2b_3x3", 64, padding=1)
  x = max_pool(x, 3, 2)
  x = _unit(get, x, "Conv2d_3b_1x1", 80, 1)
  x = _unit(get, x, "Conv2d_4a_3x3", 192)
  x = max_pool(x, 3, 2)
  for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
    x = _block_a(get, x, f"Mixed_{name}", pooled)
  x = _block_b(get, x, "Mixed_6a")
  for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
    x = _block_c(get, x, f"Mixed_{name}", width)
  x = _block_d(get, x, "Mixed_7a")
  x = _block_e(get, x, "Mixed_7b", _mean_pool)
  return _block_e(get, x, "Mixed_7c", lambda x: max_pool(x, 3, 1, "SAME"))


def _unit(get, x, name, width, kernel=3, **options):
  x = conv(get, x, f"{name}.conv.weight", width, kernel, **options)
  return jax.nn.relu(batch_norm(get, x, f"{name}.bn", 1e-3))


def _mean_pool(x: jax.Array) -> jax.Array:
  """3 x 3, stride 1; at the border over the pixels that there are."""
  add = lambda x: jax.lax.reduce_window(
    x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
  )
  return add(x) / add(jnp.ones((1, *x.shape[1:3], 1)))


def _block_a(get, x, name, pooled):
  unit = lambda x, part, *rest, **options: _unit(
    get, x, f"{name}.branch{part}", *rest, **options
  )
  one = unit(x, "1x1", 64, 1)
  five = unit(unit(x, "5x5_1", 48, 1), "5x5_2", 64, 5, padding=2)
  three = unit(unit(x, "3x3dbl_1", 64, 1), "3x3dbl_2", 96, padding=1)
  three = unit(three, "3x3dbl_3", 96, padding=1)
  pool = unit(_mean_pool(x), "_pool", pooled, 1)
  return jnp.concatenate((one, five, three, pool), -1)


def _block_b(get, x, name):
  unit = lambda x, part, *rest, **options: _unit(
    get, x, f"{name}.branch{part}", *rest, **options
  )
  three = unit(x, "3x3", 384, stride=2)
  double = unit(unit(x, "3x3dbl_1", 64, 1), "3x3dbl_2", 96, padding=1)
  double = unit(double, "3x3dbl_3", 96, stride=2)
  return jnp.concatenate((three, double, max_pool(x, 3, 2)), -1)


_ROW, _COLUMN = {"kernel": (1, 7), "padding": (0, 3)}, {
  "kernel": (7, 1), "padding": (3, 0),
}  # fmt: skip


def _block_c(get, x, name, width):
  unit = lambda x, part, *rest, **options: _unit(
    get, x, f"{name}.branch{part}", *rest, **options
  )
  one = unit(x, "1x1", 192, 1)
  seven = unit(unit(x, "7x7_1", width, 1), "7x7_2", width, **_ROW)
  seven = unit(seven, "7x7_3", 192, **_COLUMN)
  double = unit(unit(x, "7x7dbl_1", width, 1), "7x7dbl_2", width, **_COLUMN)
  double = unit(double, "7x7dbl_3", width, **_ROW)
  double = unit(double, "7x7dbl_4", width, **_COLUMN)
  double = unit(double, "7x7dbl_5", 192, **_ROW)
  pool = unit(_mean_pool(x), "_pool", 192, 1)
  return jnp.concatenate((one, seven, double, pool), -1)


def _block_d(get, x, name):
  unit = lambda x, part, *rest, **options: _unit(
    get, x, f"{name}.branch{part}", *rest, **options
  )
  three = unit(unit(x, "3x3_1", 192, 1), "3x3_2", 320, stride=2)
  seven = unit(unit(x, "7x7x3_1", 192, 1), "7x7x3_2", 192, **_ROW)
  seven = unit(seven, "7x7x3_3", 192, **_COLUMN)
  seven = unit(seven, "7x7x3_4", 192, stride=2)
  return jnp.concatenate((three, seven, max_pool(x, 3, 2)), -1)


def _block_e(get, x, name, pool):
  unit = lambda x, part, *rest, **options: _unit(
    get, x, f"{name}.branch{part}", *rest, **options
  )
  row = {"kernel": (1, 3), "padding": (0, 1)}
  column = {"kernel": (3, 1), "padding": (1, 0)}
  one = unit(x, "1x1", 320, 1)
  three = unit(x, "3x3_1", 384, 1)
  double = unit(unit(x, "3x3dbl_1", 448, 1), "3x3dbl_2", 384, padding=1)
  parts = (
    one,
    unit(three, "3x3_2a", 384, **row),
    unit(three, "3x3_2b", 384, **column),
    unit(double, "3x3dbl_3a", 384, **row),
    unit(double, "3x3dbl_3b", 384, **column),
    unit(pool(x), "_pool", 192, 1),
  )
  return jnp.concatenate(parts, -1)
