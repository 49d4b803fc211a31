"""From images to latents, to a generator of them, to samples: commands."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests import toys
from tests.runs import complaint, contents
from vitscale import cli, tokenizer, workdir
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.data import latents, sources
from vitscale.metrics import kernels, networks
from vitscale.train import train

DATA = {"source": "strokes", "size": 8, "n": 48}


def tokenizer_config(bottleneck="plain(3)", **changes):
  made = toys.config(total_steps=2, batch_size=8, **changes)
  made.data, made.train.transform = DATA, ""
  made.model = {
    "family": "vitok", "variant": "mu/4", "bottleneck": bottleneck,
    "encoder_depth": 1, "decoder_depth": 1,
  }  # fmt: skip
  made.task = {"name": "reconstruct"}
  made.evals = {
    "val": {
      "name": "reconstruction", "split": "val", "every_steps": 100,
      "batch_size": 24,
    }
  }  # fmt: skip
  return made


def generator_config(path, **changes):
  made = toys.config(total_steps=2, batch_size=8, **changes)
  made.data = {"source": "latents", "path": str(path)}
  made.train.transform = ""
  made.model = {
    "family": "dit", "variant": "mu/1", "width": 16, "mlp_dim": 32, "depth": 1
  }  # fmt: skip
  made.task = {"name": "diffuse"}
  made.evals = {}
  return made


def refused(capfd, *args):
  capfd.readouterr()
  assert cli.main([str(arg) for arg in args]) == 2
  return complaint(capfd.readouterr().err)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A tokenizer, its latents, and a generator of them."""
  home = tmp_path_factory.mktemp("latents")
  train(tokenizer_config(), home / "tok")
  args = ["encode", f"{home}/tok", "--out", f"{home}/z", "--batch-size", "8"]
  assert cli.main(args) == 0
  train(generator_config(home / "z"), home / "dit")
  return home


def test_latents_are_the_tokenizers(home):
  made = tokenizer.Tokenizer(home / "tok")
  for split in ("train", "val"):
    images = sources.make("strokes", split=split, size=8, n=48)
    source = sources.make("latents", split=split, path=f"{home}/z")
    assert source.shape == (2, 2, 3) and len(source) == len(images)
    np.testing.assert_array_equal(source.label, images.label)
    assert source.class_names == images.class_names
    rows = np.array([5, 0, 7])
    want = made.encode(images.images(rows))
    np.testing.assert_allclose(source.images(rows), want, atol=1e-6)
  train_ = sources.make("latents", path=f"{home}/z")
  z = train_.images(np.arange(len(train_))).astype(np.float64)
  flat = z.reshape(-1, 3)
  np.testing.assert_allclose(np.array(train_.mean) * 255, flat.mean(0), 1e-5)
  np.testing.assert_allclose(np.array(train_.std) * 255, flat.std(0), 1e-5)


def test_a_generator_sees_them_normalised(home):
  from vitscale.bench import build

  bench = build(generator_config(home / "z"))
  z = bench.source.images(np.arange(len(bench.source)))
  x = np.asarray(bench.task.normalise(z)).reshape(-1, 3)
  np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(x.std(0), 1, atol=1e-5)
  assert not bench.task.pixels


def test_decoding_gives_what_the_run_reconstructs(home):
  made = tokenizer.Tokenizer(home / "tok")
  images = sources.make("strokes", split="val", size=8, n=48)
  batch = images.images(np.arange(4))
  said = made.bench.task.predict(
    made.bench.model, made.variables, {"image": batch}
  )
  again = made.decode(made.encode(batch))
  want = np.asarray(said["reconstruction"]) * 255
  assert np.abs(again - want).max() <= 1  # rounding of compiled programs
  with pytest.raises(UserError, match="the tokenizer makes"):
    made.decode(np.zeros((1, 2, 2, 4), np.float32))


def test_sample(home, capfd):
  out = home / "samples"
  args = ["sample", f"{home}/dit", "--n", "10", "--cfg", "1.5", "--seed", "3"]
  args += ["--options", "steps=2,sampler='euler'", "--batch-size", "8"]
  assert cli.main([*args, "--out", str(out), "--json"]) == 0
  said = json.loads(capfd.readouterr().out)
  assert said["guidance"] == 1.5 and said["shape"] == [8, 8, 1]
  with np.load(out / "samples.npz") as found:
    assert found["image"].shape == (10, 8, 8, 1)
    assert found["latent"].shape == (10, 2, 2, 3)
    np.testing.assert_array_equal(found["label"][:5], [0, 1, 2, 3, 0])
    first = found["latent"]
  assert Image.open(out / "grid.png").mode == "L"
  page = (out / "report.html").read_text()
  for name in ("originals", "reconstructions", "samples"):
    assert f'<figure id="{name}"' in page
  # The first samples of a seed are the same where there are more of them.
  args[3] = "12"
  assert cli.main([*args, "--out", f"{home}/more"]) == 0
  with np.load(home / "more" / "samples.npz") as found:
    np.testing.assert_array_equal(found["latent"][:10], first)


def test_samples_are_scored_as_images(home, capfd):
  """Against decoded latents, not against the images those were made of."""
  asked = "generation(fd=False, seed=1, sample='steps=2')"
  args = ["eval", f"{home}/dit", "--evals", asked, "--split", "val"]
  assert cli.main([*args, "--batch-size", "64", "--json"]) == 0
  said = json.loads(capfd.readouterr().out)
  made = tokenizer.Tokenizer(home / "tok")
  source = sources.make("latents", split="val", path=f"{home}/z")
  bench, variables, _ = workdir.restored(home / "dit")
  label = np.pad(source.label, (0, 64 - len(source)), "edge")
  key = jax.random.fold_in(jax.random.key(1), 0)
  z = bench.task.sample(
    bench.model, variables, key, label, source.shape, steps=2
  )
  see = networks.network("random_conv")
  real = source.images(np.arange(len(source)))
  x, y = (see(made.decode(z)) for z in (real, np.asarray(z)[: len(source)]))
  kid, error = kernels.kid(x, y)
  found = said["metrics"]["kid_random_conv"]
  assert found["value"] == pytest.approx(kid, rel=1e-3)
  assert found["se"] == pytest.approx(error, rel=1e-3)
  assert found["n"] == len(source) == 48


def test_stopped_encoding_goes_on(home, monkeypatch, capfd):
  import vitscale.encode as encode_lib

  monkeypatch.setattr(encode_lib, "SAVED", 8)
  wrote, calls = latents.Writer.wrote, []

  def stop(self, split, array, until):
    wrote(self, split, array, until)
    calls.append((split, until))
    if len(calls) == 2:
      raise KeyboardInterrupt

  out = home / "again"
  args = ["encode", f"{home}/tok", "--out", str(out), "--batch-size", "8"]
  monkeypatch.setattr(latents.Writer, "wrote", stop)
  assert cli.main(args) == 75
  assert calls == [("train", 8), ("train", 16)]
  with pytest.raises(UserError, match=r"16 of 48 of 'train'.*again to go"):
    sources.make("latents", path=str(out))
  # Other images than it began with: nothing is overwritten.
  said = refused(capfd, *args, "--data", "source=strokes", "size=8", "n=47")
  assert "latents of another data" in said
  monkeypatch.setattr(latents.Writer, "wrote", wrote)
  assert cli.main(args) == 0
  for split in ("train", "val"):
    one, two = (
      np.load(folder / split / "latents.npy") for folder in (out, home / "z")
    )
    np.testing.assert_array_equal(one, two)
  assert {**read_json(out / "card.json"), "data": 0} == {
    **read_json(home / "z" / "card.json"), "data": 0,
  }  # fmt: skip


def test_codes(tmp_path):
  train(tokenizer_config("fsq((4, 3))"), tmp_path / "tok")
  assert cli.main(["encode", f"{tmp_path}/tok", "--out", f"{tmp_path}/z"]) == 0
  source = sources.make("latents", split="val", path=f"{tmp_path}/z")
  assert source.shape == (2, 2, 1) and source.vocabulary == 12
  codes = source.images(np.arange(len(source)))
  assert codes.dtype == np.int32 and 0 <= codes.min() <= codes.max() < 12
  assert tokenizer.of(source.tokenizer).decode(codes).shape == (48, 8, 8, 1)


# ----------------------------------------------------------------- bad input


def test_another_tokenizer_is_refused(home, capfd):
  """The fingerprint is of the weights: trained on, it is another one."""
  other = home / "other"
  shutil.copytree(home / "tok", home / "moved")
  train(tokenizer_config(seed=1), other)
  args = ["sample", f"{home}/dit", "--n", "1", "--options", "steps=1"]
  said = refused(capfd, *args, "--out", f"{home}/no", "--tokenizer", str(other))
  assert "is not the tokenizer of these latents" in said
  assert not (home / "no").exists()
  card = read_json(home / "z" / "card.json")["tokenizer"]["fingerprint"]
  assert card in said
  args += ["--tokenizer", f"{home}/moved", "--batch-size", "2"]
  assert cli.main([*args, "--out", f"{home}/yes"]) == 0


def test_a_tokenizer_that_moved(home, capfd):
  """The folder of latents remembers a place; data.tokenizer says another."""
  gone = (home / "tok").rename(home / "gone")
  try:
    said = refused(
      capfd, "sample", f"{home}/dit", "--out", f"{home}/no", "--n", "1"
    )
    assert f"is not at {home}/tok" in said and "data.tokenizer=PATH" in said
    source = sources.make("latents", path=f"{home}/z", tokenizer=str(gone))
    latents = source.read(np.arange(2))["image"]
    assert tokenizer.of(source.tokenizer).decode(latents).dtype == np.uint8
  finally:
    gone.rename(home / "tok")
  plain = sources.make("latents", path=f"{home}/z")
  assert plain.fingerprint == source.fingerprint


@pytest.mark.parametrize(
  "args, says",
  [
    (["--labels", "zebra"], "no class 'zebra'"),
    (["--options", "stepz=1"], "no 'stepz', did you mean 'steps'"),
    (["--options", "sampler='ddim'"], "sampler 'ddim' is of ddpm"),
    (["--n", "0"], "--n 0: should be 1 or more"),
  ],
)
def test_bad_samples(home, capfd, args, says):
  said = refused(capfd, "sample", f"{home}/dit", "--out", f"{home}/bad", *args)
  assert says in said
  assert not (home / "bad").exists()


def test_bad_folders(home, capfd, tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "x").write_text("mine")
  before = contents(tmp_path / "full")
  for verb, run in (("sample", "dit"), ("encode", "tok")):
    said = refused(capfd, verb, f"{home}/{run}", "--out", f"{tmp_path}/full")
    assert "give a new folder" in said
  assert contents(tmp_path / "full") == before
  said = refused(capfd, "encode", f"{home}/dit", "--out", f"{tmp_path}/a")
  assert "'dit' neither encodes nor decodes" in said
  said = refused(capfd, "sample", f"{home}/tok", "--out", f"{tmp_path}/a")
  assert "makes nothing" in said
  with pytest.raises(UserError, match=r"no split 'trian', did you mean"):
    sources.make("latents", split="trian", path=f"{home}/z")
  with pytest.raises(UserError, match=r"no card\.json in"):
    sources.make("latents", path=f"{home}/tok")


def test_a_cut_array_is_refused(home, tmp_path):
  shutil.copytree(home / "z", tmp_path / "z")
  card = read_json(tmp_path / "z" / "card.json")
  card["splits"]["train"] |= {"examples": 50, "written": 50}
  write_json(tmp_path / "z" / "card.json", card)
  with pytest.raises(UserError, match=r"latents\.npy is \(48, 2, 2, 3\)"):
    sources.make("latents", path=f"{tmp_path}/z")


def test_guidance_needs_dropped_labels(home, tmp_path, capfd):
  made = generator_config(home / "z")
  config_lib.override(made, ["task.drop_label=0.0", "total_steps=1"])
  train(made, tmp_path / "dit")
  args = ["sample", f"{tmp_path}/dit", "--cfg", "2", "--out", f"{tmp_path}/s"]
  assert "drop_label=0" in refused(capfd, *args)


def test_a_dead_channel_is_said():
  z = np.random.default_rng(0).normal(size=(9, 2, 2, 3))
  z[..., 1] = 4.0
  with pytest.raises(UserError, match="channel 1 of 3 is the same everywhere"):
    latents.statistics(z)
  mean, std = latents.statistics(z[..., ::2], block=4)
  np.testing.assert_allclose(mean, z[..., ::2].mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(std, z[..., ::2].std((0, 1, 2)), rtol=1e-12)
