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
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import record, warm_start
from vitscale.bench import Bench, build, check_traced
from vitscale.core import config as config_lib
from vitscale.core import distributed, draws, guard, optim, sharding
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError
from vitscale.core.ledger import Ledger
from vitscale.core.lock import hold_together
from vitscale.core.log import Log, read_rows, write_json, write_text
from vitscale.core.profiler import Profile
from vitscale.core.signals import StopRequest
from vitscale.data import sources
from vitscale.record import git_commit as git_commit
from vitscale.watch import Watch

Report = Callable[[Mapping[str, Any]], None]


def train(
  config: Mapping[str, Any],
  workdir: str | Path,
  *,
  report: Report | None = None,
  profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
  """Trains a config in `workdir`, from wherever an earlier run left it.

  Args:
    config: a run's config (see configs/).
    workdir: folder of the run; made when missing. It holds run.json,
      metrics.jsonl (the result), timing.jsonl (wall-clock), events.jsonl
      (starts, skipped batches, failed saves, recompiles), parameters.txt (who
      is where, who decays, who is frozen) and checkpoints/.
    report: called with progress (`step`, `total_steps`, `row`).
    profile: (A, B) traces the steps A to B - 1 of the run into profile/.

  Returns:
    `status` (finished | interrupted), `step`, `metrics` (last row), `params`,
    `flops_per_example`, `mfu` (None on unknown devices), `goodput` (where the
    wall-clock went), `workdir`.

  Raises:
    UserError: bad config, a workdir of another config, NaN loss, full disk, no
      checkpoint that can be verified.
  """
  began, workdir = time.perf_counter(), Path(workdir).absolute()
  warm_start.of(config)  # refused before anything is built
  previous = distributed.from_main(record.claim, workdir, config)
  if previous and previous.get("status") == "finished":
    record.check_data(workdir, previous, sources.fingerprint(config))
    if profile:
      print("warning: --profile: the run is finished", file=sys.stderr)
    return record.result(workdir, previous)
  with hold_together(workdir, "a run"):
    return _train(config, workdir, previous, report, profile, began)


def _train(
  config: Mapping[str, Any],
  workdir: Path,
  previous: Mapping[str, Any] | None,
  report: Report | None,
  profile: tuple[int, int] | None,
  began: float,
) -> dict[str, Any]:
  """`train` of a run that isn't finished, in a workdir that is ours."""
  main, bench = distributed.is_main(), reuse(config)
  record.check_data(workdir, previous, bench.facts["data_fingerprint"])
  run = record.describe(config, bench)
  seed = np.uint32(config["seed"])
  lrs = {
    player.name: np.float32(
      config[player.optim].get("lr", optim.DEFAULTS["lr"])
    )
    for player in bench.task.players
  }

  # State: fresh (or a parent's), or the last checkpoint that can be verified.
  ledger = Ledger(workdir)
  options = config.get("checkpoint", {})
  store = CheckpointStore(
    workdir / "checkpoints",
    keep=options.get("keep", 2),
    keep_every=options.get("keep_every", 0),
    say=ledger.warn,
  )
  tracer = profile and Profile(profile, workdir, ledger, bench.total_steps)
  resumes = store.prepare()
  fresh = lambda: (warm_start.begin(bench), {})
  state, saved = store.resume(bench.abstract) if resumes else fresh()
  run["parents"] = (
    (previous or {}).get("parents") if resumes else warm_start.facts(config)
  )
  step, data_step = int(state["step"]), int(state["data_step"])
  counts = guard.read(state)
  watch = Watch(
    workdir, bench, ledger,
    began=began,
    saved=saved,
    ceiling=run["gemm_flops_per_second"],
    profile=tracer,
  )  # fmt: skip
  log = Log(workdir, upto=data_step, mirrors=config.get("log", {}), write=main)
  if main:
    write_json(workdir / "run.json", {**run, "status": "running"})
    write_text(workdir / "parameters.txt", bench.parameters + "\n")
  size = distributed.process_count()
  ledger.note("start", step=step, processes=size, **watch.account())
  batches = bench.batches(data_step, int(seed))
  status, stopping, stop = "finished", False, StopRequest()
  try:
    with stop, watch:
      while step < bench.total_steps:
        watch.enter("data")
        batch = sharding.shard_batch(next(batches), bench.mesh, bench.rules)
        draw = draws.drawn(bench.draws, int(seed), data_step)
        state = watch.step(
          bench.step, state, batch, seed, lrs, draw=draw, number=step
        )
        step, data_step = step + 1, data_step + 1  # step: if none is dropped
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
          watch.dropped(counts["skips"] - seen["skips"])
        if counts["tripped"] >= 0:
          watch.enter("rollback")
          state, upto, saved = roll_back(bench, store, config, counts, step)
          watch.rolled_back(saved)
          step, data_step = int(state["step"]), int(state["data_step"])
          counts = guard.read(state)
          ledger.warn(
            f"rolled back to step {step}; goes on with batch {data_step}",
            "rollback", step=step, data_step=data_step,
          )  # fmt: skip
          log.cut(upto)
          batches.close()
          batches = bench.batches(data_step, int(seed))
          continue

        last = step == bench.total_steps
        if last:
          evals = list(bench.evals)
        if last or logging:
          row, timing = watch.measure(state)
          for label in evals:
            watch.enter(f"evaluation {label}")
            scores = bench.evals[label].run(state)
            row |= {f"eval/{label}/{k}": v for k, v in scores.items()}
          watch.enter("step")  # done with what may take long
          log.write(row, {**timing, **watch.account()})
          saving = store.check() or saving
          state["window"] = jax.tree.map(jnp.zeros_like, state["window"])
          if report:
            report(watch.progress(row, timing))
        if (last or saving or stopping) and not counts["streak"]:
          watch.enter("checkpoint")
          digest = {"config_digest": run["config_digest"]}
          store.save(step, state, {**digest, **watch.account()})
        if stopping and not last:
          status = "interrupted"
          if counts["streak"]:
            ledger.warn("stopped without a save: the last batches were bad")
          break
      watch.enter("checkpoint")
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
    ledger.note(failed, step=step, text=str(error), **watch.account())
    raise
  finally:
    batches.close()
    log.close()
  rows = read_rows(workdir / "metrics.jsonl")
  run |= {
    "status": status,
    "step": step,
    **watch.summary(),
    "skipped_batches": counts["skips"],
    "rollbacks": counts["rollbacks"],
    "metrics": rows[-1] if rows else {},
  }
  if main:
    write_json(workdir / "run.json", run)
  ledger.note(status, step=step, data_step=data_step, **watch.account())
  return record.result(workdir, run)


# ------------------------------------------------------------ parts of a run


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
) -> tuple[dict[str, Any], int, dict[str, Any]]:
  """The last checkpoint, its data moved past the batch that tripped the guard.

  Returns:
    The state, the data step up to which the log is kept, the manifest.

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
  state, saved = store.resume(bench.abstract)
  return guard.rolled_back(state, counts), int(state["data_step"]), saved


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
  """`build`, once per config up to seed, learning rate and parent.

  They are inputs of the compiled step, so a sweep over them in one process
  neither traces nor compiles again.
  """
  check_traced(config)
  plain = config_lib.to_dict(config)
  plain.pop("seed"), plain["optim"].pop("lr", None), plain.pop("init", None)
  key = json.dumps(plain, sort_keys=True)
  if key not in _benches:
    while len(_benches) >= 4:
      _benches.pop(next(iter(_benches)))
    _benches[key] = build(config)
  return dataclasses.replace(_benches[key], config=config)
