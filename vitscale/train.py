"""The one training loop. Read top to bottom; a task is what changes.

Order of operations, each resumable: config -> bench (shapes, facts) ->
workdir check -> state (fresh or restored) -> loop (batch, step, log, eval,
checkpoint) -> last evaluation and checkpoint -> run.json `finished`.

The state's two counters are the only cursor: `step` counts updates, and
`data_step` batches; they differ once a batch was dropped (core/guard.py).
Batches and draws are pure functions of (seed, data_step), random keys of
(seed, step), so a killed run continues bit for bit. The loop looks at the
device, to log, save or react, at data steps that don't depend on when it was
killed or asked to stop. With several processes all run this loop; process 0
writes.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import record
from vitscale.bench import Bench, build, check_traced
from vitscale.core import accounting, distributed, draws, guard, optim, sharding
from vitscale.core import config as config_lib
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.chrono import Chrono
from vitscale.core.errors import UserError
from vitscale.core.ledger import Ledger
from vitscale.core.lock import hold_together
from vitscale.core.log import Log, read_rows, write_json, write_text
from vitscale.core.signals import StopRequest
from vitscale.core.watchdog import Watchdog
from vitscale.data import sources
from vitscale.record import git_commit as git_commit

Report = Callable[[Mapping[str, Any]], None]


def train(
  config: Mapping[str, Any],
  workdir: str | Path,
  *,
  report: Report | None = None,
) -> dict[str, Any]:
  """Trains a config in `workdir`, from wherever an earlier run left it.

  Args:
    config: a run's config (see configs/).
    workdir: folder of the run; made when missing. It holds run.json,
      metrics.jsonl (the result), timing.jsonl (wall-clock), events.jsonl
      (skipped batches, rollbacks, failed saves), parameters.txt (who is
      where, who decays, who is frozen) and checkpoints/.
    report: called with progress (`step`, `total_steps`, `row`).

  Returns:
    `status` (finished | interrupted), `step`, `metrics` (last row), `params`,
    `flops_per_example`, `mfu` (None on unknown devices), `workdir`.

  Raises:
    UserError: bad config, a workdir of another config, NaN loss, full disk, no
      checkpoint that can be verified.
  """
  workdir, main = Path(workdir).absolute(), distributed.is_main()
  previous = distributed.from_main(record.claim, workdir, config)
  if previous and previous.get("status") == "finished":
    record.check_data(workdir, previous, sources.fingerprint(config))
    return record.result(workdir, previous)
  lock = hold_together(workdir, "a run")
  bench = reuse(config)
  record.check_data(workdir, previous, bench.facts["data_fingerprint"])
  seed = np.uint32(config["seed"])
  lrs = {
    player.name: np.float32(
      config[player.optim].get("lr", optim.DEFAULTS["lr"])
    )
    for player in bench.task.players
  }

  # State: fresh, or the last checkpoint that can be verified.
  ledger = Ledger(workdir)
  options = config.get("checkpoint", {})
  store = CheckpointStore(
    workdir / "checkpoints",
    keep=options.get("keep", 2),
    keep_every=options.get("keep_every", 0),
    say=ledger.warn,
  )
  try:
    resumes = store.prepare()
    state = store.resume(bench.abstract)[0] if resumes else bench.init(seed)
  except UserError:
    if lock:
      lock.close()
    raise
  step, data_step = int(state["step"]), int(state["data_step"])
  counts = guard.read(state)
  log = Log(workdir, upto=data_step, mirrors=config.get("log", {}), write=main)
  run = record.describe(config, bench)
  if main:
    write_json(workdir / "run.json", {**run, "status": "running"})
    write_text(workdir / "parameters.txt", bench.parameters + "\n")
  ledger.note("start", step=step, processes=distributed.process_count())
  chrono = Chrono(
    total_steps=bench.total_steps,
    batch_size=bench.batch_size,
    before=log.seconds,
  )
  batches = bench.batches(data_step, int(seed))
  status, stopping, compiled = "finished", False, set()
  stop, watchdog = StopRequest(), Watchdog(config.get("watchdog", {}))
  try:
    with stop, watchdog:
      while step < bench.total_steps:
        asked = time.perf_counter()
        batch = sharding.shard_batch(next(batches), bench.mesh, bench.rules)
        chrono.waited(time.perf_counter() - asked)
        draw = tuple(
          sorted(draws.at(bench.draws, int(seed), data_step).items())
        )
        watchdog.beat("step", slow=draw not in compiled)
        state = bench.step(state, batch, seed, lrs, draw=draw)
        step, data_step = step + 1, data_step + 1  # step: if none is dropped
        if not compiled:  # the first step compiled: not part of any window
          jax.block_until_ready(state["step"])
          chrono.open(data_step)
        compiled.add(draw)
        stopping = stopping or stop.asked()

        # What is due; only then the loop looks at the device.
        evals = [k for k, e in bench.evals.items() if data_step % e.every == 0]
        logging = bool(evals) or data_step % bench.log_steps == 0
        saving = data_step % bench.checkpoint_steps == 0
        ending = data_step >= bench.total_steps
        if not (logging or saving or ending or stopping):
          continue
        step, seen, counts = int(state["step"]), counts, guard.read(state)
        check_finite(state, store, config)
        if counts["skips"] > seen["skips"]:
          ledger.warn(**guard.notice(counts, seen["skips"], step))
        if counts["tripped"] >= 0:
          watchdog.beat("rollback", slow=True)
          state, upto = roll_back(bench, store, config, counts, step)
          step, data_step = int(state["step"]), int(state["data_step"])
          counts = guard.read(state)
          ledger.warn(
            f"rolled back to step {step}; goes on with batch {data_step}",
            "rollback", step=step, data_step=data_step,
          )  # fmt: skip
          log.cut(upto)
          batches.close()
          batches = bench.batches(data_step, int(seed))
          chrono.open(data_step)
          continue

        last = step == bench.total_steps
        if last:
          evals = list(bench.evals)
        if last or logging:
          row, timing = measure(bench, state, chrono)
          for label in evals:
            watchdog.beat(f"evaluation {label}", slow=True)
            scores = bench.evals[label].run(state)
            row |= {f"eval/{label}/{k}": v for k, v in scores.items()}
          log.write(row, timing)
          saving = store.check() or saving
          state["window"] = jax.tree.map(jnp.zeros_like, state["window"])
          if report:
            eta = chrono.eta(data_step)
            report({"step": step, "total_steps": bench.total_steps,
                    "eta": eta, "row": {**timing, **row}})  # fmt: skip
          chrono.open(data_step)
        if (last or saving or stopping) and not counts["streak"]:
          watchdog.beat("checkpoint", slow=True)
          store.save(step, state, {"config_digest": run["config_digest"]})
        if stopping and not last:
          status = "interrupted"
          if counts["streak"]:
            ledger.warn("stopped without a save: the last batches were bad")
          break
      watchdog.beat("checkpoint", slow=True)
      finish(store, ledger, status)
  except BaseException as error:
    failed = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    with contextlib.suppress(UserError):  # show the first error
      store.wait()  # what was saved before it is kept
    with contextlib.suppress(UserError):
      if main:
        write_json(
          workdir / "run.json", {**run, "status": failed, "error": str(error)}
        )
    ledger.note(failed, step=step, text=str(error))
    raise
  finally:
    batches.close()
    log.close()
    if lock:
      lock.close()
  rate = chrono.examples_per_second()
  rows = read_rows(workdir / "metrics.jsonl")
  run |= {
    "status": status,
    "step": step,
    "seconds": round(chrono.seconds, 3),
    "examples_per_second": rate,
    "mfu": mfu(bench, rate),
    "skipped_batches": counts["skips"],
    "rollbacks": counts["rollbacks"],
    "metrics": rows[-1] if rows else {},
  }
  if main:
    write_json(workdir / "run.json", run)
  ledger.note(status, step=step, data_step=data_step)
  return record.result(workdir, run)


# ------------------------------------------------------------ parts of a run


def measure(
  bench: Bench, state: Mapping[str, Any], chrono: Chrono
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The metrics row and the timing row of the window that ends here."""
  sums = {k: float(v) for k, v in jax.device_get(state["window"]).items()}
  step, data_step = int(state["step"]), int(state["data_step"])
  at = {"step": step} | ({"data_step": data_step} if data_step != step else {})
  timing = {**chrono.close(data_step), **at}
  timing["mfu"] = mfu(bench, timing["examples_per_second"])
  examples, facts = step * bench.batch_size, bench.facts
  count = sums.pop("count") or float("nan")  # every batch was dropped
  row = {
    **at,
    "examples": examples,
    "tokens": examples * facts["tokens_per_example"],
    "flops": examples * facts["flops_per_example"],
    **{f"train/{name}": value / count for name, value in sums.items()},
  }
  return row, timing


def mfu(bench: Bench, examples_per_second: float | None) -> float | None:
  """Model FLOPs utilisation; None where the device's peak is unknown."""
  if not examples_per_second:
    return None
  return accounting.mfu(
    bench.facts["flops_per_example"] * examples_per_second,
    1.0,
    list(bench.mesh.devices.flat),
  )


def check_finite(
  state: Mapping[str, Any], store: CheckpointStore, config: Mapping[str, Any]
) -> None:
  """Stops a run whose loss was NaN or infinite; no such state is saved."""
  if int(state["first_bad"]) >= 0:
    raise not_finite(int(state["first_bad"]), store, config)


def not_finite(
  bad: int, store: CheckpointStore, config: Mapping[str, Any], tried: str = ""
) -> UserError:
  """The error of a run that can't go on since step `bad`."""
  store.wait()
  good = store.steps()
  kept = f"step {good[-1]} in {store.directory}" if good else "none"
  return UserError(
    f"loss or gradient not finite since step {bad}{tried}; last good"
    f" checkpoint: {kept}. To go on, start a new workdir with a lower optim.lr"
    f" (now {config['optim'].get('lr', optim.DEFAULTS['lr'])}), a longer"
    " warm-up or optim.clip_norm"
  )


def roll_back(
  bench: Bench,
  store: CheckpointStore,
  config: Mapping[str, Any],
  counts: Mapping[str, Any],
  step: int,
) -> tuple[dict[str, Any], int]:
  """The last checkpoint, its data moved past the batch that tripped the guard.

  Returns:
    The state, and the data step up to which the log is kept.

  Raises:
    UserError: no checkpoint, or rolled back too often.
  """
  store.check(block=True)
  limit = guard.settings(config["guard"])["max_rollbacks"]
  found = distributed.from_main(store.steps)
  if counts["rollbacks"] >= limit or not found:
    tried = f", after {counts['skips']} skipped batches"
    tried += f" and {counts['rollbacks']} rollbacks"
    raise not_finite(step + 1, store, config, tried)
  state, _ = store.resume(bench.abstract)
  return guard.rolled_back(state, counts), int(state["data_step"])


def finish(store: CheckpointStore, ledger: Ledger, status: str) -> None:
  """Commits the last save; a run that was asked to stop says if it can't."""
  try:
    store.close()
  except UserError as error:
    if status != "interrupted":
      raise
    ledger.warn(f"stopped without its last save: {error}")


_benches: dict[str, Bench] = {}


def reuse(config: Mapping[str, Any]) -> Bench:
  """`build`, once per config up to seed and learning rate.

  Both are inputs of the compiled step, so a sweep over them in one process
  neither traces nor compiles again.
  """
  check_traced(config)
  plain = config_lib.to_dict(config)
  plain.pop("seed"), plain["optim"].pop("lr", None)
  key = json.dumps(plain, sort_keys=True)
  if key not in _benches:
    while len(_benches) >= 4:
      _benches.pop(next(iter(_benches)))
    _benches[key] = build(config)
  return _benches[key]
