"""Videos: files and folders of frames, clips, transforms of whole clips."""

import pickle
import shutil
import sys

import av
import numpy as np
import pytest
from PIL import Image

from tests.runs import complaint
from vitscale import cli
from vitscale.core.errors import UserError
from vitscale.data import clips, fields, pipeline, sources, transforms, video
from vitscale.data.random import Rng


def write(path, count=8, size=(24, 32), kind="mpeg4"):
  """Frame i of the file is grey 20 i."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream(kind, rate=10)
    stream.height, stream.width = size
    stream.pix_fmt = "rgb8" if kind == "gif" else "yuv420p"
    for i in range(count):
      grey = np.full((*size, 3), 20 * i, np.uint8)
      frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def frames(folder, count=8, size=(24, 32), name="{}.png"):
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    grey = np.full((*size, 3), 20 * i, np.uint8)
    Image.fromarray(grey).save(folder / name.format(i))


def make(path, split="train", **options):
  options = {"frames": 4, "val": 0.0, **options}
  return sources.make("video", path=str(path), split=split, **options)


def greys(source, i=0):
  return source.read(np.array([i]))["image"][0][:, 5, 5, 0].astype(int)


# -------------------------------------------------------------------- reading


@pytest.mark.parametrize(
  "suffix, kind", [("mp4", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"),
                   ("gif", "gif")],
)  # fmt: skip
def test_files(tmp_path, suffix, kind):
  write(tmp_path / f"a.{suffix}", kind=kind)
  source = make(tmp_path, stride=2)
  assert source.class_names == ("video",) and len(source) == 1
  image = source.read(np.array([0]))["image"][0]
  assert image.shape == (4, 24, 32, 3) and image.dtype == np.uint8
  coarse = 40 if suffix == "gif" else 6  # of its palette
  np.testing.assert_allclose(greys(source), [0, 40, 80, 120], atol=coarse)


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path):
  frames(tmp_path / "run" / "a", 12, name="f{}.png")  # f10 after f9
  frames(tmp_path / "walk" / "deep" / "b", 6, name="{:03}.jpg")
  (tmp_path / "walk" / "deep" / "b" / ".hidden.png").write_text("")
  source = make(tmp_path, window=12)
  assert source.class_names == ("run", "walk") and list(source.label) == [0, 1]
  assert list(greys(source)) == list(range(0, 240, 20))
  assert len(greys(source, 1)) == 6  # as many as there are
  assert list(greys(make(tmp_path, stride=3, channels=1))) == [0, 60, 120, 180]
  pickle.loads(pickle.dumps(source)).read(np.array([1]))


def test_size_keeps_the_square_in_the_middle(tmp_path):
  wide = np.zeros((20, 40, 3), np.uint8)
  wide[:, 10:30] = 200
  (tmp_path / "a").mkdir()
  for i in range(4):
    Image.fromarray(wide).save(tmp_path / "a" / f"{i}.png")
  image = make(tmp_path, size=10).read(np.array([0]))["image"][0]
  assert image.shape == (4, 10, 10, 3)
  assert (image[:, :, 1:-1] == 200).all()


def test_splits_and_what_changes_the_data(tmp_path):
  for split in ("train", "val"):
    for i in range(2):
      frames(tmp_path / split / "a" / f"{i}", 5)
  frames(tmp_path / "train" / "b" / "x", 5)
  train, val = make(tmp_path), make(tmp_path, "val")
  assert train.class_names == val.class_names == ("a", "b")
  assert list(train.label) == [0, 0, 1] and list(val.label) == [0, 0]
  others = [make(tmp_path, **o) for o in ({"frames": 5}, {"size": 8}, {})]
  prints = [x.fingerprint for x in (train, *others)]
  assert prints[0] == prints[3] and len(set(prints)) == 3
  held = [make(tmp_path / "train" / "a", s, val=0.5) for s in ("train", "val")]
  assert [len(x) for x in held] == [1, 1]


def test_without_pyav_frames_still_work(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "av", None)
  frames(tmp_path / "a" / "x")
  assert len(make(tmp_path)) == 1
  (tmp_path / "a" / "y.mp4").write_bytes(b"")
  with pytest.raises(UserError, match=r"pip install 'vitscale\[video\]'"):
    make(tmp_path)


# -------------------------------------------------------------------- bad input


def bad(root):
  """A class of good videos and one of each kind of bad one."""
  frames(root / "cat" / "good", 6)
  write(root / "cat" / "good.mp4", 6)
  frames(root / "dog" / "good", 6)
  frames(root / "dog" / "short", 3)
  write(root / "dog" / "short.mp4", 2)
  frames(root / "dog" / "unequal", 6)
  Image.new("RGB", (9, 7)).save(root / "dog" / "unequal" / "3.png")
  frames(root / "dog" / "torn", 6)
  (root / "dog" / "torn" / "2.png").write_text("no image")
  (root / "dog" / "torn.mp4").write_bytes(b"no video" * 100)
  (root / "dog" / "empty.webm").write_bytes(b"")


SAYS = {
  "short": "dog/short: it has 3 frames, data.frames=4 needs 4",
  "short.mp4": "dog/short.mp4: it has 2 frames, data.frames=4 needs 4",
  "unequal": "dog/unequal: frame 4 is 7x9 px, the first is 24x32 px",
  "torn": "torn/2.png: cannot identify image file",
  "torn.mp4": "dog/torn.mp4: ",
  "empty.webm": "dog/empty.webm: ",
}


def test_bad_videos_are_named_or_left_out(tmp_path):
  bad(tmp_path)
  source = make(tmp_path)
  names = ["empty.webm", "good", "short", "short.mp4", "torn", "torn.mp4",
           "unequal"]  # fmt: skip
  for i, name in enumerate(names):
    at = np.array([2 + i])
    if name == "good":
      source.read(at)
      continue
    with pytest.raises(UserError) as e:
      source.read(at)
    text = str(e.value)
    assert SAYS[name] in text and "data.skip_corrupt=True" in text, text
    assert "\n" not in text
  with pytest.warns(UserWarning, match="6 of 9 samples .*left out") as caught:
    kept = make(tmp_path, skip_corrupt=True)
  assert all(f"dog/{name}" in str(caught[0].message) for name in SAYS)
  assert list(kept.counts) == [2, 1]
  for name in ("good", "good.mp4"):
    path = tmp_path / "cat" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  frames(tmp_path / "cat" / "short", 2)
  with pytest.raises(UserError, match="nothing is left of cat"):
    make(tmp_path, skip_corrupt=True)


def test_stride_is_counted(tmp_path):
  frames(tmp_path / "a", 9)
  assert len(greys(make(tmp_path, frames=3, stride=4))) == 3
  with pytest.raises(UserError, match=r"9 frames.*frames=4, data.stride=4 nee"):
    make(tmp_path, stride=4).read(np.array([0]))


@pytest.mark.parametrize(
  "options, says",
  [
    ({"frames": 0}, "frames must be at least 1"),
    ({"window": 3}, "window must be at least 4"),
    ({"size": -1}, "size must be at least 0"),
    ({"channels": 2}, "channels must be 1 or 3"),
    ({"path": "nowhere"}, "video folder nowhere does not exist; expected PATH"),
    ({"frame": 3}, "no argument 'frame'"),
  ],
)
def test_bad_options(tmp_path, options, says):
  frames(tmp_path / "a")
  with pytest.raises(UserError, match=says):
    make(**{"path": tmp_path, **options})


def test_bad_folders(tmp_path):
  with pytest.raises(UserError, match=r"no videos below .*looked for \.avi"):
    make(tmp_path)
  frames(tmp_path / "a" / "x")
  frames(tmp_path / "b")
  with pytest.raises(UserError, match="1 videos beside the class folder a"):
    make(tmp_path)


def test_a_run_says_it_in_one_line(tmp_path, capfd):
  frames(tmp_path / "a", 3)
  code = cli.main([
    "train", f"vitok_video:path={tmp_path}", "--workdir",
    str(tmp_path / "run"), "data.skip_corrupt=False", "data.val=0",
    "evals.val.split=train",
  ])  # fmt: skip
  said = complaint(capfd.readouterr().err)
  assert code == 2 and "a: it has 3 frames, data.frames=16 needs 16" in said


# ----------------------------------------------------------------------- clips


def numbered(b=3, t=6, h=8, w=10, c=3):
  """Pixels that tell where and when they are."""
  return (np.arange(b * t * h * w * c) % 251).astype(np.uint8).reshape(
    b, t, h, w, c
  )  # fmt: skip


def apply(text, image, ids=None, epoch=0):
  ids = np.arange(len(image)) if ids is None else ids
  return transforms.parse(text)({"image": image}, Rng(0, epoch, ids))["image"]


def test_random_frames_are_the_samples_own():
  clip = np.broadcast_to(
    np.arange(40, dtype=np.uint8)[:, None, None, None], (50, 40, 2, 2, 1)
  )
  take = lambda **k: apply("random_frames(4)", clip, **k)[:, :, 0, 0, 0]
  found = take().astype(int)
  assert (np.diff(found, axis=1) == 1).all()
  start = found[:, 0]
  assert start.min() < 5 and start.max() > 31 and len(set(start)) > 15
  np.testing.assert_array_equal(take(), found)
  assert (take(epoch=1) != found).any()
  order = np.array([9, 3])
  np.testing.assert_array_equal(take(ids=np.r_[order, 0:48])[:2], found[order])
  whole = apply("random_frames(40)|central_frames(5)", clip)
  assert list(whole[7, :, 0, 0, 0]) == [17, 18, 19, 20, 21]


@pytest.mark.parametrize(
  "text",
  ["flip_lr", "random_shift(2)", "random_crop(6)", "central_crop(6)",
   "resize(6)", "resize_small(6)|central_crop(6)", "inception_crop(6)",
   "brightness(0.5)", "randaug(2, 10)", "random_erasing(0.9)"],
)  # fmt: skip
def test_frames_of_a_clip_share_their_draws(text):
  """A clip of one image gives it again and again; lists as arrays."""
  still = np.repeat(numbered(t=1), 4, 1)
  made = apply(text, still)
  assert made.ndim == 5 and made.shape[:2] == (3, 4)
  alone = apply(text, still[:, 0])
  for t in range(4):
    np.testing.assert_array_equal(made[:, t], alone)
  moving = numbered()
  listed = apply(text, list(moving))
  exact = 0 if "resize" not in text else 1  # Pillow rounds otherwise
  for one, other in zip(apply(text, moving), listed):
    assert np.abs(one.astype(int) - other).max() <= exact


def test_lists_of_unequal_clips():
  image = [numbered(1, 6)[0], numbered(1, 9, 12, 9)[0]]
  made = apply("random_crop(5)|random_frames(3)", image)
  assert [x.shape for x in made] == [(3, 5, 5, 3)] * 2
  with pytest.raises(UserError, match=r"random_frames\(7\): a video has 6 fra"):
    apply("random_frames(7)", image)
  with pytest.raises(UserError, match="random_frames: these are images"):
    apply("random_frames(1)", numbered()[:, 0])
  with pytest.raises(UserError, match="n must be at least 1"):
    apply("central_frames(0)", image)


def test_batches_of_videos(tmp_path):
  for i in range(5):
    frames(tmp_path / f"{i}", 6 + i)
  source = make(tmp_path, window=30, size=8)
  read = lambda start, **k: next(
    pipeline.train_batches(
      source, batch_size=4, seed=0, start=start,
      transform=transforms.parse("random_frames(4)|flip_lr"), **k,
    )
  )  # fmt: skip
  image = read(2)["image"]
  assert image.shape == (4, 4, 8, 8, 3) and image.dtype == np.uint8
  half = read(2, process_index=1, process_count=2)["image"]
  np.testing.assert_array_equal(half, image[2:])
  with (
    pytest.raises(UserError, match=r"don't fit one batch.*random_frames\(16\)"),
    pipeline.eval_batches(source, batch_size=5) as batches,
  ):
    next(batches)


# --------------------------------------------------------------- moving fields


def test_fields_move_at_constant_velocity():
  field = fields.values(np.arange(2), size=8, power=2.0)
  moves = fields.moved(field, np.array([[1.0, -2.0], [0.5, 0.25]]), 5)
  assert moves.shape == (2, 5, 8, 8, 1)
  for t in range(5):
    rolled = np.roll(field[0], (t, -2 * t), (0, 1))
    np.testing.assert_allclose(moves[0, t], rolled, atol=1e-12)
  # Two steps of half a pixel are one of a pixel; not all of the finest waves.
  power = fields.moved(field, np.array([[0.5, 0.0]] * 2), 3)[:, 2]
  np.testing.assert_allclose(power, np.roll(field, 1, 1), atol=1e-9)


def test_moving_fields_begin_as_fields():
  made = sources.make("moving_fields", size=8, n=40, frames=3, channels=2)
  image = made.read(np.arange(40))["image"]
  assert made.shape == (3, 8, 8, 2) == image.shape[1:]
  still = sources.make("fields", size=8, n=40, channels=2)
  np.testing.assert_array_equal(image[:, 0], still.read(np.arange(40))["image"])
  assert (image[:, 1] != image[:, 0]).mean() > 0.5
  again = sources.make("moving_fields", size=8, n=7, frames=3, channels=2)
  np.testing.assert_array_equal(again.read(np.arange(7))["image"], image[:7])
  with pytest.raises(UserError, match="tile is for images, these are videos"):
    sources.make("moving_fields", size=8, n=4, tile=2)
  with pytest.raises(UserError, match="frames and n must be at least 1"):
    sources.make("moving_fields", frames=0)
  with pytest.raises(UserError, match="sizes are not known: videos"):
    made.sizes()


def test_clips_are_told_from_images():
  assert clips.is_video(numbered()) and clips.is_video(list(numbered()))
  assert not clips.is_video(numbered()[0]) and video.SUFFIXES
  assert not clips.is_video(list(numbered()[0]))
