"""The local launcher with real processes: isolation, death, interruption."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vitscale.core.errors import UserError
from vitscale.launch import local, machine

FAKE = Path(__file__).with_name("fake_train.py")
TRAIN = f"{FAKE}:train"


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def job(tmp_path, name, act="go", **config):
  cost = config.pop("cost", 1.0)
  return {
    "name": name,
    "config": {"act": act, **config},
    "workdir": tmp_path / name,
    "cost": cost,
    "log": tmp_path / "logs" / f"{name}.log",
  }


def wait_for(condition, seconds=120.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.05)


def alive(pid):
  try:
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
  except OSError:
    return False


def test_one_failure_never_ends_the_others(tmp_path):
  jobs = [
    job(tmp_path, "good", "print"),
    job(tmp_path, "raises", "raise"),
    job(tmp_path, "dies", "die"),
    job(tmp_path, "exits", "exit"),
    job(tmp_path, "greedy", "memory"),
    *(job(tmp_path, f"more{i}") for i in range(4)),
  ]
  events = []
  results = local.run_all(
    jobs, workers=2, train=TRAIN, progress=lambda *x: events.append(x)
  )
  assert set(results) == {j["name"] for j in jobs}
  status = {name: r["status"] for name, r in results.items()}
  assert status.pop("raises") == "failed"
  assert status.pop("dies") == "failed"
  assert status.pop("exits") == "failed"
  assert status.pop("greedy") == "failed"
  assert set(status.values()) == {"finished"}
  assert results["raises"]["error"] == "ValueError: bad luck"
  assert results["dies"]["error"].startswith("killed by signal 9")
  assert results["exits"]["error"] == "worker exited with code 3"
  assert "hello from the run" in (tmp_path / "logs/good.log").read_text()
  assert "Traceback" in Path(results["raises"]["log"]).read_text()
  assert results["good"]["step"] == 3
  kinds = [kind for kind, _ in events]
  assert kinds.count("start") == kinds.count("end") == len(jobs)


def test_workers_are_persistent_and_pinned(tmp_path):
  jobs = [job(tmp_path, f"run{i}", pause=0.05) for i in range(6)]
  cores = machine.cores()
  with local.Pool(len(cores), train=TRAIN) as pool:
    first = pool.run(jobs)
    second = pool.run([job(tmp_path, "later")])
    processes = [w.process for w in pool.workers]
  pids = {process.pid for process in processes}
  # They left when asked to, none had to be killed.
  assert {process.wait() for process in processes} <= {0, 128 + 15}
  used = {r["pid"] for r in (first | second).values()}
  assert used <= pids
  assert len(pids) <= len(cores)
  assert all(len(r["cores"]) == 1 for r in first.values())
  assert not any(alive(pid) for pid in pids)


def test_killed_worker_is_replaced(tmp_path):
  """kill -9 from outside in the middle of a run; a rerun resumes it."""
  jobs = [
    job(tmp_path, "victim", steps=150, pause=0.02, cost=9.0),
    *(job(tmp_path, f"other{i}") for i in range(3)),
  ]

  def progress(kind, payload):
    if kind == "step" and payload["name"] == "victim" and payload["step"] > 3:
      run = json.loads((tmp_path / "victim/run.json").read_text())
      os.kill(run["pid"], signal.SIGKILL)

  results = local.run_all(jobs, workers=1, train=TRAIN, progress=progress)
  assert results["victim"]["status"] == "failed"
  assert results["victim"]["error"].startswith("killed by signal 9")
  assert all(results[f"other{i}"]["status"] == "finished" for i in range(3))
  again = local.run_all([jobs[0]], workers=1, train=TRAIN)
  assert again["victim"]["status"] == "finished"
  assert again["victim"]["first"] > 3


SCRIPT = """
import sys
from pathlib import Path
from vitscale.launch import local

out, train, act, grace = sys.argv[1:]
jobs = [
  dict(name=f"run{i}", config=dict(act=act, steps=400, pause=0.05, seed=i),
       workdir=Path(out) / f"run{i}")
  for i in range(4)
]
try:
  with local.Pool(2, train=train, grace=float(grace)) as pool:
    pool.run(jobs)
except local.Interrupted as stop:
  print({n: r["status"] for n, r in stop.results.items()})
  sys.exit(128 + stop.signum)
"""


def parent(tmp_path, act="go", grace=20):
  script = tmp_path / "parent.py"
  script.write_text(textwrap.dedent(SCRIPT))
  path = os.pathsep.join(x or os.getcwd() for x in sys.path)
  process = subprocess.Popen(
    [sys.executable, str(script), str(tmp_path), TRAIN, act, str(grace)],
    env={**os.environ, "PYTHONPATH": path},
    stdout=subprocess.PIPE,
    text=True,
  )
  runs = [tmp_path / f"run{i}/run.json" for i in range(2)]
  wait_for(lambda: all(path.exists() for path in runs))
  time.sleep(0.3)
  return process, [json.loads(path.read_text())["pid"] for path in runs]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_resumable_runs(tmp_path, signum):
  process, pids = parent(tmp_path)
  process.send_signal(signum)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 128 + signum
  assert out.count("interrupted") == 2
  assert "run2" not in out
  run = json.loads((tmp_path / "run0/run.json").read_text())
  assert run["status"] == "interrupted"
  assert run["step"] > 0
  assert not any(alive(pid) for pid in pids)


def test_stubborn_runs_are_killed_after_the_grace(tmp_path):
  process, pids = parent(tmp_path, act="stubborn", grace=1)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM
  assert not any(alive(pid) for pid in pids)


def test_no_orphans_when_the_parent_is_killed(tmp_path):
  process, pids = parent(tmp_path)
  process.kill()
  process.communicate()
  wait_for(lambda: not any(alive(pid) for pid in pids))
  run = json.loads((tmp_path / "run0/run.json").read_text())
  assert run["status"] == "interrupted"


def test_train_that_cannot_be_imported(tmp_path):
  jobs = [job(tmp_path, "a"), job(tmp_path, "b")]
  results = local.run_all(jobs, workers=2, train="no_such_module:train")
  for result in results.values():
    assert result["status"] == "failed"
    assert "no worker could start" in result["error"]
    assert "no_such_module" in result["error"]


def test_longest_first_unless_a_shorter_one_is_warm():
  def fake(*groups):
    return local._Worker(None, None, None, groups=list(groups))

  worker, other = fake("a"), fake("b")
  jobs = [
    {"name": "b", "cost": 10.0, "group": "b"},
    {"name": "a", "cost": 8.0, "group": "a"},
    {"name": "c", "cost": 9.0, "group": "c"},
  ]
  choose = lambda w: local._choose(jobs, w, [worker, other])["name"]
  assert choose(worker) == "a"
  assert choose(other) == "b"
  jobs[2]["cost"] = 20.0
  assert choose(worker) == choose(other) == "c"


def test_slots(monkeypatch):
  with pytest.raises(UserError, match="at least one"):
    machine.slots(0)
  (slot,) = machine.slots(1)
  assert "--xla_cpu_multi_thread_eigen=false" in slot.env["XLA_FLAGS"]
  monkeypatch.setattr(machine, "gpus", lambda: ["0", "3"])
  ids = [slot.env["CUDA_VISIBLE_DEVICES"] for slot in machine.slots()]
  assert ids == ["0", "3"]
  shared = machine.slots(4)
  assert [s.env["CUDA_VISIBLE_DEVICES"] for s in shared] == ["0", "3"] * 2
  assert shared[0].env["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
  assert "NPROC" not in shared[0].env


def test_no_gpu_when_jax_is_told_cpu(monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
  assert machine.gpus() == []


@pytest.mark.parametrize(
  ("asked", "libtpu", "chips", "want"),
  [
    ("", True, False, {"JAX_PLATFORMS": "cpu"}),
    ("", True, True, {}),
    ("", False, False, {}),
    ("tpu,cpu", True, False, {}),
  ],
)
def test_no_search_for_a_tpu_that_is_not_here(
  monkeypatch, asked, libtpu, chips, want
):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  if asked:
    monkeypatch.setenv("JAX_PLATFORMS", asked)
  spec = lambda name: object() if libtpu and name == "libtpu" else None
  monkeypatch.setattr(machine.importlib.util, "find_spec", spec)
  monkeypatch.setattr(machine, "has_tpu", lambda: chips)
  assert machine.platform_env() == want
  left_to_others = {} if asked else {"JAX_PLATFORMS": "cpu"}
  assert machine.platform_env(accelerator=False) == left_to_others
