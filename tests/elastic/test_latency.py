"""Measured time, with clocks and stopwatches that tests hold."""

from fractions import Fraction

import numpy as np
import pytest

from tests.clock import Clock
from tests.elastic.test_space import IMAGE, MODEL
from vitscale.core.errors import UserError
from vitscale.elastic import latency
from vitscale.elastic.presets import preset
from vitscale.elastic.space import Space, cost

LEVELS = [Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1)]


def by_macs(models, **_):
  """A stopwatch of a machine whose time goes with the work, plus 2 ms."""
  return [2 + cost("macs", model, IMAGE) / 1e3 for model in models]


def test_medians_in_turns():
  clock, order = Clock(), []

  def call(name, *times):
    times = iter(times)

    def run():
      order.append(name)
      clock.sleep(next(times))

    return run

  slow = (9.0,) * latency.WARM_UP
  found = latency.medians(
    [call("a", *slow, 1, 2, 50), call("b", *slow, 3, 3, 4)],
    repeats=3, clock=clock.perf_counter,
  )  # fmt: skip
  assert found == pytest.approx([2000, 3000])
  assert order == ["a", "b"] * (latency.WARM_UP + 3)


def test_measure_runs_the_compiled_model():
  clock = Clock()
  tick = lambda: (clock.sleep(0.5), clock.perf_counter())[1]
  found = latency.measure(
    [MODEL, MODEL.clone(mlp_dim=8)], image=IMAGE, batch=2, repeats=2, clock=tick
  )
  assert found == pytest.approx([500, 500])


def test_a_table_adds_up_where_time_does():
  asked = []
  timed = lambda models: (asked.append(len(models)), by_macs(models))[1]
  table = latency.Table(MODEL, LEVELS, IMAGE, timed)
  assert asked == [4]  # one model a level
  made = Space(MODEL, preset("matvit"), table.price, table.saved)
  for mix in made.shape("all")[::7]:
    little = MODEL.clone(
      mlp_dim=tuple(int(32 * LEVELS[level]) for level in mix)
    )
    assert made.of(mix) == pytest.approx(by_macs([little])[0])
  assert asked == [4]  # and nothing for a mix


def test_layers_save_in_proportion_to_their_work():
  model = MODEL.clone(mlp_dim=(32, 64, 32), head_dim=8)
  table = latency.Table(model, LEVELS, IMAGE, by_macs)
  first, second, third = (table.saved(i, LEVELS[1]) for i in range(3))
  assert second == pytest.approx(2 * first) and first == third


def test_times_that_do_not_rise_are_no_table():
  busy = lambda models: [5.0, 4.0, 6.0, 7.0]
  with pytest.raises(UserError, match=r"1/8: 5, 1/4: 4, .*machine is busy"):
    latency.Table(MODEL, LEVELS, IMAGE, busy)
  close = lambda models: [5.0, 4.9, 6.0, 7.0]  # within the noise
  assert latency.Table(MODEL, LEVELS, IMAGE, close).whole == 7.0


def test_what_does_not_mix_is_measured_once_each():
  asked = []
  timed = lambda models: (asked.extend(models), by_macs(models))[1]
  table = latency.Table(MODEL, [], IMAGE, timed)
  texts = ("heads=1/2 embed=1/2 ffn=1/2", "full")
  made = Space(MODEL, texts, table.price, table.saved)
  ends = made.ends()
  assert made.ends() == ends and len(asked) == 2
  assert ends == tuple(np.sort(by_macs(asked)))


def test_here_names_the_device():
  assert set(latency.here()) == {"platform", "device"}
