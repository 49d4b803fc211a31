"""The one training loop. Read top to bottom; a task is what changes.

Order of operations, each resumable: config -> bench (shapes, facts) ->
workdir check -> state (fresh or restored) -> loop (batch, step, log, eval,
checkpoint) -> last evaluation and checkpoint -> run.json `finished`.

The step number is the only cursor: batches, draws and random keys are pure
functions of (seed, step), so a killed run continues bit for bit.
"""

import contextlib
import datetime
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.bench import Bench, build, check_traced
from vitscale.core import accounting, draws, optim, sharding
from vitscale.core import config as config_lib
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.chrono import Chrono
from vitscale.core.errors import UserError
from vitscale.core.lock import hold
from vitscale.core.log import (
  Log,
  read_json,
  read_rows,
  write_json,
  write_text,
)
from vitscale.data import sources

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
      metrics.jsonl (the result), timing.jsonl (wall-clock), parameters.txt
      (who is where, who decays, who is frozen) and checkpoints/.
    report: called with progress (`step`, `total_steps`, `row`).

  Returns:
    `status` (finished | interrupted), `step`, `metrics` (last row), `params`,
    `flops_per_example`, `mfu` (None on unknown devices), `workdir`.

  Raises:
    UserError: bad config, a workdir of another config, NaN loss, full disk.
  """
  workdir = Path(workdir).absolute()
  previous = claim(workdir, config)
  if previous and previous.get("status") == "finished":
    check_data(workdir, previous, sources.fingerprint(config))
    return result(workdir, previous)
  lock = hold(workdir, "a run")
  bench = reuse(config)
  check_data(workdir, previous, bench.facts["data_fingerprint"])
  seed = np.uint32(config["seed"])
  lrs = {
    player.name: np.float32(
      config[player.optim].get("lr", optim.DEFAULTS["lr"])
    )
    for player in bench.task.players
  }

  # State: fresh, or the last complete checkpoint.
  store = CheckpointStore(
    workdir / "checkpoints", keep=config.get("checkpoint", {}).get("keep", 2)
  )
  if store.steps():
    state, _ = store.restore(bench.abstract)
  else:
    state = bench.init(seed)
  step = int(state["step"])
  log = Log(workdir, upto=step, mirrors=config.get("log", {}))
  before = (log.timing.last or {}).get("seconds", 0.0)
  run = describe(config, bench)
  write_json(workdir / "run.json", {**run, "status": "running"})
  write_text(workdir / "parameters.txt", bench.parameters + "\n")
  chrono = Chrono(
    total_steps=bench.total_steps, batch_size=bench.batch_size, before=before
  )
  batches = bench.batches(int(state["data_step"]), int(seed))
  status, opened = "finished", False
  stop = StopRequest()
  try:
    with stop:
      while step < bench.total_steps:
        asked = time.perf_counter()
        batch = sharding.shard_batch(next(batches), bench.mesh, bench.rules)
        chrono.waited(time.perf_counter() - asked)
        draw = draws.at(bench.draws, int(seed), step)
        state = bench.step(
          state, batch, seed, lrs, draw=tuple(sorted(draw.items()))
        )
        step += 1
        if not opened:  # the first step compiled: not part of any window
          jax.block_until_ready(state["step"])
          chrono.open(step)
          opened = True

        last = step == bench.total_steps
        evals = [
          label
          for label, e in bench.evals.items()
          if last or step % e.every == 0
        ]
        if last or evals or step % bench.log_steps == 0:
          row, timing = measure(bench, state, step, chrono)
          check_finite(state, store, config)
          for label in evals:
            scores = bench.evals[label].run(state)
            row |= {f"eval/{label}/{k}": v for k, v in scores.items()}
          log.write(row, timing)
          store.check()
          state["window"] = jax.tree.map(jnp.zeros_like, state["window"])
          if report:
            eta = chrono.eta(step)
            report({"step": step, "total_steps": bench.total_steps,
                    "eta": eta, "row": {**timing, **row}})  # fmt: skip
          chrono.open(step)
        if last or stop.asked or step % bench.checkpoint_steps == 0:
          check_finite(state, store, config)
          store.save(step, state, {"config_digest": run["config_digest"]})
        if stop.asked and not last:
          status = "interrupted"
          break
    store.close()
  except BaseException as error:
    failed = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    with contextlib.suppress(UserError):  # show the first error
      store.wait()  # what was saved before it is kept
    with contextlib.suppress(UserError):
      write_json(
        workdir / "run.json", {**run, "status": failed, "error": str(error)}
      )
    raise
  finally:
    batches.close()
    log.close()
    lock.close()
  run |= {
    "status": status,
    "step": step,
    "seconds": round(chrono.seconds, 3),
    "examples_per_second": chrono.examples_per_second(),
    "mfu": mfu(bench, chrono.examples_per_second()),
    "metrics": read_rows(workdir / "metrics.jsonl")[-1:],
  }
  run["metrics"] = run["metrics"][0] if run["metrics"] else {}
  write_json(workdir / "run.json", run)
  return result(workdir, run)


# ------------------------------------------------------------ parts of a run


def measure(
  bench: Bench, state: Mapping[str, Any], step: int, chrono: Chrono
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The metrics row and the timing row of the window that ends at `step`."""
  sums = {k: float(v) for k, v in jax.device_get(state["window"]).items()}
  timing = chrono.close(step)
  timing["mfu"] = mfu(bench, timing["examples_per_second"])
  examples, facts = step * bench.batch_size, bench.facts
  count = max(sums.pop("count"), 1.0)
  row = {
    "step": step,
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
  bad = int(state["first_bad"])
  if bad < 0:
    return
  store.wait()
  good = store.steps()
  kept = f"step {good[-1]} in {store.directory}" if good else "none"
  raise UserError(
    f"loss or gradient not finite since step {bad}; last good checkpoint:"
    f" {kept}. To go on, start a new workdir with a lower optim.lr (now"
    f" {config['optim'].get('lr', optim.DEFAULTS['lr'])}), a longer warm-up or"
    " optim.clip_norm"
  )


def claim(workdir: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
  """The run.json already in `workdir`, after checking that it is ours.

  Raises:
    UserError: the workdir belongs to another config (difference shown).
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"can't make workdir {workdir}: {error.strerror}"
    ) from error
  previous = read_json(workdir / "run.json")
  if previous is None:
    strangers = sorted(p.name for p in workdir.iterdir())
    if "metrics.jsonl" in strangers or "checkpoints" in strangers:
      raise UserError(
        f"{workdir} holds a run without run.json: choose another workdir"
      )
    return None
  if previous.get("config_digest") != config_lib.digest(config):
    lines = config_lib.difference(previous.get("config", {}), config)
    shown = "; ".join(lines[:6]) or (
      f"vitscale {previous.get('versions', {}).get('vitscale')} -> now"
    )
    raise UserError(
      f"{workdir} belongs to another config ({shown}); nothing was changed,"
      " choose another workdir"
    )
  return previous


def check_data(workdir: Path, previous: Any, now: str | None) -> None:
  """A run must see the data it started with (None: they are gone)."""
  before = (previous or {}).get("data_fingerprint")
  if before and now and before != now:
    raise UserError(
      f"the data of {workdir} changed since the run began"
      f" ({before} -> {now}): choose another workdir"
    )


def describe(config: Mapping[str, Any], bench: Bench) -> dict[str, Any]:
  """run.json of a run about to start."""
  from importlib import metadata

  import vitscale

  devices = list(bench.mesh.devices.flat)
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
  tokens = bench.facts["tokens_per_example"]
  examples = bench.total_steps * bench.batch_size
  return {
    "config": config_lib.to_dict(config),
    "config_digest": config_lib.digest(config),
    "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    "command": sys.argv,
    "git_commit": git_commit(),
    "versions": {"vitscale": vitscale.__version__}
    | {name: metadata.version(name) for name in packages},
    "devices": [devices[0].device_kind, len(devices)],
    "mesh": dict(bench.mesh.shape),
    "total_steps": bench.total_steps,
    **bench.facts,
    "law_variables": {
      "params": bench.facts["params"],
      "params_non_embedding": bench.facts["params_non_embedding"],
      "tokens_per_example": tokens,
      "examples": examples,
      "flops": bench.facts["flops_per_example"] * examples,
      **dict(config.get("law_variables") or {}),
    },
  }


def git_commit() -> str | None:
  """The commit this code runs from, with `+` when changed; None outside git."""
  folder = Path(__file__).parent
  if not (folder.parent / "setup.py").exists():
    return None  # installed: a repository around it is somebody else's

  def git(*args: str) -> str:
    return subprocess.run(
      ["git", "-C", str(folder), *args],
      capture_output=True, text=True, check=True, timeout=10,
    ).stdout.strip()  # fmt: skip

  try:
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")
  except (OSError, subprocess.SubprocessError):
    return None


def result(workdir: Path, run: Mapping[str, Any]) -> dict[str, Any]:
  """What `vitscale train --json` prints."""
  return {
    "status": run["status"],
    "step": run.get("step", 0),
    "metrics": run.get("metrics", {}),
    "params": run["params"],
    "flops_per_example": run["flops_per_example"],
    "mfu": run.get("mfu"),
    "workdir": str(workdir),
  }


class StopRequest:
  """SIGINT and SIGTERM set `asked`; the loop stops after a checkpoint.

  A second SIGINT raises KeyboardInterrupt at once.
  """

  def __init__(self) -> None:
    self.asked = False
    self._old: dict[int, Any] = {}

  def _handle(self, signum: int, _frame: Any) -> None:
    if self.asked and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.asked = True

  def __enter__(self) -> "StopRequest":
    try:
      for signum in (signal.SIGINT, signal.SIGTERM):
        self._old[signum] = signal.signal(signum, self._handle)
    except ValueError:
      pass  # not the main thread: the caller owns the signals
    return self

  def __exit__(self, *_: Any) -> None:
    for signum, handler in self._old.items():
      signal.signal(signum, handler)


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
