"""`vitscale train` as several real processes over gloo, and what ends them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import toys
from tests.faults.trials import marker, reached
from tests.runs import ROOT, command, complaint, complete, python
from tests.toy_poison import poisoned
from vitscale.core import config as config_lib
from vitscale.core.log import read_json, read_rows

CONFIG = """
from tests import toys


def get_config(arg=None):
  config = toys.everything()
  config.evals.val.name = "tests.toy_slow_eval"
  config.ema = 0.9
  return config
"""


# XLA on CPUs aborts after 40 s in a collective: the watchdog's time is longer.
FLAGS = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  folder = tmp_path_factory.mktemp("processes")
  (folder / "config.py").write_text(CONFIG)
  return folder


def free_port():
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]


def args(place, workdir, *changes, config="config.py"):
  return ["train", place / config, "--workdir", workdir, "--json", *changes]


def start(place, workdir, count, *changes, devices=4, config="config.py"):
  """`count` trainers with `devices` fake devices in all."""
  path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  address = f"localhost:{free_port()}"
  return [
    subprocess.Popen(
      [sys.executable, "-m", "vitscale.cli"]
      + [str(a) for a in args(place, workdir, *changes, config=config)]
      + ["--coordinator", address, "--num-processes", str(count)]
      + ["--process-id", str(index), "--dist-timeout", "120"]
      + ["watchdog.seconds=120"] * ("watchdog" not in " ".join(changes)),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
      env={
        **os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1",
        "JAX_NUM_CPU_DEVICES": str(devices // count),
        "EVALUATING": str(marker(workdir)), "XLA_FLAGS": FLAGS,
      },
    )
    for index in range(count)
  ]  # fmt: skip


def ended(processes, seconds=300):
  """[(exit code, stdout, stderr)] of all; none outlives this."""
  deadline, out = time.monotonic() + seconds, []
  for process in processes:
    try:
      left = max(deadline - time.monotonic(), 0.1)
      out.append(process.communicate(timeout=left))
    except subprocess.TimeoutExpired:
      process.kill()
      out.append(process.communicate())
  return [(p.returncode, *o) for p, o in zip(processes, out)]


def fine(found, code=0):
  """All ended with `code`; what everyone said otherwise."""
  assert [f[0] for f in found] == [code] * len(found), "\n\n".join(
    f"process {i}: {f[0]}\n{f[2][-2000:]}" for i, f in enumerate(found)
  )


def wait_for(condition, processes):
  deadline = time.monotonic() + 240
  while not condition():
    late = time.monotonic() > deadline
    if late or any(p.poll() is not None for p in processes):
      raise AssertionError(("never came to it", ended(processes, 1)))
    time.sleep(0.002)


LEAVES = """
import hashlib, sys
from pathlib import Path
import numpy as np
from tests.runs import state_of
state = state_of(Path(sys.argv[1]))
text = hashlib.sha256()
for name in sorted(state):
  text.update(name.encode() + np.ascontiguousarray(state[name]).tobytes())
print(text.hexdigest())
"""


def leaves(workdir, devices):
  """Hash of every leaf, restored by one process on so many devices."""
  process = python("-c", LEAVES, workdir, JAX_NUM_CPU_DEVICES=str(devices))
  assert process.returncode == 0, process.stderr[-3000:]
  return process.stdout.split()[-1]


@pytest.fixture(scope="module")
def alone(place):
  """One process on four devices, to the end."""
  workdir = place / "alone"
  process = command(*args(place, workdir), JAX_NUM_CPU_DEVICES="4")
  assert process.returncode == 0, process.stderr[-3000:]
  return workdir


def assert_same_losses(workdir, alone):
  got = read_rows(workdir / "metrics.jsonl")
  want = read_rows(alone / "metrics.jsonl")
  assert [r["step"] for r in got] == [r["step"] for r in want]
  for a, b in zip(got, want):
    assert a.keys() == b.keys()
    np.testing.assert_allclose([*a.values()], [*b.values()], rtol=1e-4)


def struck(place, name, count, phase, victim=0):
  """SIGTERM to one of the processes in a phase; the workdir."""
  workdir, began = place / name, time.time()
  processes = start(place, workdir, count)
  wait_for(lambda: reached(phase, workdir, began, 0), processes)
  processes[victim].send_signal(signal.SIGTERM)
  fine(ended(processes), 75)
  run = read_json(workdir / "run.json")
  assert run["status"] == "interrupted" and run["processes"] == count
  assert complete(workdir)[-1] == run["step"] < 8  # saved within its grace
  return workdir


def test_two_processes_terminated_and_resumed(place, alone):
  workdir = struck(place, "two", 2, "step", victim=1)
  found = ended(start(place, workdir, 2))
  fine(found)
  for index, (_, out, err) in enumerate(found):
    assert f"explicit: process {index} of 2, 2 of 4 devices" in err
    assert bool(out) == (index == 0)  # one object, from one of them
  result = json.loads(found[0][1])
  assert result["status"] == "finished" and result["step"] == 8
  assert_same_losses(workdir, alone)
  assert leaves(workdir, 1) == leaves(workdir, 8)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["compile", "eval", "save"])
@pytest.mark.parametrize("victim", [0, 1])
def test_two_processes_terminated_in(place, alone, phase, victim):
  workdir = struck(place, f"{phase}{victim}", 2, phase, victim)
  fine(ended(start(place, workdir, 2)))
  assert_same_losses(workdir, alone)


@pytest.mark.slow
def test_four_processes_and_back_to_one(place, alone):
  """4 processes, struck; 1 process goes on; leaf for leaf on any devices."""
  workdir = struck(place, "four", 4, "step", victim=2)
  hashes = {leaves(workdir, devices) for devices in (1, 2, 4, 8)}
  assert len(hashes) == 1
  process = command(*args(place, workdir), JAX_NUM_CPU_DEVICES="2")
  assert process.returncode == 0, process.stderr[-3000:]
  assert_same_losses(workdir, alone)
  fine(ended(start(place, place / "four-whole", 4)))
  assert_same_losses(place / "four-whole", alone)


@pytest.mark.slow
def test_two_processes_roll_back_together(place):
  """As tests/faults/test_not_finite.py, where one process does."""
  made = toys.config()
  made.guard = {"max_skips": 2}
  text = json.dumps(config_lib.to_dict(poisoned(made, 5, 6)))
  (place / "bad.py").write_text(
    "import json\n\nfrom ml_collections import ConfigDict\n\n\n"
    f"def get_config(arg=None):\n  return ConfigDict(json.loads({text!r}))\n"
  )
  fine(ended(start(place, place / "back2", 2, config="bad.py")))
  process = command(
    *args(place, place / "back1", config="bad.py"), JAX_NUM_CPU_DEVICES="4"
  )
  assert process.returncode == 0, process.stderr[-3000:]
  run = read_json(place / "back2" / "run.json")
  assert run["rollbacks"] == 1 and run["skipped_batches"] == 2
  assert_same_losses(place / "back2", place / "back1")


@pytest.mark.slow
def test_a_stuck_peer_ends_by_the_watchdog(place):
  workdir = place / "stuck"
  long = ["watchdog.seconds=4", "watchdog.slow_seconds=60", "total_steps=4000"]
  processes = start(place, workdir, 2, *long)
  wait_for(lambda: len(read_rows(workdir / "metrics.jsonl")) > 3, processes)
  processes[1].send_signal(signal.SIGSTOP)  # alive, but it does not move
  began = time.monotonic()
  _, err = processes[0].communicate(timeout=120)
  waited = time.monotonic() - began
  processes[1].kill()
  ended(processes)
  assert processes[0].returncode == 75, err[-3000:]
  assert re.search(r"^vitscale: stuck: nothing finished for \d+ s", err, re.M)
  assert "watchdog.seconds = 4" in err or "watchdog.slow_seconds" in err
  print(f"ended {waited:.0f} s after its peer stopped")
  assert complete(workdir)


@pytest.mark.slow
def test_a_killed_peer_ends_the_others_and_the_run_goes_on(place, alone):
  workdir, began = place / "killed", time.time()
  processes = start(place, workdir, 2)
  wait_for(lambda: reached("save", workdir, began, 0), processes)
  processes[1].kill()
  (code, _, err), _ = ended(processes)
  # By itself, or by the runtime, which aborts where it notices first.
  assert code in (75, -6), err[-3000:]
  said = "vitscale: another process of this run is gone"
  assert code == -6 or err.count(said) == 1, err[-3000:]
  fine(ended(start(place, workdir, 2)))
  assert_same_losses(workdir, alone)


# ------------------------------------------------------------- bad starts


def test_a_coordinator_that_is_not_there(place):
  address = f"localhost:{free_port()}"
  process = command(
    *args(place, place / "no"), "--coordinator", address,
    "--num-processes", 2, "--process-id", 1, "--dist-timeout", 1,
  )  # fmt: skip
  assert process.returncode == 2 and process.stdout == ""
  said = complaint(process.stderr)
  assert f"process 1 can't reach the coordinator at {address}" in said
  assert "tried for 1 s" in said
  assert not (place / "no").exists()


def test_peers_that_do_not_come(place):
  address = f"localhost:{free_port()}"
  process = command(
    *args(place, place / "no"), "--coordinator", address,
    "--num-processes", 2, "--process-id", 0, "--dist-timeout", 2,
  )  # fmt: skip
  assert process.returncode == 2, process.stderr[-3000:]
  said = complaint(process.stderr, noise=True)
  assert f"did not find each other at {address} within 2 s" in said
  assert not (place / "no").exists()


def test_a_mesh_of_another_world(place):
  """Both numbers, and a mesh that would work; every process says so."""
  text = CONFIG.replace("  return", "  config.mesh = {'replica': 3}\n  return")
  (place / "world.py").write_text(text)
  found = ended(start(place, place / "world", 2, config="world.py"))
  fine(found, 2)
  for _, out, err in found:
    assert out == ""
    said = "mesh {'replica': 3} asks for 3 devices, there are 4 in 2 processes;"
    assert said in err and "for example mesh.replica=1 mesh.fsdp=4" in err, err
  assert not list((place / "world").glob("*.json*"))


@pytest.mark.slow
def test_two_trainers_in_one_workdir(place):
  """The second refuses and changes nothing; the first goes on."""
  workdir, logs = place / "both", place / "both" / "metrics.jsonl"
  (first,) = start(place, workdir, 1, "total_steps=4000")
  wait_for(lambda: len(read_rows(logs)) > 1, [first])
  second = command(*args(place, workdir, "total_steps=4000"))
  assert second.returncode == 2 and second.stdout == ""
  assert f"another process is running a run in {workdir}" in complaint(
    second.stderr
  )
  rows = len(read_rows(logs))
  wait_for(lambda: len(read_rows(logs)) > rows, [first])
  first.send_signal(signal.SIGTERM)
  fine(ended([first]), 75)
  assert complete(workdir)[-1] == read_json(workdir / "run.json")["step"]
  steps = [row["step"] for row in read_rows(logs)]
  assert steps == sorted(set(steps))  # one writer
