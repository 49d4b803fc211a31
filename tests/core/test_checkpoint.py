import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitscale.core import manifest as manifest_lib
from vitscale.core.checkpoint import MANIFEST, CheckpointStore
from vitscale.core.errors import UserError
from vitscale.core.manifest import Damaged


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


# ------------------------------------------------------- verified, or not


def two_steps(folder, **options):
  said = []
  store = CheckpointStore(folder, say=said.append, **options)
  for step in (1, 2):
    store.save(step, state(step), {})
  store.close()
  return store, said


def spoil(store, step, leaf="params/a/kernel"):
  """Gives a leaf another digest: as a flipped bit in its file would."""
  manifest = manifest_lib.read(store.directory / str(step))
  manifest["leaves"][leaf][2] = "0" * 16
  manifest_lib.write(store.directory / str(step), manifest)


def kernel(back):
  return float(back["params"]["a"]["kernel"][0, 1])


def test_a_damaged_step_is_told_and_the_one_before_restored(tmp_path):
  store, said = two_steps(tmp_path)
  spoil(store, 2)
  back, meta = store.restore(abstract(state()))
  assert meta["step"] == 1 and kernel(back) == 1.0
  assert "2 is damaged" in said[0] and "params/a/kernel" in said[0]
  assert (tmp_path / "2").exists()  # a reader changes nothing
  with pytest.raises(Damaged, match="digests: params/a/kernel") as error:
    store.restore(abstract(state()), 2)
  assert error.value.leaves == ["params/a/kernel"]


def test_a_run_sets_damaged_steps_aside_and_saves_them_again(tmp_path):
  store, said = two_steps(tmp_path)
  for name in ("2.bad", "2.bad2"):
    spoil(store, 2)
    back, _ = store.resume(abstract(state()))
    assert kernel(back) == 1.0
    assert (tmp_path / name / MANIFEST).exists()
    assert f"renamed {tmp_path / '2'} to {name}" in said[-1]
    assert store.steps() == [1]
    store.save(2, state(2), {})
    store.wait()
  assert store.steps() == [1, 2]


def test_nothing_left_to_trust_is_an_error_again_and_again(tmp_path):
  store, _ = two_steps(tmp_path, keep=1)
  assert store.steps() == [2]
  spoil(store, 2)
  for _ in range(2):
    assert store.prepare()  # so a run does not silently begin anew
    with pytest.raises(UserError, match=r"verified \(2.bad damaged\)"):
      store.resume(abstract(state()))


@pytest.mark.parametrize(
  ("old", "new", "says"),
  [
    (b'"step": 2', b'"step": 3', "doesn't have its checksum"),
    (b'"checksum"', b'"checksun"', "doesn't have its checksum"),
    (b'"leaves"', b'"leafes"', "can't be read"),
    (b"{", b"[", "can't be read"),
  ],
)
def test_the_manifest_guards_itself(tmp_path, old, new, says):
  store, _ = two_steps(tmp_path)
  path = tmp_path / "2" / MANIFEST
  path.write_bytes(path.read_bytes().replace(old, new, 1))
  assert store.steps() == [1]
  with pytest.raises(Damaged, match=says):
    store.restore(abstract(state()), 2)


def test_a_copied_step_is_not_another_step(tmp_path):
  store, _ = two_steps(tmp_path)
  shutil.copytree(tmp_path / "2", tmp_path / "9")
  assert store.steps() == [1, 2]
  _, meta = store.restore(abstract(state()))
  assert meta["step"] == 2


# ------------------------------------------------ failed saves, left-overs


def test_one_failed_save_is_tried_again_two_are_an_error(tmp_path):
  store, said = two_steps(tmp_path)
  (tmp_path / "3").write_text("a file in the way")
  store.save(3, state(3), {})
  assert store.check(block=True)  # save again, please
  assert len(said) == 1 and str(tmp_path / "3") in said[0]
  assert not store.check()  # told once
  store.save(4, state(4), {})
  store.wait()
  assert store.steps() == [2, 4]

  for step in (5, 6):
    (tmp_path / str(step)).write_text("in the way")
  store.save(5, state(5), {})
  with pytest.raises(UserError, match=r"6 and before it .*5 could not be"):
    store.save(6, state(6), {}), store.check(block=True)
  assert store.steps() == [2, 4]  # what was there stays


def test_a_complete_step_is_never_written_over(tmp_path):
  store, _ = two_steps(tmp_path)
  with pytest.raises(UserError, match="2 exists"):
    store.save(2, state(5), {})
  assert kernel(store.restore(abstract(state()))[0]) == 2.0


def test_left_overs_go_and_strangers_stay(tmp_path):
  store, _ = two_steps(tmp_path)
  left = tmp_path / "7" / "state.orbax-checkpoint-tmp"
  left.mkdir(parents=True)
  (left / "d").write_text("half")
  (tmp_path / "2" / f".{MANIFEST}.123").write_text("torn")
  (tmp_path / "3").mkdir()
  (tmp_path / "3" / "mine").write_text("a stranger's")
  assert store.prepare()
  assert not (tmp_path / "7").exists() and (tmp_path / "3" / "mine").exists()
  assert not list((tmp_path / "2").glob(".*"))
  assert store.steps() == [1, 2]
  assert not CheckpointStore(tmp_path / "none").prepare()


def test_retention_keeps_the_last_and_every_nth(tmp_path):
  store = CheckpointStore(tmp_path, keep=1, keep_every=2)
  for step in range(1, 6):
    store.save(step, state(step), {})
  store.close()
  assert store.steps() == [2, 4, 5]


# ------------------------------------------------------------ a part of it


def test_a_part_by_an_explicit_map(tmp_path):
  store, _ = two_steps(tmp_path)
  want = {"weights": abstract(state()["params"])}
  back = store.part(want, {"weights": "params"})
  assert float(back["weights"]["a"]["kernel"][0, 1]) == 2.0
  one = store.part(
    {"a": {"b": want["weights"]["a"]["kernel"]}, "c": want["weights"]},
    {"a/b": "opt/0/mu/a/kernel", "c": "params"}, 1,
  )  # fmt: skip
  np.testing.assert_array_equal(one["a"]["b"], 0)
  assert float(one["c"]["a"]["kernel"][0, 1]) == 1.0


def test_a_part_that_does_not_fit_lists_the_difference(tmp_path):
  store, _ = two_steps(tmp_path)
  leaf = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  with pytest.raises(UserError, match=r"no source for 'b/x'.* mean 'b/y'"):
    store.part({"b": {"x": leaf}}, {"b/y": "params"})
  with pytest.raises(UserError) as error:
    store.part({"a": {"colonel": leaf}}, {"a": "params/a"})
  assert "-params/a/kernel float32[2, 3];" in str(error.value)
  assert "+params/a/colonel float32[2, 3]" in str(error.value)
  wide = jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)
  with pytest.raises(UserError) as error:
    store.part({"k": wide}, {"k": "params/a/kernel"})
  said = "~params/a/kernel float32[2, 3] -> bfloat16[2, 4]"
  assert str(error.value).endswith(said)


def test_a_long_difference_shows_some_of_each_kind(tmp_path):
  stored = {f"old/{i}": [[2], "float32", ""] for i in range(9)}
  stored |= {f"both/{i}": [[2], "float32", ""] for i in range(6)}
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  wanted = {f"new/{i}": leaf(2) for i in range(5)}
  wanted |= {f"both/{i}": leaf(3 if i < 5 else 2) for i in range(6)}
  with pytest.raises(UserError) as error:
    manifest_lib.check_fits(tmp_path, stored, wanted)
  said = str(error.value).split("~ differs): ")[1].split("; ")
  assert said == [
    *(f"-old/{i} float32[2]" for i in range(4)), "and 5 more -",
    *(f"+new/{i} float32[2]" for i in range(4)), "and 1 more +",
    *(f"~both/{i} float32[2] -> float32[3]" for i in range(4)), "and 1 more ~",
  ]  # fmt: skip
