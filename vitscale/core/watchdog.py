"""Ends a process whose peers are stuck: better requeued than hung for ever.

A killed peer ends the others by itself (JAX's heartbeats); one that lives but
doesn't move stops all of them inside a collective, without an error. A thread
here sees that no step was finished for too long, says where every thread
stands, and exits with 75, the code for "run me again".
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from vitscale.core import distributed
from vitscale.core.errors import UserError

STUCK = 75
# Seconds without a heartbeat: in a step, and in what takes long by nature
# (compiling, evaluating, saving, restoring). On for several processes only.
DEFAULTS: dict[str, float] = {"seconds": 900.0, "slow_seconds": 7200.0}


class Watchdog:
  """A context in which `beat` must be called often enough."""

  def __init__(self, config: Mapping[str, Any] | None = None):
    """Starts nothing.

    Args:
      config: `seconds` and `slow_seconds`; 0 is no limit. Default: `DEFAULTS`
        with several processes, no limits with one.

    Raises:
      UserError: a negative limit.
    """
    several = distributed.process_count() > 1
    self.limits = {
      name: float((config or {}).get(name, default if several else 0.0))
      for name, default in DEFAULTS.items()
    }
    for name, limit in self.limits.items():
      if limit < 0:
        raise UserError(f"watchdog.{name} = {limit}: should be 0 or more")
    self._beat = ("start", "slow_seconds", time.monotonic())
    self._done = threading.Event()

  def beat(self, phase: str, *, slow: bool = False) -> None:
    """The run lives, and goes on to `phase` (a word for the message)."""
    limit = "slow_seconds" if slow else "seconds"
    self._beat = (phase, limit, time.monotonic())

  def __enter__(self) -> "Watchdog":
    if any(self.limits.values()):
      self.beat("start", slow=True)
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._done.set()

  def _watch(self) -> None:
    shortest = min(limit for limit in self.limits.values() if limit)
    while not self._done.wait(min(shortest / 4, 10.0)):
      phase, name, since = self._beat
      silent, limit = time.monotonic() - since, self.limits[name]
      if limit and silent > limit:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        print(
          f"vitscale: stuck: nothing finished for {silent:.0f} s in {phase!r}"
          f" (watchdog.{name} = {limit:g}); ends with {STUCK}, the same command"
          " goes on from the last checkpoint",
          file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(STUCK)
