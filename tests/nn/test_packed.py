"""A packed image has the logits that it has alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import mostly_slow
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import vit
from vitscale.nn import position
from vitscale.nn.packed import Packed
from vitscale.nn.patch import patchify

P, L, S = 4, 24, 4
# Rows and columns of patches; the second row is full, the first is not.
GRIDS = [[(2, 3), (4, 1), (1, 1)], [(3, 5), (1, 2), (2, 2), (1, 3)]]
KINDS = ("learned", "factorized", "sincos2d", "fractional", "rope2d", "none")


def model(kind="none", **changes):
  options = {
    "num_classes": 3, "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2,
    "patch_size": P, "position": kind,
  }  # fmt: skip
  options |= changes
  if options["position"] in ("learned", "factorized"):
    options.setdefault("position_grid", (3, 4))
  return vit.Model(**options)


def images(patch=P, channels=2):
  rng = np.random.default_rng(0)
  shape = lambda grid: (grid[0] * patch, grid[1] * patch, channels)
  return [
    [rng.normal(size=shape(grid)).astype(np.float32) for grid in row]
    for row in GRIDS
  ]


def pack(rows, patch=P):
  """Packed rows, padding filled with noise that nobody may see."""
  rng = np.random.default_rng(1)
  c = rows[0][0].shape[-1]
  patches = 9 * rng.normal(size=(len(rows), L, patch * patch * c))
  where = np.zeros((len(rows), L, 2), np.int32)
  ids = np.zeros((len(rows), L), np.int32)
  grids = np.zeros((len(rows), S, 2), np.int32)
  for i, row in enumerate(rows):
    start = 0
    for j, image in enumerate(row):
      tokens = patchify(image[None], patch)[0]
      gh, gw = grids[i, j] = tokens.shape[:2]
      here = slice(start, start + gh * gw)
      patches[i, here] = tokens.reshape(gh * gw, -1)
      where[i, here] = np.argwhere(np.ones((gh, gw)))
      ids[i, here] = j + 1
      start += gh * gw
  return Packed(
    jnp.asarray(patches, jnp.float32), jnp.asarray(where), jnp.asarray(ids),
    jnp.asarray(grids), patch,
  )  # fmt: skip


def variables(made, packed):
  """Parameters that are nowhere zero."""
  params = axes.unbox(jax.eval_shape(made.init, jax.random.key(0), packed))
  rng = np.random.default_rng(3)
  noise = lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32)
  return jax.tree.map(noise, params)


def gap(made, patch=P):
  """Largest distance of logits, packed and alone."""
  rows = images(patch)
  packed = pack(rows, patch)

  @jax.jit
  def both(given):
    together, _ = made.apply(given, packed)
    alone = [
      made.apply(given, image[None], patch_size=patch)[0][0]
      for row in rows
      for image in row
    ]
    return together, jnp.stack(alone)

  together, alone = both(variables(made, packed))
  assert together.shape == (2, S, 3) and np.abs(alone).max() > 0.1
  assert np.abs(alone[:, None] - alone).sum(-1)[
    ~np.eye(7, dtype=bool)
  ].min() > (0.01)
  there = np.asarray(packed.grids[..., 0] > 0)
  return np.abs(together[there] - alone).max()


@pytest.mark.parametrize("kind", mostly_slow(KINDS, "learned", "rope2d"))
def test_logits_are_those_of_each_image_alone(kind):
  assert gap(model(kind)) < 1e-5


@pytest.mark.parametrize(
  "case",
  mostly_slow([("learned", 2), ("sincos2d", 6), ("rope2d", 2)], ("learned", 2)),
)
def test_another_patch_than_the_canonical_one(case):
  """PI-resized kernel, positions in canonical patches or resampled."""
  kind, patch = case
  assert gap(model(kind), patch) < 1e-5


@pytest.mark.parametrize(
  "options",
  [
    {"attention": "chunked"},
    {"attention": "xla", "scan": True},
    {"attention": "grouped", "remat": "full"},
    {"norm_pooled": True, "out_dim": 8, "qk_norm": True},
  ],
)
def test_back_ends_and_options(options):
  assert gap(model("sincos2d", **options)) < 2e-5


def test_others_in_the_row_change_nothing():
  made, rows = model("learned"), images()
  given = variables(made, pack(rows))
  apply = jax.jit(lambda packed: made.apply(given, packed)[0])
  before = apply(pack(rows))
  rows[1][0] = rows[1][0] + 1
  after = apply(pack(rows))
  changed = np.abs(before - after).max(-1) > 1e-6
  assert changed.tolist() == [[False] * 4, [True, False, False, False]]


def test_it_is_initialised_and_differentiated_packed():
  made, packed = model("learned"), pack(images())
  empty = jax.tree.map(jnp.zeros_like, packed)
  shapes = lambda like: axes.unbox(
    jax.eval_shape(made.init, jax.random.key(0), like)
  )
  # Of position_grid, not of an image.
  assert shapes(empty) == shapes(images()[0][0][None])
  given = variables(made, packed)
  weight = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 1]], jnp.float32)

  def loss(params):
    logits, _ = made.apply(params, packed)
    return (weight[..., None] * logits**2).sum()

  grads = jax.jit(jax.grad(loss))(given)
  for x in jax.tree.leaves(grads):
    assert np.isfinite(x).all() and np.abs(x).max() > 0
  nothing = jax.jit(lambda packed: made.apply(given, packed)[0])(empty)
  assert np.isfinite(nothing).all()


@pytest.mark.parametrize("stored", [(3, 4), (7, 2), (1, 1), (5, 5)])
def test_a_table_is_read_as_resampling_gives_it(stored):
  """Enlarged, shrunk and kept, a side each."""
  table = np.random.default_rng(2).normal(size=(*stored, 5)).astype(np.float32)
  packed = pack(images())
  read = packed.read(jnp.asarray(table))
  of_rows = packed.read(jnp.asarray(table[:, 0]), 0)
  of_columns = packed.read(jnp.asarray(table[0]), 1)
  for i, row in enumerate(GRIDS):
    for j, grid in enumerate(row):
      here = np.asarray(packed.segment_ids[i] == j + 1)
      whole = position.resample(jnp.asarray(table), grid).reshape(-1, 5)
      np.testing.assert_allclose(read[i][here], whole, atol=2e-6)
      side = position.resample(jnp.asarray(table[:, 0]), grid[:1])
      np.testing.assert_allclose(
        of_rows[i][here], np.repeat(side, grid[1], 0), atol=2e-6
      )
      side = position.resample(jnp.asarray(table[0]), grid[1:])
      np.testing.assert_allclose(
        of_columns[i][here], np.tile(side, (grid[0], 1)), atol=2e-6
      )


def test_means_are_of_the_images_and_zero_of_none():
  packed = pack(images())
  x = np.random.default_rng(3).normal(size=(2, L, 7)).astype(np.float32)
  mean = np.asarray(packed.mean(jnp.asarray(x)))
  for i, row in enumerate(GRIDS):
    for j in range(S):
      own = x[i][np.asarray(packed.segment_ids[i]) == j + 1]
      expected = own.mean(0) if j < len(row) else np.zeros(7)
      np.testing.assert_allclose(mean[i, j], expected, atol=1e-6)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"pool": "cls"}, "pool 'cls': a row has several images; use 'mean'"),
    ({"pool": "map"}, "pool 'map'"),
    ({"registers": 2}, "2 registers: a row would share them"),
    ({"vocabulary": 256, "patch_size": 1}, "a vocabulary: they have pixels"),
    ({"position": "glpe"}, "position 'glpe' of packed images"),
    ({"position": "sincos1d"}, "position 'sincos1d' of packed images"),
    ({"position": "learned", "position_grid": None}, "model.position_grid"),
    ({"position": "factorized", "position_grid": None}, "position_grid"),
  ],
)
def test_what_has_no_meaning_is_refused(options, words):
  made = model(**options)
  with pytest.raises(UserError, match=words) as error:
    jax.eval_shape(made.init, jax.random.key(0), pack(images()))
  assert "\n" not in str(error.value)


def test_a_patch_of_this_call_is_refused():
  with pytest.raises(UserError, match="they are cut already"):
    jax.eval_shape(
      lambda packed: model().init(jax.random.key(0), packed, patch_size=2),
      pack(images()),
    )
