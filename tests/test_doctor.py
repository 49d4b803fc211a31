"""`vitscale doctor`: every kind of damage is named, nothing is changed."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.runs import complaint, contents
from vitscale import cli
from vitscale.core import leaves, manifest
from vitscale.core.checkpoint import MANIFEST, CheckpointStore
from vitscale.core.lock import hold
from vitscale.core.log import write_json
from vitscale.core.manifest import Damaged
from vitscale.doctor import examine


def state(step):
  kernel = jax.random.normal(jax.random.key(step), (64, 48))
  return {"step": jnp.int32(step), "params": {"kernel": kernel}}


@pytest.fixture
def run(tmp_path):
  """A workdir with steps 1 to 4 and a run.json."""
  store = CheckpointStore(tmp_path / "run" / "checkpoints", keep=9)
  for step in range(1, 5):
    store.save(step, state(step), {})
  store.close()
  write_json(tmp_path / "run" / "run.json", {"status": "running"})
  return tmp_path / "run"


@pytest.fixture
def doctor(capfd):
  def call(folder, code=0):
    before = contents(folder)
    capfd.readouterr()
    assert cli.main(["doctor", str(folder), "--json"]) == code
    assert contents(folder) == before
    result = json.loads(capfd.readouterr().out)
    steps = {row["step"]: row for row in result["steps"]}
    return result, steps

  return call


def test_a_good_run(run, doctor):
  for folder in (run, run / "checkpoints"):
    result, steps = doctor(folder)
    assert {r["status"] for r in steps.values()} == {"verified"}
    assert list(steps) == [1, 2, 3, 4]
    assert result["resumable_from"] == 4
    assert result["workdir"] == str(run)
    assert result["run"] == "killed" and result["strays"] == []
  with hold(run, "a run"):
    assert doctor(run)[0]["run"] == "running"


def biggest(folder):
  return max((folder / "state").rglob("*"), key=lambda p: p.stat().st_size)


def test_a_run_that_has_seen_trouble(run, doctor):
  place = run / "checkpoints"
  data = bytearray(biggest(place / "4").read_bytes())
  data[len(data) // 2] ^= 4
  biggest(place / "4").write_bytes(bytes(data))
  facts = manifest.read(place / "3")
  facts["leaves"]["step"][2] = "0" * 16
  manifest.write(place / "3", facts)
  (place / "2" / MANIFEST).write_text("{}")
  shutil.copytree(place / "4", place / "6.bad")
  (place / "7" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
  (place / "8").mkdir()
  (place / "notes").write_text("mine")
  result, steps = doctor(run, code=1)
  assert {k: r["status"] for k, r in steps.items()} == {
    1: "verified", 2: "damaged", 3: "damaged", 4: "damaged",
    6: "quarantined", 7: "unfinished",
  }  # fmt: skip
  assert steps[4]["bad_leaves"] == ["params/kernel"]
  assert steps[3]["bad_leaves"] == ["step"]
  assert MANIFEST in steps[2]["reason"]
  assert result["resumable_from"] == 1
  assert result["strays"] == ["8", "notes"]


@pytest.mark.parametrize("half_way", [True, False])
def test_a_step_that_its_run_deletes_meanwhile(run, monkeypatch, half_way):
  """Retention takes the manifest first; that is no damage."""
  load = leaves.load

  def late(folder, *args):
    found = load(folder, *args)
    if folder.name != "2":
      return found
    (folder / MANIFEST).unlink()
    if not half_way:
      shutil.rmtree(folder)
    return {}, Damaged(folder, "a file is not there")

  monkeypatch.setattr(leaves, "load", late)
  result = examine(run)
  assert [row["step"] for row in result["steps"]] == [1, 3, 4]
  assert {row["status"] for row in result["steps"]} == {"verified"}
  assert result["resumable_from"] == 4


def test_text(run, capfd):
  assert cli.main(["doctor", str(run)]) == 0
  out = capfd.readouterr().out
  assert "verified" in out and "resumes from step 4" in out


def test_nothing_to_look_at(tmp_path, capfd):
  for folder, says in (
    (tmp_path / "none", "no folder"),
    (tmp_path, "is not a run"),
  ):
    assert cli.main(["doctor", str(folder), "--json"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and says in complaint(err)
  write_json(tmp_path / "run.json", {"status": "running"})
  assert cli.main(["doctor", str(tmp_path)]) == 2
  assert "no checkpoints yet" in complaint(capfd.readouterr().err)
