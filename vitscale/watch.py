"""The watch of a session: where its time goes, what it reaches, what to say.

The loop tells it each phase once; from that come the watchdog's heartbeat, the
seconds by category, the waiting for data, recompiles and profiles. Nothing
here changes what a run computes.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from vitscale.bench import Bench
from vitscale.core import accounting, compiles, distributed, draws, goodput
from vitscale.core.chrono import Chrono
from vitscale.core.ledger import Ledger, now
from vitscale.core.log import read_rows
from vitscale.core.profiler import Profile
from vitscale.core.watchdog import Watchdog

LOUD = 3  # recompiles that are said on stderr; events.jsonl has all
State = Mapping[str, Any]


class Watch:
  """A context around the loop."""

  def __init__(
    self,
    workdir: Path,
    bench: Bench,
    ledger: Ledger,
    *,
    ceiling: float | None = None,
    began: float | None = None,
    saved: Mapping[str, Any] | None = None,
    profile: Profile | None = None,
  ):
    """Reads what earlier sessions of `workdir` spent; call it before `Log`.

    Args:
      workdir: of the run.
      bench: of the run.
      ledger: takes recompiles.
      ceiling: measured FLOP/s of one device.
      began: `time.perf_counter()` when this session began.
      saved: manifest of the checkpoint it goes on from, if there is one.
      profile: traces a window of steps.
    """
    self.bench, self.ledger, self.profile = bench, ledger, profile
    self.ceiling = ceiling
    self.watchdog = Watchdog(bench.config.get("watchdog", {}))
    began = began or time.perf_counter()
    events, timing = [], []
    if distributed.is_main():
      events = read_rows(workdir / "events.jsonl")
      timing = [*read_rows(workdir / "timing.jsonl"), saved or {}]
    before = goodput.carry(
      events + timing,
      saved.get("spent") if saved else {},
      time.perf_counter() - began,
    )
    self.sessions = 1 + sum(row.get("event") == "start" for row in events)
    self.recompiles = sum(row.get("event") == "recompile" for row in events)
    self.chrono = Chrono(
      total_steps=bench.total_steps,
      batch_size=bench.batch_size,
      began=began,
      before=before,
    )
    # FLOPs of an example: mean over what was drawn before a step, and of each
    # step of this window.
    self._mean_flops = draws.mean_of(
      bench.draws, bench.flops, bench.config["seed"]
    )
    self._flops: list[float] = []
    self._took: dict[Any, float] = {}  # draw -> seconds of one step
    self._busy_until = 0.0  # the devices, at least

  def __enter__(self) -> "Watch":
    self.watchdog.__enter__()
    return self

  def __exit__(self, *error: Any) -> None:
    if self.profile:
      self.profile.close()
    self.watchdog.__exit__(*error)

  def enter(self, phase: str) -> None:
    """The loop goes on to `phase`: data, evaluation NAME, checkpoint, ..."""
    self.chrono.enter(goodput.category(phase))
    self.watchdog.beat(phase, slow=phase not in ("data", "step"))

  def step(
    self,
    update: Callable[..., Any],
    state: State,
    *args: Any,
    draw: Any,
    number: int,
  ) -> Any:
    """`update(state, *args, draw=draw)`, the step of this `number`.

    The first step of a draw compiles it, with nothing else under way; a later
    one that compiles is reported.
    """
    first = draw not in self._took
    if first:
      jax.block_until_ready(state["step"])
    self._fed(state)
    self.enter("compile" if first else "step")
    if self.profile:
      update = self.profile.around(update, number)
    began = time.perf_counter()
    with compiles.watched() as names:
      state = update(state, *args, draw=draw)
    called = time.perf_counter()
    taken = called - began
    if self.profile:
      self.chrono.credit("profile", self.profile.overhead)
      taken, self.profile.overhead = taken - self.profile.overhead, 0.0
    if names or first:
      self.chrono.credit("compile" if names else "step", taken)
    if first:
      self.chrono.enter("step")
      jax.block_until_ready(state["step"])
      self._took[draw] = time.perf_counter() - called
    elif names:
      self._recompiled(number, taken, names)
    self._busy_until = called + self._took[draw]
    self.chrono.stepped()
    self._flops.append(self.bench.flops[draw])
    return state

  def _fed(self, state: State) -> None:
    """Ends waiting for data; only while the devices stood still was it that.

    They are asked at the end of the wait; if they are through by then, the
    last step had begun when it was dispatched, at the earliest.
    """
    waited, idle = self.chrono.running(), 0.0
    if state["step"].is_ready():
      idle = min(waited, max(time.perf_counter() - self._busy_until, 0.0))
    self.chrono.credit("step", waited - idle)

  def _recompiled(self, step: int, seconds: float, names: list[str]) -> None:
    self.recompiles += 1
    say = self.ledger.warn if self.recompiles <= LOUD else self.ledger.note
    say(
      event="recompile",
      text=f"step {step} was compiled again ({', '.join(names)},"
      f" {seconds:.1f} s): shapes or types of its inputs changed",
      step=step,
      seconds=round(seconds, 3),
      functions=names,
    )

  # ----------------------------------------------------------------- losses

  def dropped(self, batches: int) -> None:
    """Batches of this window that came to nothing."""
    self.chrono.lose(batches)

  def rolled_back(self, saved: Mapping[str, Any]) -> None:
    """What was done since the checkpoint of this manifest is lost."""
    if "spent" in saved:
      self.chrono.spent = goodput.undo(self.chrono.totals(), saved["spent"])
    self.chrono.open()

  # ---------------------------------------------------------------- figures

  def account(self) -> dict[str, Any]:
    """Seconds by category since the run first started, and the time now."""
    return {"spent": self.chrono.totals(), "time": now()}

  def measure(self, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics row and the timing row of the window that ends here."""
    sums = {k: float(v) for k, v in jax.device_get(state["window"]).items()}
    step, data_step = int(state["step"]), int(state["data_step"])
    at = {"step": step} | (
      {"data_step": data_step} if data_step != step else {}
    )
    timing = {**at, **self.chrono.close()}
    examples, facts = step * self.bench.batch_size, self.bench.facts
    rate, of_window = timing["examples_per_second"], self._flops
    mean = sum(of_window) / len(of_window) if of_window else 0.0
    timing |= self.utilisation(rate, mean)
    self._flops = []
    count = sums.pop("count") or float("nan")  # every batch was dropped
    row = {
      **at,
      "examples": examples,
      "tokens": examples * facts["tokens_per_example"],
      "flops": examples * self._mean_flops(data_step),
      **{f"train/{name}": value / count for name, value in sums.items()},
    }
    return row, timing

  def utilisation(
    self, rate: float | None, flops_per_example: float
  ) -> dict[str, float | None]:
    """Model FLOPs against the published peak and the measured ceiling."""
    devices = list(self.bench.mesh.devices.flat)
    flops = flops_per_example * (rate or 0.0)
    known = rate and self.ceiling
    return {
      "mfu": accounting.mfu(flops, 1.0, devices) if rate else None,
      "of_ceiling": flops / self.ceiling / len(devices) if known else None,
    }

  def progress(
    self, row: Mapping[str, Any], timing: Mapping[str, Any]
  ) -> dict[str, Any]:
    """What a progress line is made of."""
    at = row.get("data_step", row["step"])
    return {
      "step": row["step"],
      "total_steps": self.bench.total_steps,
      "eta": self.chrono.eta(at),
      "goodput": timing["goodput"] if self.sessions > 1 else None,
      "row": {**timing, **row},
    }

  def summary(self) -> dict[str, Any]:
    """What run.json says at the end."""
    rate, spent = self.chrono.examples_per_second(), self.chrono.totals()
    return {
      "seconds": round(self.chrono.seconds, 3),
      "examples_per_second": rate,
      **self.utilisation(rate, self.bench.facts["flops_per_example"]),
      "recompiles": self.recompiles,
      "goodput": goodput.report(spent, self.sessions),
    }
