"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
  """Shows one training run; pass `.train` as the loop's `report`."""

  def __init__(self, *, every_seconds: float = 10.0):
    self.every_seconds = every_seconds
    self._bar: Any = None
    self._task: Any = None
    self._printed = 0.0

  def __enter__(self) -> "Progress":
    if sys.stderr.isatty():
      from rich.console import Console
      from rich.progress import BarColumn, Progress, TextColumn

      self._bar = Progress(
        BarColumn(bar_width=12),
        TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
        console=Console(stderr=True),
      )
      self._bar.start()
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar:
      self._bar.stop()

  def ended(self, result: Mapping[str, Any]) -> None:
    """Where the wall-clock of a run went, in one line."""
    if result.get("goodput"):
      print(account(result["goodput"]), file=sys.stderr, flush=True)

  def train(self, state: Mapping[str, Any]) -> None:
    """One report of the loop: `step`, `total_steps`, `eta`, `row`."""
    text = summary(state["row"], state["eta"], state.get("goodput"))
    if self._bar:
      if self._task is None:
        self._task = self._bar.add_task("training", total=None, text="")
      self._bar.update(
        self._task,
        completed=state["step"],
        total=state["total_steps"],
        text=text,
      )
      return
    now = time.monotonic()
    done = state["step"] == state["total_steps"]
    if done or now - self._printed >= self.every_seconds:
      self._printed = now
      print(
        f"step {state['step']}/{state['total_steps']} {text}",
        file=sys.stderr,
        flush=True,
      )


def summary(
  row: Mapping[str, Any], eta: float | None, goodput: float | None = None
) -> str:
  """`loss 1.234 | 5,120 img/s | MFU 41.0% (57% of GEMM) | 1:05 left`."""
  parts = []
  if row.get("train/loss") is not None:
    parts.append(f"loss {row['train/loss']:.4f}")
  parts.append(f"{row['examples_per_second']:,.0f} img/s")
  parts += utilisation(row)
  if row.get("data_wait", 0) >= 0.005:
    parts.append(f"waits for data {row['data_wait']:.0%}")
  if goodput is not None:
    parts.append(f"goodput {goodput:.0%}")
  if eta:
    parts.append(f"{clock(eta)} left")
  for key, value in row.items():  # last: a terminal may be too narrow
    if key.startswith("eval/") and key.endswith(("/nll", "/accuracy")):
      parts.append(f"{key[5:]} {value:.4f}")
  return " | ".join(parts)


def utilisation(row: Mapping[str, Any]) -> list[str]:
  """Of the published peak and of what a matrix product reaches here."""
  mfu, ceiling = row.get("mfu"), row.get("of_ceiling")
  if mfu is None:
    return [] if ceiling is None else [f"{ceiling:.0%} of GEMM ceiling"]
  more = "" if ceiling is None else f" ({ceiling:.0%} of GEMM)"
  return [f"MFU {mfu:.1%}{more}"]


def account(found: Mapping[str, Any]) -> str:
  """`goodput 81% of 1:02:03 in 2 sessions (down 9%, compile 4%)`."""
  several = f" in {found['sessions']} sessions" if found["sessions"] > 1 else ""
  rest = ", ".join(
    f"{name} {value:.0%}"
    for name, value in found["shares"].items()
    if name != "step" and value >= 0.005
  )
  return (
    f"goodput {found['share']:.0%} of {clock(found['wall_clock'])}{several}"
    + (f" ({rest})" if rest else "")
  )


def clock(seconds: float) -> str:
  """`1:02:03` or `2:03`."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{rest:02}"
  return f"{minutes}:{rest:02}"
