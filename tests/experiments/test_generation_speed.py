"""The study of encoding, decoding and sampling speed, without its peer."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  patch = pytest.MonkeyPatch()
  real = __import__("importlib.util").util.find_spec
  peers = ("torch", "diffusers")
  patch.setattr(
    "importlib.util.find_spec",
    lambda name, *a: None if name in peers else real(name, *a),
  )
  out = tmp_path_factory.mktemp("generation_speed")
  yield study_lib.run_study("generation_speed", scale="smoke", out=out / "out")
  patch.undo()


def test_it_times_ours(result):
  rows = json.loads((Path(result["out"]) / "speed.json").read_text())["rows"]
  assert [row["contestant"] for row in rows] == ["vitscale", "vitscale"]
  assert [row["case"] for row in rows] == ["encode", "sample"]
  for row in rows:
    assert row["images/s"] > 0 and row["params"] > 0


def test_without_the_peer_nothing_is_claimed(result):
  assert len(result["verdicts"]) == 2
  for verdict in result["verdicts"]:
    assert verdict["verdict"] == "inconclusive"
    assert "vitscale[peers]" in verdict["measured"]


def test_judgement():
  _, study = study_lib.find("generation_speed", "cpu")
  (case, *_), _ = study.SCALES["cpu"]
  ours = {"seconds": [1.0, 1.1, 0.9]}
  said = [
    study.verdict(
      case,
      {"vitscale": ours, "diffusers": {"seconds": list(np.array(times))}},
      "",
    ).verdict
    for times in ([2.0, 2.1, 1.9], [0.5, 0.55, 0.45], [1.3, 0.8, 1.0])
  ]
  assert said == ["supported", "not supported", "inconclusive"]
