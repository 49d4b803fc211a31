import datetime

import pytest

from vitscale.core import goodput

NOW = "2026-01-01T12:00:00.000+00:00"


@pytest.fixture(autouse=True)
def noon(monkeypatch):
  monkeypatch.setattr(goodput, "now", lambda: NOW)


def row(seconds_ago, **spent):
  at = datetime.datetime.fromisoformat(NOW)
  at -= datetime.timedelta(seconds=seconds_ago)
  return {"spent": spent, "time": at.isoformat("T", "milliseconds")}


def test_phases_have_categories():
  names = ["data", "step", "evaluation val", "checkpoint", "rollback"]
  found = [goodput.category(name) for name in names]
  assert found == ["data", "step", "evaluation", "checkpoint", "lost"]
  assert set(found) <= set(goodput.CATEGORIES)


def test_a_first_session_carries_nothing():
  assert sum(goodput.carry([{"event": "start"}], {}, 3.0).values()) == 0


def test_time_since_the_last_row_was_down():
  rows = [
    row(100, start=10.0),
    row(40, start=10.0, step=50.0, data=10.0),
    row(60, start=10.0, step=40.0),
    {"event": "skip"},
  ]
  spent = goodput.carry(rows, {"step": 50.0, "data": 10.0}, 3.0)
  want = {"start": 10.0, "step": 50.0, "data": 10.0, "down": 37.0}
  assert {k: v for k, v in spent.items() if v} == want
  # With this session's 3 seconds: all since the first row's start.
  assert sum(spent.values()) + 3.0 == 110


def test_work_behind_the_checkpoint_is_lost():
  rows = [row(0, step=50.0, data=4.0, compile=7.0, checkpoint=2.0, lost=1.0)]
  kept = {"step": 30.0, "data": 4.0, "compile": 7.0, "checkpoint": 1.5}
  spent = goodput.carry(rows, kept, 0.0)
  assert spent["step"] == 30.0 and spent["compile"] == 7.0
  assert spent["lost"] == 21.5 and sum(spent.values()) == 64.0
  assert goodput.carry(rows, {}, 0.0)["lost"] == 57.0  # no checkpoint at all
  assert goodput.carry(rows, None, 0.0)["step"] == 50.0  # of an older version


def test_a_save_may_be_the_last_that_is_known():
  saved = row(20, step=50.0, evaluation=30.0, checkpoint=2.0)
  spent = goodput.carry([row(52, step=50.0), saved], saved["spent"], 0.0)
  assert spent["evaluation"] == 30.0
  assert spent["down"] == 20.0 and spent["lost"] == 0.0


def test_a_clock_that_was_set_back_adds_nothing():
  assert goodput.carry([row(-500, step=5.0)], None, 0.0)["down"] == 0.0


def test_the_report_adds_up():
  spent = {"step": 60.0, "down": 30.0, "compile": 10.0, "lost": 0.0}
  found = goodput.report(spent, 2)
  assert found["share"] == 0.6 and found["wall_clock"] == 100.0
  assert list(found["seconds"]) == ["step", "down", "compile"]
  assert sum(found["shares"].values()) == pytest.approx(1.0)
  assert goodput.report({}, 1)["share"] == 0.0
