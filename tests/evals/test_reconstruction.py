"""Scores of reconstructions: exact, finite, and left out where they must be."""

import itertools

import jax
import numpy as np
import pytest

from tests.metrics.test_networks import lpips_file
from tests.tasks.test_reconstruct import config
from vitscale import evals
from vitscale.bench import build
from vitscale.core.errors import UserError
from vitscale.data import sources
from vitscale.evals import reconstruction
from vitscale.metrics import (
  features,
  images,
  kernels,
  moments,
  networks,
  samples,
)

RFD = "rfd_random_conv"


class Task:
  """Reconstructions are in the batch: what is tested is the scoring."""

  def predict(self, model, variables, batch):
    return {k: v for k, v in batch.items() if k != "weight"}


@pytest.fixture(autouse=True)
def anew():
  """What was said to another test is said again."""
  evals.warn.cache_clear()


@pytest.fixture(scope="module")
def strokes():
  data = sources.make("strokes", split="val", size=12, n=330)
  return data.read(np.arange(330))["image"].astype(np.float32) / 255


def predicted(x, damage=0.1):
  """What a task says of x: noise that grows over the images, 8 bits deep."""
  rng = np.random.default_rng(0)
  scale = damage * np.linspace(0.5, 1.5, len(x))[:, None, None, None]
  raw = (x + scale * rng.normal(size=x.shape)).astype(np.float32)
  return {
    "original": x,
    "reconstruction": np.rint(raw.clip(0, 1) * 255).astype("f4") / 255,
    "mse": np.square(raw - x).mean((1, 2, 3)),
    "kl": rng.exponential(size=len(x)).astype(np.float32),
  }


def batches(said, size):
  n = len(said["mse"])
  for start in range(0, n, size):
    part = {k: v[start : start + size] for k, v in said.items()}
    pad = size - len(part["mse"])
    # Padding rows hold nonsense: weight 0 must silence it.
    filled = {
      k: np.concatenate([v, np.full((pad, *v.shape[1:]), np.nan, v.dtype)])
      for k, v in part.items()
    }
    yield filled | {"weight": np.pad(np.ones(size - pad, "f4"), (0, pad))}


def scores(said, size=100, **options):
  rows = jax.jit(reconstruction.make(Task(), None, **options))
  return reconstruction.evaluate(rows, {}, batches(said, size), **options)


# ------------------------------------------------------------------- numbers


@pytest.mark.parametrize("size", [110, 128, 330])
def test_exact_at_uneven_ends(strokes, size):
  said = predicted(strokes)
  found = scores(said, size)
  x, y, n = said["original"], said["reconstruction"], 330
  each = {
    "mse": said["mse"],
    "kl": said["kl"],
    "psnr": -10 * np.log10(np.square(x - y).mean((1, 2, 3))),
    "ssim": np.asarray(images.ssim(x, y)),
  }
  for name, value in each.items():
    assert found[name] == pytest.approx(value.mean(), rel=1e-5), name
    assert found[f"{name}_se"] == pytest.approx(value.std() / n**0.5, rel=1e-4)
  a, b = (np.asarray(features.features(v)) for v in (x, y))
  far = moments.frechet(moments.of(a), moments.of(b))
  assert found[RFD] == pytest.approx(far, rel=1e-3)
  floor = moments.split_half(a)  # other halves
  assert found[f"{RFD}_floor"] == pytest.approx(floor.mean(), rel=0.1)
  assert found["examples"] == n
  assert {k for k in found if f"{k}_se" not in found and k[-3:] != "_se"} == {
    "examples"
  }
  assert all(np.isfinite(value) and value > 0 for value in found.values())


def test_kid_precision_and_recall(strokes):
  said = predicted(strokes)
  found = scores(said, 128, rfd=False, kid=True)
  a, b = (np.asarray(features.features(said[k])) for k in reconstruction.PIXELS)
  kid, error = kernels.kid(a, b)
  assert found["kid_random_conv"] == pytest.approx(kid, rel=1e-2)
  assert found["kid_random_conv_se"] == pytest.approx(error, rel=1e-2)
  p, r = kernels.precision_recall(a, b)
  for name, share in (("precision", p), ("recall", r)):
    assert found[f"{name}_random_conv"] == pytest.approx(share, abs=0.01)
    error = np.sqrt(share * (1 - share) / 330)
    assert found[f"{name}_random_conv_se"] == pytest.approx(error, abs=1e-3)
  assert 0 < r < 1 and not [name for name in found if "rfd" in name]
  assert "kid_random_conv" not in scores(said, 128, rfd=False)


def test_lpips_of_a_file(strokes, tmp_path):
  """Of grey images, as three equal channels."""
  path = lpips_file(tmp_path / "a.safetensors", "alex")
  text = f"lpips({str(path)!r})"
  x = np.repeat(np.repeat(strokes[:7], 3, 1), 3, 2)
  said = predicted(x)
  found = scores(said, 4, rfd=False, lpips=text)
  far = networks.distance(text)
  each = np.asarray(far(x, said["reconstruction"]))
  assert found["lpips_alex"] == pytest.approx(each.mean(), rel=1e-4)
  assert found["lpips_alex_se"] == pytest.approx(each.std() / 7**0.5, rel=1e-3)
  assert each.min() > 0


def test_psnr_of_the_mean_error_and_its_error(strokes):
  said = predicted(strokes)
  found = scores(said, rfd=False)
  assert found["psnr_of_mse"] == pytest.approx(-10 * np.log10(found["mse"]))
  assert found["psnr_of_mse"] < found["psnr"] - 0.3  # images differ
  # By the delta method; here by a bootstrap.
  rng, mse = np.random.default_rng(1), said["mse"]
  again = [-10 * np.log10(rng.choice(mse, 330).mean()) for _ in range(500)]
  assert found["psnr_of_mse_se"] == pytest.approx(np.std(again), rel=0.1)


def test_copies_are_finite(strokes):
  said = {"original": strokes, "reconstruction": strokes,
          "mse": np.zeros(330, "f4")}  # fmt: skip
  found = scores(said)
  assert found["psnr"] == pytest.approx(10 * np.log10(12 * 255**2), abs=1e-4)
  assert found["psnr_of_mse"] == pytest.approx(found["psnr"], abs=1e-4)
  assert found["ssim"] == pytest.approx(1, abs=1e-5)
  assert abs(found[RFD]) < 1e-6 and abs(found[f"{RFD}_se"]) < 1e-6
  assert found[f"{RFD}_floor"] > 3 * found[f"{RFD}_floor_se"] > 0
  # One copy among others moves the mean by what one image may.
  mixed = predicted(strokes)
  before = scores(mixed, rfd=False)["psnr"]
  mixed["reconstruction"][0] = strokes[0]
  assert before < scores(mixed, rfd=False)["psnr"] < before + 60 / 330


def test_worse_is_further_beyond_the_error(strokes):
  found = [scores(predicted(strokes, damage)) for damage in (0.02, 0.1, 0.3)]
  for good, bad in itertools.pairwise(found):
    for name, sign in (("psnr", -1), ("ssim", -1), ("mse", 1), (RFD, 1)):
      error = np.hypot(good[f"{name}_se"], bad[f"{name}_se"])
      assert sign * (bad[name] - good[name]) > 3 * error, name
  # Nearly copies differ by less than fresh images would.
  assert found[0][RFD] < found[0][f"{RFD}_floor"] < found[1][RFD]


# ----------------------------------------------------------------- what can't


def test_too_few_images_have_no_distance(strokes, capfd):
  least = samples.minimum(features.DIM)
  few, enough = (predicted(strokes[:n]) for n in (least - 1, least))
  for _ in range(3):  # passes of a run
    found = scores(few)
  assert not [name for name in found if name.startswith("rfd")]
  assert {"mse", "psnr", "ssim", "kl"} <= set(found)
  lines = capfd.readouterr().err.splitlines()
  assert lines == [
    "warning: evals: reconstruction: rfd_random_conv is left out: 299 images,"
    " it needs 300"
  ]
  assert scores(enough)[f"{RFD}_floor_se"] > 0
  scores(few, rfd=False)
  assert capfd.readouterr().err == ""
  reconstruction.require(300), reconstruction.require(1, rfd=False)
  with pytest.raises(UserError, match="needs 300 images, there are 299"):
    reconstruction.require(299)
  reconstruction.require(20, rfd=False, kid=True)
  with pytest.raises(UserError, match="kid_random_conv needs 20 images"):
    reconstruction.require(19, rfd=False, kid=True)


def test_small_images_have_no_ssim(strokes, capfd):
  said = predicted(strokes[:, :10])
  for size in (100, 330):
    found = scores(said, size)
  assert "ssim" not in found and RFD in found
  says = capfd.readouterr().err
  assert says.count("ssim is left out: images of 10 px, it needs 11") == 1
  found = scores(predicted(strokes[:, :, :7]))
  assert RFD not in found and "psnr" in found
  says = capfd.readouterr().err
  assert "random_conv needs images of 8 px and 1 or 3 channels" in says
  assert "these are 12x7 with 1: left out" in says


def test_pixels_are_asked_for():
  made = config()
  made.model = {"family": "vit", "variant": "mu/8"}
  made.task = {"name": "classify"}
  made.evals = {"val": {"name": "reconstruction", "split": "val"}}
  with pytest.raises(UserError) as error:
    build(made)
  assert str(error.value) == (
    "evals.val: 'reconstruction' wants a task that predicts one:"
    " task.name='reconstruct'"
  )
