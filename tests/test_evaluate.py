"""`vitscale eval`: what training said, on the run's own data and on others."""

import functools
import json

import numpy as np
import pytest
from PIL import Image

from tests import toys
from tests.runs import complaint, contents
from tests.tasks import test_diffuse, test_reconstruct
from vitscale import cli, evaluate, workdir
from vitscale.core.log import read_rows
from vitscale.data import sources
from vitscale.metrics import features
from vitscale.train import train


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  """Trained for four steps; evaluated on val, at the end on test."""
  folder = tmp_path_factory.mktemp("classifier") / "run"
  made = toys.config(total_steps=4)
  made.evals.test = {"split": "test", "batch_size": 24}
  train(made, folder)
  return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  """A tokenizer of grey 16 px fields, evaluated on 310 of test."""
  folder = tmp_path_factory.mktemp("tokenizer") / "run"
  made = test_reconstruct.config(total_steps=2)
  made.evals = {
    "end": {
      "name": "reconstruction", "split": "test", "batch_size": 128,
      "data": {"n": 310},
    },
  }  # fmt: skip
  train(made, folder)
  return folder


@pytest.fixture(scope="module", autouse=True)
def restored_once():
  """A run is restored once for all tests, not for every line of complaint."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(workdir, "restored", functools.cache(workdir.restored))
    yield


@pytest.fixture
def scored(capfd):
  def run(*args):
    assert cli.main(["eval", *map(str, args), "--json"]) == 0
    return json.loads(capfd.readouterr().out)

  return run


def logged(folder, label, step=None):
  """What training logged of an evaluation, by name."""
  rows = read_rows(folder / "metrics.jsonl")
  row = [r for r in rows if step in (None, r["step"])][-1]
  start = f"eval/{label}/"
  return {k.removeprefix(start): v for k, v in row.items() if start in k}


def assert_as_logged(result, said):
  names = {n for n in said if n != "examples" and not n.endswith("_se")}
  assert set(result["metrics"]) == names
  for name, found in result["metrics"].items():
    assert found["value"] == pytest.approx(said[name], rel=1e-4), name
    error = said.get(f"{name}_se")
    assert found["se"] == (error and pytest.approx(error, rel=1e-3)), name
    assert found["n"] == said["examples"]


def photos(root, image):
  """Class folders of images (n, h, w, 1), alternately."""
  for i, x in enumerate(image):
    folder = root / "ab"[i % 2]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x[..., 0]).save(folder / f"{i:03}.png")
  return root


# ------------------------------------------------------------ the run's own


def test_a_classifier_again(classifier, scored):
  before = contents(classifier)
  result = scored(classifier, "--evals", "classify", "--split", "test")
  assert contents(classifier) == before
  assert_as_logged(result, logged(classifier, "test"))
  assert result["step"] == 4 and result["checkpoint"] == str(classifier)
  assert result["data"]["source"] == "strokes"
  assert result["data"]["images"] == 64
  assert result["data"]["shape"] == [8, 8, 1]
  assert "feature_net" not in result and "E" not in result


def test_a_gallery_is_train_unless_it_is_named(classifier, scored):
  asked = "knn(k=3),linear_probe(solver='ridge'),few_shot(shots=(1,2))"
  whole = scored(classifier, "--evals", asked, "--split", "test")["metrics"]
  assert set(whole) >= {"knn3", "probe", "shot1", "shot2"}
  assert whole["knn/gallery"]["value"] == 64 and whole["knn3"]["n"] == 64
  again = scored(
    classifier, "--split", "test", "--evals",
    "knn(k=3, gallery={'split': 'train', 'data': {'limit': 40}})",
  )["metrics"]  # fmt: skip
  assert again["gallery"]["value"] == 40
  own = scored(classifier, "--evals", "knn(k=3)", "--split", "train")
  assert own["metrics"]["gallery"]["value"] == 64  # each of the others
  val = scored(
    classifier, "--evals", "knn(k=3, gallery='val')", "--split", "train"
  )
  assert val["metrics"]["gallery"]["value"] == 64
  assert val["metrics"]["knn3"] != own["metrics"]["knn3"]


def test_features_of_other_classes(classifier, scored, tmp_path):
  """A probe of features needs no class of the run's."""
  image = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
  for split in ("train", "val"):
    photos(tmp_path / "photos" / split, image)
  folder = tmp_path / "photos"
  result = scored(
    classifier, "--evals", "knn(k=1)", "--data", folder, "--split", "val"
  )
  assert result["metrics"]["knn1"]["value"] == 1.0  # the same images
  assert result["metrics"]["gallery"]["value"] == 12


def test_nobody_is_asked_about_images_it_has_seen(classifier, scored, tmp_path):
  """Of a folder without splits a probe holds some out; neighbours don't."""
  image = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
  photos(tmp_path / "photos", image)
  command = (classifier, "--data", tmp_path / "photos", "--evals")
  result = scored(*command, "knn(k=1),linear_probe(solver='ridge', l2=1.0)")
  found = result["metrics"]
  for name in ("knn", "linear_probe"):
    assert found[f"{name}/gallery"]["value"] + found["probe"]["n"] == 40
  assert result["data"]["split"] == "val" and found["probe"]["n"] < 20
  alone = scored(*command, "knn(k=1)")["metrics"]
  assert alone["knn1"]["n"] == alone["gallery"]["value"] == 40


def test_by_image_and_patch_size(classifier, scored):
  result = scored(
    classifier, "--evals", "robustness(size=(8, 12), patch_size=(2, 4)),"
    "classify", "--split", "test",
  )  # fmt: skip
  found = result["metrics"]
  same = found["size=8 patch_size=4/accuracy"]
  assert same["value"] == pytest.approx(found["accuracy"]["value"])
  assert same["n"] == 64 and "size=12 patch_size=2/nll" in found


def test_an_earlier_step_and_another_split(classifier, scored):
  result = scored(classifier / "checkpoints" / "4", "--split", "val",
                  "--batch-size", 7)  # fmt: skip
  assert_as_logged(result, logged(classifier, "val"))
  # Steps 2 and 4 are kept; no row of step 2 has an evaluation.
  early = scored(classifier / "checkpoints" / "2", "--split", "val")
  assert early["step"] == 2
  value = lambda r: r["metrics"]["nll"]["value"]
  assert value(early) != pytest.approx(value(result), rel=1e-4)


def test_averaged_weights_where_there_are(classifier, tmp_path, scored):
  """A run without an average has other scores, and its own are found too."""
  train(toys.config(total_steps=4, ema=0.0), tmp_path / "run")
  result = scored(tmp_path / "run")
  assert_as_logged(result, logged(tmp_path / "run", "val"))
  with_ema = logged(classifier, "val")["nll"]
  assert result["metrics"]["nll"]["value"] != pytest.approx(with_ema, rel=1e-4)


def test_a_tokenizer_again(tokenizer, scored):
  result = scored(tokenizer)
  said = logged(tokenizer, "end")
  assert {"mse", "psnr", "ssim", "kl", "rfd_random_conv"} <= set(said)
  assert_as_logged(result, said)
  assert result["feature_net"] == features.IDENTITY
  assert (result["E"], result["pixels_per_float"]) == (16, 16.0)
  out = evaluate.text(result)
  for words in ("rfd_random_conv_floor", "step 2, on 310 images of fields",
                "16 x 16 x 1", "E = 16 floats, 16", "no FID"):  # fmt: skip
    assert words in out, out


# ---------------------------------------------------------------- other data

BRIEF = ("--evals", "reconstruction(rfd=False)")


def test_a_folder_of_the_same_images(tokenizer, tmp_path, scored):
  data = sources.make("fields", split="test", size=16, n=12)
  folder = photos(tmp_path / "photos", data.read(np.arange(12))["image"])
  own = scored(tokenizer, *BRIEF, "--data", "n=12", "--batch-size", 5)
  other = scored(tokenizer, *BRIEF, "--data", folder)
  for name, found in own["metrics"].items():
    same = other["metrics"][name]
    assert found["n"] == same["n"] == 12
    assert same["value"] == pytest.approx(found["value"], rel=1e-4), name
  assert "rfd_random_conv" not in own["metrics"] and "feature_net" not in own
  assert other["data"]["source"] == "folder"
  assert other["data"]["options"]["path"] == str(folder)


def test_a_folder_without_classes(tokenizer, tmp_path, scored):
  """Of images that lie in it; only for scores that ask for no class."""
  data = sources.make("fields", split="test", size=16, n=12)
  image = data.read(np.arange(12))["image"]
  classes = scored(tokenizer, *BRIEF, "--data", photos(tmp_path / "a", image))
  (tmp_path / "b").mkdir()
  for path in (tmp_path / "a").rglob("*.png"):
    path.rename(tmp_path / "b" / path.name)
  flat = scored(tokenizer, *BRIEF, "--data", tmp_path / "b")
  assert flat["data"]["options"]["flat"]
  for name, found in classes["metrics"].items():
    assert flat["metrics"][name]["n"] == found["n"] == 12
    value = flat["metrics"][name]["value"]
    assert value == pytest.approx(found["value"], rel=1e-4), name


def test_what_is_read_of_a_folder(tmp_path):
  own = {"source": "fields", "n": 5}
  asked = lambda *data, split=None: evaluate._data(
    own, {"split": "val", "data": {"n": 3}}, data, split, (8, 8, 1)
  )
  assert asked() == ({"source": "fields", "n": 3}, "val")
  assert asked(split="test") == (own, "test")
  assert asked("n=7", "size=8") == ({**own, "n": 7, "size": 8}, "val")
  assert asked("size=8", "source=strokes") == (
    {"source": "strokes", "size": 8}, "val",
  )  # fmt: skip
  where = {"source": "folder", "path": str(tmp_path), "channels": 1}
  everything = {**where, "val": 0.0, "test": 0.0}
  (tmp_path / "cat").mkdir()
  Image.new("L", (8, 8)).save(tmp_path / "cat" / "1.png")
  assert asked(str(tmp_path)) == (everything, "train")
  assert asked(str(tmp_path), split="val") == (where, "val")
  # Held out where two parts are needed, or where it is said.
  two = evaluate._data(own, {}, [str(tmp_path)], None, (8, 8, 1), two=True)
  assert two == (where, "val")
  assert asked(str(tmp_path), "val=0.5") == ({**where, "val": 0.5}, "val")
  (tmp_path / "training").mkdir()  # what was trained on is not taken unasked
  assert asked(str(tmp_path), "val=0.5") == ({**where, "val": 0.5}, "val")


def test_another_source_and_a_transform(tokenizer, scored):
  """Another size, if it was asked for: any multiple of the patch will do."""
  result = scored(
    tokenizer, *BRIEF, "--data", "source=strokes", "size=30", "n=9",
    "--transform", "central_crop(24)",
  )  # fmt: skip
  assert result["data"]["shape"] == [24, 24, 1]
  assert result["data"]["images"] == 9
  assert result["data"]["options"] == {"size": 30, "n": 9}
  assert (result["E"], result["pixels_per_float"]) == (36, 16.0)


# ------------------------------------------------------------- a generator


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
  folder = tmp_path_factory.mktemp("generator") / "run"
  made = test_diffuse.config(total_steps=2)
  made.evals.end = {
    "name": "generation", "split": "val", "batch_size": 12, "fd": False,
    "sample": "steps=2",
  }  # fmt: skip
  train(made, folder)
  return folder


def test_a_generator_again(generator, scored):
  asked = "generation(fd=False, sample='steps=2')"
  # Averaged weights, as at the end of training.
  result = scored(generator, "--evals", asked, "--split", "val",
                  "--batch-size", 12)  # fmt: skip
  assert_as_logged(result, logged(generator, "end"))
  assert set(result["metrics"]) == {
    "kid_random_conv", "precision_random_conv", "recall_random_conv",
  }  # fmt: skip
  assert result["feature_net"] == features.IDENTITY
  assert "no FID" in evaluate.text(result)
  other = scored(
    generator, "--evals", asked.replace(")", ", n=25, seed=1, guidance=2.0)")
  )
  assert {m["n"] for m in other["metrics"].values()} == {25}


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["generation"], "fd_random_conv needs 300 images, there are 64: take"),
    (["generation(fd=False, n=19)"], "kid_random_conv needs 20 images, there"),
    (["generation(stepz=2)"], "no option 'stepz'"),
    (["generation(sample='stepz=2')"], "no 'stepz', did you mean 'steps'?"),
    (["generation", "--data", "flat"], "the data have 1 classes, with"),
  ],
)
def test_a_bad_generation_is_one_line(generator, tmp_path, monkeypatch, capfd,
                                      args, says):  # fmt: skip
  monkeypatch.chdir(tmp_path)
  (tmp_path / "flat").mkdir()
  Image.new("L", (8, 8)).save(tmp_path / "flat" / "a.png")
  assert cli.main(["eval", str(generator), "--evals", *args]) == 2
  assert says in complaint(capfd.readouterr().err)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["--evals", "reconstrution"], "did you mean 'reconstruction'?"),
    (["--evals", "reconstruction(rdf=1)"], "option 'rdf', did you mean 'rfd'"),
    (["--evals", "reconstruction(False)"], "name the options, as rfd=False"),
    (["--evals", "reconstruction,reconstruction"], "is given twice"),
    (["--evals", "reconstruction,("], "write names with commas between"),
    (["--evals", ""], "write names with commas between"),
    (["--evals", "classify", "--data", "n=9"], "'classify' wants a task that"),
    (["--data", "n=299"], "rfd_random_conv needs 300 images, there are 299"),
    (["--evals", "knn(gallery=3)"], "gallery=3: write gallery='train'"),
    (
      ["--evals", "linear_probe", "--split", "train"],
      "name a split other than 'train'",
    ),
    (["--data", "nothing"], "data: nothing does not exist"),
    (["--data", "empty"], "data: empty holds nothing that is known: images"),
    (["--data", "blank"], "data: blank holds nothing that is known: images"),
    (["--data", "n=9", "sise=8"], "'data.sise', did you mean 'data.size'"),
    (["--data", "source=field"], "did you mean 'fields'?"),
    (["--split", "tset"], "no split 'tset', did you mean 'test'?"),
    (["--transform", "resise(8)"], "'resise', did you mean 'resize'?"),
    ([*BRIEF, "--batch-size", "0"], "batch size 0 must be"),
    (
      [*BRIEF, "--data", "size=24", "n=9"],
      "images of the data are 24 x 24 x 1, of the run 16 x 16 x 1: give"
      " --transform 'resize(16)'",
    ),
    (
      [*BRIEF, "--data", "channels=3", "n=9"],
      "are 16 x 16 x 3, of the run 16 x 16 x 1: other channels",
    ),
    (
      [*BRIEF, "--transform", "resize(15)"],
      "the model can't see them: patch 8 does not divide",
    ),
  ],
)
def test_bad_input_is_one_line(tokenizer, tmp_path, monkeypatch, capfd, args,
                               says):  # fmt: skip
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  (tmp_path / "blank" / "cat").mkdir(parents=True)
  assert cli.main(["eval", str(tokenizer), *args]) == 2
  assert says in complaint(capfd.readouterr().err)


@pytest.mark.parametrize(
  ("path", "args", "says"),
  [
    ("none", [], "none is not a run: no run.json there"),
    ("run/checkpoints/3", [], "no checkpoint of step 3 in"),
    ("run", ["--evals", "reconstruction"], "wants a task that predicts one"),
    (
      "run",
      ["--data", "classes=2"],
      "the data have 2 classes, with '0 degrees', the run learned 4",
    ),
  ],
)
def test_bad_runs_are_one_line(classifier, capfd, path, args, says):
  assert cli.main(["eval", str(classifier.parent / path), *args]) == 2
  assert says in complaint(capfd.readouterr().err)


# ---------------------------------------------------------------- their names


def test_names_that_two_evaluations_share():
  both = {
    "classify": {"nll": 1.0, "nll_se": 0.1, "ece": 0.5, "examples": 7},
    "nested": {
      "nll": 1.0, "nll_se": 0.1, "examples": 7,
      "ffn=1/2/nll": 2.0, "ffn=1/2/nll_se": 0.2, "ffn=1/2/examples": 6,
    },
  }  # fmt: skip
  one = {"value": 1.0, "se": 0.1, "n": 7}
  assert evaluate.metrics(both) == {
    "classify/nll": one,
    "ece": {"value": 0.5, "se": None, "n": 7},
    "nested/nll": one,
    "ffn=1/2/nll": {"value": 2.0, "se": 0.2, "n": 6},
  }
  text = "classify, retrieval(k=(1, 5), pairs='same')"
  assert evaluate.parse(text) == {
    "classify": {}, "retrieval": {"k": (1, 5), "pairs": "same"},
  }  # fmt: skip
