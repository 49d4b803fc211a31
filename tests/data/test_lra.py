"""The Long Range Arena's files, in the layouts people have, good and bad."""

import io
import pickle
import pickletools

import numpy as np
import pytest
from PIL import Image

from vitscale.core.errors import UserError
from vitscale.data import listops, lra, lra_pictures, sources


def every(source):
  return source.read(np.arange(len(source)))


# -------------------------------------------------------------------- ListOps


def released(row):
  """Tokens as the released generator writes them, with its parentheses."""
  words = [listops.TOKENS[t] for t in row if t]

  def tree():
    word = words.pop(0)
    if not word.startswith("["):
      return word
    text = word
    while words[0] != "]":
      text = f"( {text} {tree()} )"
    return f"( {text} {words.pop(0)} )"

  return tree()


@pytest.fixture
def listops_folder(tmp_path):
  source = listops.listops("val", n=12, min_length=20, max_length=120)
  x = every(source)["image"][:, 0, :, 0]
  lines = [f"{released(r)}\t{v}" for r, v in zip(x, source.label)]
  text = "\r\n".join(["Source\tTarget", *lines, ""])
  (tmp_path / "basic_val.tsv").write_text(text)
  return tmp_path, x, source


def test_listops_files_give_the_tokens_of_the_generator(listops_folder):
  folder, x, made = listops_folder
  read = sources.make("lra_listops", split="val", path=str(folder))
  assert read.shape == (1, 2000, 1)
  got = every(read)
  np.testing.assert_array_equal(got["image"][:, 0, :120, 0], x)
  assert not got["image"][:, :, 120:].any()
  assert got["label"].tolist() == made.label.tolist()
  assert "( [MAX" in (folder / "basic_val.tsv").read_text()


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("( ( [MAX 3 ) ] )", r"basic_val.tsv:14: want an expression, a tab"),
    ("( ( [MAX 3 ) ] )\t10", r":14: want an expression, a tab and its value"),
    ("( ( [FIRST 3 ) ] )\t3", r":14: no ListOps expression"),
    ("\t3", r":14: no ListOps expression"),
  ],
)
def test_bad_listops_lines(listops_folder, line, message):
  file = listops_folder[0] / "basic_val.tsv"
  file.write_text(file.read_text() + line + "\n")
  with pytest.raises(UserError, match=message) as error:
    lra.lra_listops(str(file.parent), "val")
  assert "\n" not in str(error.value)


def test_listops_that_are_too_long_or_not_there(listops_folder):
  folder = str(listops_folder[0])
  with pytest.raises(UserError, match=r"basic_val.tsv:\d+: \d+ tokens, want"):
    lra.lra_listops(folder, "val", length=30)
  with pytest.raises(UserError, match=r"no file .*basic_train.tsv"):
    lra.lra_listops(folder, "train")
  (listops_folder[0] / "basic_test.tsv").write_text("Source\tTarget\n")
  with pytest.raises(UserError, match="no example"):
    lra.lra_listops(folder, "test")


# ---------------------------------------------------------------------- texts


@pytest.fixture
def imdb(tmp_path):
  for part in ("train", "test"):
    for name in ("pos", "neg"):
      folder = tmp_path / "aclImdb" / part / name
      folder.mkdir(parents=True)
      for i in range(20):
        (folder / f"{i}_7.txt").write_bytes(f"{part} {name} é {i}".encode())
  return tmp_path


def text_of(row):
  return bytes(row[row > 0] - 1).decode()


def test_reviews_are_bytes_plus_one(imdb):
  found = {}
  for split, n in (("train", 36), ("val", 4), ("test", 40)):
    source = sources.make("lra_text", split=split, path=str(imdb), length=24)
    x = every(source)["image"]
    assert x.shape == (n, 1, 24, 1) and x.dtype == np.uint8
    assert source.counts.tolist() == [n // 2, n // 2]
    found[split] = [text_of(r) for r in x[:, 0, :, 0]]
    for text, y in zip(found[split], source.label):
      assert f" {('neg', 'pos')[y]} é " in text
  assert not set(found["train"]) & set(found["val"])
  assert all(text.startswith("train") for text in found["val"])
  assert all(text.startswith("test") for text in found["test"])


def test_reviews_are_cut(imdb):
  x = every(lra.lra_text(str(imdb / "aclImdb"), "test", length=4))["image"]
  assert {text_of(r) for r in x[:, 0, :, 0]} == {"test"}


def test_bad_reviews(imdb, tmp_path):
  file = imdb / "aclImdb" / "train" / "pos" / "3_7.txt"
  file.write_bytes(b"ab\xff")
  with pytest.raises(UserError, match=r"3_7.txt: byte 255"):
    lra.lra_text(str(imdb))
  for f in file.parent.glob("*"):
    f.unlink()
  with pytest.raises(UserError, match=r"no reviews .*pos/\*.txt"):
    lra.lra_text(str(imdb))
  with pytest.raises(UserError, match=r"has no train/: lra_text wants aclImdb"):
    lra.lra_text(str(tmp_path / "nowhere"))
  with pytest.raises(UserError, match=r"val=1\.5: want a share"):
    lra.lra_text(str(imdb), val=1.5)


@pytest.fixture
def aan(tmp_path):
  for part in ("train", "eval", "test"):
    lines = [
      f"{i % 2}.0\tP{i}\tQ{i}\tfirst {part} {i}\tsecond text {i}"
      for i in range(6)
    ]
    (tmp_path / f"new_aan_pairs.{part}.tsv").write_text("\n".join(lines) + "\n")
  return tmp_path


def test_pairs_of_papers(aan):
  source = sources.make("lra_retrieval", split="val", path=str(aan), length=16)
  batch = source.read(np.array([4, 1]))
  assert batch["image"].shape == (2, 2, 16, 1) and source.shape == (2, 16, 1)
  assert [text_of(r) for r in batch["image"][0, :, :, 0]] == [
    "first eval 4",
    "second text 4",
  ]
  assert batch["label"].tolist() == [0, 1]
  cut = lra.lra_retrieval(str(aan), "train", length=5)
  assert text_of(every(cut)["image"][3, 1, :, 0]) == "secon"
  assert len({s.fingerprint for s in (source, cut)}) == 2


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("1.0\tP\tQ\tonly one text", "test.tsv:7: want 0.0 or 1.0.* got 4 fields"),
    ("2.0\tP\tQ\ta\tb", "test.tsv:7: want 0.0 or 1.0"),
  ],
)
def test_bad_pairs(aan, line, message):
  file = aan / "new_aan_pairs.test.tsv"
  file.write_text(file.read_text() + line + "\n")
  with pytest.raises(UserError, match=message):
    lra.lra_retrieval(str(aan), "test")
  file.unlink()
  with pytest.raises(UserError, match="no file"):
    lra.lra_retrieval(str(aan), "test")


# ------------------------------------------------------------------- pictures


def cifar(n, seed):
  rng = np.random.default_rng(seed)
  image = rng.integers(0, 256, (n, 3072)).astype(np.uint8)
  return image, rng.integers(0, 10, n).tolist()


NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture
def batches(tmp_path):
  """Both layouts of the same images."""
  py, binary = (tmp_path / f"cifar-10-batches-{k}" for k in ("py", "bin"))
  py.mkdir(), binary.mkdir()
  for i, name in enumerate(NAMES):
    image, label = cifar(8, i)
    made = {b"data": image, b"labels": label, b"batch_label": b"x"}
    # As the released ones: protocol 2.
    (py / name).write_bytes(pickle.dumps(made, protocol=2))
    rows = np.concatenate([np.array(label, np.uint8)[:, None], image], 1)
    (binary / f"{name}.bin").write_bytes(rows.tobytes())
  return py, binary


def test_grey_images_of_both_layouts(batches):
  py, binary = batches
  for split, n in (("train", 36), ("val", 4), ("test", 8)):
    one, other = (
      every(sources.make("lra_image", split=split, path=str(p)))
      for p in (py, binary)
    )
    np.testing.assert_array_equal(one["image"], other["image"])
    assert one["label"].tolist() == other["label"].tolist()
    assert one["image"].shape == (n, 32, 32, 1)
  image, label = cifar(8, 5)
  red, green, blue = image[2].reshape(3, 32, 32).astype(float)
  grey = 0.2989 * red + 0.587 * green + 0.114 * blue
  assert abs(one["image"][2, :, :, 0] - grey).max() <= 0.5 + 1e-9
  assert one["label"].tolist() == label
  assert len(lra_pictures.lra_image(str(py.parent), "val")) == 4


class Harm:
  """A pickle that would run a command."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return io.open, (self.path, "w")


def test_a_pickle_that_would_call_something_is_refused(batches, tmp_path):
  victim = tmp_path / "written"
  bad = pickle.dumps({b"data": Harm(str(victim)), b"labels": []}, protocol=2)
  assert "REDUCE" in {op.name for op, *_ in pickletools.genops(bad)}
  (batches[0] / "test_batch").write_bytes(bad)
  message = r"test_batch: no batch of CIFAR-10: it asks for \w+.open"
  with pytest.raises(UserError, match=message):
    lra_pictures.lra_image(str(batches[0]), "test")
  assert not victim.exists()
  pickle.loads(bad)[b"data"].close()  # it would have
  assert victim.exists()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "no batch of CIFAR-10"),
    (b"garbage", "no batch of CIFAR-10"),
    (pickle.dumps([1]), "want a dict with 'data'"),
    (pickle.dumps({"data": np.zeros((2, 3))}), "want a dict with 'data'"),
    (
      pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}),
      "one label 0 to 9 per image",
    ),
    (
      pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}),
      "one label 0 to 9 per image",
    ),
  ],
)
def test_bad_pickles(batches, content, message):
  (batches[0] / "test_batch").write_bytes(content)
  with pytest.raises(UserError, match=rf"test_batch: .*{message}") as error:
    lra_pictures.lra_image(str(batches[0]), "test")
  assert "\n" not in str(error.value)


def test_bad_binary_batches(batches, tmp_path):
  (batches[1] / "data_batch_3.bin").write_bytes(bytes(3072))
  with pytest.raises(UserError, match=r"data_batch_3.bin: 3072 bytes: want"):
    lra_pictures.lra_image(str(batches[1]))
  (batches[1] / "data_batch_3.bin").unlink()
  with pytest.raises(UserError, match=r"no file .*data_batch_3.bin"):
    lra_pictures.lra_image(str(batches[1]))
  with pytest.raises(UserError, match="neither test_batch nor"):
    lra_pictures.lra_image(str(tmp_path / "nowhere"))


@pytest.fixture
def contours(tmp_path):
  """30 pictures in two folders, one table as text and one as an array."""
  (tmp_path / "metadata").mkdir()
  rng = np.random.default_rng(0)
  for part in range(2):
    (tmp_path / "imgs" / str(part)).mkdir(parents=True)
    rows = []
    for i in range(15):
      name = f"sample_{i}.png"
      pixels = rng.integers(0, 256, (8, 8), np.uint8)
      pixels[0, 0] = 200 * (i % 2)
      Image.fromarray(pixels).save(tmp_path / "imgs" / str(part) / name)
      rows.append([f"imgs/{part}", name, str(i), str(i % 2), "1.8", "14"])
    table = tmp_path / "metadata" / f"{part}.npy"
    if part:
      np.save(table, np.array(rows))
    else:
      table.write_text("".join(" ".join(row) + "\n" for row in rows))
  return tmp_path


def test_released_contours(contours):
  seen = []
  for split, n in (("train", 24), ("val", 3), ("test", 3)):
    source = sources.make("lra_pathfinder", split=split, path=str(contours))
    batch = every(source)
    assert batch["image"].shape == (n, 8, 8, 1) and source.shape == (8, 8, 1)
    assert (batch["image"][:, 0, 0, 0] == 200 * batch["label"]).all()
    seen += [x.tobytes() for x in batch["image"]]
  assert len(set(seen)) == 30


def test_empty_pictures_are_left_out(contours):
  (contours / "imgs" / "1" / "sample_2.png").write_bytes(b"")
  with pytest.warns(UserWarning, match="1 empty pictures left out.*sample_2"):
    n = sum(
      len(lra_pictures.lra_pathfinder(str(contours), split))
      for split in ("train", "val", "test")
    )
  assert n == 29


def test_bad_contours(contours, tmp_path):
  (contours / "imgs" / "0" / "sample_4.png").unlink()
  with pytest.raises(UserError, match=r"0.npy:5: there is no .*sample_4.png"):
    lra_pictures.lra_pathfinder(str(contours))
  (contours / "metadata" / "0.npy").write_text("imgs/0 sample_0.png 0\n")
  with pytest.raises(UserError, match=r"0.npy:1: want folder, file"):
    lra_pictures.lra_pathfinder(str(contours))
  objects = np.array([{"a": 1}], object)
  np.save(contours / "metadata" / "0.npy", objects, allow_pickle=True)
  with pytest.raises(UserError, match=r"0.npy: neither lines of text nor"):
    lra_pictures.lra_pathfinder(str(contours))
  with pytest.raises(UserError, match="wants a folder such as pathfinder32"):
    lra_pictures.lra_pathfinder(str(tmp_path / "nowhere"))
