"""Mistakes with meshes are one line each, before anything compiles.

Through `vitscale train` on 8 fake devices, see mistakes.py; on one device:
tests/cli/test_bad_input.py, and for plans tests/test_plan.py.
"""

import json
from pathlib import Path

import pytest

from tests.runs import python

SAYS: dict[str, tuple[str, ...]] = {
  "activation_name": ("unknown axis name 'pach', did you mean 'patch'?",),
  "parameter_name": ("unknown axis name 'clases', did you mean 'classes'?",),
  "no_constraints": (
    "the model places no activation", "{'fsdp': 8}", "sharding.constrain(x, ",
  ),
  "idle_axis": (
    "mesh axis 'tensor' = 2 splits nothing of this model", "say mesh.tensor=1",
  ),
  "rule": ("rule 'expert' matches no parameter (one of: classes, embed",),
  "activation_rule": ("rule 'code' matches no activation (one of: batch, em",),
  "parameter": (
    "attention/out/kernel (2, 66, 132): 'embed' = 132 does not divide by mesh"
    " axis fsdp = 8; nearest that does: 128 or 136",
  ),
  "activation": (
    "'heads' = 2 does not divide by tensor = 4; nearest 4", "(16, 4, 2, 8)",
  ),
  "batch": (
    "batch_size=20 doesn't divide over {", "'fsdp': 8",
    "should be a multiple of 8, nearest 16 or 24",
  ),
  "microbatches": (
    "batch_size=16 doesn't divide", "and 4 microbatches", "a multiple of 32",
  ),
  "eval_batch": ("evals.val.batch_size=20 doesn't divide", "16 or 24"),
  "mesh_axis": ("no axis 'fspd', did you mean 'fsdp'?",),
  "world": (
    "asks for 24 devices, there are 8; sizes must multiply to 8, for example"
    " mesh.replica=1 mesh.fsdp=2 mesh.tensor=4",
  ),
  "old_context": ("inside of `with mesh:`", "give the sizes as config.mesh"),
  "explicit": ("inside of a mesh with Explicit axes", "as config.mesh"),
  "a_model_in_an_old_context": ("constraints on activations are lost",),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  process = python(
    Path(__file__).with_name("mistakes.py"), tmp_path_factory.mktemp("runs"),
    JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="8",
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-3000:]
  return json.loads(process.stdout.splitlines()[-1])


def test_without_a_mistake_it_compiles_and_trains(results):
  fine = results["fine"]
  assert fine["code"] == 0, fine
  assert {"jit(init)", "jit(step)"} <= set(fine["compiled"]), fine
  assert "run.json" in fine["wrote"]
  assert results.keys() == {"fine", *SAYS}


@pytest.mark.parametrize("name", SAYS)
def test_mistake(results, name):
  found = results[name]
  assert found["code"] == 2, found
  assert found["compiled"] == [] and found["wrote"] == [], found
  for part in SAYS[name]:
    assert part in found["err"], found
