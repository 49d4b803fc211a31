"""How a run is asked to stop, and how several processes agree when.

One process: a handler sets a flag. Several: the runtime of JAX has its own
handler of SIGTERM, which tells the coordinator; all processes then stop after
the same step. A handler of ours would displace it, so there is none.
"""

import os
import signal
from typing import Any

from jax.experimental import multihost_utils

from vitscale.core import distributed


class StopRequest:
  """SIGTERM, SIGUSR2 and SIGINT ask a run to save and stop.

  SIGUSR2 is what Slurm's `--signal=USR2@SECONDS` sends before the time limit.
  A second SIGINT raises KeyboardInterrupt at once. With several processes
  SIGINT ends them without a save, as ever.
  """

  def __init__(self) -> None:
    self._asked = False
    self._steps = 0
    self._together = distributed.process_count() > 1
    self._old: dict[int, Any] = {}

  def asked(self) -> bool:
    """Call once after every step, on all processes; stays true."""
    if self._together and not self._asked:
      self._steps += 1
      self._asked = multihost_utils.reached_preemption_sync_point(self._steps)
    return self._asked

  def _handle(self, signum: int, _frame: Any) -> None:
    if self._together:
      os.kill(os.getpid(), signal.SIGTERM)  # to the runtime's handler
      return
    if self._asked and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self._asked = True

  def __enter__(self) -> "StopRequest":
    mine = [signal.SIGUSR2]
    if not self._together:
      mine += [signal.SIGTERM, signal.SIGINT]
    try:
      for signum in mine:
        self._old[signum] = signal.signal(signum, self._handle)
    except ValueError:
      pass  # not the main thread: the caller owns the signals
    return self

  def __exit__(self, *_: Any) -> None:
    for signum, handler in self._old.items():
      signal.signal(signum, handler)
