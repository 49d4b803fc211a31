"""Chrono: wall-clock of a run, over restarts, and its throughput.

Times windows between log rows, each closed by reading that window's metrics
(a device sync), so that asynchronous dispatch can't fake a speed. Wall-clock
is not part of a run's result: it goes to timing.jsonl, never metrics.jsonl.
"""

import time
from typing import Any

import numpy as np


class Chrono:
  """Seconds, examples a second, share of time spent waiting for data, MFU."""

  def __init__(self, *, total_steps: int, batch_size: int, before: float = 0.0):
    self.total_steps = total_steps
    self.batch_size = batch_size
    self.before = before  # seconds of earlier sessions of this run
    self.start = time.perf_counter()
    self.rates: list[float] = []
    self._window_start: float | None = None
    self._window_step = 0
    self._waited = 0.0

  @property
  def seconds(self) -> float:
    """Wall-clock of the run so far, earlier sessions included."""
    return self.before + time.perf_counter() - self.start

  def open(self, step: int) -> None:
    """Starts a window at `step`, after compilation or a pause."""
    self._window_start, self._window_step = time.perf_counter(), step
    self._waited = 0.0

  def waited(self, seconds: float) -> None:
    """Counts time the loop stood still for its input."""
    self._waited += seconds

  def close(self, step: int) -> dict[str, Any]:
    """Ends the window at `step`; the row for timing.jsonl."""
    now = time.perf_counter()
    taken = max(now - (self._window_start or now), 1e-9)
    steps = step - self._window_step
    rate = steps * self.batch_size / taken
    if steps:
      self.rates.append(rate)
    row = {
      "step": step,
      "seconds": round(self.seconds, 3),
      "examples_per_second": round(rate, 2),
      "data_wait": round(self._waited / taken, 4),
    }
    self.open(step)
    return row

  def examples_per_second(self) -> float | None:
    """Median over the windows of this session."""
    return float(np.median(self.rates)) if self.rates else None

  def eta(self, step: int) -> float | None:
    """Seconds left at the median rate."""
    rate = self.examples_per_second()
    if not rate:
      return None
    return (self.total_steps - step) * self.batch_size / rate
