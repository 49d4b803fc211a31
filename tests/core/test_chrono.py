import time

import pytest

from vitscale.core.chrono import Chrono


def chrono(**options):
  return Chrono(total_steps=100, batch_size=10, **options)


def test_windows_count_steps_and_waiting_only():
  timer = chrono(before={"step": 5.0, "down": 50.0})
  timer.enter("data")
  time.sleep(0.02)
  timer.enter("step")
  for _ in range(10):
    timer.stepped()
  time.sleep(0.03)
  timer.enter("evaluation")
  time.sleep(0.2)
  row = timer.close()
  assert 100 / 0.25 < row["examples_per_second"] <= 100 / 0.05
  assert 0.1 < row["data_wait"] < 0.9
  assert timer.spent["evaluation"] >= 0.2
  assert 5.25 <= row["seconds"] < 50  # earlier sessions, not between them
  assert timer.totals()["down"] == 50.0


def test_seconds_left_count_evaluations_as_so_far():
  timer = chrono()
  timer.enter("step")
  timer.stepped()
  time.sleep(0.05)
  rate = timer.close()["examples_per_second"]
  assert timer.eta(20) == pytest.approx(800 / rate, rel=0.01)
  timer.credit("evaluation", 0.05)
  pauses = 0.05 / timer.spent["step"]
  assert timer.eta(20) == pytest.approx((1 + pauses) * 800 / rate, rel=0.01)
  assert chrono().eta(20) is None


def test_every_second_is_counted_once():
  began = time.perf_counter() - 1.0
  timer = chrono(began=began)
  timer.enter("data")
  time.sleep(0.05)
  timer.credit("step", timer.running() / 2)
  timer.enter("step")
  timer.enter("checkpoint")
  total = sum(timer.totals().values())
  assert total == pytest.approx(time.perf_counter() - began, abs=0.02)
  spent = timer.totals()
  assert spent["start"] >= 1.0
  assert spent["data"] == pytest.approx(spent["step"], abs=0.005)


def test_steps_that_come_to_nothing_are_lost():
  timer = chrono(began=time.perf_counter() - 4.0)
  timer.credit("step", 4.0)
  for _ in range(4):
    timer.stepped()
  timer.lose(1)
  assert timer.spent["lost"] == pytest.approx(1.0, abs=0.01)
  assert timer.spent["step"] == pytest.approx(3.0, abs=0.01)
