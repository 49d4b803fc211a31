"""Scores don't depend on how many devices they are computed on."""

import json

import pytest

from tests.runs import python


def test_eight_devices_find_what_one_does():
  done = python(
    "-m", "tests.evals.devices", JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8",
    XLA_FLAGS="--xla_backend_optimization_level=0",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  for many, one in found.values():
    assert many == pytest.approx(one, rel=1e-4, abs=1e-6)
  (val, _), (near, _) = found["val"], found["near"]
  assert val["examples"] == near["examples"] == 64  # 24 does not divide it
  assert val["ece"] > 0 and val["ffn=1/4/brier"] > 0
  assert 0 < near["ffn=1/4>full/knn3"] < 1
  line, _ = found["line"]
  assert line["examples"] == 64 and 0 < line["probe"] < 1
  videos, _ = found["videos"]
  assert videos["examples"] == 20 and videos["ssim"] < 1
  samples, _ = found["samples"]
  assert samples["examples"] == 64 and samples["kid_random_conv"] > 0
  pixels, _ = found["pixels"]
  assert pixels["examples"] == 310 and pixels["rfd_random_conv_se"] > 0
