"""Chrono: where a session's seconds go, and its throughput.

Each moment belongs to one category (core/goodput.py). A window between two log
rows is closed after that window's metrics were read (a device sync), so that
asynchronous dispatch can't fake a speed; it counts steps and waiting for data,
not what else came between. Wall-clock is not part of a run's result: it goes
to timing.jsonl, never metrics.jsonl.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale.core import goodput


class Chrono:
  """Seconds by category, examples a second, share of waiting for data, ETA."""

  def __init__(
    self,
    *,
    total_steps: int,
    batch_size: int,
    began: float | None = None,
    before: Mapping[str, float] | None = None,
  ):
    """Starts in "start".

    Args:
      total_steps: of the run.
      batch_size: examples a step.
      began: `time.perf_counter()` when the session began, default now.
      before: seconds by category of earlier sessions.
    """
    self.total_steps, self.batch_size = total_steps, batch_size
    self.spent = dict.fromkeys(goodput.CATEGORIES, 0.0) | dict(before or {})
    self.rates: list[float] = []
    self._category, self._since = "start", began or time.perf_counter()
    self._mine = dict.fromkeys(goodput.CATEGORIES, 0.0)  # of this session
    self.open()

  def enter(self, category: str) -> None:
    """Ends what was going on."""
    self.credit(self._category, self.running())
    self._category = category

  def running(self) -> float:
    """Seconds since `enter` that are not credited yet."""
    return time.perf_counter() - self._since

  def credit(self, category: str, seconds: float) -> None:
    """Counts seconds of what is going on for another category."""
    self._since += seconds
    for sums in (self.spent, self._mine, self._window):
      sums[category] += seconds

  def lose(self, steps: int) -> None:
    """Of this window's steps, these came to nothing."""
    self.enter(self._category)
    lost = steps * self._window["step"] / max(self._steps, 1)
    self.spent["step"] -= lost
    self.spent["lost"] += lost

  # --------------------------------------------------------------- windows

  def open(self) -> None:
    """Starts a window."""
    self._window, self._steps = dict.fromkeys(goodput.CATEGORIES, 0.0), 0

  def stepped(self) -> None:
    self._steps += 1

  def close(self) -> dict[str, Any]:
    """Ends the window, device synced; the row for timing.jsonl."""
    self.enter(self._category)
    step, data = self._window["step"], self._window["data"]
    taken = max(step + data, 1e-9)
    rate = self._steps * self.batch_size / taken
    if self._steps:
      self.rates.append(rate)
    self.open()
    return {
      "seconds": round(self.seconds, 3),
      "examples_per_second": round(rate, 2),
      "data_wait": round(data / taken, 4),
      "goodput": round(goodput.share(self.spent), 4),
    }

  def totals(self) -> dict[str, float]:
    """Seconds by category up to now."""
    self.enter(self._category)
    rounded = {name: round(value, 3) for name, value in self.spent.items()}
    return {name: value for name, value in rounded.items() if value}

  @property
  def seconds(self) -> float:
    """Work of the run so far: compiling, steps, evaluations, saves."""
    return sum(self.spent[name] for name in (*goodput.WORK, "compile"))

  def examples_per_second(self) -> float | None:
    """Median over the windows of this session."""
    return float(np.median(self.rates)) if self.rates else None

  def eta(self, step: int) -> float | None:
    """Seconds left at the median rate, with evaluations and saves as so far."""
    rate, mine = self.examples_per_second(), self._mine
    if not rate:
      return None
    pauses = (mine["evaluation"] + mine["checkpoint"]) / max(
      mine["step"] + mine["data"], 1e-9
    )
    return (self.total_steps - step) * self.batch_size / rate * (1 + pauses)
