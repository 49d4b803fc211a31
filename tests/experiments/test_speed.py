"""The speed study at its smallest: ours and the control, no peers."""

import json
from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.race import contest


@pytest.fixture(scope="module")
def result(tmp_path_factory):
  patch = pytest.MonkeyPatch()
  # Peers are an extra: without them the study says so and goes on.
  real = __import__("importlib.util").util.find_spec
  patch.setattr(
    "importlib.util.find_spec",
    lambda name, *a: None if name in ("torch", "timm") else real(name, *a),
  )
  out = tmp_path_factory.mktemp("speed")
  yield study_lib.run_study("speed", scale="smoke", out=out / "out")
  patch.undo()


def test_it_times_ours_and_the_control(result):
  assert result["status"] == "finished" and result["runs"] == []
  rows = json.loads((Path(result["out"]) / "speed.json").read_text())["rows"]
  assert [r["contestant"] for r in rows] == ["vitscale", "control", "products"]
  for row in rows:
    assert row["images/s"] > 0 and row["memory MB"] > 0
  assert rows[0]["params"] == rows[1]["params"]
  assert Path(result["report"]).exists()


def test_without_peers_the_verdict_is_inconclusive(result):
  (verdict,) = result["verdicts"]
  assert verdict["verdict"] == "inconclusive"
  assert "vitscale[peers]" in verdict["measured"]


def test_a_contestant_that_dies_does_not_end_the_contest(monkeypatch):
  monkeypatch.setitem(contest.MODULES, "broken", "vitscale.no_such_module")
  case = contest.Case("t", 8, 4, 16, 1, 1, 4, classes=4, steps=1)
  entries = {name: (name, case) for name in ("broken", "vitscale")}
  found, errors = contest.contest(entries, 1, lambda text: None)
  assert "broken" in errors and found["vitscale"]["seconds"][0] > 0
