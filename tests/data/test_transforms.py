"""Transforms: the language, what each does, and independence of the batch."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vitscale.core.errors import UserError
from vitscale.data import clips, pixels, transforms
from vitscale.data.random import Rng

B = 12
# Every operation at least once, with what it needs before it.
CHAINS = {
  "flip_lr": "flip_lr",
  "random_shift": "random_shift(2)",
  "random_crop": "random_crop(9, pad=2)",
  "central_crop": "central_crop(9)",
  "flatten": "flatten",
  "resize": "resize(7)",
  "resize_small": "resize_small(9)|central_crop(9)",
  "brightness": "brightness(0.5)",
  "contrast": "contrast(0.5)",
  "noise": "noise(9)",
  "invert": "invert",
  "inception_crop": "inception_crop(8)",
  "randaug": "randaug(3, 10)",
  "three_augment": "three_augment",
  "random_erasing": "random_erasing(0.9)",
}


def _images(channels: int, seed: int = 0) -> np.ndarray:
  """Smooth uint8 images (B, 12, 10, c), bright enough to see shifts."""
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 256, (B, 4, 4, channels), dtype=np.uint8)
  return pixels.resize(x, (12, 10))


def _apply(text: str, image, ids=None, seed: int = 0):
  ids = np.arange(len(image)) if ids is None else ids
  transform = transforms.parse(text)
  return transform({"image": image}, Rng(seed, 0, ids))["image"]


def test_every_operation_is_tested():
  of_clips = {op.__name__ for op in clips.OPERATIONS}  # see test_video.py
  assert set(CHAINS) | of_clips == set(transforms.operations())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", list(CHAINS))
def test_depends_on_the_sample_alone(op, channels):
  image, text = _images(channels), CHAINS[op]
  whole = _apply(text, image)
  assert whole.dtype == np.uint8 and whole.shape[3] == channels
  order = np.array([7, 2, 5])
  np.testing.assert_array_equal(_apply(text, image[order], order), whole[order])
  # As a list, beside images of other shapes.
  wide = np.repeat(image[0], 3, axis=1)
  mixed = _apply(text, [wide, *image[order]], np.array([0, *order]))
  again = _apply(text, [*image[order], image[0]], np.array([*order, 0]))
  for a, b, c in zip(mixed[1:], again[:3], order):
    np.testing.assert_array_equal(a, b)
    # Lists resize through Pillow, which rounds between its two passes.
    near = 2 if op in ("resize", "resize_small") else 0
    assert np.abs(a.astype(int) - whole[c]).max() <= near


@pytest.mark.parametrize("op", list(CHAINS))
def test_random_ones_vary_and_leave_the_input_alone(op):
  image = _images(3)
  before = image.copy()
  first, other = (_apply(CHAINS[op], image, seed=s) for s in (0, 1))
  np.testing.assert_array_equal(image, before)
  fixed = op in ("flatten", "resize", "resize_small", "central_crop")
  assert np.array_equal(first, other) == fixed


def test_geometry_is_what_the_name_says():
  image = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
  flipped = _apply("flip_lr(1.0)", image)
  np.testing.assert_array_equal(flipped[0, 0, :, 0], [5, 4, 3, 2, 1, 0])
  np.testing.assert_array_equal(_apply("flip_lr(0.0)", image), image)
  np.testing.assert_array_equal(
    _apply("central_crop(2)", image)[0, :, :, 0], [[14, 15], [20, 21]]
  )
  row = _apply("flatten", image)
  assert row.shape == (1, 1, 36, 1) and row.ravel().tolist() == [*range(36)]
  crops = _apply("random_crop(5)", np.repeat(image, 400, 0))
  corners, counts = np.unique(crops[:, 0, 0, 0], return_counts=True)
  assert list(corners) == [0, 1, 6, 7] and counts.min() > 60


@pytest.mark.parametrize("fill", ["edge", "reflect", "zero"])
def test_shift_is_a_padded_window(fill):
  image = _images(3)
  mode = {"zero": "constant"}.get(fill, fill)
  padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode=mode)
  out = _apply(f"random_shift(2, fill='{fill}')", image)
  offsets = set()
  for i in range(B):
    at = [
      (r, c)
      for r in range(5)
      for c in range(5)
      if np.array_equal(padded[i, r : r + 12, c : c + 10], out[i])
    ]
    assert at, f"image {i} is no window of its padded self"
    offsets.add(at[0])
  assert len(offsets) > 4
  np.testing.assert_array_equal(_apply("random_shift(0)", image), image)


def test_resize_agrees_with_pillow_and_keeps_constants():
  image = np.random.default_rng(0).integers(0, 256, (3, 28, 20, 3), np.uint8)
  for size in ((14, 10), (12, 16), (40, 33)):
    ours = pixels.resize(image, size)
    for x, y in zip(image, ours):
      pil = Image.fromarray(x).resize(size[::-1], Image.Resampling.BILINEAR)
      assert np.abs(np.asarray(pil).astype(int) - y).max() <= 1
  flat = np.full((2, 28, 28, 1), 201, np.uint8)
  assert (pixels.resize(flat, (13, 5)) == 201).all()
  for n, m in ((28, 12), (7, 50), (224, 96)):
    matrix = pixels.resize_matrix(n, m)
    assert (matrix.sum(1) == 1).all()  # exactly
    assert (matrix * 4096 == np.rint(matrix * 4096)).all()


def test_two_of_a_kind_draw_apart():
  image = np.repeat(_images(1)[:1], 400, 0)
  twice = _apply("flip_lr|flip_lr", image)
  same = (twice == image).all((1, 2, 3)).mean()
  assert 0.4 < same < 0.6  # 1.0 if both flips drew the same


def test_inception_crop_covers_the_stated_area():
  ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None], (1, 200))[..., None]
  out = _apply("inception_crop(50, 0.2, 0.5, ratio=1.0)", [ramp] * 200)
  height = (out[:, -1, 0, 0].astype(int) - out[:, 0, 0, 0]) / 49 * 50 / 200
  area = height**2  # aspect is 1
  assert 0.17 < area.min() < 0.25 and 0.45 < area.max() < 0.53
  assert np.abs(area.mean() - 0.35) < 0.03
  long = np.zeros((400, 4, 1), np.uint8)  # no allowed aspect fits: fallback
  assert _apply("inception_crop(8)", [long] * 3).shape == (3, 8, 8, 1)


def test_randaug_strength_grows():
  image = _images(3)

  def change(m):
    out = _apply(f"randaug(2, {m})", np.repeat(image, 20, 0))
    return np.abs(out.astype(int) - np.repeat(image, 20, 0)).mean()

  assert change(0) < change(3) < change(10)
  np.testing.assert_array_equal(_apply("randaug(0)", image), image)


def test_picklable_and_empty():
  transform = pickle.loads(pickle.dumps(transforms.parse("flip_lr|resize(8)")))
  image = _images(1)
  out = transform({"image": image, "label": 3}, Rng(0, 0, np.arange(B)))
  np.testing.assert_array_equal(
    out["image"], _apply("flip_lr|resize(8)", image)
  )
  assert out["label"] == 3 and repr(transform) == "parse('flip_lr|resize(8)')"
  assert transforms.parse("")({"image": image}, None)["image"] is image


@pytest.mark.parametrize(
  "text, says",
  [
    ("flip_rl", "no operation 'flip_rl', did you mean 'flip_lr'?"),
    ("flip_lr||resize(8)", "cannot read ''"),
    ("resize(8", "cannot read 'resize(8'"),
    ("resize(open('x'))", "cannot read"),
    ("resize.__call__(8)", "cannot read"),
    ("resize(**{'size': 8})", "cannot read"),
    ("resize", "resize needs 'size'"),
    ("resize('8')", "size of resize must be an integer, got '8'"),
    ("resize(8.5)", "must be an integer, got 8.5"),
    ("resize(True)", "must be an integer, got True"),
    ("resize(8, siez=3)", "no argument 'siez', did you mean 'size'?"),
    ("resize(8, size=3)", "got 'size' twice"),
    ("resize(8, 9, 10)", "takes at most 1"),
    ("parse(8)", "no operation 'parse'"),
  ],
)
def test_bad_text(text, says):
  with pytest.raises(UserError) as e:
    transforms.parse(text)
  assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
  "text, says",
  [
    ("random_crop(99)", "12x10 px is too small; put resize_small(99)"),
    ("central_crop(11)", "12x10 px is too small"),
    ("random_crop(0)", "size must be at least 1, got 0"),
    ("random_shift(-1)", "px must be at least 0"),
    ("random_shift(1, fill='wrap')", "fill 'wrap' must be edge"),
    ("inception_crop(8, 0.9, 0.1)", "area_min <= area_max"),
    ("randaug(2, 11)", "0 <= m <= 10"),
  ],
)
def test_bad_values(text, says):
  with pytest.raises(UserError) as e:
    _apply(text, _images(3))
  assert says in str(e.value)


def test_convert_modes():
  grey = Image.new("L", (4, 3), 100)
  assert pixels.from_pil(pixels.convert(grey, 3)).shape == (3, 4, 3)
  clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
  assert (pixels.from_pil(pixels.convert(clear, 3)) == 255).all()
  deep = Image.fromarray(np.full((2, 2), 65535 // 2, np.uint16))
  assert (pixels.from_pil(pixels.convert(deep, 1)) == 127).all()
  palette = Image.new("RGB", (8, 8), (10, 200, 30)).convert("P")
  data = io.BytesIO()
  palette.save(data, "PNG")
  back = pixels.convert(Image.open(data), 3)
  assert (
    np.abs(pixels.from_pil(back)[0, 0].astype(int) - (10, 200, 30)).max() < 30
  )


# ---------------------------------------------------------------------- views


def test_views_are_of_the_same_images_with_draws_of_their_own():
  image = np.arange(40 * 6 * 6, dtype=np.uint8).reshape(40, 6, 6, 1)
  text = "flip_lr|resize(3)"
  made = transforms.parse(
    {"image": "flip_lr", "image@3": text, "image@b": text}
  )
  batch = {"image": image, "label": np.arange(40)}
  rng = Rng(0, 0, np.arange(40))
  found = pickle.loads(pickle.dumps(made))(batch, rng)
  assert found["image@3"].shape == (40, 3, 3, 1)
  assert found["label"] is batch["label"]
  flipped = (found["image"] != image).any((1, 2, 3))
  plain = transforms.parse("resize(3)")({"image": image}, rng)["image"]
  small, other = (
    (found[name] != plain).any((1, 2, 3)) for name in ("image@3", "image@b")
  )
  for a, b in ((flipped, small), (small, other)):
    assert 0.2 < (a == b).mean() < 0.8
  # Independent of the batch, as everything is.
  half = made({"image": image[20:]}, Rng(0, 0, np.arange(20, 40)))
  np.testing.assert_array_equal(half["image@3"], found["image@3"][20:])


@pytest.mark.parametrize(
  "views, says",
  [
    ({"image@3": ""}, "'image' is missing"),
    ({"image": "", "images": ""}, "'images' is none"),
    ({"image": "flip"}, "no operation 'flip'"),
  ],
)
def test_bad_views(views, says):
  with pytest.raises(UserError, match=says):
    transforms.parse(views)
