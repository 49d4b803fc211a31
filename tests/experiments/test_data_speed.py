"""The race of input pipelines: arithmetic, turns, and the same work."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments.data_speed import race
from vitscale.core.errors import UserError


def test_ratio_and_verdict():
  ours = np.array([0.010, 0.011, 0.009, 0.010])
  mean, low, high = race.ratio(ours, ours * 1.5)
  assert mean == pytest.approx(1.5) and low == pytest.approx(1.5, rel=1e-6)
  theirs = ours * [1.0, 1.2, 0.9, 1.1]
  mean, low, high = race.ratio(ours, theirs)
  assert low < 1 < mean < high
  back = race.ratio(theirs, ours)
  assert back == pytest.approx((1 / mean, 1 / high, 1 / low))
  assert race.verdict(1.0, 1.2) == "holds"
  assert race.verdict(0.8, 0.99) == "fails"
  assert race.verdict(0.9, 1.1) == "inconclusive"


def test_noise_is_of_a_photograph_s_size():
  images = race.noise(2)
  assert race.noise(2) == images and images[0] != images[1]
  for data in images:
    assert 80_000 < len(data) < 140_000
    assert Image.open(io.BytesIO(data)).size == (500, 375)


def test_contestants_take_turns_at_the_same_images(monkeypatch):
  seen = []

  def contestant(name):
    def load(batch):
      seen.append((name, list(batch)))
      return np.zeros((len(batch), race.SIZE, race.SIZE, 3), np.uint8)

    return load

  entries = {name: contestant(name) for name in "abc"}
  taken = race.timed(entries, [b"1", b"2", b"3"], rounds=2, batch=2)
  assert {name: len(x) for name, x in taken.items()} == dict.fromkeys("abc", 2)
  assert len(seen) == 3 * 3 * 2  # a round more, of two batches each
  for k in range(3):
    turn = seen[6 * k : 6 * k + 6]
    assert {name for name, _ in turn} == set("abc")
    assert [batch for _, batch in turn] == [[b"1", b"2"], [b"3"]] * 3


def test_own_contestants_make_crops_of_the_images():
  red = io.BytesIO()
  Image.new("RGB", (300, 260), (200, 10, 20)).save(red, "JPEG")
  for build in (race.ours, lambda: race.ours(", draft=True"), race.by_hand):
    made = build()([red.getvalue()] * 2)
    assert made.shape == (2, 224, 224, 3) and made.dtype == np.uint8
    assert np.abs(made.astype(int) - [200, 10, 20]).max() < 6


def test_photographs_of_a_folder(tmp_path):
  (tmp_path / "a").mkdir()
  for name in ("a/1.JPG", "0.jpeg", "2.png"):
    (tmp_path / name).write_bytes(name.encode())
  assert race.photographs(tmp_path, 9) == [b"0.jpeg", b"a/1.JPG"]
  with pytest.raises(UserError, match=r"holds no .jpg"):
    race.photographs(tmp_path / "gone", 9)
