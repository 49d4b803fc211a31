"""A clock that only tests move: what a busy machine can't upset."""

import types

import pytest

from vitscale import watch
from vitscale.core import chrono


class Clock:
  """Seconds that pass where `sleep` says so."""

  def __init__(self):
    self.seconds = 100.0

  def perf_counter(self) -> float:
    return self.seconds

  def sleep(self, seconds: float) -> None:
    self.seconds += seconds


def patched(monkeypatch: pytest.MonkeyPatch) -> Clock:
  """What chrono and watch read instead of the time."""
  clock = Clock()
  for module in (chrono, watch):
    stand_in = types.SimpleNamespace(perf_counter=clock.perf_counter)
    monkeypatch.setattr(module, "time", stand_in)
  return clock
