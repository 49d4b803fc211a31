import gzip
import json
import re

import jax
import jax.numpy as jnp
import pytest

from vitscale.core import duration, profiler
from vitscale.core.errors import UserError
from vitscale.core.ledger import Ledger
from vitscale.core.log import read_rows


def steps_of(folder):
  """Numbers of the steps in the one trace below a folder."""
  (path,) = folder.rglob("*.trace.json.gz")
  assert [p.stat().st_size > 0 for p in folder.rglob("*.xplane.pb")] == [True]
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  found = [e for e in events if e.get("name") == profiler.NAME]
  assert all(event["dur"] > 0 for event in found)
  return sorted(int(event["args"]["step_num"]) for event in found)


def walk(workdir, window, steps, total=10):
  profile = profiler.Profile(window, workdir, Ledger(workdir), total)
  update, state = jax.jit(lambda x: x + 1), jnp.zeros(())
  for number in steps:
    state = profile.around(update, number)(state)
  assert int(state) == len(steps)
  profile.close()
  return profile


def test_only_the_steps_of_the_window(tmp_path, capsys):
  walk(tmp_path, (2, 5), range(8))
  assert steps_of(tmp_path / "profile") == [2, 3, 4]
  said = capsys.readouterr().err
  path = re.search(r"profile of steps 2:5: (\S+);", said)[1]
  assert path.endswith(".trace.json.gz") and "perfetto" in said
  (event,) = read_rows(tmp_path / "events.jsonl")
  assert event["event"] == "profile" and event["steps"] == "2:5"


def test_a_run_that_goes_on_inside_the_window(tmp_path, capsys):
  walk(tmp_path, (2, 5), range(4, 8))
  assert steps_of(tmp_path / "profile") == [4]
  said = capsys.readouterr().err
  assert "goes on from step 4, traces 4:5" in said
  assert "profile of steps 4:5:" in said


def test_a_run_that_goes_on_behind_the_window(tmp_path, capsys):
  walk(tmp_path, (2, 5), range(5, 8))
  assert not (tmp_path / "profile").exists()
  assert "goes on from step 5, no trace" in capsys.readouterr().err


def test_a_run_that_stops_inside_the_window(tmp_path, capsys):
  walk(tmp_path, (2, 9), range(4))
  assert steps_of(tmp_path / "profile") == [2, 3]
  assert "profile of steps 2:4:" in capsys.readouterr().err


def test_somebody_else_traces(tmp_path, capsys):
  with jax.profiler.trace(str(tmp_path / "other")):
    walk(tmp_path, (2, 5), range(8))
  assert "warning: no profile: " in capsys.readouterr().err
  assert not (tmp_path / "profile").exists()


def test_a_run_that_is_shorter(tmp_path):
  with pytest.raises(UserError, match=r"steps=2:11: the run has only 10 steps"):
    walk(tmp_path, (2, 11), range(8))


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("20:30", "should be steps=A:B"),
    ("steps=20", "should be steps=A:B"),
    ("steps=-1:3", "should be steps=A:B"),
    ("steps=3:3", "holds no step"),
    ("steps=5:3", "holds no step"),
  ],
)
def test_bad_windows(text, match):
  with pytest.raises(UserError, match=match):
    duration.window(text)


def test_a_good_window():
  assert duration.window("steps=20:30") == (20, 30)
