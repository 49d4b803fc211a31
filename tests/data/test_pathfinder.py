"""Generated Pathfinder: its geometry, and that nothing trivial tells labels."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import contours, pathfinder, sources
from vitscale.data.random import Rng
from vitscale.data.source import SPLITS


@pytest.fixture(scope="module")
def made():
  return pathfinder.pathfinder("train", n=1536)


def pictures(source, n=None):
  n = len(source) if n is None else n
  return source.read(np.arange(n))["image"][..., 0]


def grown(size, n, seed=0, **options):
  geometry = pathfinder.SIZES[max(32, size)]
  rng = Rng(seed, 0, np.arange(n)).scope("test")
  options = {"paddles": 14, **options}
  found, good = contours.contours(rng, size=size, geometry=geometry, **options)
  return rng, found, good, geometry


def test_labels_are_balanced_and_images_grey(made):
  assert made.counts.tolist() == [768, 768]
  assert made.shape == (32, 32, 1) and made.classes == 2
  x = pictures(made)
  assert x.dtype == np.uint8 and x.min() == 0 and (x.max((1, 2)) == 255).all()
  assert 0.05 < made.mean[0] < 0.1


def best_threshold(values, label):
  """Highest accuracy of "larger than t" or the other way round."""
  cuts = np.quantile(values, np.linspace(0, 1, 65)[1:-1])
  right = [((values > t) == label).mean() for t in cuts]
  return max(max(right), 1 - min(right))


def distances(x):
  """Distance of the discs: of the two middles of what is fully white."""
  out = []
  for image in x:
    y, x_ = np.nonzero(image == 255)
    points = np.stack([y, x_], 1).astype(float)
    far = np.linalg.norm(points[:, None] - points, axis=-1)
    i, j = np.unravel_index(far.argmax(), far.shape)
    near = far[i] < far[j]
    out.append(
      np.linalg.norm(points[near].mean(0) - points[~near].mean(0))
      if near.any() and (~near).any()
      else 0.0
    )
  return np.array(out)


def test_nothing_trivial_tells_the_labels(made):
  """A threshold on 1536 images reaches .53 by chance (64 thresholds)."""
  x, label = pictures(made), made.label
  trivial = {
    "lit": (x > 0).sum((1, 2)),
    "light": x.sum((1, 2), dtype=float),
    "distance": distances(x),
    "left": x[:, :, :16].sum((1, 2), dtype=float),
    "top": x[:, :16].sum((1, 2), dtype=float),
  }
  for name, values in trivial.items():
    assert best_threshold(values, label) < 0.55, name
  assert np.ptp(trivial["distance"]) > 15


def test_the_bias_that_matching_removes():
  """At 16 px distances would tell; thinned they don't."""
  geometry, n = pathfinder.SIZES[32], 2048
  told = {}
  for matched in (True, False):
    draw, *_ = pathfinder._drawer(0, 16, geometry, 5, 0, matched)
    grow, thin = draw.keywords["grow"], draw.keywords["thin"]
    rng = Rng(3, 0, np.arange(n)).scope("test")
    found, good = grow(rng)
    label = np.arange(n) % 2
    _, away = pathfinder._discs(rng, found, label)
    good &= rng.uniform("thin")[:, 0] < thin(away, label)
    told[matched] = best_threshold(away[good], label[good])
  assert told[False] > 0.56 and told[True] < 0.54


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_contours_are_chains_that_keep_apart(size):
  _, found, good, geometry = grown(size, 128)
  assert good.mean() > 0.4
  found = found.take(np.flatnonzero(good))
  length, margin = found.length, found.margin[:, None, None, None]
  assert np.allclose(np.linalg.norm(found.along, axis=-1), 1, atol=1e-5)
  # From the head on by a margin, then by one in the new direction.
  pivot = found.head + margin * found.along
  after = found.tail[:, :, 1:] - margin * found.along[:, :, 1:]
  assert np.allclose(pivot[:, :, :-1], after, atol=1e-3)
  turn = (found.along[:, :, 1:] * found.along[:, :, :-1]).sum(-1)
  most = np.pi / 2 / geometry.continuity
  assert (turn > np.cos(most) - 1e-3).all()
  for ends in (found.tail[:, :, 1:], found.head[:, :, :-1]):
    assert ((ends >= geometry.border) & (ends <= size - geometry.border)).all()
  start = found.tail[:, :, 0]
  away = np.linalg.norm(start[:, 0] - start[:, 1], axis=-1)
  assert np.allclose(away, geometry.apart, atol=1e-3)
  # Distances between all points of paddles that are no neighbours.
  at = np.linspace(0, length, 7)[:, None]
  points = found.tail[..., None, :] + at * found.along[..., None, :]
  for i in range(len(points)):
    for c, other in ((0, 0), (1, 1), (0, 1)):
      a, b = points[i, c], points[i, other]
      far = np.linalg.norm(a[:, None, :, None] - b[None, :, None], axis=-1)
      far = far.min((2, 3))  # (paddles, paddles)
      if c == other:
        far = far[np.triu_indices(14, 2)]
      else:
        far = far.ravel()[1:]  # the two first ones are drawn unseen
      assert far.min() > 1.85 * found.margin[i], (size, i, c, other)


def test_discs_lie_on_the_ends(made):
  rng, found, good, _ = grown(32, 64)
  for y in (0, 1):
    discs, away = pathfinder._discs(rng, found, np.full(64, y))
    for i in np.flatnonzero(good):
      which = [
        [np.allclose(end, discs[i, k]) for end in ends]
        for k, ends in enumerate((found.tail[i, :, 0], found.head[i, :, -1]))
      ]
      assert (which[0].index(True) == which[1].index(True)) == bool(y)
    assert np.allclose(away, np.linalg.norm(discs[:, 0] - discs[:, 1], axis=-1))


def test_distractors_add_short_contours(made):
  with_, without = (
    pathfinder.pathfinder("val", n=64, distractors=d, matched=False)
    for d in (None, 0)
  )
  a, b = (pictures(s) for s in (with_, without))
  assert (a >= b).all() and with_.label.tolist() == without.label.tolist()
  more = (a > 60).sum((1, 2)) - (b > 60).sum((1, 2))
  assert more.mean() > 10 and (more > 0).mean() > 0.9


def test_a_paddle_is_as_bright_as_published():
  for size, geometry in pathfinder.SIZES.items():
    one = contours._none((1, 1), np.ones(1), geometry.length)
    one.tail[0, 0], one.along[0, 0] = (size / 2 + 0.5, 8), (0, 1)
    one.there[:] = True
    discs = np.full((1, 2, 2), -99.0)  # outside
    image = pathfinder._render(one, discs, size, geometry)[0]
    assert image.max() == pytest.approx(geometry.contrast, abs=1e-6)
    area = geometry.length * geometry.thickness / min(geometry.thickness, 1)
    assert image.sum() == pytest.approx(area * geometry.contrast, rel=1e-5)


def test_a_sample_depends_on_seed_split_and_number_alone(made):
  few = pathfinder.pathfinder("train", n=40)
  np.testing.assert_array_equal(pictures(few), pictures(made, 40))
  assert few.label.tolist() == made.label[:40].tolist()
  assert few.mean == made.mean and few.fingerprint != made.fingerprint
  other = pathfinder.pathfinder("train", n=40, seed=1)
  assert (pictures(other) != pictures(few)).any((1, 2)).all()


def test_splits_share_no_picture(made):
  keys = {
    split: {x.tobytes() for x in pictures(pathfinder.pathfinder(split, n=128))}
    for split in SPLITS
  }
  assert [len(k) for k in keys.values()] == [128] * 3
  assert not keys["train"] & (keys["val"] | keys["test"])


def test_small_pictures_and_by_name():
  source = sources.make("pathfinder", size=16, n=64, paddles=4, distractors=1)
  assert source.shape == (16, 16, 1) and source.counts.tolist() == [32, 32]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": "dev"}, "no split 'dev'"),
    ({"size": 8}, "size >= 12"),
    ({"paddles": 1}, "paddles >= 2"),
    ({"size": 12, "paddles": 30}, "30 paddles hardly ever fit into 12 px"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    pathfinder.pathfinder(**{"n": 4, **options})
