import pytest

from tests.clock import patched
from vitscale.core.chrono import Chrono


@pytest.fixture
def clock(monkeypatch):
  return patched(monkeypatch)


def chrono(**options):
  return Chrono(total_steps=100, batch_size=10, **options)


def test_windows_count_steps_and_waiting_only(clock):
  timer = chrono(before={"step": 5.0, "down": 50.0})
  timer.enter("data")
  clock.sleep(0.02)
  timer.enter("step")
  for _ in range(10):
    timer.stepped()
  clock.sleep(0.03)
  timer.enter("evaluation")
  clock.sleep(0.2)
  row = timer.close()
  assert row["examples_per_second"] == pytest.approx(100 / 0.05)
  assert row["data_wait"] == pytest.approx(0.4)
  assert timer.spent["evaluation"] == pytest.approx(0.2)
  assert row["seconds"] == pytest.approx(5.25)  # earlier ones, not between them
  assert timer.totals()["down"] == 50.0


def test_seconds_left_count_evaluations_as_so_far(clock):
  timer = chrono()
  timer.enter("step")
  timer.stepped()
  clock.sleep(0.05)
  rate = timer.close()["examples_per_second"]
  assert rate == pytest.approx(200)
  assert timer.eta(20) == pytest.approx(800 / rate)
  timer.credit("evaluation", 0.025)
  assert timer.eta(20) == pytest.approx(1.5 * 800 / rate)
  assert chrono().eta(20) is None


def test_every_second_is_counted_once(clock):
  timer = chrono(began=clock.perf_counter() - 1.0)
  timer.enter("data")
  clock.sleep(0.05)
  timer.credit("step", timer.running() / 2)
  timer.enter("step")
  timer.enter("checkpoint")
  clock.sleep(2.0)
  assert timer.totals() == pytest.approx(
    {"start": 1.0, "data": 0.025, "step": 0.025, "checkpoint": 2.0}
  )


def test_steps_that_come_to_nothing_are_lost(clock):
  timer = chrono(began=clock.perf_counter() - 4.0)
  timer.credit("step", 4.0)
  for _ in range(4):
    timer.stepped()
  timer.lose(1)
  assert timer.spent["lost"] == pytest.approx(1.0)
  assert timer.spent["step"] == pytest.approx(3.0)
