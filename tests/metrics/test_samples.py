"""Sets of features that stream by: nothing is lost, and errors are right."""

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.metrics import kernels, moments, networks, samples

RNG = np.random.default_rng(0)


def streamed(x, size=64):
  made = samples.Samples(x.shape[1])
  for i in range(0, len(x), size):
    made.add(x[i : i + size])
  return made


def some(n, d=3, shift=0.0):
  return (RNG.normal(size=(n, d)) + shift).astype(np.float32)


@pytest.mark.parametrize(("n", "size"), [(407, 64), (407, 1), (400, 400)])
def test_nothing_is_lost_at_any_batch(n, size, monkeypatch):
  monkeypatch.setattr(samples, "FLUSH", 3)
  x = some(n)
  found = streamed(x, size)
  want, total = moments.of(x), found.total()
  assert total.n == found.n == n
  np.testing.assert_allclose(total.mean, want.mean, atol=1e-12)
  np.testing.assert_allclose(total.scatter, want.scatter, rtol=1e-10)
  np.testing.assert_array_equal(found.rows, x)
  groups = found.groups()
  assert [g.n for g in groups] == [n // 20] * 20
  other = streamed(x, 33).groups()
  for a, b in zip(groups, other, strict=True):
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-12)
  # Asking changes nothing.
  found.add(x[:30])
  assert found.total().n == n + 30
  np.testing.assert_allclose(
    found.total().mean, moments.of(np.append(x, x[:30], 0)).mean, atol=1e-12
  )


def test_rows_are_kept_at_random(monkeypatch):
  monkeypatch.setattr(samples, "KEPT", 200)
  place = np.arange(2000, dtype=np.float32)[:, None]
  found = streamed(place, 128)
  assert len(found.rows) == len(np.unique(found.rows)) == 200
  assert abs(found.rows.mean() - 1000) < 3 * 2000 / np.sqrt(12 * 200)
  np.testing.assert_array_equal(found.rows, streamed(place, 2000).rows)
  assert found.total().n == 2000


@pytest.mark.parametrize("period", [4, 20])
def test_no_order_of_the_data_matters_to_errors(period):
  """Classes in turn, as many as groups or fewer, make no group of one class."""
  n = 2000
  x = 5 * np.eye(3)[np.arange(n) % period % 3] + some(n)
  y = some(n, shift=1.0)
  in_turn = samples.distance(streamed(x), streamed(y), "fd")
  shuffled = RNG.permutation(n)
  mixed = samples.distance(streamed(x[shuffled]), streamed(y), "fd")
  assert in_turn["fd"] == pytest.approx(mixed["fd"], rel=1e-9)
  assert 0.6 < in_turn["fd_se"] / mixed["fd_se"] < 1.7
  again = [
    moments.frechet(*(moments.of(z[RNG.integers(0, n, n)]) for z in (x, y)))
    for _ in range(100)
  ]
  assert 0.6 < in_turn["fd_se"] / np.std(again) < 1.7


def test_distance_and_floor():
  x, y = some(600), some(600, shift=0.5)
  found = samples.distance(streamed(x), streamed(y), "fd")
  far = moments.frechet(moments.of(x), moments.of(y))
  assert found["fd"] == pytest.approx(far, rel=1e-9)
  assert far > 5 * found["fd_se"] > 0
  assert 0 < found["fd_floor"] < 0.1 * far and found["fd_floor_se"] > 0
  halves = moments.split_half(x, repeats=40)
  assert 0.3 < found["fd_floor"] / halves.mean() < 3
  # Pairs that are nearly copies: their common noise is not counted.
  near = (x + 0.01 * some(600)).astype(np.float32)
  pair = streamed(x), streamed(near)
  apart = samples.distance(*pair, "fd")
  paired = samples.distance(*pair, "fd", paired=True)
  assert paired["fd"] == apart["fd"]
  assert paired["fd_se"] < 0.1 * apart["fd_se"]


def test_likeness_is_that_of_the_rows():
  x, y = some(300), some(300, shift=0.5)
  found = samples.likeness(streamed(x), streamed(y), "net")
  kid, error = kernels.kid(x, y)
  precision, recall = kernels.precision_recall(x, y)
  assert found["kid_net"] == kid and found["kid_net_se"] == error
  assert found["precision_net"] == precision and found["recall_net"] == recall
  for name in ("precision_net", "recall_net"):
    p = found[name]
    assert 0 < p < 1
    assert found[f"{name}_se"] == pytest.approx(np.sqrt(p * (1 - p) / 300))


def test_what_there_is_too_little_for_is_said():
  net = networks.network("random_conv")
  x, y = some(290, net.dim), some(290, net.dim)
  found, missed = samples.compared(streamed(x), streamed(y), net)
  assert missed == ["fd_random_conv is left out: 290 images, it needs 300"]
  assert set(found) >= {"kid_random_conv", "recall_random_conv_se"}
  both = streamed(x[:19]), streamed(y)
  found, missed = samples.compared(*both, net, prefix="r", frechet=False)
  assert missed == ["kid_random_conv is left out: 19 images, it needs 20"]
  assert (
    found == {} == samples.compared(*both, net, frechet=False, kid=False)[0]
  )
  samples.require(300, net, "less")
  with pytest.raises(
    UserError, match="rfd_random_conv needs 300 images, there"
  ):
    samples.require(299, net, "less", prefix="r")
  with pytest.raises(UserError, match="features hold values that are not fin"):
    streamed(np.full((3, 2), np.nan))
