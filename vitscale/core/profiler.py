"""A trace of chosen steps: `vitscale train ... --profile steps=A:B`.

It changes nothing of a run but its wall-clock: the device is synced before the
first step and after the last one, and each step carries its number.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vitscale.core import distributed
from vitscale.core.errors import UserError
from vitscale.core.ledger import Ledger

NAME = "train"  # of a step in the trace


class Profile:
  """Traces the steps of one window, once."""

  def __init__(
    self,
    steps: tuple[int, int],
    workdir: Path,
    ledger: Ledger,
    total_steps: int,
  ):
    """Touches nothing.

    Raises:
      UserError: the run is shorter.
    """
    if steps[1] > total_steps:
      raise UserError(
        f"--profile steps={steps[0]}:{steps[1]}: the run has only"
        f" {total_steps} steps"
      )
    (self.first, self.end), self.done = steps, 0
    self.folder, self.ledger = workdir / "profile", ledger
    if distributed.process_count() > 1:  # two on a host would be one file
      self.folder /= f"process{distributed.process_index()}"
    self.begun = self.tracing = False
    self.overhead = 0.0  # seconds, besides the steps'

  def _goes_on(self, step: int) -> None:
    """The loop starts at `step`.

    A run that was stopped is started by the same command again: steps that
    were done before are a warning and no error.
    """
    self.begun = True
    if self.first < step:
      left = f"traces {step}:{self.end}" if step < self.end else "no trace"
      self.ledger.warn(
        f"--profile steps={self.first}:{self.end}: the run goes on from step"
        f" {step}, {left}"
      )
      self.first = step

  def around(self, update: Callable[..., Any], step: int) -> Callable[..., Any]:
    """`update`, traced if this step is in the window."""
    if not self.begun:
      self._goes_on(step)
    if not (self.first <= step < self.end):
      return update

    def traced(state: Any, *args: Any, **kwargs: Any) -> Any:
      self._start(state)
      with jax.profiler.StepTraceAnnotation(NAME, step_num=step):
        state = update(state, *args, **kwargs)
      self.done = step + 1
      if step + 1 == self.end:
        jax.block_until_ready(state)
        self.close()
      return state

    return traced

  def _start(self, state: Any) -> None:
    if self.tracing:
      return
    jax.block_until_ready(state)
    began = time.perf_counter()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it slows what it shows
    try:
      jax.profiler.start_trace(str(self.folder), profiler_options=options)
      self.tracing = True
    except (RuntimeError, OSError) as error:  # somebody else traces
      self.ledger.warn(f"no profile: {error}")
      self.end = self.first  # don't try again
    self.overhead += time.perf_counter() - began

  def close(self) -> None:
    """Writes the trace and says where it is."""
    if not self.tracing:
      return
    self.tracing, began = False, time.perf_counter()
    self.end, window = self.first, f"{self.first}:{self.done}"
    try:
      jax.profiler.stop_trace()
    except (RuntimeError, OSError) as error:
      self.ledger.warn(f"the profile could not be written: {error}")
      return
    finally:
      self.overhead += time.perf_counter() - began
    files = sorted(self.folder.rglob("*.trace.json.gz"))
    self.ledger.note("profile", steps=window, folder=str(self.folder))
    if not files:
      self.ledger.warn(f"no trace in {self.folder}")
    elif distributed.is_main():
      print(
        f"profile of steps {window}: {files[-1]}; open that file in"
        " https://ui.perfetto.dev, or `pip install xprof` and"
        f" `xprof --logdir {self.folder}`",
        file=sys.stderr, flush=True,
      )  # fmt: skip
