"""events.jsonl: what happened to a run besides training, in order of time.

Skipped batches, rollbacks, failed saves, damaged checkpoints, recompiles,
profiles, starts and stops. It is not part of a run's result and is never cut
back.
"""

import contextlib
import datetime
import sys
from pathlib import Path
from typing import Any

from vitscale.core import distributed
from vitscale.core.errors import UserError
from vitscale.core.log import Rows


def now() -> str:
  """The time as logs have it."""
  return datetime.datetime.now(datetime.UTC).isoformat("T", "milliseconds")


class Ledger:
  """Appends events of process 0; a full disk doesn't stop it."""

  def __init__(self, workdir: Path):
    self._rows = None
    if distributed.is_main():
      self._rows = Rows(workdir / "events.jsonl", upto=1 << 60)

  def note(self, event: str, **facts: Any) -> None:
    """One row: `event`, the time, and facts."""
    if self._rows is not None:
      with contextlib.suppress(UserError):
        self._rows.append({"event": event, "time": now(), **facts})

  def warn(self, text: str, event: str = "warning", **facts: Any) -> None:
    """A row with a text, which is also said on stderr, loudly."""
    self.note(event, text=text, **facts)
    if distributed.is_main():
      print(f"warning: {text}", file=sys.stderr, flush=True)
