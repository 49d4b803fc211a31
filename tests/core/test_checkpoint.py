import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitscale.core.checkpoint import MANIFEST, CheckpointStore
from vitscale.core.errors import UserError


def state(scale=1.0):
  params = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3) * scale}}
  return {
    "step": jnp.int32(7),
    "params": params,
    "opt": optax.adam(1e-3).init(params),
    "mutable": {},
  }


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def test_round_trip_with_optimizer_state_and_empty_collections(tmp_path):
  store = CheckpointStore(tmp_path / "c")
  store.save(7, state(), {"config_digest": "x"})
  store.close()
  back, meta = CheckpointStore(tmp_path / "c").restore(abstract(state()))
  assert meta["config_digest"] == "x" and meta["step"] == 7
  assert jax.tree.structure(back) == jax.tree.structure(state())
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state())):
    np.testing.assert_array_equal(a, b)


def test_keeps_the_last_steps_and_restores_the_newest(tmp_path):
  store = CheckpointStore(tmp_path, keep=2)
  for step in (1, 2, 3):
    store.save(step, state(step), {})
  store.close()
  assert store.steps() == [2, 3]
  assert not (tmp_path / "1").exists()
  back, _ = store.restore(abstract(state()))
  np.testing.assert_array_equal(back["params"]["a"]["kernel"][0, 1], 3.0)
  back, _ = store.restore(abstract(state()), 2)
  np.testing.assert_array_equal(back["params"]["a"]["kernel"][0, 1], 2.0)
  with pytest.raises(UserError, match=r"no checkpoint of step 1 .*: 2, 3"):
    store.restore(abstract(state()), 1)


def test_what_has_no_manifest_is_not_a_checkpoint(tmp_path):
  store = CheckpointStore(tmp_path)
  store.save(1, state(), {})
  store.close()
  (tmp_path / "9").mkdir()  # a stray folder
  (tmp_path / "9" / "junk").write_text("junk")
  shutil.copytree(tmp_path / "1", tmp_path / "5")
  (tmp_path / "5" / MANIFEST).unlink()  # killed before the commit
  assert store.steps() == [1]
  # Such a step can be saved again.
  store.save(5, state(5), {})
  store.close()
  assert store.steps() == [1, 5]


def test_empty_store(tmp_path):
  with pytest.raises(UserError, match="no complete checkpoint"):
    CheckpointStore(tmp_path / "none").restore(abstract(state()))


def test_a_tree_that_does_not_fit_lists_the_difference(tmp_path):
  store = CheckpointStore(tmp_path)
  store.save(1, state(), {})
  store.close()
  other = abstract(state())
  other["params"] = {
    "a": {"kernel": jax.ShapeDtypeStruct((2, 4), jnp.float32)},
    "b": jax.ShapeDtypeStruct((1,), jnp.float32),
  }
  with pytest.raises(UserError) as error:
    store.restore(other)
  assert "+params/b" in str(error.value)
  assert "~params/a/kernel" in str(error.value)


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
  (tmp_path / "c").write_text("not a folder")
  store = CheckpointStore(tmp_path / "c")
  with pytest.raises(UserError, match="could not be written"):
    store.save(1, state(), {})
    store.wait()
