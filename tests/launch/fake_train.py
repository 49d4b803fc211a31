"""A stand-in for `vitscale.train.train` that needs no jax and no time.

`config["act"]` says what happens; the run counts seconds in `count` like a
checkpoint, so that a resume is visible.
"""

import json
import os
import signal
import time
from pathlib import Path

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.core.log import write_json

stop = {"asked": False}


def train(config, workdir, *, report=None):
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path, act = workdir / "run.json", config["act"]
  digest = config_lib.digest(config)
  old = json.loads(path.read_text()) if path.exists() else {}
  if old and old["config_digest"] != digest:
    raise UserError(f"{workdir} belongs to another config")
  starts = old.get("starts", 0) + 1
  step, total = old.get("step", 0), config.get("steps", 3)
  before = signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
  stop["asked"] = False
  first = step

  def save(status):
    run = {
      "status": status,
      "step": step,
      "config": config_lib.to_dict(config),
      "config_digest": digest,
      "law_variables": {"params": 10},
      "starts": starts,
      "first": first,
      "pid": os.getpid(),
      "cores": sorted(os.sched_getaffinity(0)),
      "metrics": {"step": step, "eval/loss": 1 / (1 + config.get("seed", 0))},
    }
    write_json(path, run)
    return {**run, "workdir": str(workdir)}

  try:
    if act == "raise":
      raise ValueError("bad luck\nsecond line")
    if act == "memory":
      raise MemoryError("no room")
    if act == "die":
      os.kill(os.getpid(), signal.SIGKILL)
    if act == "exit":
      os._exit(3)
    if act == "print":
      print("hello from the run", flush=True)
    while step < total:
      if stop["asked"] and act != "stubborn":
        return save("interrupted")
      time.sleep(config.get("pause", 0.01))
      step += 1
      save("running")
      if report:
        report({"step": step, "total_steps": total})
    return save("finished")
  finally:
    signal.signal(signal.SIGTERM, before)
