"""Packing: every image once an epoch, in rows that are known beforehand."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from vitscale.core.errors import UserError
from vitscale.data import fashion, folder, pack, pipeline, source, transforms

SETTINGS = {"length": 36, "patch_size": 4, "segments": 5}


@pytest.fixture(scope="module")
def images():
  """Images of many shapes that tell their own number."""
  rng = np.random.default_rng(0)
  sizes = rng.integers(3, 22, (101, 2))
  return source.Source(
    images=lambda ids: [
      np.full((*sizes[i], 1), i, np.uint8) for i in ids
    ],
    label=np.arange(101, dtype=np.int32) % 7,
    class_names=tuple("abcdefg"),
    shape=None, mean=(0.5,), std=(0.5,), fingerprint="test",
    measure=lambda: sizes,
  )  # fmt: skip


@pytest.fixture(scope="module")
def plan(images):
  return pack.plan(images, SETTINGS)


def photographs(n=20_000, mean=100, seed=0):
  """Sizes like those of photographs: aspects and areas are log-normal."""
  rng = np.random.default_rng(seed)
  aspect = np.exp(0.35 * rng.normal(size=n))
  area = 16**2 * mean * np.exp(0.5 * rng.normal(size=n))
  sides = np.sqrt(np.stack([area / aspect, area * aspect], 1))
  return np.maximum(sides.astype(int), 1)


def sized(sizes):
  return source.Source(
    images=None, label=np.zeros(len(sizes), np.int32), class_names=("a",),
    shape=None, mean=(0.5,), std=(0.5,), fingerprint="", measure=lambda: sizes,
  )  # fmt: skip


# ------------------------------------------------------------------- planning


@pytest.mark.parametrize(
  "length, segments, mean", [(256, 16, 40), (512, 16, 100), (1024, 16, 200)]
)
def test_padding_of_photographs_is_below_two_percent(length, segments, mean):
  made = pack.plan(
    sized(photographs(mean=mean)),
    {"length": length, "patch_size": 16, "segments": segments,
     "max_tokens": length},
  )  # fmt: skip
  aspects = made.sizes[:, 1] / made.sizes[:, 0]
  assert np.mean(np.abs(np.log(aspects)) > np.log(1.2)) > 0.5  # far from square
  assert 0 <= made.padding <= 0.02
  used = made.grids.prod(1).sum() / (made.rows * length)
  assert made.padding == pytest.approx(1 - used)


def test_items_are_packed_once_and_fit():
  rng = np.random.default_rng(1)
  for trial in range(30):
    length, segments = rng.integers(1, 40), rng.integers(1, 7)
    sizes = rng.integers(1, length + 1, rng.integers(1, 60))
    counts = dict(zip(*np.unique(sizes, return_counts=True)))
    rows = pack.best_fit(counts, length, segments)
    packed = [size for row, many in rows for size in row * many]
    assert sorted(packed) == sorted(sizes), trial
    assert all(sum(row) <= length and len(row) <= segments for row, _ in rows)
    least = max(-(-sizes.sum() // length), -(-len(sizes) // segments))
    count = sum(many for _, many in rows)
    assert least <= count <= len(sizes)
    if segments >= length:  # else rows may be full in number, not in tokens
      assert count <= 11 / 9 * least + 1


def test_best_fit_one_item_at_a_time_gives_the_same_rows():
  """Counting equal rows together is the textbook rule, only quicker."""
  rng = np.random.default_rng(2)
  for _ in range(20):
    sizes = sorted(rng.integers(1, 30, 80), reverse=True)
    rooms: list[int] = []
    for size in sizes:
      fits = [i for i, room in enumerate(rooms) if room >= size]
      if fits:
        rooms[min(fits, key=lambda i: rooms[i])] -= size
      else:
        rooms.append(30 - size)
    rows = pack.best_fit(dict(zip(*np.unique(sizes, return_counts=True))), 30,
                         99)  # fmt: skip
    assert sum(many for _, many in rows) == len(rooms)


def test_grids_are_nearest_and_scaled_down_where_too_large():
  grids = pack.grids_of(np.array([[16, 33], [1, 100], [18, 18]]), 4, None)
  assert grids.tolist() == [[4, 8], [1, 25], [4, 4]]
  sizes = np.array([[400, 100], [1, 1000], [1000, 2], [64, 64], [300, 310]])
  grids = pack.grids_of(sizes, 4, 64)
  assert (grids.prod(1) <= 64).all() and (grids >= 1).all()
  assert grids[0].tolist() == [16, 4] and grids[3].tolist() == [8, 8]
  assert grids[1].tolist() == [1, 64] and grids[2].tolist() == [64, 1]
  big = photographs() * 3
  grids = pack.grids_of(big, 16, 256)
  assert grids.prod(1).max() <= 256 and grids.prod(1).mean() > 240
  off = np.log(grids[:, 0] / grids[:, 1]) - np.log(big[:, 0] / big[:, 1])
  assert np.abs(off).mean() < 0.05


@pytest.mark.parametrize(
  "change, words",
  [
    ({"length": 20}, r"image \d+ \(\d+x\d+ px\) has 25 tokens of 4 px, a row"
                     r" 20: pack.length=25, or pack.max_tokens=20"),
    ({"length": 0}, "pack.length=0: should be 1 or more"),
    ({"patch_size": 4.0}, "pack.patch_size=4.0"),
    ({"segments": True}, "pack.segments=True"),
    ({"max_token": 3}, "'max_token' is no key, did you mean 'max_tokens'"),
    ({"max_tokens": 37}, "pack.max_tokens=37 is above pack.length=36"),
  ],
)  # fmt: skip
def test_bad_settings_are_one_line(images, change, words):
  with pytest.raises(UserError, match=words) as error:
    pack.plan(images, {**SETTINGS, **change})
  assert "\n" not in str(error.value)


def test_a_missing_key_is_named(images):
  with pytest.raises(UserError, match="pack: 'segments' is missing"):
    pack.plan(images, {"length": 36, "patch_size": 4})


def test_sizes_that_nobody_knows_are_refused(images):
  with pytest.raises(UserError, match="sizes are not known"):
    pack.plan(dataclasses.replace(images, measure=None), SETTINGS)


# --------------------------------------------------------------------- epochs


def test_an_epoch_has_every_image_once_in_rows_of_constant_number(plan):
  first, second = (pack.epoch(plan, 3, k) for k in (0, 1))
  for table in (first, second, pack.epoch(plan, 3, None)):
    assert table.shape == (plan.rows, 5)
    assert sorted(table[table >= 0]) == list(range(101))
    tokens = np.where(table < 0, 0, plan.grids.prod(1)[table])
    assert (tokens.sum(1) <= 36).all()
  # Images change places, and rows.
  assert (first != second).mean() > 0.5
  assert (first != pack.epoch(plan, 4, 0)).mean() > 0.5
  filled = lambda table: (table >= 0).sum(1).tolist()
  assert sorted(filled(first)) == sorted(filled(second))
  assert filled(first) != filled(second)
  np.testing.assert_array_equal(
    first, pack.epoch(plan, 3, 0)
  )  # a pure function


def test_images_of_a_kind_meet_any_place(plan):
  """Over epochs, each image is seen in many rows and with many others."""
  tables = [pack.epoch(plan, 0, k) for k in range(40)]
  tokens = plan.grids.prod(1)
  kinds, counts = np.unique(tokens, return_counts=True)
  image = int(np.argmax(tokens == kinds[counts.argmax()]))
  rows = {int(np.argwhere(table == image)[0][0]) for table in tables}
  assert len(rows) > 15
  mates = {int(i) for table in tables for i in
           table[np.argwhere(table == image)[0][0]]}  # fmt: skip
  assert len(mates) > 15


# -------------------------------------------------------------------- batches


def batches(images, plan, n, **changes):
  kw = {"batch_size": 6, "seed": 1, "plan": plan} | changes
  with pipeline.train_batches(images, **kw) as stream:
    return list(itertools.islice(stream, n))


def equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


def test_a_batch_holds_the_patches_of_its_images(images, plan):
  table, _ = pack.train_rows(plan, 1, np.arange(6))
  (batch,) = batches(images, plan, 1)
  assert batch["image"].shape == (6, 36, 16)
  for row, ids in enumerate(table):
    assert (np.diff(batch["segment_ids"][row][batch["segment_ids"][row] > 0])
            >= 0).all()  # fmt: skip
    for segment, i in enumerate(ids):
      here = batch["segment_ids"][row] == segment + 1
      assert batch["weight"][row, segment] == (i >= 0)
      if i < 0:
        assert not here.any()
        continue
      gh, gw = plan.grids[i]
      assert batch["label"][row, segment] == i % 7
      assert tuple(batch["grids"][row, segment]) == (gh, gw)
      assert (batch["image"][row][here] == i).all()
      where = batch["coordinates"][row][here]
      assert where.tolist() == [[r, c] for r in range(gh) for c in range(gw)]
    assert not batch["image"][row][batch["segment_ids"][row] == 0].any()


def test_patches_are_cut_row_by_row():
  image = np.arange(8 * 4 * 3, dtype=np.uint8).reshape(8, 4, 3)
  one = source.Source(
    images=lambda ids: [image] * len(ids), label=np.zeros(1, np.int32),
    class_names=("a",), shape=None, mean=(0.5,) * 3, std=(0.5,) * 3,
    fingerprint="", measure=lambda: np.array([[8, 4]]),
  )  # fmt: skip
  made = pack.plan(one, {"length": 3, "patch_size": 4, "segments": 1})
  (batch,) = batches(one, made, 1, batch_size=1)
  np.testing.assert_array_equal(batch["image"][0, 1], image[4:].reshape(-1))
  assert batch["segment_ids"].tolist() == [[1, 1, 0]]


def test_processes_and_restarts_see_the_same_rows(images, plan):
  whole = batches(images, plan, 12)  # beyond an epoch
  assert plan.rows < 12 * 6
  equal(batches(images, plan, 1, start=9)[0], whole[9])
  parts = [
    batches(images, plan, 12, process_index=h, process_count=3)
    for h in range(3)
  ]
  for k, batch in enumerate(whole):
    joined = {
      key: np.concatenate([part[k][key] for part in parts]) for key in batch
    }
    equal(batch, joined)


def test_augmentation_depends_on_the_image_not_on_its_row(images, plan):
  """Another batch size: other batches, the same noise on an image."""
  noise = transforms.parse("noise(20)")

  def seen(batch_size):
    found = {}
    for batch in batches(
      images, plan, -(-plan.rows // batch_size), batch_size=batch_size,
      transform=noise,
    ):  # fmt: skip
      for row, k in np.argwhere(batch["weight"] > 0):
        here = batch["segment_ids"][row] == k + 1
        found.setdefault(batch["image"][row][here].tobytes(), 0)
    return set(found)

  assert len(seen(1)) == 101
  assert seen(1) <= seen(plan.rows)


def test_a_transform_that_changes_sizes_is_refused(images, plan):
  with pytest.raises(Exception, match="leave out what changes sizes") as error:
    batches(images, plan, 1, transform=transforms.parse("resize(8)"))
  assert isinstance(error.value, UserError)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_evaluation_is_exact_at_uneven_ends(images, plan, batch_size):
  with pipeline.eval_batches(
    images, batch_size=batch_size, plan=plan
  ) as stream:
    found = list(stream)
  assert len(found) == -(-plan.rows // batch_size)
  assert sum(batch["weight"].sum() for batch in found) == 101
  labels = np.concatenate([b["label"][b["weight"] > 0] for b in found])
  assert np.bincount(labels).tolist() == images.counts.tolist()
  values = np.concatenate([
    b["image"][b["segment_ids"] > 0][:, 0] for b in found
  ])  # fmt: skip
  counts = np.bincount(values, minlength=101)
  assert counts.tolist() == plan.grids.prod(1).tolist()


# -------------------------------------------------------------------- sources


def test_fashion_of_many_aspects():
  made = fashion.fashion_aspects("val", 20, spread=0.4)
  sizes = made.sizes()
  image = made.read(np.array([5, 0, 1999]))["image"]
  assert [x.shape[:2] for x in image] == [tuple(sizes[i]) for i in (5, 0, 1999)]
  ratio = np.log(sizes[:, 1] / sizes[:, 0])
  assert abs(ratio.mean()) < 0.05 and ratio.std() == pytest.approx(
    0.4, abs=0.05
  )
  assert np.sqrt(sizes.prod(1)).mean() == pytest.approx(20, abs=0.3)
  square = fashion.fashion_aspects("val", 20, spread=0.0)
  assert (square.sizes() == 20).all()
  assert made.fingerprint != square.fingerprint
  limited = source.limited(made, 10)
  read = limited.read(np.arange(10))["image"]
  assert [x.shape[:2] for x in read] == [tuple(s) for s in limited.sizes()]
  with pytest.raises(UserError, match="spread=2"):
    fashion.fashion_aspects("val", 20, spread=2)


def test_sizes_of_a_folder_are_those_of_its_images(tmp_path):
  sizes = {"a/0.png": (5, 9), "a/1.png": (12, 3), "b/0.jpg": (7, 7),
           "b/1.jpg": (6, 14)}  # fmt: skip
  for name, (h, w) in sizes.items():
    path = tmp_path / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6 if name == "b/1.jpg" else 1  # turned by a camera
    Image.new("RGB", (w, h)).save(path, exif=exif)
  made = folder.folder(str(tmp_path), "train", val=0.0)
  read = [x.shape[:2] for x in made.read(np.arange(4))["image"]]
  assert [tuple(s) for s in made.sizes()] == read
  assert read[3] == (14, 6)
  (tmp_path / "train/a/0.png").write_bytes(b"nothing")
  folder._sizes.cache_clear()
  with pytest.raises(UserError, match=r"cannot read image .*a/0.png"):
    made.sizes()
